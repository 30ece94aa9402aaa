"""Watcher: scans the roots, lets a file in when it is complete.

Consumes FILE_HASHED and FILE_HASH_FAILED. Publishes FILE_SETTLED, FILE_MOVED, FILE_REMOVED, FILE_REFUSED,
FILE_DESCRIBED, HASH and TICK_GROWING. Answers ASK_FILES and ASK_ROOT.

A scan is the truth; events of the file system only wake it. What was seen and what is still to be published are in
`data/files.sqlite3`, written together, so a kill at any moment loses nothing. A hash fills its cache; a failed one puts
the file before the gate again.
"""

import functools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import anyio
import anyio.abc
import structlog
from anyio import to_thread

from agents.ingest.scanning import events
from agents.ingest.scanning.reconcile import Lost, Row, reconcile, without
from agents.ingest.scanning.scan import Scan, Scanner
from agents.ingest.scanning.single import admit_new
from agents.ingest.settling import gate, verdicts, waiting
from agents.ingest.settling.fingerprint import verified
from agents.ingest.sidecars.watch import SidecarWatch
from agents.ingest.store import Store, Table, open_table
from agents.storage.database import owned
from agents.storage.layout import DataDir
from agents.watcher.outbox import WatcherOutbox
from bus.client import Bus
from bus.errors import UserError
from bus.followers import Fact, follow
from bus.ids import digest_id
from bus.relay import relay
from bus.subjects import (
    ASK_FILES,
    ASK_ROOT,
    FILE_HASH_FAILED,
    FILE_HASHED,
    TICK_GROWING,
)
from schemas.files import FileList, Hashed, HashFailed, ListedFile, ListFiles, RootState, ScanRoot
from schemas.fitting import fitted
from schemas.settings import WatcherSettings

log = structlog.get_logger()

_BATCH = 256
_LOOK_SECONDS = 0.25
_LISTED = 1000
_PROBLEMS = 20
_FORGET_SECONDS, _FORGET_EVERY = 90 * 24 * 3600.0, 24 * 3600.0
_SHORTEST_REST = 0.005


