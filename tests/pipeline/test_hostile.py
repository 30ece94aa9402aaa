"""The hostile corpus, dropped into the folder of real agents: each file gets its verdict, soon and in little memory."""

import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import anyio
import psutil
import pytest
from nats.aio.msg import Msg

from agents.storage.paths import encode
from bus.client import Bus
from bus.subjects import kept_by, row_of
from schemas.files import Hashed, HashFailed, Refused, Settled
from tests.ingest.hostile import CORPUS, SECRET, Hostile
from tests.ingest.making import model, put
from tests.pipeline.conftest import Agents, bus_of, drop

SECONDS = 2.0
GOES = 3
"""How often a file that got its verdict late is dropped again: the machine may have been busy."""

MEMORY_BYTES = 256 << 20
EVERY = 0.01


class Memory(threading.Thread):
    """The most that a process and its children had in memory at one moment, looked up again and again."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.process, self.peak, self.enough = psutil.Process(pid), 0, threading.Event()

    def run(self) -> None:
        while not self.enough.wait(EVERY):
            self.peak = max(self.peak, self.now())

    def now(self) -> int:
        total = self.process.memory_info().rss
        for child in self.process.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                total += child.memory_info().rss
        return total


@contextmanager
def watched_memory(pid: int) -> Iterator[Memory]:
    memory = Memory(pid)
    memory.start()
    try:
        yield memory
    finally:
        memory.enough.set()
        memory.join()


class Verdicts:
    """What was said of each path, as it is stored."""

    def __init__(self) -> None:
        self.facts: dict[str, list[Refused | Hashed | HashFailed | Settled]] = {}
        self.news = anyio.Event()

    @asynccontextmanager
    async def heard(self, bus: Bus) -> AsyncIterator["Verdicts"]:
        async def heard(message: Msg) -> None:
            row = row_of(message.subject)
            if row is not None:
                fact = row.decode(message.data)
                self.facts.setdefault(fact.path.rel, []).append(fact)
                self.news.set()
                self.news = anyio.Event()

        [pattern] = kept_by("FILES")
        subscription = await bus.js.subscribe(pattern, stream="FILES", cb=heard, ordered_consumer=True)
        yield self
        await subscription.unsubscribe()

    def of(self, rel: str) -> str:
        """The verdict on a path so far, in the words of the corpus; empty when it is still awaited."""
        for fact in self.facts.get(rel, []):
            match fact:
                case Refused(reason=reason):
                    return reason
                case Hashed(identity=identity):
                    return "unsafe" if identity.unsafe else "problem" if identity.problem else "good"
                case HashFailed(reason=reason):
                    return f"hashing failed: {reason}"
        return ""

    async def on(self, rel: str) -> str:
        """The verdict on a path, when there is one."""
        while not (verdict := self.of(rel)):
            await self.news.wait()
        return verdict


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents that give a file little time to hold still: what is measured is their own."""
    monkeypatch.setenv("DARKROOM_WATCHER__STABLE", "0.1")
    monkeypatch.setenv("DARKROOM_WATCHER__STABLE_WITH_HOLES", "0.1")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder beside the root, with what nobody may read; a read of it would show."""
    folder = tmp_path / "outside"
    put(folder / "secret.safetensors", SECRET)
    os.mkfifo(folder / "pipe")
    os.utime(folder / "secret.safetensors", (0, 0))
    return folder


def make(one: Hostile, folder: Path, outside: Path) -> Path:
    """The file, made in a folder from which it can be moved in."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / os.fsdecode(one.name)
    one.make(path, outside)
    return path


def can_tell_reads(folder: Path) -> bool:
    """Whether this file system notes that a file was read."""
    path = put(folder / "read", b"1")
    os.utime(path, (0, 0))
    path.read_bytes()
    return path.stat().st_atime > 0


async def subjects(bus: Bus) -> list[str]:
    """Every subject that any stream of the server holds."""
    found: list[str] = []
    for stream in await bus.js.streams_info():
        assert stream.config.name
        found += await bus.waiting(stream.config.name, ">")
    return found


