"""Alike: the catalog compared with what the watchers' tables say, and mended: at start, for every watcher that starts
later, and when somebody asks."""

import sqlite3
from collections.abc import Awaitable, Callable

import anyio
import nats.errors
import structlog

from agents.catalog.database import Database
from agents.catalog.facts import apply, places_of, roots_of
from agents.migrator.differences import differences
from bus.client import Bus, encode
from bus.errors import Declined, NoAnswer, Undecodable
from bus.ids import digest_id
from bus.subjects import ASK_FILES, TICK_AGENT
from schemas.asks import Compare, Compared
from schemas.files import FileList, ListedFile, ListFiles

log = structlog.get_logger()

COMPARED = 256
"""Facts applied in one transaction when the catalog is made alike with a watcher's table."""


class Alike:
    """The comparisons of one catalog with the watchers of `roots`, and of the roots that it knows itself.

    `caught_up` returns when every fact is applied that was stored before.
    """

    def __init__(
        self,
        bus: Bus,
        db: Database,
        roots: frozenset[str],
        clock: Callable[[], float],
        caught_up: Callable[[], Awaitable[None]],
    ) -> None:
        self.bus, self.db, self.roots, self.clock = bus, db, roots, clock
        self.caught_up = caught_up
        self.begun = self.done = self.mended = 0
        self.now = anyio.Event()
        self.compared: set[str] = set()

    async def asked(self, ask: Compare) -> Compared:
        """How far the comparisons are; with a new one, begun when this is answered."""
        number = self.begun + 1
        if ask.again:
            self.now.set()
        return Compared(number=number, done=self.done, mended=self.mended)

    async def keep(self) -> None:
        """Compare at start, with the watchers that start later, and when asked."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._notice_watchers)
            while True:
                self.begun += 1
                self.now = anyio.Event()
                for root in sorted(self.roots | await roots_of(self.db)):
                    await self._compare(root)
                self.done = self.begun
                await self.now.wait()

    async def _notice_watchers(self) -> None:
        async with self.bus.listen(TICK_AGENT.filter(name="watcher"), buffer=64) as ticks:
            async for tick in ticks:
                instance = TICK_AGENT.parse(tick.subject)["instance"]
                if instance not in self.compared:
                    self.compared.add(instance)
                    self.now.set()

    async def _compare(self, root: str) -> None:
        try:
            mended = await self.compare(root)
        except (Declined, NoAnswer, Undecodable) as error:
            log.debug("not compared", root=root, why=str(error))
            if not isinstance(error.__cause__, nats.errors.NoRespondersError):
                self.compared.clear()  # it was busy: again at its next tick
            return
        except (sqlite3.Error, OverflowError, OSError) as error:  # a full disk, or what no true watcher lists
            log.warning("catalog and watcher not made alike", root=root, error=str(error))
            return
        if mended:
            log.warning("catalog and watcher differed", root=root, mended=mended)
            self.mended += mended

    async def compare(self, root: str) -> int:
        """Mend what the catalog has otherwise than the watcher of a root; how many facts it took. Raises NoAnswer."""
        await self.caught_up()
        listed: list[ListedFile] = []
        more, at = True, 0.0
        while more:
            after = listed[-1].path.rel if listed else ""
            page = await self.bus.ask(ASK_FILES, ListFiles(after=after), FileList, root=root)
            at = at or page.at
            listed += page.files
            more = page.more and bool(page.files)
        facts = differences(await places_of(self.db, root), listed, at)
        for start in range(0, len(facts), COMPARED):
            told = [(digest_id("compared", encode(fact)), fact) for fact in facts[start : start + COMPARED]]
            await apply(self.db, told, now=self.clock())
        return len(facts)