async def run(
    bus: Bus,
    data_dir: Path,
    roots: Mapping[str, str],
    settings: WatcherSettings,
    *,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Watch until cancelled. Ready when changes are noticed and the first scan is in the table. Raises UserError."""
    _refuse_twins(roots)
    path = DataDir(data_dir).files
    with owned(path):
        opened = open_table(path, bus.clock)
        async with opened as table, anyio.create_task_group() as tasks:
            watcher = Watcher(bus, table, roots, settings, data_dir)
            watched = {root: anyio.Event() for root in roots}
            for root, event in watched.items():
                tasks.start_soon(watcher.notice_changes, root, event)
            for event in watched.values():
                await event.wait()
            await watcher.scan()
            await watcher.outbox.find_lost()
            # Each watcher has a place of its own in FILES.
            mine = digest_id(os.uname().nodename, data_dir.absolute())[:12]
            for follower, row, handle in (
                (f"watcher-hashed-{mine}", FILE_HASHED, watcher.remember),
                (f"watcher-failed-{mine}", FILE_HASH_FAILED, watcher.judge_failed),
            ):
                await tasks.start(
                    functools.partial(follow, bus, "FILES", (row,), follower, handle, pattern=row.filter())
                )
            for root in roots:
                answer = functools.partial(watcher.list_files, root)
                await tasks.start(functools.partial(bus.answer, ASK_FILES, answer, pattern=ASK_FILES(root=root)))
                state = functools.partial(watcher.root_state, root)
                await tasks.start(functools.partial(bus.answer, ASK_ROOT, state, pattern=ASK_ROOT(root=root)))
            tasks.start_soon(watcher.keep_scanning)
            tasks.start_soon(watcher.keep_judging)
            tasks.start_soon(relay, bus, watcher.outbox, watcher.outbox.wakeup)
            tasks.start_soon(watcher.sidecars.keep)
            task_status.started()


def _refuse_twins(roots: Mapping[str, str]) -> None:
    names: dict[str, str] = {}
    for name, folder in roots.items():
        other = names.setdefault(os.path.realpath(folder), name)
        if other != name:
            raise UserError(f"roots {other!r} and {name!r} are the same folder, {folder}: leave one of them out")


class Watcher:
    """The two loops, which scan and judge, around `state`; only `see` changes that."""

    def __init__(self, bus: Bus, table: Table, roots: Mapping[str, str], settings: WatcherSettings, data: Path) -> None:
        self.bus, self.table, self.roots, self.settings = bus, table, dict(roots), settings
        self.scanner = Scanner(self.roots)
        self.outbox = WatcherOutbox(bus, table)
        self.sidecars = SidecarWatch(table, self.roots, data, settings.stable, bus.clock, self.outbox.wakeup.set)
        self.state = waiting.State()
        self.scan_now, self.judge_now = anyio.Event(), anyio.Event()

    def see(self, observation: waiting.Observation) -> None:
        """Take in an observation, and wake the loop that has to act on it."""
        self.state, actions = waiting.step(self.state, observation, self.bus.clock.steady())
        if actions.scan:
            self.scan_now.set()
        if actions.judge:
            self.judge_now.set()

    async def notice_changes(self, root: str, ready: anyio.Event) -> None:
        """Wake the loops when something may have happened below a root. See events.report_changes."""
        report = functools.partial(self._noticed, root)
        excluded, steady = self.scanner.inner_roots(root), self.bus.clock.steady
        await events.report_changes(root, self.roots[root], excluded, self.settings, report, ready, steady)

    def _noticed(self, root: str, changes: events.Events) -> None:
        for rel in waiting.unknown(self.state, root, changes):
            self.sidecars.arrived(root, rel)
        for folder in changes.sidecars:
            self.sidecars.folder_changed(root, folder)
        self.see(waiting.Noticed(root, changes))

    async def list_files(self, root: str, ask: ListFiles) -> FileList:
        """What lies below a root, a page of it: for the catalog, to compare."""
        limit, at = max(1, min(ask.limit, _LISTED)), self.bus.clock.now()
        found = await self.table.do(lambda db: db.listing(root, after=ask.after, limit=limit + 1))
        files = [ListedFile(path=row.path, key=row.key, stat=row.stat, known=known) for row, known in found[:limit]]
        listed = fitted(files, room := self.bus.nc.max_payload * 3 // 4, room)
        return FileList(files=listed, at=at, more=len(listed) < len(found))

    async def root_state(self, root: str, ask: ScanRoot) -> RootState:
        """How a root is; with a scan of its own, begun when this is answered."""
        look = self.state.begun + 1
        if ask.look:
            self.scan_now.set()
        counts = await self.table.do(lambda db: db.counts(root))
        refusals = await self.table.do(lambda db: db.refusals(root, limit=_PROBLEMS))
        limit = max(1, min(ask.limit, _LISTED))
        rows = await self.table.do(lambda db: db.waiting_since(root, after=ask.after, limit=limit))
        state, clock = self.state, self.bus.clock
        return RootState(
            root=root,
            look=look,
            looks=state.done,
            problems=(*state.problems.get(root, ()), *refusals)[:_PROBLEMS],
            waits=waiting.page(state, rows, now=clock.steady(), wall=clock.now(), most=self.bus.nc.max_payload // 2),
            folders=self.scanner.folders,
            **counts,
        )

    async def keep_scanning(self) -> None:
        """Scan at every interval, and when woken; the pause before grows with the last scan's own time."""
        took, ended, forget_at, steady = 0.0, 0.0, self.bus.clock.steady(), self.bus.clock.steady
        while True:
            with anyio.move_on_after(min(self.settings.scan_interval, self.state.scan_at - steady())):
                await self.scan_now.wait()
            await anyio.sleep(max(0.0, ended + min(4 * took, self.settings.scan_interval) - steady()))
            took = await self.scan()
            ended = steady()
            if ended >= forget_at:
                forget_at = ended + _FORGET_EVERY
                before = self.bus.clock.now() - _FORGET_SECONDS
                await self.table.do(functools.partial(Store.prune, before=before))

    async def scan(self) -> float:
        """Scan every root, write down what changed; returns the seconds it took."""
        began, wall = self.bus.clock.steady(), self.bus.clock.now()
        self.scan_now = anyio.Event()  # before scanning, so that no event meanwhile is missed
        self.see(waiting.Scanning())
        applied = None
        for sure in (False, True):
            await self.table.do(Store.begin_scan)
            scans = await to_thread.run_sync(self.scanner.scan)
            if (applied := await self.table.do(functools.partial(self._apply, scans, wall, sure))) is not None:
                break
        assert applied is not None  # what is sure is applied
        changes, left = applied
        for one in scans:
            if one.problems and waiting.sentences(one) != self.state.problems.get(one.root):
                log.warning("not everything can be looked at", root=one.root, problems=waiting.sentences(one)[:5])
        self.see(waiting.Scanned(scans, changes, left))
        if changes:
            log.debug("changes", count=changes)
            self.outbox.wakeup.set()
            self.sidecars.hashed()  # what came as a link has a hash already
        self.sidecars.scanned(scans, began)
        return self.bus.clock.steady() - began

    def _apply(self, scans: list[Scan], wall: float, sure: bool, db: Store) -> tuple[int, int] | None:
        """In the table's thread: write down what changed; how many changes that were, and how many were left.

        None, and nothing is done, when files are gone, or went on changing, and that is not `sure`: what is renamed
        while a scan goes by may be seen at neither place. What was written since the scan began is left to the next.
        """
        rows = db.rows()
        dropped = {row.path.root for row in rows if not row.gone} - self.roots.keys()
        found = reconcile(rows, [*scans, *(Scan(root=root, state="gone") for root in dropped)])
        if not sure and any(isinstance(change, Lost) and not change.unmounted for change in found):
            return None
        current = without(found, db.written)
        if (checked := verified(current, self.roots, sure=sure)) is None:
            return None
        roots = [one.root for one in scans if one.state == "present"]
        db.apply(checked, roots=roots, looked_at=wall, now=self.bus.clock.now())
        return len(current), len(found) - len(current)

    async def keep_judging(self) -> None:
        """Put what waits before the gate, each file when its time has come."""
        steady = self.bus.clock.steady
        while True:
            self.judge_now = anyio.Event()
            if self.state.fresh:
                await self.admit()
            if self.state.stale:
                await self.list_waiting()
            due = waiting.due(self.state, steady())
            while due:
                due = due[await self.judge(due[:_BATCH]) :]
                self.outbox.wakeup.set()
            if not self.state.stale:
                with anyio.move_on_after(max(waiting.next_due(self.state) - steady(), _SHORTEST_REST)):
                    await self.judge_now.wait()

    async def admit(self) -> None:
        """Put what is new of the paths that events named before the gate; a scan explains the others."""
        fresh, now = self.state.fresh, self.bus.clock.now()
        self.see(waiting.Admitting())
        self.see(waiting.Admitted(await self.table.do(lambda db: admit_new(fresh, self.roots, db, now))))

    async def list_waiting(self) -> None:
        """Read again which files wait."""
        self.see(waiting.Listing())
        self.see(waiting.Listed(await self.table.do(Store.waiting)))

    async def judge(self, rows: list[Row]) -> int:
        """Look at the first of these files, and write down what the gate decides; how many. What takes long to look at
        (a large header) holds up none that was looked at before it."""
        state = self.state
        judged = await to_thread.run_sync(self._look, rows, state)
        for tick in filter(None, (verdicts.growing(waiting.track_of(state, one.row), one) for one in judged)):
            await self.bus.tick(TICK_GROWING, tick, key=tick.key)
        overtaken: frozenset[int] = frozenset()
        if decided := [one for one in judged if isinstance(one.verdict, gate.Admit | gate.Refuse)]:
            now = self.bus.clock.now()
            overtaken = await self.table.do(lambda db: verdicts.write(decided, db, now))
            self.sidecars.hashed()
        for one in judged:
            if isinstance(one.verdict, gate.Wait):
                log.debug("waiting for a file", rel=one.row.path.rel, why=one.verdict.why)
        self.see(waiting.Looked(judged, overtaken, self.settings.scan_interval))
        return len(judged)

    def _look(self, rows: Iterable[Row], state: waiting.State) -> list[verdicts.Judged]:
        """In a thread: look at files until that has taken a while, at one of them at least."""
        folders, attempts = verdicts.root_folders(self.roots, state.remote), self.table.held.attempts
        clock = self.bus.clock
        until, seen = clock.steady() + _LOOK_SECONDS, list[verdicts.Judged]()
        for row in rows:
            now = clock.steady()
            if seen and now > until:
                break
            track = waiting.track_of(state, row)
            seen.append(verdicts.judge(row, folders[row.path.root], track, self.settings, now, attempts, clock.now))
        return seen

    async def remember(self, facts: list[Fact]) -> None:
        """Keep the hashes that hashers found, by this clock: that of a hasher elsewhere may differ from it."""
        now = self.bus.clock.now()

        def write(db: Store) -> None:
            with db.atomic():
                for fact in facts:
                    assert isinstance(fact.payload, Hashed)
                    hashed = fact.payload
                    db.remember(hashed.stat, hashed.sha256, hashed.identity, hashed_at=now)

        await self.table.do(write)
        self.sidecars.hashed()

    async def judge_failed(self, facts: list[Fact]) -> None:
        """A file that could not be hashed goes before the gate again; one that can't be read is refused."""
        now = self.bus.clock.now()

        def write(db: Store) -> None:
            with db.atomic():
                for fact in facts:
                    assert isinstance(fact.payload, HashFailed)
                    failed = fact.payload
                    row = db.row_at(failed.path)
                    if row is None or row.gone or row.state != "settled" or row.stat != failed.stat:
                        continue  # it has been judged anew meanwhile
                    if failed.reason in ("changed", "gone"):
                        db.judge_again(row, now=now)
                    else:
                        db.refuse(row, None, reason=failed.reason, error=failed.error, now=now)

        await self.table.do(write)
        self.see(waiting.Unhashed())
        self.outbox.wakeup.set()
