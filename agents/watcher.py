"""Watcher: looks at the roots, lets a file in when it is complete, says evt.file.settled/moved/removed and job.hash.

A scan is the truth; events of the file system only wake it. What was seen and what has still to be said are in
`data/files.sqlite3`, written together, so a kill at any moment loses nothing. It hears evt.file.hashed for its cache.
"""

import asyncio
import functools
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.abc
import structlog
from anyio import to_thread
from watchfiles import awatch

from agents.ingest import files_db, gate
from agents.ingest.errors import WrongSchema
from agents.ingest.files_db import FilesDb, Unsent
from agents.ingest.fingerprint import fingerprint_at, verified
from agents.ingest.mounts import is_remote
from agents.ingest.observe import observe
from agents.ingest.paths import hash_id
from agents.ingest.reconcile import Row, reconcile
from agents.ingest.scan import scan
from bus.client import Bus, encode
from bus.consumer import Fact, enqueue, follow
from bus.errors import Full, Retry, UserError
from bus.subjects import (
    FILE_HASH_FAILED,
    FILE_HASHED,
    FILE_MOVED,
    FILE_REFUSED,
    FILE_REMOVED,
    FILE_SETTLED,
    HASH,
    Subject,
)
from schemas.files import Hash, Hashed, HashFailed
from schemas.settings import WatcherSettings

log = structlog.get_logger()

T = TypeVar("T")

_SAID: dict[str, Subject[Any]] = {
    "settled": FILE_SETTLED,
    "moved": FILE_MOVED,
    "removed": FILE_REMOVED,
    "refused": FILE_REFUSED,
}
_BATCH = 256
_FORGET = 90 * 24 * 3600.0
_EVENT_STEP_MS, _EVENT_WINDOW_MS = 20, 100
_WATCH_AGAIN = 1.0


