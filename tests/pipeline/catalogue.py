"""The catalog as others see it: by asking, and by the history that its stream tells."""

from collections.abc import Iterable
from typing import Any

import anyio
from nats.aio.msg import Msg

from agents.storage.paths import decode
from bus.client import Bus
from bus.subjects import (
    ASK_COMPARE,
    ASK_FILES,
    ASK_MODELS,
    ASK_ROOT,
    EVERYTHING,
    HASH,
    row_of,
)
from schemas.asks import Compare, Compared, ListModels, ModelList
from schemas.files import FileList, FilePath, Hashed, HashFailed, ListFiles, Moved, RootState, ScanRoot, Settled
from schemas.models import Changed, Model, ModelMissing, ModelMoved, ModelReady
from tests.pipeline.folders import At

AGAIN = 0.02
"""Seconds until something is asked again."""


class History:
    """What the streams told since the beginning: the models as their history leaves them, every hash, when each path
    was last told of, and all of it in short."""

    def __init__(self) -> None:
        self.models: dict[str, set[FilePath]] = {}
        self.hashed: list[Hashed] = []
        self.settled: dict[FilePath, float] = {}
        self.facts: list[str] = []
        self.last = dict.fromkeys(("FILES", "CATALOG"), 0)

    async def follow(self, bus: Bus) -> None:
        """Hear everything from the first message on."""
        for stream in self.last:
            await bus.js.subscribe(EVERYTHING, stream=stream, cb=self._heard, ordered_consumer=True)

    async def unheard(self, bus: Bus) -> list[str]:
        """The streams that hold more than was heard."""
        stored = {stream: (await bus.js.stream_info(stream)).state.last_seq for stream in self.last}
        return [
            f"{stream}: {last} stored, {self.last[stream]} heard"
            for stream, last in stored.items()
            if last > self.last[stream]
        ]

    async def _heard(self, message: Msg) -> None:
        self.last[message.metadata.stream] = message.metadata.sequence.stream
        row = row_of(message.subject)
        assert row is not None
        fact = row.decode(message.data)
        match fact:
            case ModelReady(model=model):
                self.models[model.sha256] = set(model.paths)
            case ModelMoved():
                self.models[fact.sha256] = set(fact.paths)
            case ModelMissing():
                self.models[fact.sha256] = set()
            case Hashed():
                self.hashed.append(fact)
            case Settled() | Moved():
                self.settled[fact.path] = fact.at
            case Changed():
                return  # the same again, row by row
        self.facts.append(f"{fact.at:.3f} {_in_short(fact)}")


def _in_short(fact: Any) -> str:
    """A fact on a line, for people."""
    match fact:
        case ModelReady(model=model):
            return f"ready {model.sha256} at {[*map(at, model.paths)]}"
        case ModelMoved():
            return f"moved {fact.sha256} to {[*map(at, fact.paths)]}"
        case ModelMissing():
            return f"missing {fact.sha256}"
        case Settled() | Moved() | Hashed() | HashFailed():
            known = getattr(fact, "known", None)
            was = f" from {at(fact.old)!r}" if isinstance(fact, Moved) else ""
            version = f"inode {fact.stat.ino}, changed {fact.stat.ctime_ns / 1e9:.6f}"
            return f"{type(fact).__name__} {at(fact.path)!r}{was}, {version}{', known' if known else ''}"
    return f"{type(fact).__name__} {at(fact.path)!r}" if hasattr(fact, "path") else str(fact)


async def look(bus: Bus, roots: Iterable[str]) -> list[RootState]:
    """How the roots are after a scan that began when this was called."""
    names = list(roots)
    begun = await bus.ask(ASK_ROOT, ScanRoot(look=True), RootState, root=names[0])
    while True:
        states = [await bus.ask(ASK_ROOT, ScanRoot(), RootState, root=name) for name in names]
        if all(state.looks >= begun.look for state in states):
            return states
        await anyio.sleep(AGAIN)


async def all_known(bus: Bus, roots: Iterable[str]) -> bool:
    """Whether the watcher will not have any file of these roots hashed that comes back, or goes, as it is."""
    listed = [await bus.ask(ASK_FILES, ListFiles(), FileList, root=root) for root in roots]
    return all(file.known for page in listed for file in page.files)


async def models_of(bus: Bus, *, missing: bool) -> list[Model]:
    """The catalog's models; with `missing`, those too that are nowhere."""
    found: list[Model] = []
    while True:
        after = found[-1].sha256 if found else ""
        page = await bus.ask(ASK_MODELS, ListModels(missing=missing, after=after), ModelList)
        found += page.models
        if not page.more:
            return found


async def mended(bus: Bus) -> int:
    """How many differences between the catalog and the watcher's table were found, the search for more included that
    began when this was called."""
    begun = await bus.ask(ASK_COMPARE, Compare(again=True), Compared)
    while True:
        now = await bus.ask(ASK_COMPARE, Compare(), Compared)
        if now.done >= begun.number:
            return now.mended
        await anyio.sleep(AGAIN)


async def jobs_waiting(bus: Bus) -> list[str]:
    """The jobs to hash that are queued or under way."""
    return list(await bus.waiting("HASH", HASH.filter()))


def at(path: FilePath) -> At:
    """A path of the bus as the disk has it."""
    return At(path.root, decode(path.rel).decode("utf-8", "surrogateescape"))
