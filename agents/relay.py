"""Relay: the catalog's outbox on its way into the CATALOG stream, in order, whatever is killed or lost on the way.

Many messages are under way at once: each names the one before it, and the server takes it only behind that one. So a
message that got lost stops those after it, and all of them are sent again; nothing overtakes, nothing comes twice.
"""

import anyio
import structlog
from nats.js.errors import NotFoundError

from agents.bell import Bell
from agents.catalog.database import Database
from agents.catalog.outbox import Outgoing, outgoing, published, published_up_to
from bus.client import Bus
from bus.errors import Retry
from bus.subjects import ALL, Subject
from bus.work import sole

log = structlog.get_logger()

STREAM = "CATALOG"
SAID: dict[str, Subject[object]] = {".".join(row.template.split(".")[1:3]): row for row in ALL if row.stream == STREAM}
"""The subjects of the catalog's history by what they are called in the outbox: model.ready, say."""
UNDER_WAY = 64
_BEHIND = "Nats-Expected-Last-Msg-Id"


async def relay(bus: Bus, db: Database, bell: Bell) -> None:
    """Publish the outbox in order, for ever; what can't be published is tried again, and nothing overtakes it."""
    pause = bus.settings.retry_delay
    while True:
        try:
            last = await _last_stored(bus)
            await published_up_to(db, last)
            while True:
                while rows := await outgoing(db, limit=UNDER_WAY):
                    await _publish(bus, rows, last)
                    last = rows[-1].msg_id
                    await published(db, rows[-1].id)
                pause = bus.settings.retry_delay
                await bell.wait()
        except Exception as error:
            if isinstance(sole(error), Retry):
                log.warning("the catalog's history was not published, trying again", why=str(sole(error)))
            else:
                log.exception("the catalog's history was not published, trying again")
            await anyio.sleep(pause)
            pause = min(pause * 2, 30.0)


async def _publish(bus: Bus, rows: list[Outgoing], last: str) -> None:
    """Store these messages one behind the other; raises when one of them, and so all after it, was not."""
    async with anyio.create_task_group() as tasks:  # tasks begin in this order, so the messages leave in it
        for row in rows:
            tasks.start_soon(_publish_one, bus, row, last)
            last = row.msg_id


async def _publish_one(bus: Bus, row: Outgoing, last: str) -> None:
    subject = SAID[row.kind](**row.tokens)
    headers = {_BEHIND: last} if last else {}
    await bus.publish_raw(subject, row.payload, msg_id=row.msg_id, wait=True, headers=headers)


async def _last_stored(bus: Bus) -> str:
    """The id of the stream's last message, which tells how far a relay came that died or lost its answers, however long
    ago: the server itself remembers message ids for two minutes only. Empty when the stream is."""
    if last := (await bus.js.stream_info(STREAM)).state.last_seq:
        try:
            message = await bus.js.get_msg(STREAM, last)
        except NotFoundError:
            return ""
        return str((message.headers or {}).get("Nats-Msg-Id", ""))
    return ""
