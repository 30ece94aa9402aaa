"""A world: folders, the agents that watch them, a bus between, alive over many histories; and what must hold in it."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from bus.client import Bus, connect
from bus.errors import NoAnswer
from bus.server import local_server
from bus.subjects import EVERYTHING
from schemas.files import FilePath, Stat
from schemas.settings import BusSettings
from tests.pipeline.catalogue import AGAIN, History, all_known, at, jobs_waiting, look, mended, models_of
from tests.pipeline.crew import AGENTS, Crew
from tests.pipeline.elders import OLD_ENOUGH, Elders
from tests.pipeline.folders import ROOTS, Folders

QUICK = {
    "DARKROOM_WATCHER__STABLE": "0.1",
    "DARKROOM_WATCHER__STABLE_WITH_HOLES": "0.1",
    "DARKROOM_BUS__ACK_WAIT": "2.0",
    "DARKROOM_BUS__HEARTBEAT": "0.5",
    "DARKROOM_BUS__RETRY_DELAY": "0.05",
    "DARKROOM_BUS__STORE_BYTES": str(512 * 1024 * 1024),
}


class World:
    """The agents have `patience` seconds to catch up with the disk. `told` is what was done since the last `begin`, and
    `before` what was done until then: for people to read."""

    def __init__(self, portal: BlockingPortal, bus: Bus, crew: Crew, folders: Folders, patience: float) -> None:
        self.portal, self.bus, self.crew, self.folders = portal, bus, crew, folders
        self.patience = patience
        self.told: list[str] = []
        self.before: list[str] = []
        self.whole: set[str] = set()
        self.proven: set[str] = set()
        self.kills: list[float] = []
        self.history = History()
        self.heard = self.hashes = 0
        self.known: dict[tuple[FilePath, Stat], float] = {}
        self.elders = Elders(folders)
        self.are_old = False

    def begin(self) -> None:
        """An empty disk but for the elders, and everybody at work."""
        self.before, self.told = self.told, []
        self.do(self.folders.clear)
        self.do(self.elders.bring_home)
        self.start()

    def do(self, what: Callable[..., None], *arguments: object) -> None:
        """Something happens in the folders."""
        self.tell(f"{what.__name__}({', '.join(map(repr, arguments))})")
        what(*arguments)
        self.whole.update(self.folders.truth().values())
        self.elders.note()

    def start(self) -> None:
        """Everybody works."""
        if started := self.crew.start():
            self.tell(f"started {', '.join(started)}")

    def stop(self, who: tuple[str, ...]) -> None:
        self.tell(f"SIGTERM to {', '.join(who)}")
        self.crew.stop(who)

    def kill(self, who: tuple[str, ...], after: int) -> None:
        """SIGKILL, when the agents have said so many things more, or have nothing to say."""
        self.hear(after)
        self.tell(f"SIGKILL to {', '.join(who)}")
        self.kills.append(time.time())
        self.crew.kill(who)

    def hear(self, count: int) -> None:
        """Let the agents get on with it, until they have said so many things or are silent for a moment."""
        if count:
            self.portal.call(self._hear, count)

    def end(self) -> None:
        """Everything closed, mounted and at work; then `check`, and nobody says anything any more."""
        self.do(self.folders.finish)
        for root in ROOTS:
            self.do(self.folders.mount, root)
        self.start()
        self.check(is_end=True)

    def check(self, *, is_end: bool = False) -> None:
        """Wait until the catalog is what the disk is, and everything else holds that must hold then. Raises
        AssertionError with all that happened."""
        self.tell("check")
        self.crew.assert_alive()
        if wrong := self.portal.call(self._wrong_in_the_end, is_end):
            raise AssertionError(self._story(wrong))
        hashed = self.history.hashed[self.hashes :]
        self.known |= dict.fromkeys(((fact.path, fact.stat) for fact in hashed), time.time())
        self.elders.are_known(fact.stat.ino for fact in hashed)
        self.heard, self.hashes = len(self.history.facts), len(self.history.hashed)

    def tell(self, what: str) -> None:
        self.told.append(f"{time.time():.3f} {what}")

    def _story(self, wrong: list[str]) -> str:
        parts = {
            "before that": self.before,
            "what happened": self.told,
            "what the agents said since the last check": self.history.facts[self.heard :],
            f"what was wrong, {self.patience:g} s later still": wrong,
            "what the agents logged": self.crew.last_words(),
        }
        return "".join(f"\n{title}:" + "".join(f"\n  {line}" for line in lines) for title, lines in parts.items())

    async def _hear(self, count: int) -> None:
        async with self.bus.listen(EVERYTHING) as said:
            for _ in range(count):
                with anyio.move_on_after(0.1) as silence:
                    await said.receive()
                if silence.cancelled_caught:
                    return

    async def _wrong_in_the_end(self, is_end: bool) -> list[str]:
        """What is still wrong when patience is at its end."""
        wrong = ["nobody answers"]
        with anyio.move_on_after(self.patience):
            while wrong:
                try:
                    wrong = await self._wrong() or (is_end and await self._restless()) or []
                except NoAnswer as error:
                    wrong = [str(error)]
                if wrong:
                    await anyio.sleep(AGAIN)
        return wrong

    async def _wrong(self) -> list[str]:
        """What does not hold now; first what takes time."""
        return (
            await self._unsettled()
            or await self._paths_differ()
            or await self.history.unheard(self.bus)
            or await self._models_differ()
            or self._hashed_again()
        )

    async def _unsettled(self) -> list[str]:
        states = await look(self.bus, ROOTS)
        wrong = [f"{state.root}: {state.unhashed} not hashed" for state in states if state.unhashed]
        waiting, unsure = sum(state.waiting for state in states), len(self.folders.unsure())
        if waiting > unsure:
            wrong.append(f"{waiting} files wait to be judged, {unsure} are open")
        return wrong or [f"a job waits: {subject}" for subject in await jobs_waiting(self.bus)]

    async def _paths_differ(self) -> list[str]:
        """The disk against the catalog, path by path."""
        truth, unsure = self.folders.truth(), self.folders.unsure()
        found = [(at(path), model.sha256) for model in await models_of(self.bus, missing=False) for path in model.paths]
        claimed = dict(found)
        wrong = [f"{path!r} is in the catalog twice" for path in claimed if [p for p, _ in found].count(path) > 1]
        return wrong + [
            f"{path!r}: on disk {truth.get(path)}, in the catalog {claimed.get(path)}"
            for path in sorted({*truth, *claimed} - unsure)
            if truth.get(path) != claimed.get(path)
        ]

    async def _models_differ(self) -> list[str]:
        """The catalog against all that ever was, and against its own history."""
        models = {model.sha256: model for model in await models_of(self.bus, missing=True)}
        wrong = [f"{sha256} is in the catalog, and never was on disk" for sha256 in models.keys() - self.whole]
        wrong += [f"{sha256} was in the catalog and is not any more" for sha256 in self.proven - models.keys()]
        wrong += [f"{m.sha256} is missing, and at {m.paths}" for m in models.values() if m.missing != (not m.paths)]
        self.proven.update(models)
        there = {sha256: set(model.paths) for sha256, model in models.items()}
        for sha256 in {*there, *self.history.models}:
            if there.get(sha256) != self.history.models.get(sha256):
                told = self.history.models.get(sha256)
                wrong.append(f"{sha256}: at {there.get(sha256)}, by the history at {told}")
        return wrong

    def _hashed_again(self) -> list[str]:
        """Files that were read since the last check though they were known; but a hash is believed only when it is old
        enough, and a kill may have come between doing something and knowing that it was done."""
        wrong = []
        for fact in self.history.hashed[self.hashes :]:
            path, ino = at(fact.path), fact.stat.ino
            known = self.known.get((fact.path, fact.stat), fact.at)
            is_young = 0 <= self.history.settled.get(fact.path, 0.0) - known <= OLD_ENOUGH
            if not is_young and known < fact.at and not any(known < killed < fact.at for killed in self.kills):
                wrong.append(f"{path!r} was hashed again, just as it was {fact.at - known:.3f} s before")
            if self.are_old and ino in self.elders.homes.keys() - self.elders.excused:
                wrong.append(f"{self.elders.homes[ino].name}, old and only moved, was hashed again at {path!r}")
        return wrong

    async def _restless(self) -> list[str]:
        """When all is well, looking again and comparing again finds nothing, and nobody says anything."""
        before = [(await self.bus.js.stream_info("FILES")).state.last_seq, await mended(self.bus)]
        await look(self.bus, ROOTS)
        after = [(await self.bus.js.stream_info("FILES")).state.last_seq, await mended(self.bus)]
        return [] if before == after else [f"all was well, and yet: facts and differences {before} became {after}"]

    async def grow_old(self) -> None:
        """Until the elders' hashes are known for certain."""
        with anyio.fail_after(self.patience + OLD_ENOUGH):
            while not await all_known(self.bus, ROOTS):
                await anyio.sleep(AGAIN)
                await look(self.bus, ROOTS)
        self.are_old = True


@contextmanager
def world(home: Path, patience: float) -> Iterator[World]:
    """A new world, its agents at work and its elders old."""
    with ExitStack() as stack:
        server = stack.enter_context(local_server(home / "nats", port=0, store_bytes=1024**3))
        portal = stack.enter_context(start_blocking_portal())
        settings = BusSettings(store_bytes=512 * 1024 * 1024)
        bus = stack.enter_context(portal.wrap_async_context_manager(connect(server.url, settings, name="test")))
        folders = Folders(home / "disk")
        (home / "data").mkdir()
        crew = Crew(server.url, home / "data", folders.roots, QUICK)
        made = World(portal, bus, crew, folders, patience)
        stack.callback(crew.kill, AGENTS)
        stack.callback(folders.finish)
        portal.call(made.history.follow, bus)
        made.whole.update(folders.truth().values())
        made.start()
        made.check()
        portal.call(made.grow_old)
        yield made
