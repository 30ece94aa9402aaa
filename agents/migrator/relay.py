"""The catalog's outbox for the relay: into the CATALOG stream, in order, each message once.

Each message names the place in the stream that it wants, and the server takes it only there. So a message that got lost
stops those after it, and all of them are published again; nothing overtakes, nothing comes twice, and what a stranger
puts into the stream in between only costs another round.
"""

from collections.abc import Sequence

import structlog
from nats.js.errors import NotFoundError

from agents.catalog.database import Database
from agents.catalog.errors import CatalogApart
from agents.catalog.outbox import Outgoing, outgoing, published, stored_up_to
from agents.catalog.position import judge
from agents.migrator.replay import UNFORGOTTEN, apart, message_id, read_stream, stream_of
from bus.client import Bus
from bus.errors import Retry
from bus.subjects import ALL, Subject

log = structlog.get_logger()

STREAM = "CATALOG"
SUBJECTS: dict[str, Subject[object]] = {
    ".".join(row.template.split(".")[1:3]): row for row in ALL if row.stream == STREAM
}
"""The subjects of the catalog's history by what they are called in the outbox: model.ready and so on."""
UNDER_WAY = UNFORGOTTEN // 2
_EXPECTED_LAST = "Nats-Expected-Last-Sequence"


class CatalogOutbox:
    """What the catalog has still to publish. See `bus.relay.Outbox`."""

    def __init__(self, bus: Bus, db: Database) -> None:
        self.bus, self.db = bus, db
        self.last = 0
        """The sequence of the stream's last message, as far as is known here."""

    async def resume(self) -> bool:
        """Find the stream's end, and forget what is stored already. Raises CatalogApart when the stream turns out to be
        of another catalog, Retry, and sqlite3.Error."""
        self.last = await self._last_stored()
        await self._stay_together()
        return await self._forget_stored()

    async def unsent(self) -> Sequence[tuple[int, Outgoing]]:
        """The oldest messages, each with the sequence that it comes after."""
        return [*enumerate(await outgoing(self.db, limit=UNDER_WAY), self.last)]

    async def publish(self, message: tuple[int, Outgoing]) -> None:
        """Store a message right after the one before it. Raises Retry and Taken when it is not."""
        last, row = message
        subject, headers = SUBJECTS[row.kind](**row.tokens), {_EXPECTED_LAST: str(last)}
        seq = await self.bus.publish_raw(subject, row.payload, msg_id=row.msg_id, wait=True, headers=headers)
        if seq != last + 1:
            raise Retry(f"{subject} was stored before, as message {seq}")

    async def sent(self, messages: Sequence[tuple[int, Outgoing]]) -> None:
        """They are stored."""
        self.last += len(messages)
        await published(self.db, messages[-1][1].id)

    async def _last_stored(self) -> int:
        """The sequence of the stream's last message, also where that was deleted; 0 when there never was one. Raises
        Retry for a stream that somebody deleted: it is made again."""
        try:
            return int((await self.bus.js.stream_info(STREAM)).state.last_seq)
        except NotFoundError as error:
            await self.bus.mend()
            raise Retry(f"the stream {STREAM} was gone") from error

    async def _stay_together(self) -> None:
        """The stream ends where the catalog is, or was. One that somebody deleted, or that a server lost the end of,
        gets a new history with all that the catalog holds. Raises CatalogApart for another catalog's."""
        stream, file = await stream_of(self.bus), await self.db.standing()
        judgement = judge(file, stream)
        if judgement.verdict == "read":
            judgement = judge(file, await read_stream(self.bus, stream, file))
        if judgement.verdict == "go on":
            log.warning("a new history begins with all that the catalog holds", why=judgement.why)
            await self.db.begin_history(stream.last)
        elif judgement.verdict != "current":
            raise CatalogApart(apart(self.db.path, judgement.why))
        elif stream.end and stream.end.id in {point.id for point in file.unsent}:
            # A backup that was made while its outbox was full: the stream may have all of that, and a repeat breaks it.
            await stored_up_to(self.db, stream.end.id)

    async def _forget_stored(self) -> bool:
        """Forget the beginning of the outbox that is stored already: the stream's end shows how far a relay came that
        died or lost its answers, however long ago. (The server itself remembers message ids for two minutes only.)"""
        if not (rows := await outgoing(self.db, limit=UNDER_WAY)):
            return False
        ends = range(max(1, self.last + 1 - UNFORGOTTEN), self.last + 1)
        stored = {await message_id(self.bus, seq) for seq in ends}
        done = 0
        while done < len(rows) and rows[done].msg_id in stored:
            done += 1
        if done:
            await published(self.db, rows[done - 1].id)
        return done > 0
