"""Watcher: looks at the roots, lets a file in when it is complete, says evt.file.settled/moved/removed and job.hash;
tells what lies beside it (evt.file.described), and that a large one still grows (tick.growing).

A scan is the truth; events of the file system only wake it. What was seen and what has still to be said are in
`data/files.sqlite3`, written together, so a kill at any moment loses nothing. It hears evt.file.hashed for its cache
and evt.file.hash_failed to judge again.
"""

import functools
import os
import time
from collections.abc import Mapping
from pathlib import Path

import anyio
import anyio.abc
import structlog
from anyio import to_thread

from agents.ingest import table
from agents.ingest.scanning import events
from agents.ingest.scanning.mounts import is_remote
from agents.ingest.scanning.reconcile import Lost, Row, reconcile, without
from agents.ingest.scanning.scan import Scan, scan
from agents.ingest.scanning.single import take_up
from agents.ingest.settling import gate, verdicts
from agents.ingest.settling.fingerprint import verified
from agents.ingest.settling.waits import Waits
from agents.ingest.sidecars.watch import Describer
from agents.ingest.store import FilesDb
from agents.runtime.instance import owned
from agents.storage.paths import is_inside
from agents.watcher.outbox import Saying
from bus.client import Bus
from bus.errors import UserError
from bus.followers import Fact, follow
from bus.ids import digest_id
from bus.subjects import (
    ASK_FILES,
    ASK_ROOT,
    FILE_HASH_FAILED,
    FILE_HASHED,
    TICK_GROWING,
)
from schemas.files import FileList, FilePath, Hashed, HashFailed, ListedFile, ListFiles, RootState, ScanRoot
from schemas.fitting import fitted
from schemas.settings import WatcherSettings

log = structlog.get_logger()

_BATCH = 256
_LOOK_SECONDS = 0.25
_LISTED = 1000
_LEFT_LOOKS = 3
"""Scans in a row that leave something to the next one, until they count all the same: some file is never left alone."""
_TOLD = 20
_FORGET = 90 * 24 * 3600.0
_LOOK_TWICE = 1.0
"""Seconds until folders that came are looked at once more: of what was made in them in a hurry, nothing is heard."""


