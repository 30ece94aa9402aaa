"""Drift: where the catalog and the watchers' tables differ, and the facts that mend it. They are compared at start, for
every watcher that starts later, and when somebody asks.

The facts of the FILES stream keep the two the same. They part when one of the files is restored from a backup, or
deleted.
"""

import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Mapping

import anyio
import nats.errors
import structlog

from agents.catalog.database import Database
from agents.catalog.facts import apply, roots_of, rows_of
from agents.catalog.ledger import LedgerRow
from bus.client import Bus, encode
from bus.errors import Declined, NoAnswer, Undecodable
from bus.ids import digest_id
from bus.subjects import ASK_FILES, TICK_AGENT
from schemas.asks import Compare, Compared
from schemas.files import FileList, FilePath, ListedFile, ListFiles, Removed, Settled

log = structlog.get_logger()

COMPARED = 256
"""Facts applied in one transaction where the catalog and a watcher's table differ."""


class DriftCheck:
    """The comparisons of one catalog with the watchers of `roots`, and of the roots that it knows itself.

    `caught_up` returns when every fact is applied that was stored before.
    """

    def __init__(
        self,
        bus: Bus,
        db: Database,
        roots: frozenset[str],
        caught_up: Callable[[], Awaitable[None]],
    ) -> None:
        self.bus, self.db, self.roots = bus, db, roots
        self.caught_up = caught_up
        self.begun = self.done = self.mended = 0
        self.now = anyio.Event()
        self.compared: set[str] = set()

    async def answer(self, ask: Compare) -> Compared:
        """How far the comparisons are; with a new one, begun when this is answered."""
        number = self.begun + 1
        if ask.again:
            self.now.set()
        return Compared(number=number, done=self.done, mended=self.mended)

    async def keep_checking(self) -> None:
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
            log.warning("drift not mended", root=root, error=str(error))
            return
        if mended:
            log.warning("drift mended", root=root, facts=mended)
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
        facts = differences(await rows_of(self.db, root), listed, at)
        for start in range(0, len(facts), COMPARED):
            batch = [(digest_id("compared", encode(fact)), fact) for fact in facts[start : start + COMPARED]]
            await apply(self.db, batch, now=self.bus.clock.now())
        return len(facts)


def differences(rows: Mapping[FilePath, LedgerRow], listed: Iterable[ListedFile], at: float) -> list[Settled | Removed]:
    """What has to be applied to the catalog's present `rows` of a root for them to be what the watcher `listed` at
    `at` (its clock). Of files that wait to be judged or hashed, facts come by themselves. Pure."""
    there = {one.path: one for one in listed}
    settled = [
        Settled(key=one.key, path=path, stat=one.stat, proof="complete", at=at, known=one.known)
        for path, one in there.items()
        if one.known is not None and ((row := rows.get(path)) is None or row.sha256 != one.known.sha256)
    ]
    removed = [Removed(key=row.key, path=path, at=at) for path, row in rows.items() if path not in there]
    return [*settled, *removed]  # a model that is elsewhere now is not missing in between
