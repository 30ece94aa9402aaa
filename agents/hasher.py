"""Hasher: reads each file once. Consumes HASH for the roots it can see; publishes FILE_HASHED, FILE_HASH_FAILED and
TICK_HASH.

Other digests than SHA-256 are computed from the same read, where the job or the setting `hasher.also` asks for them.
It listens to TICK_GROWING, and hashes a large file while it is still being written (see `ingest.hashing.growing`).

Hashing runs in threads; a file that changes meanwhile is reported as changed and will settle again. No torch here.
"""

import asyncio
import functools
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

import anyio
import anyio.abc
import nats.errors
import structlog
from anyio import to_thread
from msgspec import structs

from agents.headers.compact import UNREADABLY_LARGE
from agents.headers.errors import HeaderUnread
from agents.headers.sandbox import identify
from agents.ingest.errors import ChangedWhileHashing, Gone, HashCancelled
from agents.ingest.hashing.digests import Progress, hash_file, named, why_not
from agents.ingest.hashing.disks import DiskTurns
from agents.ingest.hashing.growing import GrowingHash, proven
from agents.ingest.hashing.reading import Cores
from agents.storage.errors import IngestError
from agents.storage.paths import resolve
from bus.client import Bus
from bus.errors import Retry, Undecodable, UserError
from bus.queues import serve
from bus.subjects import DEAD, FILE_HASH_FAILED, FILE_HASHED, HASH, TICK_GROWING, TICK_HASH
from bus.worker import Delivery, Work, no_result
from schemas.files import Hash, Hashed, HashFailed, Identity
from schemas.settings import HasherSettings
from schemas.ticks import GrowingTick, HashTick

log = structlog.get_logger()

_AHEAD = 4
"""Jobs on their way to and from the bus for each file that is read: small files take less time than that does. With 2,
a burst of small files takes half as long again, and the loop wakes no sooner (p99 1.2 against 1.4 ms)."""

_UNREAD = 10
"""Deliveries of a job, each a few seconds after the last one, in which a header may go unread for want of a machine
that has the time and the memory."""


