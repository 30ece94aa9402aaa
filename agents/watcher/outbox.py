"""Saying: the watcher's outbox on its way to the bus, in order, and the jobs to hash that may have got lost."""

import functools
from contextlib import suppress
from typing import Any

import anyio
import structlog

from agents.ingest.store import ALL, FilesDb, Unsent, job_for
from agents.ingest.table import Table
from bus.client import Bus, encode
from bus.errors import Full, Retry, Undecodable
from bus.queues import enqueue
from bus.subjects import (
    FILE_DESCRIBED,
    FILE_HASHED,
    FILE_MOVED,
    FILE_REFUSED,
    FILE_REMOVED,
    FILE_SETTLED,
    HASH,
    Subject,
)
from bus.wakeup import Bell
from schemas.files import Hash

log = structlog.get_logger()

_SAID: dict[str, Subject[Any]] = {
    "settled": FILE_SETTLED,
    "moved": FILE_MOVED,
    "removed": FILE_REMOVED,
    "refused": FILE_REFUSED,
    "described": FILE_DESCRIBED,
}
_BATCH = 256


class Saying:
    """What one watcher has still to say. `bell` rings when there is more of it."""

    def __init__(self, bus: Bus, table: Table, interval: float) -> None:
        self.bus, self.table, self.interval = bus, table, interval
        self.bell = Bell()
        self.lost: list[Hash] = []
        self.unsure: set[str] = set()

    def ask_again(self, db: FilesDb) -> None:
        """At start: jobs for settled files whose hash never came. Those in the outbox are said as all else there is,
        unless they were before the last end; one that is queued already is taken for the same."""
        self.unsure = {one.message.id for one in db.unsent(ALL) if isinstance(one.message, Hash)}
        self.lost += [job for job in map(job_for, db.unhashed()) if job.id not in self.unsure]

    async def keep_saying(self) -> None:
        """Publish what is in the outbox, in order; what the server has acknowledged is forgotten."""
        while True:
            unsent = _side_by_side(await self.table.do(lambda db: db.unsent(_BATCH)))
            again = self.lost[-_BATCH:] if not unsent else []
            if not unsent and not again:
                with anyio.move_on_after(self.interval):
                    await self.bell.wait()
                continue
            try:
                async with anyio.create_task_group() as tasks:
                    for one in unsent:  # tasks begin in this order, so the messages leave in it
                        tasks.start_soon(self._say, one)
                    for job in again:
                        tasks.start_soon(self._ask_again, job)
            except* (Retry, Full) as errors:
                log.warning("not said yet", error=str(errors.exceptions[0]))
                await anyio.sleep(1)
            else:
                await self.table.do(functools.partial(_forget, [one.id for one in unsent]))
                del self.lost[len(self.lost) - len(again) :]

    async def _say(self, one: Unsent) -> None:
        message = one.message
        if isinstance(message, Hash):
            if message.id not in self.unsure or not await self._is_answered(message):
                await self._ask(message)
        else:
            subject = _SAID[one.kind](key=message.key)
            await self.bus.publish_raw(subject, encode(message), msg_id=one.message_id)

    async def _ask(self, job: Hash) -> None:
        await enqueue(self.bus, HASH, job, root=job.path.root, id=job.id)

    async def _ask_again(self, job: Hash) -> None:
        """Unless the hash came while no watcher ran: it is heard soon."""
        if not await self._is_answered(job, same_version=True):
            await self._ask(job)

    async def _is_answered(self, job: Hash, *, same_version: bool = False) -> bool:
        """Whether the last hash of the file is the answer to this very job; with `same_version`, to any for the same
        version of it."""
        with suppress(Undecodable):
            if stored := await self.bus.last(FILE_HASHED, key=job.key):
                return stored.payload.job == job.id or (same_version and stored.payload.stat == job.stat)
        return False


def _forget(said: list[int], db: FilesDb) -> None:
    db.sent(said)


def _side_by_side(unsent: list[Unsent]) -> list[Unsent]:
    """The first of them that may be under way at once: of each file one fact, so that facts about it stay in order
    even when one has to be sent again."""
    keys: set[str] = set()
    for count, one in enumerate(unsent):
        if not isinstance(one.message, Hash):
            if one.message.key in keys:
                return unsent[:count]
            keys.add(one.message.key)
    return unsent
