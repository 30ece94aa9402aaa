"""Relay: the catalog's outbox on its way into the CATALOG stream, in order, whatever is killed or lost on the way.

Many messages are under way at once: each names the place in the stream that it wants, and the server takes it only
there. So a message that got lost stops those after it, and all of them are sent again; nothing overtakes, nothing comes
twice, and what a stranger puts into the stream in between only costs another round.
"""

import anyio
import structlog
from nats.js.errors import NotFoundError

from agents.catalog.database import Database
from agents.catalog.errors import CatalogApart
from agents.catalog.outbox import Outgoing, outgoing, published, stored_up_to
from agents.catalog.position import judge
from agents.migrator.replay import UNFORGOTTEN, apart, message_id, read_stream, stream_of
from bus.client import Bus
from bus.errors import Retry, Taken
from bus.subjects import ALL, Subject
from bus.wakeup import Bell

log = structlog.get_logger()

STREAM = "CATALOG"
SAID: dict[str, Subject[object]] = {".".join(row.template.split(".")[1:3]): row for row in ALL if row.stream == STREAM}
"""The subjects of the catalog's history by what they are called in the outbox: model.ready, say."""
UNDER_WAY = UNFORGOTTEN // 2
_BEHIND = "Nats-Expected-Last-Sequence"


async def relay(bus: Bus, db: Database, bell: Bell) -> None:
    """Publish the outbox in order, for ever; what can't be published is tried again, and nothing overtakes it. Raises
    CatalogApart when the stream turns out to be of another catalog."""
    pause = bus.settings.retry_delay
    while True:
        try:
            last = await _last_stored(bus)
            await _stay_together(bus, db)
            if await _forget_stored(bus, db, last):
                pause = bus.settings.retry_delay
            while True:
                while rows := await outgoing(db, limit=UNDER_WAY):
                    await _publish(bus, rows, last)
                    last += len(rows)
                    await published(db, rows[-1].id)
                pause = bus.settings.retry_delay
                await bell.wait()
        except CatalogApart:
            raise
        except Exception as error:
            if (expected := _expected(error)) is not None:
                log.warning("the catalog's history was not published, trying again", why=str(expected))
            else:
                log.exception("the catalog's history was not published, trying again")
            await anyio.sleep(pause)
            pause = min(pause * 2, 30.0)


def _expected(error: BaseException) -> BaseException | None:
    """The first of the errors that the bus may well raise, if there are no others among them."""
    if isinstance(error, BaseExceptionGroup):
        inner = [_expected(one) for one in error.exceptions]
        return None if None in inner else inner[0]
    return error if isinstance(error, Retry | Taken) else None


async def _stay_together(bus: Bus, db: Database) -> None:
    """The stream ends where the catalog is, or was. One that somebody deleted, or that a server lost the end of, gets
    a new history with all that the catalog holds. Raises CatalogApart for another catalog's."""
    stream, file = await stream_of(bus), await db.standing()
    judgement = judge(file, stream)
    if judgement.verdict == "read":
        judgement = judge(file, await read_stream(bus, stream, file))
    if judgement.verdict == "go on":
        log.warning("a new history begins with all that the catalog holds", why=judgement.why)
        await db.begin_history(stream.last)
    elif judgement.verdict != "current":
        raise CatalogApart(apart(db.path, judgement.why))
    elif stream.end and stream.end.id in {point.id for point in file.unsent}:
        # A backup that was made while its outbox was full: the stream may have all of that, and a repeat breaks it.
        await stored_up_to(db, stream.end.id)


async def _publish(bus: Bus, rows: list[Outgoing], last: int) -> None:
    """Store these messages one behind the other; raises when one of them, and so all after it, was not."""
    async with anyio.create_task_group() as tasks:  # tasks begin in this order, so the messages leave in it
        for place, row in enumerate(rows, last):
            tasks.start_soon(_publish_one, bus, row, place)


async def _publish_one(bus: Bus, row: Outgoing, last: int) -> None:
    subject = SAID[row.kind](**row.tokens)
    headers = {_BEHIND: str(last)}
    seq = await bus.publish_raw(subject, row.payload, msg_id=row.msg_id, wait=True, headers=headers)
    if seq != last + 1:
        raise Retry(f"{subject} was stored before, as message {seq}")


async def _last_stored(bus: Bus) -> int:
    """The sequence of the stream's last message, also where that was deleted; 0 when there never was one. Raises Retry
    for a stream that somebody deleted: it is made again."""
    try:
        return int((await bus.js.stream_info(STREAM)).state.last_seq)
    except NotFoundError as error:
        await bus.mend()
        raise Retry(f"the stream {STREAM} was gone") from error


async def _forget_stored(bus: Bus, db: Database, last: int) -> bool:
    """Forget the beginning of the outbox that is stored already: the stream's end tells how far a relay came that died
    or lost its answers, however long ago. (The server itself remembers message ids for two minutes only.)"""
    if not (rows := await outgoing(db, limit=UNDER_WAY)):
        return False
    stored = {await message_id(bus, seq) for seq in range(max(1, last + 1 - UNFORGOTTEN), last + 1)}
    done = 0
    while done < len(rows) and rows[done].msg_id in stored:
        done += 1
    if done:
        await published(db, rows[done - 1].id)
    return done > 0
