"""Dead letters: jobs and facts that can't be done, kept with where they came from and why."""

import structlog
from nats.aio.msg import Msg

from bus.client import Bus
from bus.ids import digest_id
from bus.streams import MAX_MESSAGE
from bus.subjects import DEAD

log = structlog.get_logger()


async def dead_letter(bus: Bus, kind: str, reason: str, id: str, message: Msg, error: str) -> None:
    """Keep a copy of a job that can't be done, with where it came from and why in its headers (64 KiB of it: foreign
    messages may be larger). Raises Retry, Full."""
    headers = {"Darkroom-Subject": message.subject, "Darkroom-Error": " ".join(error.split())[:500]}
    subject, data = DEAD(kind=kind, reason=reason, id=id), message.data[:MAX_MESSAGE]
    await bus.publish_raw(subject, data, msg_id=digest_id(subject, message.subject), headers=headers)
    log.warning("dead letter", kind=kind, reason=reason, subject=message.subject, error=error)
