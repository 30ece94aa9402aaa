"""Burying: a stored fact that the catalog can't hold becomes a dead letter, so that those behind it go on."""

import sqlite3

import structlog

from bus.client import Bus, encode
from bus.errors import BadSubject
from bus.ids import digest_id
from bus.queues import Fact
from bus.subjects import DEAD

log = structlog.get_logger()

IMPOSSIBLE = (sqlite3.IntegrityError, OverflowError, BadSubject)
"""What a fact raises that no row can hold, or that could never be told, however often it is tried."""

_WHY_LENGTH = 1000


async def bury(bus: Bus, fact: Fact, error: Exception) -> None:
    """Make a dead letter of a fact; the same words again are the same letter. Raises Retry."""
    id, why = digest_id(fact.row.template, encode(fact.payload)), " ".join(str(error).split())[:_WHY_LENGTH]
    log.error("impossible fact", fact=fact.row.template, error=why)
    subject = DEAD(kind="fact", reason="impossible", id=id)
    await bus.publish_raw(subject, encode(fact.payload), msg_id=id, headers={"Darkroom-Error": why})
