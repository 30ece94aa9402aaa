"""From the last byte of a dropped model of 512 MiB until it is ready for use, beyond one pass of SHA-256 over it.

Watcher, hasher and catalog are a process of their own (`darkroom run`), on a real bus. The file comes in three ways in
turns: written slowly until its writer closes it, copied by cp, and renamed from X.crdownload. The clock runs from the
close, the end of cp and the rename until evt.model.ready is heard here; the pass is the hasher's own function over the
same file, warm, right after. Budget: at most half a second beyond it.
"""

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
from anyio import to_thread

from agents.ingest.hashing.digests import hash_file
from agents.storage.paths import stat_of
from bus.client import connect
from bus.server import local_server
from bus.subjects import MODEL_READY
from schemas.settings import BusSettings
from tests.bench.figures import Figure, p50, seconds

SIZE = 512 * 1024**2
BLOCK = 4 * 1024**2
PAUSE = 0.01
"""Seconds between two blocks of the slow writer."""

ROUNDS = 5
STORE = 1024**3
PATIENCE = 60.0

Way = Callable[[Path, Path], float]
"""Brings a file in; returns the time (of `perf_counter`) of its last byte."""


def written_slowly(source: Path, target: Path) -> float:
    with source.open("rb") as whole, target.open("wb") as file:
        while block := whole.read(BLOCK):
            file.write(block)
            time.sleep(PAUSE)
    return time.perf_counter()


def copied(source: Path, target: Path) -> float:
    subprocess.run(["cp", source, target], check=True)
    return time.perf_counter()


def renamed(source: Path, target: Path) -> float:
    part = target.with_name(target.name + ".crdownload")
    shutil.copyfile(source, part)
    part.rename(target)
    return time.perf_counter()


WAYS: dict[str, Way] = {"written slowly": written_slowly, "cp": copied, "renamed from .crdownload": renamed}


async def figures(folder: Path) -> list[Figure]:
    """Each way in turns, each time with another content."""
    data = folder / "data"
    (data / "models").mkdir(parents=True)
    source = made(folder / "source")
    beyond: dict[str, list[float]] = {name: [] for name in WAYS}
    passes: list[float] = []
    settings = BusSettings(store_bytes=STORE)
    with (
        local_server(folder / "nats", port=0, store_bytes=STORE) as server,
        agents(server.url, data, "migrator", "watcher", "hasher"),
    ):
        async with connect(server.url, settings, name="bench") as bus:
            for turn in range(ROUNDS):
                for number, (name, way) in enumerate(WAYS.items()):
                    sha256 = another(source, turn * len(WAYS) + number)
                    target = data / "models" / f"{turn}-{number}.safetensors"
                    async with bus.listen(MODEL_READY.filter(sha256=sha256)) as heard:
                        last_byte = await to_thread.run_sync(way, source, target)
                        with anyio.fail_after(PATIENCE):
                            await heard.receive()
                        took = time.perf_counter() - last_byte
                    passes.append(seconds(lambda at=target: hash_file(str(at), expected=stat_of(at.stat()))))
                    beyond[name].append(took - passes[-1])
                    target.unlink()
    aside = f"the pass {p50(passes):.2f} s"
    return [
        Figure(
            what=f"last byte → model ready, beyond one pass: {name}",
            value=p50(values),
            unit="s",
            at_most=0.5,
            aside=f"most {max(values):.2f} s; {aside}",
        )
        for name, values in beyond.items()
    ]


def made(path: Path) -> Path:
    """A safetensors file of SIZE bytes and its header."""
    table = json.dumps({"w": {"dtype": "U8", "shape": [SIZE], "data_offsets": [0, SIZE]}}).encode()
    block = os.urandom(BLOCK)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(table)) + table)
        for _ in range(SIZE // BLOCK):
            file.write(block)
    return path


def another(path: Path, number: int) -> str:
    """Make it another content by its last bytes; returns its SHA-256."""
    with path.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(struct.pack("<Q", number))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def agents(url: str, data: Path, *names: str, **settings: str) -> Iterator[int]:
    """These agents in one process, ready; its id. `settings` are variables of the environment."""
    command = [sys.executable, "-m", "agents.cli.app", "run", *names, "--nats", url, "--data", str(data)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, env=os.environ | {"DARKROOM_LOG_LEVEL": "error"} | settings, text=True
    )
    try:
        assert process.stdout
        for name in names:
            assert process.stdout.readline().startswith(f"ready {name}"), f"{name} did not become ready"
        yield process.pid
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE)