async def run(
    bus: Bus,
    roots: Mapping[str, str],
    settings: HasherSettings,
    *,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Hash until cancelled. Ready when jobs for every root can arrive. Raises UserError for a digest nobody can compute
    here."""
    for digest in settings.also:
        if why := why_not(digest):
            raise UserError(f"setting hasher.also: {why}")
    async with anyio.create_task_group() as tasks:
        hasher = Hasher(bus, roots, settings, tasks)
        tasks.start_soon(hasher.stop_on_shutdown)
        if settings.following and (why := why_not("blake3")):
            log.info("growing files are not followed", why=why)
        elif settings.following:
            await tasks.start(hasher.follow)
        for root in roots:
            work = Work(HASH, hasher.hash, ended=no_result, give_up=hasher.give_up, asked_again=True)
            await tasks.start(
                functools.partial(
                    serve,
                    bus,
                    work,
                    f"hasher-{root}",
                    pattern=HASH.filter(root=root),
                    concurrency=settings.parallel * _AHEAD,
                    window=settings.parallel * _AHEAD * 2,
                )
            )
        task_status.started()


class Hasher:
    """What the threads share: the roots, how many files are read side by side, and the signal to stop."""

    def __init__(
        self, bus: Bus, roots: Mapping[str, str], settings: HasherSettings, tasks: anyio.abc.TaskGroup
    ) -> None:
        self.bus, self.roots, self.tasks, self.also = bus, roots, tasks, settings.also
        self.limiter = anyio.CapacityLimiter(settings.parallel)
        self.turns = DiskTurns(settings.rotational)
        self.cores = Cores()
        self.shutdown = threading.Event()
        self.growing = GrowingHash(self._is_busy, bus.clock.steady)

    def _is_busy(self) -> bool:
        return self.limiter.borrowed_tokens > 0 or self.shutdown.is_set()

    async def stop_on_shutdown(self) -> None:
        """A thread can't be cancelled: it looks for this between two buffers."""
        try:
            await anyio.sleep_forever()
        finally:
            self.shutdown.set()

    async def follow(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Hash a large file as it grows, except on a rotational disk."""
        async with self.bus.listen(TICK_GROWING.filter()) as ticks:
            task_status.started()
            async for message in ticks:
                try:
                    tick = TICK_GROWING.decode(message.data)
                    if tick.path.root in self.roots:
                        await self._grown(tick)
                except (Undecodable, IngestError) as error:
                    log.warning("a growing file is not followed", error=str(error))

    async def _grown(self, tick: GrowingTick) -> None:
        path = functools.partial(self._path, tick)
        if not await self.turns.disk((tick.path.root, tick.stat.dev), path):
            await to_thread.run_sync(lambda: self.growing.grown(tick.key, path()))

    async def hash(self, job: Hash, delivery: Delivery) -> None:
        """Hash one file and publish what it is, or why it could not be done."""
        try:
            async with self.turns.turn((job.path.root, job.stat.dev), functools.partial(self._path, job)):
                read = functools.partial(self._read, job, asyncio.get_running_loop(), delivery.delivered)
                fact = await to_thread.run_sync(read, limiter=self.limiter)
        except HashCancelled:
            await anyio.sleep_forever()  # shutting down: be cancelled here, so that the job is given back
        except HeaderUnread as error:
            raise Retry(str(error)) from error
        except ChangedWhileHashing as error:
            await self._failed(job, "changed", str(error))
        except Gone as error:
            await self._failed(job, "gone", str(error))
        except IngestError as error:
            await self._failed(job, "unreadable", str(error))
        else:
            await self.bus.publish(FILE_HASHED, fact, msg_id=f"{job.id}-hashed-{delivery.seq}", key=job.key)

    def _path(self, job: Hash | GrowingTick) -> bytes:
        """Where the file is here. Raises BadPath or OutsideRoot."""
        return resolve(self.roots[job.path.root], job.path.rel)

    def _read(self, job: Hash, loop: asyncio.AbstractEventLoop, delivered: int) -> Hashed:
        """In a thread. The digests and what the header holds, both of the version that the job names. Raises
        HeaderUnread, unless the job was delivered so often that its file is hashed without."""
        began, path = self.bus.clock.steady(), self._path(job)
        if self.shutdown.is_set():
            raise HashCancelled
        with named():
            dev = Path(os.fsdecode(path)).stat().st_dev  # its number is of this host
            try:
                identity = identify(path, os.fsencode(job.path.rel))
            except HeaderUnread:
                if delivered < _UNREAD:
                    raise
                identity = Identity(problem=UNREADABLY_LARGE)  # its child is killed each time: memory is short here
        asked = {*self.also, *job.algorithms}
        undone: dict[str, str] = {digest: why for digest in asked if (why := why_not(digest))}
        if undone:
            log.warning("digests not computed", rel=job.path.rel, undone=undone)
        expected, report = structs.replace(job.stat, dev=dev), functools.partial(self._report, job, loop)
        wanted, stopped = asked - undone.keys(), self.shutdown.is_set
        digests = None
        if (followed := self.growing.take(job.key)) and wanted <= {"blake3"}:
            digests = proven(followed, path, expected=expected, on_progress=report, cancelled=stopped, cores=self.cores)
        digests = digests or hash_file(
            path, expected=expected, on_progress=report, cancelled=stopped, algorithms=wanted, cores=self.cores
        )
        return Hashed(
            key=job.key,
            path=job.path,
            stat=job.stat,
            sha256=digests.sha256,
            identity=identity,
            seconds=round(self.bus.clock.steady() - began, 6),
            at=self.bus.clock.now(),
            digests={digest: value for digest in sorted(asked) if (value := getattr(digests, digest))},
            undone=undone,
            job=job.id,
        )

    def _report(self, job: Hash, loop: asyncio.AbstractEventLoop, progress: Progress) -> None:
        """In a thread. Have a tick published."""
        tick = HashTick(
            id=job.id,
            rel=job.path.rel,
            done=progress.done,
            total=progress.total,
            rate=round(progress.rate),
            eta=round(progress.eta, 2),
        )
        loop.call_soon_threadsafe(self.tasks.start_soon, self._tick, tick)

    async def _tick(self, tick: HashTick) -> None:
        with suppress(nats.errors.Error):
            await self.bus.tick(TICK_HASH, tick, id=tick.id)

    async def give_up(self, delivery: Delivery, status: str, reason: str, error: str) -> None:
        """A job that can't be done at all; its payload is in the dead letter, if it is one."""
        log.error("hashing given up", job=delivery.id, reason=reason, error=error)
        letter = await self.bus.raw("DLQ", DEAD(kind="hash", reason=reason, id=delivery.id))
        with suppress(Undecodable):
            if letter is not None:
                await self._failed(HASH.decode(letter.payload), "exhausted", error)

    async def _failed(
        self, job: Hash, reason: Literal["changed", "unreadable", "gone", "exhausted"], error: str
    ) -> None:
        log.warning("not hashed", rel=job.path.rel, reason=reason, error=error)
        fact = HashFailed(
            key=job.key, path=job.path, stat=job.stat, reason=reason, error=error, at=self.bus.clock.now()
        )
        await self.bus.publish(FILE_HASH_FAILED, fact, key=job.key)
