"""Events: what a file system reports as it happens. They only wake the scan, which is the truth.

Some are lost (a full queue, folders made in a hurry), some file systems send none, and one name that is not UTF-8
ends the source with an error.
"""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import anyio
import msgspec
import structlog
from anyio import to_thread
from watchfiles import Change, watch

from agents.ingest.errors import EventsLost
from agents.ingest.scanning.mounts import is_remote, mounts_below
from agents.ingest.scanning.names import controlled_by, described_by, why_ignored
from agents.ingest.scanning.single import lies_in_skipped
from agents.storage.paths import encode, is_inside
from schemas.settings import WatcherSettings

log = structlog.get_logger()

WATCH_AGAIN = 1.0
"""Seconds until a folder is watched anew; longer and longer, up to the interval of polling, where that keeps ending."""

_KEPT_SECONDS = 30.0
"""A watch that lasted so long did not end for a reason that is still there."""

_MOUNTS_SECONDS = 1.0
"""Between two looks at what is mounted."""

STEP_MS, WINDOW_MS, TIMEOUT_MS = 50, 100, 100
MANY = 1000
"""From so many changes at once on, the system's queue may have been full."""


class Events(msgspec.Struct, frozen=True, kw_only=True):
    """The rels that changed. `folders` means that folders came, whose content may have sent no events; `sidecars` are
    the rels of folders (empty: the root) in which files that describe models changed; `unknown` means that anything may
    have happened."""

    rels: frozenset[str] = frozenset()
    folders: bool = False
    sidecars: frozenset[str] = frozenset()
    unknown: bool = False


async def report_changes(
    root: str,
    folder: str,
    excluded: frozenset[bytes],
    settings: WatcherSettings,
    report: Callable[[Events], None],
    ready: anyio.Event,
    clock: Callable[[], float],
) -> None:
    """Report what happens below a folder, but not below those `excluded` (real paths), until cancelled.

    Of file systems that send no events, `unknown` is reported every `poll_interval` instead, and so it is of a folder
    that can't be watched (it is tried again each time). A folder that is not there (yet, or any more), or is another
    one now, is watched again when it is; so is one below which a disk was mounted, which would send no events. `ready`
    is set when changes are reported, or can't be. `clock` never goes back.
    """
    problem, again = "", WATCH_AGAIN
    while True:
        pause = settings.poll_interval
        remote = await to_thread.run_sync(is_remote, folder)
        if settings.mode == "polling" or (settings.mode == "auto" and remote):
            report(Events(unknown=True))
        elif await to_thread.run_sync(identity_of, folder) is None:
            pause = WATCH_AGAIN
        else:
            before, begun, at = problem, anyio.Event(), clock()
            problem = await _listening(folder, excluded, report, clock, ready, begun)
            is_new = not problem or clock() - at > _KEPT_SECONDS
            again = WATCH_AGAIN if is_new else min(2 * again, settings.poll_interval)
            if begun.is_set():
                pause = again
            if problem and problem != before:
                log.warning("no events from a folder, scanning instead", root=root, error=problem)
            report(Events(unknown=True))
        ready.set()
        await anyio.sleep(pause)


async def _listening(
    folder: str,
    excluded: frozenset[bytes],
    report: Callable[[Events], None],
    clock: Callable[[], float],
    *begun: anyio.Event,
) -> str:
    """Report until the folder or what is mounted in it is another, or why that ended early. Sets `begun` when changes
    are reported."""
    problem, stop, loop = "", threading.Event(), asyncio.get_running_loop()
    limiter = anyio.CapacityLimiter(1)

    def in_loop(events: Events) -> None:
        for event in begun:
            event.set()
        report(events)

    def from_thread(events: Events) -> None:
        loop.call_soon_threadsafe(in_loop, events)

    async def stop_when_cancelled() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            stop.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stop_when_cancelled)
        try:
            await to_thread.run_sync(listen, folder, excluded, from_thread, stop, clock, limiter=limiter)
        except EventsLost as error:
            problem = str(error)
        tasks.cancel_scope.cancel()
    return problem


def listen(
    folder: str,
    excluded: frozenset[bytes],
    report: Callable[[Events], object],
    stop: threading.Event,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """`report_changes` for one time, in a thread of its own, until `stop` is set, another folder is at that path, or
    other disks are mounted below it.

    `report` is called for the first time when events arrive, and calls what was before `unknown`. Raises EventsLost.
    """
    identity, top = identity_of(folder), os.path.realpath(folder)
    mounted, look_at = mounts_below(top), clock() + _MOUNTS_SECONDS
    try:
        begun = False
        for batch in _changes(top, stop):
            events = Events(unknown=True) if not begun else sift(os.fsencode(top), batch, excluded)
            begun = True
            if events != Events():
                report(events)
            if not batch and identity_of(folder) != identity:
                return
            if clock() > look_at:
                if mounts_below(top) != mounted:
                    return
                look_at = clock() + _MOUNTS_SECONDS
    except Exception as error:
        raise EventsLost(f"{type(error).__name__}: {error}") from error


def _changes(top: str, stop: threading.Event) -> Iterator[set[tuple[Change, str]]]:
    """What the system reports, and nothing every now and then. Raises OSError, and more when it ends."""
    for lenient in (False, True):  # a lenient watch hides every other error as well, an exhausted limit too
        try:
            yield from watch(
                top,
                watch_filter=None,
                debounce=WINDOW_MS,
                step=STEP_MS,
                rust_timeout=TIMEOUT_MS,
                yield_on_timeout=True,
                stop_event=stop,
                raise_interrupt=False,
                ignore_permission_denied=lenient,
                force_polling=False,
            )
            return
        except PermissionError:  # of a folder below
            if lenient:
                raise


def sift(top: bytes, batch: Collection[tuple[Change, str]], excluded: frozenset[bytes] = frozenset()) -> Events:
    """What of these changes below the real path `top` may concern a model.

    A download that grows under a temporary name changes many times a second and concerns nobody; what is gone may
    have been a folder, or what held a file back.
    """
    rels: set[str] = set()
    sidecars: set[str] = set()
    folders = False
    for change, path in batch:
        raw = os.fsencode(path)
        below = raw[len(top.rstrip(b"/")) + 1 :]
        if not is_inside(raw, top) or lies_in_skipped(below) or any(is_inside(raw, other) for other in excluded):
            continue
        name = raw.rpartition(b"/")[2]
        if described_by(name):
            sidecars.add(encode(below[: -len(name) - 1]))
        if why_ignored(name) and change is not Change.deleted:
            if not Path(path).is_dir():
                continue
            folders = True
        rels.add(encode(below))
        if target := controlled_by(name):
            rels.add(encode(below[: -len(name)] + target))
    return Events(rels=frozenset(rels), folders=folders, sidecars=frozenset(sidecars), unknown=len(batch) >= MANY)


def identity_of(folder: str) -> tuple[int, int] | None:
    """Which folder is at a path: device and inode; None when there is none."""
    try:
        found = Path(folder).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