@pytest.mark.alone
async def test_every_verdict_on_a_hostile_file_is_right_and_given_within_two_seconds(
    quick: None, agents: Agents, outside: Path, tmp_path: Path
):
    agents.start("migrator")
    ingest = agents.start("watcher", "hasher")
    root, late = agents.data / "models", []
    with watched_memory(ingest.pid) as memory:
        async with bus_of(agents) as bus, Verdicts().heard(bus) as verdicts:
            for number, one in enumerate(one for one in CORPUS if one.verdict != "ignored"):
                for go in range(GOES):
                    folder = root / f"{number}-{go}"
                    put(folder / "a.safetensors", model(metadata={"first in": folder.name}))
                    await verdicts.on(f"{folder.name}/a.safetensors")  # the folder is watched from now on
                    path = make(one, tmp_path / "elsewhere", outside)
                    began = time.monotonic()
                    path.rename(folder / path.name)
                    rel = encode(os.fsencode(f"{folder.name}/") + one.name)
                    with anyio.fail_after(30):
                        assert (one.name, await verdicts.on(rel)) == (one.name, one.verdict)
                    if (seconds := time.monotonic() - began) < SECONDS * crowding():
                        break
                else:
                    late.append((one.name, seconds))
                print(f"{one.name[:40]!r:46} {one.verdict:10} {seconds:.2f} s")
    print(f"at most {memory.peak >> 20} MiB in the process and its children")
    assert not late
    assert memory.peak < MEMORY_BYTES


async def test_all_of_them_at_once_among_good_files_keep_nothing_from_its_verdict(
    quick: None, agents: Agents, outside: Path, tmp_path: Path
):
    agents.start("migrator")
    ingest = agents.start("watcher", "hasher")
    root, reads_show = agents.data / "models", can_tell_reads(tmp_path)
    good = {f"good-{number}.safetensors": model(metadata={"number": str(number)}) for number in range(50)}
    for one in CORPUS:
        make(one, tmp_path / "elsewhere", outside)
    for name, content in good.items():
        put(tmp_path / "elsewhere" / name, content)
    async with bus_of(agents) as bus, Verdicts().heard(bus) as verdicts:
        streams = [stream.config.name for stream in await bus.js.streams_info()]
        with watched_memory(ingest.pid) as memory:
            (tmp_path / "elsewhere").rename(root / "all")
            with anyio.fail_after(60):
                for name in good:
                    assert (name, await verdicts.on(f"all/{name}")) == (name, "good")
                for one in CORPUS:
                    if one.verdict != "ignored":
                        assert (one.name, await verdicts.on(rel_of(one))) == (one.name, one.verdict)
        await drop(bus, agents, "later")  # the agents are there still, and what is ignored would have been said before
        assert not [one.name for one in CORPUS if one.verdict == "ignored" and rel_of(one) in verdicts.facts]
        assert [subject for subject in await subjects(bus) if row_of(subject) is None] == []
        assert [stream.config.name for stream in await bus.js.streams_info()] == streams
        settled = [fact for facts in verdicts.facts.values() for fact in facts if isinstance(fact, Settled)]
        assert len(settled) == len({fact.path for fact in settled})
    assert all(process.poll() is None for process in agents.processes)
    if reads_show:
        assert (outside / "secret.safetensors").stat().st_atime == 0
    print(f"at most {memory.peak >> 20} MiB in the process and its children")
    assert memory.peak < MEMORY_BYTES


async def test_a_file_that_may_not_be_read_is_refused_and_its_folder_goes_on(
    quick: None, agents: Agents, tmp_path: Path
):
    made = put(tmp_path / "closed.safetensors", model())
    made.chmod(0)
    if os.access(made, os.R_OK):
        pytest.skip("this user may read everything")
    agents.start("migrator", "watcher", "hasher")
    async with bus_of(agents) as bus, Verdicts().heard(bus) as verdicts:
        made.rename(agents.data / "models" / "closed.safetensors")
        put(agents.data / "models" / "open.safetensors", model(fill=2))
        with anyio.fail_after(30):
            assert await verdicts.on("closed.safetensors") == "unreadable"
            assert await verdicts.on("open.safetensors") == "good"


def crowding() -> float:
    """How many times longer work takes on a machine that does other work as well."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def rel_of(one: Hostile) -> str:
    return encode(b"all/" + one.name)
