"""The hasher hashes a large file while it grows; whatever comes between, its digest is that of what is there."""

import asyncio
import functools
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from typing import Any

import anyio
import pytest
from blake3 import blake3

from agents import hasher
from agents.ingest.hashing.growing import GrowingHash
from agents.ingest.hashing.reading import BUFFER_BYTES
from agents.ingest.settling import verdicts
from agents.storage.paths import encode, file_key, hash_id, stat_of
from bus.client import Bus
from bus.queues import enqueue
from bus.subjects import HASH, TICK_GROWING
from schemas.files import Digest, FilePath, Hash, Hashed
from schemas.settings import HasherSettings
from schemas.ticks import GrowingTick
from tests.conftest import running
from tests.ingest.dropping import Drop, dropping, sha256
from tests.ingest.making import SD15, encoded, header, model

PIECES = 4


@pytest.fixture
async def drop(bus: Bus, tmp_path: Path) -> AsyncIterator[Drop]:
    async with dropping(bus, tmp_path) as drop:
        yield drop


def pieces() -> list[bytes]:
    """A model, in parts of more than one buffer each."""
    size = PIECES * 3 * BUFFER_BYTES // 10 * 10
    table, size = header(dict.fromkeys(SD15, (size // 2 // len(SD15),)))
    whole = encoded(table, os.urandom(size))
    step = -(-len(whole) // PIECES)
    return [whole[at : at + step] for at in range(0, len(whole), step)]


class Seen:
    """What the hasher did: how often it read on in a growing file, and which files it read in an ordinary pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loop, self.news, self.reads, self.passes = asyncio.get_running_loop(), anyio.Event(), 0, 0
        grown, hash_file = GrowingHash.grown, hasher.hash_file

        def followed(follower: GrowingHash, key: str, path: bytes) -> None:
            grown(follower, key, path)
            self.reads += 1
            self.loop.call_soon_threadsafe(self.news.set)

        def passed(*args: Any, **others: Any) -> Any:
            self.passes += 1
            return hash_file(*args, **others)

        monkeypatch.setattr(GrowingHash, "grown", followed)
        monkeypatch.setattr(hasher, "hash_file", passed)

    async def read(self, times: int) -> None:
        """Until the hasher has read on so often."""
        with anyio.fail_after(20):
            while self.reads < times:
                self.news = anyio.Event()
                await self.news.wait()


def as_seen(drop: Drop, path: Path) -> tuple[str, FilePath]:
    rel, stat = encode(os.fsencode(path.relative_to(drop.folder))), path.stat()
    return file_key("models", stat.st_dev, stat.st_ino), FilePath(root="models", rel=rel)


async def tell(drop: Drop, path: Path) -> None:
    """What the watcher says of a file that grew."""
    key, place = as_seen(drop, path)
    await drop.bus.tick(TICK_GROWING, GrowingTick(key=key, path=place, stat=stat_of(path.stat())), key=key)


async def ask(drop: Drop, path: Path, algorithms: tuple[Digest, ...] = ()) -> Hashed:
    """What the watcher asks once it has settled, and the answer."""
    (key, place), stat = as_seen(drop, path), stat_of(path.stat())
    job = Hash(id=hash_id(key, place.rel, stat), key=key, path=place, stat=stat, algorithms=algorithms)
    await enqueue(drop.bus, HASH, job, root="models", id=job.id)
    return await drop.until(Hashed, place.rel, len(drop.of(Hashed, place.rel)) + 1)


async def written(drop: Drop, seen: Seen, file: FileIO, parts: list[bytes]) -> None:
    """One part after the other, and each read by the hasher before the next."""
    path = Path(file.name)
    for part in parts:
        file.write(part)
        await tell(drop, path)
        await seen.read(seen.reads + 1)


def hashing(drop: Drop, **settings: Any) -> Callable[..., Awaitable[None]]:
    return functools.partial(hasher.run, drop.bus, drop.roots, HasherSettings(**settings))


async def test_a_file_that_was_followed_needs_no_ordinary_pass(drop: Drop, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, path = Seen(monkeypatch), drop.folder / "a.safetensors"
    async with running(hashing(drop)):
        with path.open("wb", buffering=0) as file:
            await written(drop, seen, file, pieces())
        fact = await ask(drop, path)
    assert fact.sha256 == sha256(path.read_bytes()) and seen.passes == 0
    assert (fact.identity.kind, fact.identity.problem, fact.stat) == ("checkpoint", "", stat_of(path.stat()))
    assert fact.digests == fact.undone == {}


async def test_what_a_job_asks_for_beside_it_is_computed_of_the_whole_file(
    drop: Drop, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, path = Seen(monkeypatch), drop.folder / "a.safetensors"
    async with running(hashing(drop)):
        for count, algorithms in enumerate((("blake3",), ("blake3", "crc32"))):
            with path.open("wb", buffering=0) as file:
                await written(drop, seen, file, pieces())
            fact = await ask(drop, path, algorithms)  # type: ignore[arg-type]
            assert fact.digests["blake3"] == blake3(path.read_bytes()).hexdigest()
            assert set(fact.digests) == set(algorithms) and fact.sha256 == sha256(path.read_bytes())
            assert seen.passes == count


@pytest.mark.parametrize("place", [0, 2 * BUFFER_BYTES])
async def test_a_writer_who_went_back_costs_an_ordinary_pass(
    drop: Drop, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    seen, path, parts = Seen(monkeypatch), drop.folder / "a.safetensors", pieces()
    whole = b"".join(parts)
    whole = whole[:place] + b"other" + whole[place + 5 :]
    async with running(hashing(drop)):
        with path.open("wb", buffering=0) as file:
            await written(drop, seen, file, parts)
            file.seek(place)
            file.write(b"other")
        fact = await ask(drop, path)
    assert fact.sha256 == sha256(whole) and seen.passes == 1


async def test_a_file_that_took_the_place_of_a_followed_one_is_read_itself(
    drop: Drop, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, path = Seen(monkeypatch), drop.folder / "a.safetensors"
    async with running(hashing(drop)):
        with path.open("wb", buffering=0) as file:
            await written(drop, seen, file, pieces())
        drop.put("a.safetensors", model(fill=3))
        fact = await ask(drop, path)
    assert fact.sha256 == sha256(model(fill=3)) and seen.passes == 1


async def test_a_hasher_that_stops_while_it_follows_leaves_the_file_to_the_next(
    drop: Drop, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, path, parts = Seen(monkeypatch), drop.folder / "a.safetensors", pieces()
    with path.open("wb", buffering=0) as file:
        async with running(hashing(drop)):
            await written(drop, seen, file, parts[:2])
            for part in parts[2:]:
                file.write(part)
                await tell(drop, path)  # it is reading now, or will not come to it
    async with running(hashing(drop)):
        fact = await ask(drop, path)
    assert fact.sha256 == sha256(b"".join(parts)) and seen.passes == 1


async def test_jobs_for_other_files_are_done_while_one_is_followed(drop: Drop, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, path, parts = Seen(monkeypatch), drop.folder / "a.safetensors", pieces()
    async with running(hashing(drop)):
        with path.open("wb", buffering=0) as file:
            await written(drop, seen, file, parts[:3])
            other = drop.put("b.safetensors")
            assert (await ask(drop, other)).sha256 == sha256(model())
            await written(drop, seen, file, parts[3:])
        fact = await ask(drop, path)
    assert fact.sha256 == sha256(b"".join(parts)) and seen.passes == 1, "one for the other file"


async def test_two_files_that_grow_at_once_both_get_their_own_digest(
    drop: Drop, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, contents = Seen(monkeypatch), {f"{name}.safetensors": pieces() for name in "ab"}
    async with running(hashing(drop)):
        with ExitStack() as opened:
            files = [opened.enter_context((drop.folder / name).open("wb", buffering=0)) for name in contents]
            for parts in zip(*contents.values(), strict=True):
                for file, part in zip(files, parts, strict=True):
                    await written(drop, seen, file, [part])
        for name, parts in contents.items():
            assert (await ask(drop, drop.folder / name)).sha256 == sha256(b"".join(parts))
    assert seen.passes == 1


@pytest.mark.parametrize("settings", [{"following": False}, {"rotational": "yes"}])
async def test_nothing_is_followed_where_the_settings_say_so(
    drop: Drop, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    seen, path = Seen(monkeypatch), drop.put("a.safetensors", b"".join(pieces()))
    async with running(hashing(drop, **settings)):
        await tell(drop, path)
        assert (await ask(drop, path)).sha256 == sha256(path.read_bytes())
    assert (seen.reads, seen.passes) == (0, 1)


async def test_without_blake3_nothing_is_followed_and_all_is_hashed(
    drop: Drop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "blake3", None)
    seen, path = Seen(monkeypatch), drop.put("a.safetensors", b"".join(pieces()))
    async with running(hashing(drop)):
        await tell(drop, path)
        assert (await ask(drop, path)).sha256 == sha256(path.read_bytes())
    assert (seen.reads, seen.passes) == (0, 1)


async def test_ticks_that_make_no_sense_are_passed_over(drop: Drop, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, path = Seen(monkeypatch), drop.folder / "a.safetensors"
    (drop.folder / "out.safetensors").symlink_to(drop.data / "nothing")
    async with running(hashing(drop)):
        await drop.bus.nc.publish(TICK_GROWING(key="0" * 32), b"junk")
        path.write_bytes(model())
        tick = GrowingTick(key="0" * 32, path=FilePath(root="elsewhere", rel="a.pt"), stat=stat_of(path.stat()))
        await drop.bus.tick(TICK_GROWING, tick, key=tick.key)
        for rel in ("../a.safetensors", "out.safetensors", "%zz"):
            tick = GrowingTick(key="0" * 32, path=FilePath(root="models", rel=rel), stat=stat_of(path.stat()))
            await drop.bus.tick(TICK_GROWING, tick, key=tick.key)
        await tell(drop, path)
        await seen.read(1)
        assert (await ask(drop, path)).sha256 == sha256(model())
    assert seen.passes == 0


async def test_a_file_in_the_drop_folder_is_followed_and_then_settles_as_any_other(
    drop: Drop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdicts, "LEAST_BYTES", BUFFER_BYTES)
    seen, path = Seen(monkeypatch), drop.folder / "a.ckpt"
    async with drop.agents():
        with path.open("wb", buffering=0) as file:
            while seen.reads < 2:
                file.write(os.urandom(BUFFER_BYTES))
                with anyio.move_on_after(0.1):  # the watcher looks when it looks
                    await seen.read(seen.reads + 1)
        fact = await drop.until(Hashed, "a.ckpt")
        assert seen.passes == 0
        await drop.later()
    assert fact.sha256 == sha256(path.read_bytes())
    assert drop.about("a.ckpt") == ["Settled", "Hashed"]
