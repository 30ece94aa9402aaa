"""From the last byte of a file of 4 GiB, written at 400 MB/s, until evt.model.ready: hashed as it grows, or afterwards.

Two crews (watcher, hasher and catalog in one process each, `hasher.following` on and off) take the same kinds of files
in turns: one that is only appended to, one whose header its writer fills in at the very end, one whose middle is
overwritten then, and one that cp brings as fast as it can. What both say is compared with an ordinary pass over the
file, warm, right after. The figures are ratios, with following to without; CPU is that of a crew's process from the
first byte to the end. FOLLOWING_BYTES in the environment makes the files smaller.
"""

import json
import os
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

import anyio
import psutil
from anyio import to_thread

from agents.ingest.hashing.digests import hash_file
from agents.storage.paths import stat_of
from bus.client import Bus, connect
from bus.server import local_server
from bus.subjects import MODEL_READY
from schemas.settings import BusSettings
from tests.bench.bench_arrival import PATIENCE, STORE, agents
from tests.bench.figures import Figure, ratios

SIZE = int(os.environ.get("FOLLOWING_BYTES", 4 * 1024**3))
RATE = 400e6
BLOCK = 8 * 1024**2
ROUNDS = 3

Writer = Callable[[Path, bytes], None]
"""Brings a file made of so many times this block, behind its header."""


class Arrival(NamedTuple):
    """Seconds: from the last byte until the model is ready; of CPU for all of it; of an ordinary pass afterwards."""

    took: float
    cpu: float
    ordinary: float


HEADER = json.dumps({"w": {"dtype": "U8", "shape": [SIZE], "data_offsets": [0, SIZE]}}).encode()
HEADER = struct.pack("<Q", len(HEADER)) + HEADER


def appended(path: Path, block: bytes, head: bytes = HEADER, last: tuple[int, bytes] = (0, b"")) -> None:
    """Slowly, from its first byte to its last; then it goes back to a place and writes there."""
    began = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        file.write(head)
        for done in range(0, SIZE, BLOCK):
            file.write(block)
            time.sleep(max(0.0, began + done / RATE - time.perf_counter()))
        place, text = last
        file.seek(place)
        file.write(text)


def patched(path: Path, block: bytes) -> None:
    """The same, by a writer that knows its header only at the end."""
    appended(path, block, bytes(len(HEADER)), (0, HEADER))


def overwritten(path: Path, block: bytes) -> None:
    """The same, by a writer that goes back to the middle."""
    appended(path, block, last=(SIZE // 2, b"overwritten"))


def copied(path: Path, block: bytes) -> None:
    """By cp."""
    source = path.parents[2] / "source"
    if not source.exists():
        with source.open("wb") as file:
            file.write(HEADER)
            for _ in range(0, SIZE, BLOCK):
                file.write(block)
    with source.open("r+b") as file:
        file.seek(-len(block), os.SEEK_END)
        file.write(block)
    subprocess.run(["cp", "--reflink=never", source, path], check=True)


WRITERS: dict[str, Writer] = {
    "appended": appended,
    "header patched": patched,
    "middle overwritten": overwritten,
    "cp": copied,
}


async def figures(folder: Path) -> list[Figure]:
    """Each kind of writer in turns, with following and without."""
    found: list[Figure] = []
    async with crew(folder / "with", "true") as following, crew(folder / "without", "false") as plain:
        for name, writer in WRITERS.items():
            with_it: list[Arrival] = []
            without: list[Arrival] = []
            for turn in range(ROUNDS):
                for one, into in ((following, with_it), (plain, without))[:: -1 if turn % 2 else 1]:
                    into.append(await arrival(*one, writer))
            ordinary = median(one.ordinary for one in (*with_it, *without))
            for what, field in (("last byte → model ready", "took"), ("CPU", "cpu")):
                ones, others = ([getattr(one, field) for one in many] for many in (with_it, without))
                aside = f"{median(ones):.2f} s, {median(others):.2f} s without; an ordinary pass {ordinary:.2f} s"
                found.append(Figure(what=f"{what}, {name}", value=median(ratios(ones, others)), aside=aside))
    return found


@asynccontextmanager
async def crew(folder: Path, following: str) -> AsyncIterator[tuple[Bus, Path, int]]:
    """Agents on a bus and a folder of their own."""
    models = folder / "data" / "models"
    models.mkdir(parents=True)
    with local_server(folder / "nats", port=0, store_bytes=STORE) as server:
        names = ("migrator", "watcher", "hasher")
        with agents(server.url, folder / "data", *names, DARKROOM_HASHER__FOLLOWING=following) as pid:
            async with connect(server.url, BusSettings(store_bytes=STORE), name="bench") as bus:
                yield bus, models, pid


async def arrival(bus: Bus, models: Path, pid: int, writer: Writer) -> Arrival:
    """One file, brought, hashed, compared and removed."""
    target, process = models / "large.safetensors", psutil.Process(pid)
    used = sum(process.cpu_times()[:4])
    async with bus.listen(MODEL_READY.filter()) as heard:
        await to_thread.run_sync(writer, target, os.urandom(BLOCK))
        last_byte = time.perf_counter()
        with anyio.fail_after(PATIENCE):
            fact = MODEL_READY.decode((await heard.receive()).data)
        took = time.perf_counter() - last_byte
    used = sum(process.cpu_times()[:4]) - used
    began = time.perf_counter()
    digests = await to_thread.run_sync(lambda: hash_file(str(target), expected=stat_of(target.stat())))
    assert digests.sha256 == fact.model.sha256
    target.unlink()
    return Arrival(took, used, time.perf_counter() - began)
