"""The watcher's outbox: its facts and jobs to hash, and the jobs of an earlier run that may have got lost."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from agents.ingest.store import ALL, Table, Unsent, job_for
from bus.client import Bus, encode
from bus.errors import Undecodable
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
from bus.wakeup import Wakeup
from schemas.files import Hash

_SUBJECTS: dict[str, Subject[Any]] = {
    "settled": FILE_SETTLED,
    "moved": FILE_MOVED,
    "removed": FILE_REMOVED,
    "refused": FILE_REFUSED,
    "described": FILE_DESCRIBED,
}
_BATCH = 256


class WatcherOutbox:
    """What one watcher has still to publish. `wakeup` is for whoever puts more into it. See `bus.relay.Outbox`."""

    def __init__(self, bus: Bus, table: Table) -> None:
        self.bus, self.table = bus, table
        self.wakeup = Wakeup()
        self.lost: list[Hash] = []
        self.unsure: set[str] = set()

    async def find_lost(self) -> None:
        """At start: jobs for settled files whose hash never came. Those in the outbox are published as all else there
        is, unless they were before the last end; one that is queued already is taken for the same."""
        unsent, unhashed = await self.table.do(lambda db: (db.unsent(ALL), db.unhashed()))
        self.unsure = {one.message.id for one in unsent if isinstance(one.message, Hash)}
        self.lost = [job for job in map(job_for, unhashed) if job.id not in self.unsure]

    async def resume(self) -> bool:
        """A repeat does no harm: facts have their message ids, jobs their subjects."""
        return True

    async def unsent(self) -> Sequence[Unsent | Hash]:
        """The oldest of the table; when there are none, jobs that may have got lost."""
        return _side_by_side(await self.table.do(lambda db: db.unsent(_BATCH))) or self.lost[-_BATCH:]

    async def publish(self, message: Unsent | Hash) -> None:
        """Have the bus store a message. Raises Retry, Full, TooLarge."""
        if isinstance(message, Hash):
            # The hash may have come while no watcher ran: it is on its way here.
            if not await self._is_answered(message, same_version=True):
                await self._enqueue(message)
        elif isinstance(job := message.message, Hash):
            if job.id not in self.unsure or not await self._is_answered(job):
                await self._enqueue(job)
        else:
            subject = _SUBJECTS[message.kind](key=message.message.key)
            await self.bus.publish_raw(subject, encode(message.message), msg_id=message.message_id)

    async def sent(self, messages: Sequence[Unsent | Hash]) -> None:
        """What the server has stored is forgotten."""
        if ids := [one.id for one in messages if isinstance(one, Unsent)]:
            await self.table.do(lambda db: db.sent(ids))
        else:
            del self.lost[-len(messages) :]

    async def _enqueue(self, job: Hash) -> None:
        await enqueue(self.bus, HASH, job, root=job.path.root, id=job.id)

    async def _is_answered(self, job: Hash, *, same_version: bool = False) -> bool:
        """Whether the last hash of the file is the answer to this very job; with `same_version`, to any for the same
        version of it."""
        with suppress(Undecodable):
            if stored := await self.bus.last(FILE_HASHED, key=job.key):
                return stored.payload.job == job.id or (same_version and stored.payload.stat == job.stat)
        return False


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
