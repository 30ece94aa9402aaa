"""A drop folder with a watcher and a hasher on a real bus, and everything that is said about its files, in order."""

import functools
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import anyio
from nats.aio.msg import Msg

from agents import hasher
from agents.storage.paths import encode
from agents.watcher import agent as watcher
from bus.client import Bus
from bus.subjects import kept_by, row_of
from schemas.files import Described, Hashed, HashFailed, Moved, Refused, Removed, Settled
from schemas.settings import HasherSettings, WatcherSettings
from tests.conftest import running
from tests.ingest.making import model, put

QUICK_WATCH = WatcherSettings(stable=0.3, stable_with_holes=0.6, scan_interval=2.0, poll_interval=0.2)
SECONDS = 20

FileFact = Settled | Moved | Removed | Refused | Hashed | HashFailed | Described
F = TypeVar("F", Settled, Moved, Removed, Refused, Hashed, HashFailed, Described)


@dataclass
class Drop:
    """The folder of the root "models", and the facts heard so far; each wait begins behind the last one's find."""

    folder: Path
    data: Path
    bus: Bus
    settings: WatcherSettings = QUICK_WATCH
    roots: dict[str, str] = field(default_factory=dict)
    facts: list[Any] = field(default_factory=list)
    news: anyio.Event = field(default_factory=anyio.Event)
    markers: int = 0

    def __post_init__(self) -> None:
        self.roots = self.roots or {"models": str(self.folder)}

    def watching(self, **others: Any) -> Callable[..., Awaitable[None]]:
        """The watcher, to be run."""
        return functools.partial(watcher.run, self.bus, self.data, self.roots, self.settings, **others)

    def hashing(self, parallel: int = 2) -> Callable[..., Awaitable[None]]:
        """A hasher, to be run."""
        return functools.partial(hasher.run, self.bus, self.roots, HasherSettings(parallel=parallel))

    @asynccontextmanager
    async def agents(self) -> AsyncIterator[None]:
        """Both of them, running."""
        async with running(self.watching(), self.hashing()):
            yield

    def put(self, rel: str, content: bytes | None = None) -> Path:
        """A file that is there all at once: written elsewhere, then renamed."""
        path = put(self.data / "elsewhere", model() if content is None else content)
        (self.folder / rel).parent.mkdir(parents=True, exist_ok=True)
        return path.rename(self.folder / rel)

    def of(self, kind: type[F], rel: str | bytes | None = None) -> list[F]:
        """The facts of one kind, about one path."""
        name = encode(rel) if isinstance(rel, bytes) else rel
        return [fact for fact in self.facts if isinstance(fact, kind) and name in (None, fact.path.rel)]

    async def until(self, kind: type[F], rel: str | bytes, count: int = 1, seconds: float = SECONDS) -> F:
        """The `count`-th fact of a kind about a path, when it is said."""
        with anyio.fail_after(seconds):
            while len(found := self.of(kind, rel)) < count:
                await self.news.wait()
        return found[count - 1]

    async def later(self) -> None:
        """Everything that could be said about what happened before has been said: a file dropped now was scanned,
        settled and hashed behind it."""
        self.markers += 1
        name = f"marker-{self.markers}.safetensors"
        self.put(name, model(fill=200 + self.markers))
        await self.until(Hashed, name)

    def about(self, rel: str | bytes) -> list[str]:
        """The kinds of the facts about one path, in order."""
        name = encode(rel) if isinstance(rel, bytes) else rel
        return [type(fact).__name__ for fact in self.facts if fact.path.rel == name]


@asynccontextmanager
async def dropping(
    bus: Bus, base: Path, settings: WatcherSettings = QUICK_WATCH, roots: Mapping[str, str] | None = None
) -> AsyncIterator[Drop]:
    """A drop folder below `base`, whose facts are heard from now on. No agent runs yet."""
    drop = Drop(base / "models", base / "data", bus, settings, dict(roots or {}))
    drop.folder.mkdir()
    drop.data.mkdir()

    async def heard(message: Msg) -> None:
        row = row_of(message.subject)
        assert row is not None
        drop.facts.append(row.decode(message.data))
        drop.news.set()
        drop.news = anyio.Event()

    [pattern] = kept_by("FILES")
    subscription = await bus.js.subscribe(pattern, stream="FILES", cb=heard, ordered_consumer=True)  # what is stored
    yield drop
    await subscription.unsubscribe()


def sha256(content: bytes) -> str:
    """What a hasher should say."""
    return hashlib.sha256(content).hexdigest()
