"""Large files as they really arrive: 2 GiB, each settled once, never early, with the right SHA-256 (slow)."""

import hashlib
import json
import os
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from bus.client import Bus
from bus.subjects import FILE_HASHED, FILE_SETTLED, MODEL_READY
from schemas.files import Hashed, Settled
from tests.pipeline.conftest import Agents, bus_of, drop

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SIZE = 2 * 1024**3
BLOCK = 4 * 1024**2
STALL = 10.0

Writer = Callable[[Path, Path], float]
"""Brings `source` into the folder as `target`; returns the time its last writer had it open (Unix seconds)."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A safetensors file of 2 GiB, and its SHA-256."""
    path = tmp_path_factory.mktemp("source") / "whole"
    table = json.dumps({"w": {"dtype": "U8", "shape": [SIZE], "data_offsets": [0, SIZE]}}).encode()
    header = struct.pack("<Q", len(table)) + table
    digest, block = hashlib.sha256(header), os.urandom(BLOCK)
    with path.open("wb") as file:
        file.write(header)
        for _ in range(SIZE // BLOCK):
            file.write(block)
            digest.update(block)
    yield path, digest.hexdigest()
    path.unlink()


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def blocks(source: Path) -> Iterator[bytes]:
    with source.open("rb") as file:
        while block := file.read(BLOCK):
            yield block


def written_with_a_stall(source: Path, target: Path) -> float:
    with target.open("wb") as file:
        for number, block in enumerate(blocks(source)):
            file.write(block)
            if number == 100:
                file.flush()
                threading.Event().wait(STALL)
        return time.time()


def copied(source: Path, target: Path) -> float:
    began = time.time()
    subprocess.run(["cp", source, target], check=True)
    return began


def renamed_from_a_download(source: Path, target: Path) -> float:
    part = target.with_name(target.name + ".crdownload")
    shutil.copyfile(source, part)
    closed = time.time()
    part.rename(target)
    return closed


def synchronised_in_place(source: Path, target: Path) -> float:
    began = time.time()
    subprocess.run(["rsync", "--inplace", "--whole-file", source, target], check=True)
    return began


def preallocated_with_a_control_file(source: Path, target: Path) -> float:
    control = target.with_name(target.name + ".aria2")
    control.touch()
    with target.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, source.stat().st_size)
    with target.open("r+b") as file:
        for block in blocks(source):
            file.write(block)
    finished = time.time()
    control.unlink()
    return finished


def patched_before_the_end(source: Path, target: Path) -> float:
    with target.open("wb") as file:
        file.write(bytes(8 + 64))
        file.seek(0)
        first = True
        for block in blocks(source):
            if first:
                head, first = block[:72], False
                file.seek(72)
                file.write(block[72:])
            else:
                file.write(block)
        file.flush()
        threading.Event().wait(3)  # longer than a stable file is waited for
        file.seek(0)
        file.write(head)
        return time.time()


@asynccontextmanager
async def facts(bus: Bus, target: Path) -> AsyncIterator[tuple[list[Settled], list[Hashed]]]:
    """What is said of the file, as it is said."""
    settled: list[Settled] = []
    hashed: list[Hashed] = []

    async def hear(row, found: list) -> None:
        async with bus.listen(row.filter()) as heard:
            async for message in heard:
                fact = row.decode(message.data)
                if fact.path.rel == target.name:
                    found.append(fact)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hear, FILE_SETTLED, settled)
        tasks.start_soon(hear, FILE_HASHED, hashed)
        await bus.flush()
        yield settled, hashed
        tasks.cancel_scope.cancel()


async def ready(bus: Bus, sha256: str) -> float:
    """When the model was ready."""
    with anyio.fail_after(60):
        while (found := await bus.last(MODEL_READY, sha256=sha256)) is None:
            await bus.flush()
    return found.payload.at


@pytest.mark.parametrize(
    "arrive",
    [
        written_with_a_stall,
        copied,
        renamed_from_a_download,
        synchronised_in_place,
        preallocated_with_a_control_file,
        patched_before_the_end,
    ],
)
async def test_a_large_file_settles_once_and_never_early(arrive: Writer, source: tuple[Path, str], agents: Agents):
    agents.start("migrator", "watcher", "hasher")
    path, sha256 = source
    target = agents.data / "models" / "large.safetensors"
    async with bus_of(agents) as bus, facts(bus, target) as (settled, hashed):
        last_byte = await to_thread.run_sync(arrive, path, target)
        done = time.time()
        await ready(bus, sha256)
        seconds = time.time() - done
        await drop(bus, agents, "marker", seed=9)  # what comes later is through: so is all that came before it
        assert [one.sha256 for one in hashed] == [sha256]
        assert len(settled) == 1
        assert settled[0].at >= last_byte
        print(f"{arrive.__name__}: ready {seconds:.2f} s after the writer's end, hashed in {hashed[0].seconds:.2f} s")
    target.unlink()


async def test_a_writer_that_comes_back_is_a_second_settle_and_a_new_hash(source: tuple[Path, str], agents: Agents):
    agents.start("migrator", "watcher", "hasher")
    path, sha256 = source
    target = agents.data / "models" / "large.safetensors"
    async with bus_of(agents) as bus, facts(bus, target) as (settled, hashed):
        await to_thread.run_sync(copied, path, target)
        await ready(bus, sha256)
        with target.open("r+b") as file:
            file.seek(SIZE // 2)
            file.write(b"another content")
        digest = await to_thread.run_sync(sha256_of, target)
        await ready(bus, digest)
        await drop(bus, agents, "marker", seed=9)
        assert [one.sha256 for one in hashed] == [sha256, digest]
        assert len(settled) == 2
    target.unlink()