async def run(
    bus: Bus,
    data_dir: Path,
    roots: Mapping[str, str],
    settings: WatcherSettings,
    *,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Watch until cancelled. Ready when changes are heard and the first scan is in the table. Raises UserError."""
    _refuse_twins(roots)
    path = data_dir / "files.sqlite3"
    with owned(path):
        async with table.opened(path) as rows, anyio.create_task_group() as tasks:
            watcher = Watcher(bus, rows, roots, settings, data_dir)
            heard = {root: anyio.Event() for root in roots}
            for root, event in heard.items():
                tasks.start_soon(watcher.hear_changes, root, event)
            for event in heard.values():
                await event.wait()
            await watcher.look()
            await rows.do(watcher.saying.ask_again)
            # Each watcher has a place of its own in FILES.
            mine = digest_id(os.uname().nodename, data_dir.absolute())[:12]
            for follower, row in (
                (f"watcher-hashed-{mine}", FILE_HASHED),
                (f"watcher-failed-{mine}", FILE_HASH_FAILED),
            ):
                handle = watcher.learn if row is FILE_HASHED else watcher.judge_failed
                await tasks.start(
                    functools.partial(follow, bus, "FILES", (row,), follower, handle, pattern=row.filter())
                )
            for root in roots:
                answer = functools.partial(watcher.list_files, root)
                await tasks.start(functools.partial(bus.answer, ASK_FILES, answer, pattern=ASK_FILES(root=root)))
                state = functools.partial(watcher.root_state, root)
                await tasks.start(functools.partial(bus.answer, ASK_ROOT, state, pattern=ASK_ROOT(root=root)))
            tasks.start_soon(watcher.keep_looking)
            tasks.start_soon(watcher.keep_judging)
            tasks.start_soon(watcher.saying.keep_saying)
            tasks.start_soon(watcher.describer.keep)
            task_status.started()


def _refuse_twins(roots: Mapping[str, str]) -> None:
    names: dict[str, str] = {}
    for name, folder in roots.items():
        other = names.setdefault(os.path.realpath(folder), name)
        if other != name:
            raise UserError(f"roots {other!r} and {name!r} are the same folder, {folder}: leave one of them out")


class Watcher:
    """The two loops (look, judge) and what wakes them; what they find out is for `Saying` to say."""

    def __init__(
        self, bus: Bus, table: table.Table, roots: Mapping[str, str], settings: WatcherSettings, data: Path
    ) -> None:
        self.bus, self.table, self.roots, self.settings = bus, table, dict(roots), settings
        self.saying = Saying(bus, table, settings.scan_interval)
        self.describer = Describer(table, self.roots, data, settings.stable, self.saying.bell.ring)
        self.look_now, self.judge_now = anyio.Event(), anyio.Event()
        self.look_at = float("inf")
        self.remote: dict[str, bool] = {}
        self.problems: dict[str, tuple[str, ...]] = {}
        self.waiting: dict[int, Row] = {}
        self.ids: dict[tuple[str, str], int] = {}
        self.tracks: dict[int, gate.Track] = {}
        self.due: dict[int, float] = {}
        self.unexplained: set[int] = set()
        self.fresh: set[tuple[str, str]] = set()
        self.stale = True
        self.has_links = False
        self.judged: set[int] = set()
        self.waits = Waits()
        self.looks_begun = self.looks = self.left = self.left_looks = self.folders = 0

    async def hear_changes(self, root: str, ready: anyio.Event) -> None:
        """Wake the other loops when something may have happened below a root. See events.hear."""
        heard = functools.partial(self._heard, root)
        await events.hear(root, self.roots[root], self._inner_roots(root), self.settings, heard, ready)

    def _heard(self, root: str, what: events.Heard) -> None:
        """A file that waits is looked at by itself, soon; so is a new one. Anything else is a reason to scan."""
        soon = time.monotonic() + gate.LOOK_AGAIN
        for rel in what.rels:
            id = self.ids.get((root, rel))
            if id is None:
                self.fresh.add((root, rel))
                self.describer.arrived(root, rel)
            elif self.due.get(id, 0.0) > soon:
                del self.due[id]
                self.judge_now.set()
        if what.folders:
            self.look_at = time.monotonic() + _LOOK_TWICE
        for folder in what.beside:
            self.describer.folder_changed(root, folder)
        if self.has_links and (what.beside or self.fresh):  # a link may lead there, from anywhere
            self.look_now.set()
        if what.unknown or len(self.fresh) > events.MANY:
            self.fresh.clear()
            self.look_now.set()
        elif self.fresh:
            self.judge_now.set()

    def _inner_roots(self, root: str) -> frozenset[bytes]:
        """The folders of the other roots that lie in this one: their files are counted there, and only there."""
        top = os.path.realpath(os.fsencode(self.roots[root]))
        others = (os.path.realpath(os.fsencode(folder)) for folder in self.roots.values())
        return frozenset(other for other in others if is_inside(other, top))

    async def list_files(self, root: str, ask: ListFiles) -> FileList:
        """What lies below a root, a page of it: for the catalog, to compare."""
        limit, at = max(1, min(ask.limit, _LISTED)), time.time()
        found = await self.table.do(lambda db: db.listing(root, after=ask.after, limit=limit + 1))
        files = [ListedFile(path=row.path, key=row.key, stat=row.stat, known=known) for row, known in found[:limit]]
        listed = fitted(files, room := self.bus.nc.max_payload * 3 // 4, room)
        return FileList(files=listed, at=at, more=len(listed) < len(found))

    async def root_state(self, root: str, ask: ScanRoot) -> RootState:
        """How a root is; with a look of its own at it, begun when this is answered."""
        look = self.looks_begun + 1
        if ask.look:
            self.look_now.set()
        counts = await self.table.do(lambda db: db.counts(root))
        refusals = await self.table.do(lambda db: db.refusals(root, limit=_TOLD))
        problems = (*self.problems.get(root, ()), *refusals)[:_TOLD]
        most = self.bus.nc.max_payload // 2
        waits = await self.table.do(lambda db: self.waits.page(db, root, ask.after, ask.limit, most))
        return RootState(
            root=root, look=look, looks=self.looks, problems=problems, waits=waits, folders=self.folders, **counts
        )

    async def look(self) -> float:
        """Scan every root, write down what changed; returns the seconds it took."""
        self.looks_begun += 1
        self.look_now = anyio.Event()  # before looking, so that nothing said meanwhile is missed
        unexplained, self.unexplained = self.unexplained, set()
        if self.look_at <= time.monotonic():
            self.look_at = float("inf")
        began, wall = time.monotonic(), time.time()
        self.judged.clear()
        scans = await to_thread.run_sync(self._scan)
        count = await self.table.do(lambda db: self._compare(scans, wall, False, db))
        if count is None:
            self.judged.clear()
            scans = await to_thread.run_sync(self._scan)
            count = await self.table.do(lambda db: self._compare(scans, wall, True, db))
        if count:
            log.debug("changes", count=count)
            self.stale = True
            self.judge_now.set()
            self.saying.bell.ring()
            self.describer.hashed()  # what came as a link, say, has a hash already
        self._look_soon_at(unexplained, scans)
        self.describer.looked(scans, began)
        self.left_looks = self.left_looks + 1 if self.left else 0
        if self.left:
            self.look_now.set()
        if not self.left or self.left_looks >= _LEFT_LOOKS:
            self.looks = self.looks_begun
        return time.monotonic() - began

    def _look_soon_at(self, unexplained: set[int], scans: list[Scan]) -> None:
        """What was not there, or another file, when it was to be judged, and is there by the scan: judge it soon. (Of
        what the scan did not see either, the next one tells.)"""
        soon, seen = time.monotonic() + gate.LOOK_AGAIN, {one.root: one.candidates for one in scans}
        for id in unexplained & self.due.keys() & self.waiting.keys():
            path = self.waiting[id].path
            if path.rel in seen.get(path.root, {}):
                self.due[id] = min(self.due[id], soon)
                self.judge_now.set()

    def _compare(self, scans: list[Scan], wall: float, sure: bool, db: FilesDb) -> int | None:
        """In the table's thread: write down what changed, and count it.

        None, and nothing is done, when files are gone, or went on changing, and that is not `sure`: what is renamed
        while a scan goes by may be seen at neither place. What was judged since the scan began is left to the next one.
        """
        rows = db.rows()
        dropped = {row.path.root for row in rows if not row.gone} - self.roots.keys()
        every = [*scans, *(Scan(root=root, state="gone") for root in dropped)]
        changes = reconcile(rows, every)
        if not sure and any(isinstance(change, Lost) and not change.unmounted for change in changes):
            return None
        current = without(changes, self.judged)
        self.left = len(changes) - len(current)
        checked = verified(current, self.roots, sure=sure)
        if checked is None:
            return None
        roots = [one.root for one in scans if one.state == "present"]
        db.apply(checked, roots=roots, looked_at=wall, now=time.time())
        return len(current)

    def _entered(self) -> None:
        self.folders += 1

    def _scan(self) -> list[Scan]:
        """In a thread. What lies in every root, and what can't be looked at there."""
        scans = [scan(root, folder, self._inner_roots(root), self._entered) for root, folder in self.roots.items()]
        self.remote = {root: is_remote(folder) for root, folder in self.roots.items()}
        self.has_links = any(one.has_links for one in scans)
        for one in scans:
            problems = tuple(f"{problem.rel}: {problem.error}" for problem in one.problems)
            if problems and problems != self.problems.get(one.root):
                log.warning("not everything can be looked at", root=one.root, problems=problems[:5])
            self.problems[one.root] = problems
        return scans

    async def keep_looking(self) -> None:
        """Scan at every interval, and when woken; the pause before grows with the last scan's own time."""
        took, ended, forget_at = 0.0, 0.0, time.monotonic()
        while True:
            with anyio.move_on_after(min(self.settings.scan_interval, self.look_at - time.monotonic())):
                await self.look_now.wait()
            await anyio.sleep(max(0.0, ended + min(4 * took, self.settings.scan_interval) - time.monotonic()))
            took = await self.look()
            ended = time.monotonic()
            if ended >= forget_at:
                forget_at = ended + 24 * 3600
                await self.table.do(lambda db: db.prune(before=time.time() - _FORGET))

    async def keep_judging(self) -> None:
        """Put what waits before the gate, each file when its time has come."""
        while True:
            self.judge_now = anyio.Event()
            if self.fresh:
                await self._glance()
            if self.stale:
                await self._read_waiting()
            now = time.monotonic()
            due = [row for id, row in self.waiting.items() if self.due.get(id, 0.0) <= now]
            while due:
                due = due[await self._judge(due[:_BATCH]) :]
                self.saying.bell.ring()
            if self.stale:
                continue
            pause = min(self.due.values(), default=float("inf")) - time.monotonic()
            with anyio.move_on_after(max(pause, 0.005)):
                await self.judge_now.wait()

    async def _glance(self) -> None:
        """Take up what is new of the paths that events named; a scan explains the others."""
        fresh, self.fresh, self.stale = self.fresh, set(), True

        def take(db: FilesDb) -> bool:
            done = take_up(fresh, self.roots, db, time.time())
            found = (db.row_at(FilePath(root=root, rel=rel)) for root, rel in fresh)
            # A scan under way did not see what is new.
            self.judged.update(row.id for row in found if row and row.state == "waiting")
            return done

        if not await self.table.do(take):
            self.look_now.set()

    async def _read_waiting(self) -> None:
        self.stale = False
        rows = await self.table.do(lambda db: db.waiting())
        before, self.waiting = self.waiting, {row.id: row for row in rows}
        self.ids = {(row.path.root, row.path.rel): row.id for row in rows}
        self.tracks = {id: track for id, track in self.tracks.items() if id in self.waiting}
        self.waits.keep(self.waiting)
        # What changed meanwhile (went and came back with its disk, say) is looked at afresh, at once.
        same = {id for id, row in self.waiting.items() if id in before and before[id].version == row.version}
        self.due = {id: at for id, at in self.due.items() if id in same}

    async def _judge(self, rows: list[Row]) -> int:
        """One look at each of the first of these files, and the gate's word on it, written down; how many. What takes
        long to look at (a large header) holds up none that was looked at before it."""
        places, attempts = verdicts.places(self.roots, self.remote), self.table.db.attempts

        def look() -> list[verdicts.Judged]:
            until = time.monotonic() + _LOOK_SECONDS
            seen: list[verdicts.Judged] = []
            for row in rows:
                now = time.monotonic()
                if seen and now > until:
                    break
                place, track = places[row.path.root], self.tracks.get(row.id)
                seen.append(verdicts.judge(row, place, track, self.settings, now, attempts))
            return seen

        def write(db: FilesDb) -> frozenset[int]:
            left = verdicts.write(ended, db, time.time())
            self.judged.update(one.row.id for one in ended if one.row.id not in left)
            return left

        judged = await to_thread.run_sync(look)
        for tick in filter(None, (verdicts.growing(self.tracks.get(one.row.id), one) for one in judged)):
            await self.bus.tick(TICK_GROWING, tick, key=tick.key)
        ended = [one for one in judged if isinstance(one.verdict, gate.Settled | gate.Refused)]
        overtaken = await self.table.do(write) if ended else frozenset()
        if ended:
            self.describer.hashed()
        for one in judged:
            id = one.row.id
            self.tracks[id] = one.track
            match one.verdict:
                case gate.Wait(until=until, why=why):
                    self.due[id] = until
                    self.waits.note(id, why)
                    log.debug("waiting for a file", rel=one.row.path.rel, why=why)
                case _ if id in overtaken or isinstance(one.verdict, gate.Ignore):
                    self.waits.note(id, "it is gone, or another one: the next scan tells")
                    self.due[id] = time.monotonic() + self.settings.scan_interval
                    self.unexplained.add(id)
                    self.stale = True
                    self.look_now.set()
                case _:
                    self._decided(one.row)
        return len(judged)

    def _decided(self, row: Row) -> None:
        for known in (self.waiting, self.tracks, self.due):
            known.pop(row.id, None)
        self.waits.drop(row.id)
        self.ids.pop((row.path.root, row.path.rel), None)

    async def learn(self, facts: list[Fact]) -> None:
        """Remember the hashes that hashers found."""
        now = time.time()  # by this clock: that of a hasher elsewhere may differ from it

        def remember(db: FilesDb) -> None:
            with db.atomic():
                for fact in facts:
                    assert isinstance(fact.payload, Hashed)
                    hashed = fact.payload
                    db.remember(hashed.stat, hashed.sha256, hashed.identity, hashed_at=now)

        await self.table.do(remember)
        self.describer.hashed()

    async def judge_failed(self, facts: list[Fact]) -> None:
        """A file that could not be hashed goes before the gate again; one that can't be read is refused."""

        def judge(db: FilesDb) -> None:
            with db.atomic():
                for fact in facts:
                    assert isinstance(fact.payload, HashFailed)
                    failed = fact.payload
                    row = db.row_at(failed.path)
                    if row is None or row.gone or row.state != "settled" or row.stat != failed.stat:
                        continue  # it has been judged anew meanwhile
                    if failed.reason in ("changed", "gone"):
                        db.judge_again(row, now=time.time())
                    else:
                        db.refuse(row, None, reason=failed.reason, error=failed.error, now=time.time())

        await self.table.do(judge)
        self.stale = True
        self.look_now.set()
        self.judge_now.set()
        self.saying.bell.ring()
