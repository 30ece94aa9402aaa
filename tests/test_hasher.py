"""The hasher on a real bus: one fact per job, whatever becomes of the file, and nothing lost when it stops."""

import functools
import hashlib
import os
import sys
import threading
import time
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Literal

import anyio
import msgspec
import pytest
from msgspec import structs

from agents import hasher
from agents.headers.compact import UNREADABLY_LARGE
from agents.headers.errors import HeaderUnread
from agents.storage.paths import encode, file_key, hash_id, stat_of
from bus.client import Bus
from bus.errors import UserError
from bus.ids import digest_id
from bus.queues import enqueue
from bus.subjects import ATTEMPT_STARTED, DEAD, HASH, TICK_HASH
from schemas.files import FilePath, Hash, Hashed, HashFailed, Refused, Settled, Stat
from schemas.jobs import Started
from schemas.settings import HasherSettings
from tests.conftest import running
from tests.ingest.dropping import Drop, dropping, sha256
from tests.ingest.making import encoded, header, model


@pytest.fixture
async def drop(bus: Bus, tmp_path: Path) -> AsyncIterator[Drop]:
    async with dropping(bus, tmp_path) as drop:
        yield drop


def large(fill: int, size: int = 64 << 20) -> bytes:
    """A model of that many bytes of data."""
    table, size = header({"model.diffusion_model.input_blocks.0.0.weight": (size // 2,)})
    return encoded(table, bytes([fill]) * size)


def job_for(drop: Drop, path: Path, **changes: Any) -> Hash:
    """What the watcher would ask."""
    rel = encode(os.fsencode(path.relative_to(drop.folder)))
    stat = msgspec.structs.replace(stat_of(path.stat()), **changes)
    key = file_key("models", stat.dev, stat.ino)
    return Hash(id=hash_id(key, rel, stat), key=key, path=FilePath(root="models", rel=rel), stat=stat)


async def ask(bus: Bus, job: Hash) -> None:
    await enqueue(bus, HASH, job, root=job.path.root, id=job.id)


async def left(bus: Bus, count: int) -> None:
    """Until the queue has so many jobs, held ones too."""
    with anyio.fail_after(10):
        while (await bus.js.stream_info("HASH")).state.messages != count:
            await anyio.lowlevel.checkpoint()


class Held:
    """Stands between a hasher and its reading of a file: lets it wait there, and then read slowly."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.go, self.pause = anyio.Event(), False, 0.0
        self.hash_file: Callable[..., Any] = hasher.hash_file
        monkeypatch.setattr(hasher, "hash_file", self)

    def __call__(self, path: bytes, *, cancelled: Callable[[], bool], **others: Any) -> Any:
        anyio.from_thread.run_sync(self.reached.set)

        def until_told() -> bool:
            while not self.go and not cancelled():
                time.sleep(0.001)
            time.sleep(self.pause)
            return cancelled()

        return self.hash_file(path, cancelled=until_told, **others)


async def test_a_job_becomes_the_digest_and_what_the_header_says(drop: Drop) -> None:
    job = job_for(drop, drop.put("a.safetensors"))
    async with running(drop.hashing()):
        await ask(drop.bus, job)
        fact = await drop.until(Hashed, "a.safetensors")
        await left(drop.bus, 0)
    assert (fact.sha256, fact.stat, fact.key) == (sha256(model()), job.stat, job.key)
    assert (fact.identity.kind, fact.identity.family) == ("checkpoint", "sd15")


async def test_the_digests_that_a_job_asks_for_come_with_the_fact(drop: Drop) -> None:
    path = drop.put("a.safetensors", large(3, 2 << 20))
    pickle = drop.put("b.ckpt", b"pickle")
    job = structs.replace(job_for(drop, path), algorithms=("crc32", "autov3"))
    async with running(drop.hashing()):
        await ask(drop.bus, job)
        await ask(drop.bus, structs.replace(job_for(drop, pickle), algorithms=("autov3", "crc32")))
        fact, other = await drop.until(Hashed, "a.safetensors"), await drop.until(Hashed, "b.ckpt")
    autov3 = hashlib.sha256(b"\3" * (2 << 20)).hexdigest()[:12]
    assert fact.digests == {"autov3": autov3, "crc32": f"{zlib.crc32(path.read_bytes()):08X}"}
    assert other.digests == {"crc32": f"{zlib.crc32(b'pickle'):08X}"}
    assert fact.undone == other.undone == {}


async def test_the_digests_of_the_setting_come_with_every_fact(drop: Drop) -> None:
    settings = HasherSettings(also=("crc32",))
    async with running(functools.partial(hasher.run, drop.bus, drop.roots, settings)):
        await ask(drop.bus, structs.replace(job_for(drop, drop.put("a.safetensors")), algorithms=("autov3",)))
        assert set((await drop.until(Hashed, "a.safetensors")).digests) == {"autov3", "crc32"}


async def test_a_digest_that_can_not_be_computed_here_keeps_no_file_from_being_hashed(
    drop: Drop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "blake3", None)
    async with running(drop.hashing()):
        job = structs.replace(job_for(drop, drop.put("a.safetensors")), algorithms=("blake3", "crc32"))
        await ask(drop.bus, job)
        fact = await drop.until(Hashed, "a.safetensors")
        await left(drop.bus, 0)
    assert fact.sha256 == sha256(model()) and set(fact.digests) == {"crc32"}
    assert set(fact.undone) == {"blake3"} and "install" in fact.undone["blake3"]


async def test_a_hasher_whose_setting_asks_for_what_is_not_installed_does_not_start(
    drop: Drop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "blake3", None)
    with pytest.raises(UserError, match=r"hasher\.also: .*install"):
        await hasher.run(drop.bus, drop.roots, HasherSettings(also=("blake3",)))


def test_asking_for_other_digests_of_a_version_is_another_job() -> None:
    stat = Stat(dev=1, ino=2, size=3, mtime_ns=4, ctime_ns=5)
    asked = [hash_id("k", "a", stat, algorithms) for algorithms in ((), ("crc32",), ("crc32", "autov3"))]
    assert len(set(asked)) == 3
    assert hash_id("k", "a", stat, ("autov3", "crc32", "crc32")) == asked[2]


@pytest.mark.parametrize(("rotational", "most"), [("yes", 1), ("no", 2)])
async def test_files_of_a_rotational_disk_are_read_one_at_a_time(
    drop: Drop, monkeypatch: pytest.MonkeyPatch, rotational: Literal["yes", "no"], most: int
) -> None:
    reading, seen, both = 0, [0], threading.Barrier(2)
    hash_file: Callable[..., Any] = hasher.hash_file

    def counted(*args: Any, **others: Any) -> Any:
        nonlocal reading
        reading += 1
        seen.append(reading)
        if rotational == "no":
            both.wait(10)  # for the other: each waits for one that is read beside it
        try:
            return hash_file(*args, **others)
        finally:
            reading -= 1

    monkeypatch.setattr(hasher, "hash_file", counted)
    jobs = [job_for(drop, drop.put(f"{number}.safetensors", model(fill=number))) for number in range(6)]
    settings = HasherSettings(rotational=rotational, parallel=2)
    async with running(functools.partial(hasher.run, drop.bus, drop.roots, settings)):
        for job in jobs:
            await ask(drop.bus, job)
        for number in range(6):
            await drop.until(Hashed, f"{number}.safetensors")
    assert max(seen) == most


async def test_a_file_that_is_written_while_it_is_hashed_settles_and_is_hashed_again(
    drop: Drop, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    async with drop.agents():
        path = drop.put("a.safetensors", large(1, 2 << 20))
        await held.reached.wait()
        with path.open("r+b", buffering=0) as file:
            file.write(large(2, 2 << 20))
        held.go = True
        assert (await drop.until(HashFailed, "a.safetensors")).reason == "changed"
        assert (await drop.until(Hashed, "a.safetensors")).sha256 == sha256(large(2, 2 << 20))
        await drop.later()
        assert len(drop.of(Hashed, "a.safetensors")) == 1


async def test_a_file_that_shrinks_while_it_is_hashed_is_told_as_changed(
    drop: Drop, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    path = drop.put("a.safetensors", large(1, 4 << 20))
    async with running(drop.hashing()):
        await ask(drop.bus, job_for(drop, path))
        await held.reached.wait()
        os.truncate(path, 1 << 20)
        held.go = True
        assert (await drop.until(HashFailed, "a.safetensors")).reason == "changed"


async def test_a_file_that_is_gone_or_another_one_is_told_so(drop: Drop) -> None:
    path = drop.put("a.safetensors")
    gone, changed = job_for(drop, path), job_for(drop, path, size=1)
    nested = Hash(id=gone.id[::-1], key=gone.key, path=FilePath(root="models", rel="no/folder.pt"), stat=gone.stat)
    async with running(drop.hashing()):
        await ask(drop.bus, changed)
        assert (await drop.until(HashFailed, "a.safetensors")).reason == "changed"
        path.unlink()
        await ask(drop.bus, gone)
        assert (await drop.until(HashFailed, "a.safetensors", 2)).reason == "gone"
        await ask(drop.bus, nested)
        assert (await drop.until(HashFailed, "no/folder.pt")).reason == "gone"
        await left(drop.bus, 0)


async def test_a_path_that_leads_out_of_the_root_is_not_read(drop: Drop, tmp_path: Path) -> None:
    (tmp_path / "secret.pt").write_bytes(b"secret")
    (drop.folder / "out.pt").symlink_to(tmp_path / "secret.pt")
    stat = stat_of((tmp_path / "secret.pt").stat())
    async with running(drop.hashing()):
        for number, rel in enumerate(("out.pt", "../secret.pt", "/etc/passwd", "%zz.pt")):
            job = Hash(id=f"{number:032x}", key="0" * 32, path=FilePath(root="models", rel=rel), stat=stat)
            await ask(drop.bus, job)
            assert (await drop.until(HashFailed, rel)).reason == "unreadable"


async def test_a_file_that_a_hasher_cannot_read_is_refused(drop: Drop, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: bytes, name: bytes) -> Any:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(hasher, "identify", denied)
    async with drop.agents():
        drop.put("a.safetensors")
        assert (await drop.until(HashFailed, "a.safetensors")).reason == "unreadable"
        assert (await drop.until(Refused, "a.safetensors")).reason == "unreadable"


async def test_a_file_whose_header_a_busy_machine_cannot_read_is_taken_up_again(
    drop: Drop, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, looks = hasher.identify, []

    def busy_at_first(path: bytes, name: bytes) -> Any:
        looks.append(path)
        if len(looks) <= 4:  # more often than a job may fail
            raise HeaderUnread
        return real(path, name)

    monkeypatch.setattr(hasher, "identify", busy_at_first)
    job = job_for(drop, drop.put("a.safetensors"))
    async with running(drop.hashing()):
        await ask(drop.bus, job)
        fact = await drop.until(Hashed, "a.safetensors")
        await left(drop.bus, 0)
    assert (fact.identity.kind, fact.identity.family) == ("checkpoint", "sd15")
    assert drop.of(HashFailed) == []


async def test_a_header_whose_child_is_killed_each_time_does_not_keep_its_file_from_being_hashed(
    drop: Drop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: bytes, name: bytes) -> Any:
        raise HeaderUnread

    monkeypatch.setattr(hasher, "identify", killed)
    monkeypatch.setattr(hasher, "_UNREAD", 4)
    path = drop.put("a.safetensors")
    async with running(drop.hashing()):
        await ask(drop.bus, job_for(drop, path))
        fact = await drop.until(Hashed, "a.safetensors")
    assert fact.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert fact.identity.problem == UNREADABLY_LARGE


async def test_a_large_header_is_read_and_its_length_proves_the_file_complete(drop: Drop) -> None:
    async with drop.agents():
        drop.put("a.safetensors", model(metadata={"modelspec.title": "A title", "workflow": "x" * (20 << 20)}))
        assert (await drop.until(Settled, "a.safetensors")).proof == "complete"
        fact = await drop.until(Hashed, "a.safetensors")
    assert (fact.identity.kind, fact.identity.family, fact.identity.problem) == ("checkpoint", "sd15", "")
    assert fact.identity.metadata == {"modelspec.title": "A title"}


async def test_a_file_whose_disk_has_another_number_on_the_hashers_host_is_hashed(drop: Drop) -> None:
    job = job_for(drop, drop.put("a.safetensors"), dev=999)
    async with running(drop.hashing()):
        await ask(drop.bus, job)
        assert (await drop.until(Hashed, "a.safetensors")).stat == job.stat


async def test_progress_is_told_at_most_four_times_a_second(drop: Drop, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch)
    held.go, held.pause = True, 0.01
    path = drop.put("a.safetensors", large(1, 32 << 20))
    job, ticks = job_for(drop, path), []
    async with drop.bus.listen(TICK_HASH.filter()) as heard, running(drop.hashing()):
        await ask(drop.bus, job)
        fact = await drop.until(Hashed, "a.safetensors")
        await drop.bus.flush()
        while heard.statistics().current_buffer_used:
            ticks.append(TICK_HASH.decode((await heard.receive()).data))
    assert 1 <= len(ticks) <= fact.seconds * 4
    assert [tick.done for tick in ticks] == sorted({tick.done for tick in ticks})
    assert all((tick.id, tick.rel, tick.total) == (job.id, "a.safetensors", path.stat().st_size) for tick in ticks)


async def test_a_hasher_that_is_stopped_gives_its_job_back_unharmed(
    drop: Drop, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    job = job_for(drop, drop.put("a.safetensors", large(1, 4 << 20)))
    began = time.monotonic()
    for _ in range(4):  # more often than a job may fail
        held.reached = anyio.Event()
        async with running(drop.hashing()):
            await ask(drop.bus, job)
            await held.reached.wait()
    assert time.monotonic() - began < 10
    await left(drop.bus, 1)
    held.go = True
    async with running(drop.hashing()):
        await drop.until(Hashed, "a.safetensors")


async def test_a_job_whose_hasher_died_too_often_is_told_as_exhausted_and_the_file_refused(drop: Drop) -> None:
    async with running(drop.watching()):
        path = drop.put("a.safetensors")
        await drop.until(Settled, "a.safetensors")
        queued = None
        with anyio.fail_after(10):
            while queued is None:
                queued = await drop.bus.raw("HASH", HASH.filter())
        id = digest_id(HASH.decode(queued.payload).id, queued.seq)
        for attempt in range(3):
            start = Started(id=id, attempt=attempt + 1, worker="test:1", at=time.time())
            await drop.bus.publish(ATTEMPT_STARTED, start, kind="hash", id=id)
        async with running(drop.hashing()):
            assert (await drop.until(HashFailed, "a.safetensors")).reason == "exhausted"
            assert (await drop.until(Refused, "a.safetensors")).reason == "exhausted"
            path.touch()  # what its owner can do
            await drop.until(Hashed, "a.safetensors")


async def test_a_file_that_is_asked_for_again_and_again_is_hashed_each_time(drop: Drop) -> None:
    job = job_for(drop, drop.put("a.safetensors"))
    async with running(drop.hashing()):
        for times in range(1, 6):
            await ask(drop.bus, job)
            with anyio.fail_after(10):
                while len(drop.of(Hashed)) < times:
                    await drop.bus.flush()
            await left(drop.bus, 0)  # a job that is still being taken back is taken for the same
    assert not drop.of(HashFailed)


async def test_a_link_is_identified_by_its_own_name(drop: Drop) -> None:
    (drop.folder / "blobs").mkdir()
    (drop.folder / "blobs" / "0123abcd").write_bytes(model())
    (drop.folder / "a.safetensors").symlink_to("blobs/0123abcd")
    async with drop.agents():
        found = await drop.until(Hashed, "a.safetensors")
    assert (found.identity.kind, found.identity.unsafe) == ("checkpoint", False)


async def test_several_hashers_share_the_work(drop: Drop) -> None:
    jobs = [job_for(drop, drop.put(f"{n}.safetensors", model(fill=n))) for n in range(60)]
    async with running(drop.hashing(), drop.hashing(), drop.hashing()):
        for job in jobs:
            await ask(drop.bus, job)
        for number in range(60):
            assert (await drop.until(Hashed, f"{number}.safetensors")).sha256 == sha256(model(fill=number))
    assert len(drop.of(Hashed)) == 60


async def test_jobs_of_a_root_that_a_hasher_does_not_see_are_left_for_others(drop: Drop) -> None:
    job = job_for(drop, drop.put("a.safetensors"))
    elsewhere = msgspec.structs.replace(job, path=FilePath(root="elsewhere", rel="a.safetensors"), id="e" * 32)
    async with running(drop.hashing()):
        await ask(drop.bus, elsewhere)
        await ask(drop.bus, job)
        await drop.until(Hashed, "a.safetensors")
        await left(drop.bus, 1)
    assert len(drop.facts) == 1


async def test_a_job_that_nobody_can_read_is_one_dead_letter_and_gone(bus: Bus, tmp_path: Path):
    id = "f" * 32
    await bus.publish_raw(HASH(root="models", id=id), b"junk")
    async with running(functools.partial(hasher.run, bus, {"models": str(tmp_path)}, HasherSettings())):
        with anyio.fail_after(10):
            while await bus.waiting("HASH", HASH.filter()):
                await bus.flush()
    assert sum((await bus.waiting("DLQ", DEAD.filter())).values()) == 1