async def run(
    bus: Bus,
    data_dir: Path,
    roots: Mapping[str, str],
    settings: WatcherSettings,
    *,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Watch until cancelled. Ready when the first scan is in the table and changes are heard. Raises UserError."""
    async with _table(data_dir / "files.sqlite3") as table, anyio.create_task_group() as tasks:
        watcher = Watcher(bus, table, roots, settings)
        for root in roots:
            tasks.start_soon(watcher.hear_changes, root)
        await watcher.look()
        await table.do(watcher.ask_again)
        for follower, row in (("watcher-hashed", FILE_HASHED), ("watcher-failed", FILE_HASH_FAILED)):
            handle = watcher.learn if row is FILE_HASHED else watcher.judge_failed
            await tasks.start(functools.partial(follow, bus, "FILES", (row,), follower, handle, pattern=row.filter()))
        tasks.start_soon(watcher.keep_looking)
        tasks.start_soon(watcher.keep_judging)
        tasks.start_soon(watcher.keep_saying)
        task_status.started()


class Table:
    """The table's one thread: everything that touches it runs there, in turn."""

    def __init__(self, pool: ThreadPoolExecutor, db: FilesDb) -> None:
        self.pool, self.db = pool, db

    async def do(self, work: Callable[[FilesDb], T]) -> T:
        """Run work on the table in its thread."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, work, self.db)


@asynccontextmanager
async def _table(path: Path) -> AsyncIterator[Table]:
    loop, stack = asyncio.get_running_loop(), ExitStack()
    with ThreadPoolExecutor(1, thread_name_prefix="files") as pool:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            db = await loop.run_in_executor(pool, lambda: stack.enter_context(files_db.opened(path)))
        except (OSError, sqlite3.Error, WrongSchema) as error:
            raise UserError(f"{path} can't be used ({error}): free it, or choose another --data directory") from error
        try:
            yield Table(pool, db)
        finally:
            with anyio.CancelScope(shield=True):
                await loop.run_in_executor(pool, stack.close)


class Watcher:
    """The three loops (look, judge, say) and what wakes them."""

    def __init__(self, bus: Bus, table: Table, roots: Mapping[str, str], settings: WatcherSettings) -> None:
        self.bus, self.table, self.roots, self.settings = bus, table, dict(roots), settings
        self.tracks: dict[int, gate.Track] = {}
        self.due: dict[int, float] = {}
        self.waiting: dict[tuple[str, str], int] = {}
        self.look_now, self.judge_now, self.say_now = anyio.Event(), anyio.Event(), anyio.Event()
        self.loop = asyncio.get_running_loop()
        self.remote: dict[str, bool] = {}
        self.problems: dict[str, tuple[str, ...]] = {}
        self.lost: list[Hash] = []

    async def hear_changes(self, root: str) -> None:
        """Wake the other loops when the file system says that something happened below a root.

        Events may be lost, and some file systems send none: those are looked at every `poll_interval` instead. A folder
        that is not there (yet, or any more), or is another one now, is watched again when it is.
        """
        folder = self.roots[root]
        while True:
            remote = await to_thread.run_sync(is_remote, folder)
            if self.settings.mode == "polling" or (self.settings.mode == "auto" and remote):
                await anyio.sleep(self.settings.poll_interval)
                self.look_now.set()
                continue
            if (identity := _identity(folder)) is not None:
                self.look_now.set()  # whatever happened before the watch began
                try:
                    await self._hear(root, folder, identity)
                except Exception as error:
                    # A name that is not UTF-8 ends the event source, and so does an exhausted inotify limit.
                    log.warning("events of a folder missed, scanning instead", root=root, error=str(error))
                self.look_now.set()
            await anyio.sleep(_WATCH_AGAIN)

    async def _hear(self, root: str, folder: str, identity: tuple[int, int]) -> None:
        stop = anyio.Event()
        changes = awatch(
            folder,
            watch_filter=None,
            debounce=_EVENT_WINDOW_MS,
            step=_EVENT_STEP_MS,
            rust_timeout=int(_WATCH_AGAIN * 1000),
            yield_on_timeout=True,
            stop_event=stop,
            ignore_permission_denied=True,
        )
        prefix = folder.rstrip("/") + "/"
        try:
            async for batch in changes:
                for _, path in batch:
                    waiting = self.waiting.get((root, path.removeprefix(prefix).replace("%", "%25")))
                    if waiting is None:
                        self.look_now.set()
                    else:
                        self.due.pop(waiting, None)
                        self.judge_now.set()
                if not batch and _identity(folder) != identity:
                    return
        finally:
            stop.set()

    def ask_again(self, db: FilesDb) -> None:
        """At start: jobs for settled files whose hash never came; one that is queued still is taken for the same."""
        for row in db.unhashed():
            job = Hash(id=hash_id(row.key, row.path.rel, row.stat), key=row.key, path=row.path, stat=row.stat)
            self.lost.append(job)

    async def look(self) -> float:
        """Scan every root, write down what changed; returns the seconds it took."""
        began, wall = time.monotonic(), time.time()
        scans = [await to_thread.run_sync(scan, root, folder) for root, folder in self.roots.items()]
        for one in scans:
            problems = tuple(f"{problem.rel}: {problem.error}" for problem in one.problems)
            if problems and problems != self.problems.get(one.root):
                log.warning("not everything can be looked at", root=one.root, problems=problems[:5])
            self.problems[one.root] = problems
        self.remote = {root: await to_thread.run_sync(is_remote, folder) for root, folder in self.roots.items()}

        def write(db: FilesDb) -> int:
            changes = verified(reconcile(db.rows(), scans), self.roots)
            roots = [one.root for one in scans if one.state == "present"]
            db.apply(changes, roots=roots, looked_at=wall, now=time.time())
            return len(changes)

        if changes := await self.table.do(write):
            log.debug("changes", count=changes)
            self.judge_now.set()
            self.say_now.set()
        return time.monotonic() - began

    async def keep_looking(self) -> None:
        """Scan at every interval, and when woken; the pause grows with the scan's own time."""
        took, forget_at = 0.0, time.monotonic()
        while True:
            with anyio.move_on_after(self.settings.scan_interval):
                await self.look_now.wait()
                await anyio.sleep(min(4 * took, self.settings.scan_interval))
            self.look_now = anyio.Event()  # before looking, so that nothing said meanwhile is missed
            took = await self.look()
            if time.monotonic() >= forget_at:
                forget_at = time.monotonic() + 24 * 3600
                await self.table.do(lambda db: db.prune(before=time.time() - _FORGET))

    async def keep_judging(self) -> None:
        """Put what waits before the gate, each file when its time has come."""
        while True:
            self.judge_now = anyio.Event()
            rows = await self.table.do(lambda db: db.waiting())
            self.waiting = {(row.path.root, row.path.rel): row.id for row in rows}
            self.tracks = (
                {id: track for id, track in self.tracks.items() if id in self.waiting.values()} if rows else {}
            )
            now = time.monotonic()
            due = [row for row in rows if self.due.get(row.id, 0.0) <= now]
            for start in range(0, len(due), _BATCH):
                await self.table.do(functools.partial(self._judge, due[start : start + _BATCH]))
                self.say_now.set()
            self.due = {row.id: self.due[row.id] for row in rows if row.id in self.due}
            pause = min((at - time.monotonic() for at in self.due.values()), default=self.settings.scan_interval)
            with anyio.move_on_after(max(pause, 0.005)):
                await self.judge_now.wait()

    def _judge(self, rows: list[Row], db: FilesDb) -> None:
        """In the table's thread: one look at each of these files, and the gate's word on it."""
        with db.atomic():
            for row in rows:
                folder, now = self.roots.get(row.path.root), time.monotonic()
                if folder is None:
                    continue
                before = self.tracks.get(row.id)
                seen = observe(
                    folder,
                    row.path.rel,
                    now,
                    remote=self.remote.get(row.path.root, False),
                    previous=before.latest if before else None,
                )
                track = self.tracks[row.id] = gate.follow(before, seen)
                self._apply(db, row, folder, track, gate.decide(track, self.settings, now))

    def _apply(self, db: FilesDb, row: Row, folder: str, track: gate.Track, verdict: gate.Verdict) -> None:
        self.due.pop(row.id, None)
        match verdict:
            case gate.Wait(until=until, why=why):
                self.due[row.id] = until
                log.debug("waiting for a file", rel=row.path.rel, why=why)
            case gate.Settled(proof=proof):
                assert track.latest.stat is not None
                mark = fingerprint_at(folder, row.path.rel, track.latest.stat)
                db.settle(row, track.latest.stat, proof, fingerprint=mark, now=time.time())
            case gate.Refused(reason=reason, error=error):
                log.warning("file refused", rel=row.path.rel, reason=reason, error=error)
                db.refuse(row, track.latest.stat, reason=reason, error=error, now=time.time())
            case gate.Ignore():
                self.due[row.id] = time.monotonic() + self.settings.scan_interval
                self.loop.call_soon_threadsafe(lambda: self.look_now.set())

    async def keep_saying(self) -> None:
        """Publish what is in the outbox, in order; what the server has acknowledged is forgotten."""
        while self.lost:
            job = self.lost.pop()
            await enqueue(self.bus, HASH, job, root=job.path.root, id=job.id)
        while True:
            self.say_now = anyio.Event()
            unsent = await self.table.do(lambda db: db.unsent(_BATCH))
            if not unsent:
                with anyio.move_on_after(self.settings.scan_interval):
                    await self.say_now.wait()
                continue
            try:
                async with anyio.create_task_group() as tasks:
                    for one in unsent:  # tasks begin in this order, so the messages leave in it
                        tasks.start_soon(self._say, one)
            except* (Retry, Full) as errors:
                log.warning("not said yet", error=str(errors.exceptions[0]))
                await anyio.sleep(1)
            else:
                said = [one.id for one in unsent]
                await self.table.do(functools.partial(_forget, said))

    async def _say(self, one: Unsent) -> None:
        message = one.message
        if isinstance(message, Hash):
            await enqueue(self.bus, HASH, message, root=message.path.root, id=message.id)
        else:
            subject = _SAID[one.kind](key=message.key)
            await self.bus.publish_raw(subject, encode(message), msg_id=one.message_id)

    async def learn(self, facts: list[Fact]) -> None:
        """Remember the hashes that hashers found."""

        def remember(db: FilesDb) -> None:
            with db.atomic():
                for fact in facts:
                    assert isinstance(fact.payload, Hashed)
                    hashed = fact.payload
                    db.remember(hashed.stat, hashed.sha256, hashed.identity, hashed_at=hashed.at)

        await self.table.do(remember)

    async def judge_failed(self, facts: list[Fact]) -> None:
        """A file that could not be hashed goes before the gate again; one that can't be read is refused."""

        def judge(db: FilesDb) -> None:
            rows = {row.path: row for row in db.rows() if row.state == "settled" and not row.gone}
            with db.atomic():
                for fact in facts:
                    assert isinstance(fact.payload, HashFailed)
                    failed = fact.payload
                    row = rows.get(failed.path)
                    if row is None or row.stat != failed.stat:  # it has been judged anew meanwhile
                        continue
                    if failed.reason in ("changed", "gone"):
                        db.judge_again(row, now=time.time())
                    else:
                        db.refuse(row, None, reason=failed.reason, error=failed.error, now=time.time())

        await self.table.do(judge)
        self.look_now.set()
        self.judge_now.set()
        self.say_now.set()


def _forget(said: list[int], db: FilesDb) -> None:
    db.sent(said)


def _identity(folder: str) -> tuple[int, int] | None:
    """Which folder this is: device and inode; None when there is none."""
    try:
        found = Path(folder).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
