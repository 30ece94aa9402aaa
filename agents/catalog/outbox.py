"""The outbox: what the catalog has still to say, in order. It is filled in the transaction of what it tells of."""

import json

import msgspec

from agents.catalog.database import Database

LARGEST_PAYLOAD = 64 * 1024
"""Bytes of JSON that ride the bus at most."""


class Outgoing(msgspec.Struct, frozen=True, kw_only=True):
    """One message to publish: `kind` names its subject (model.ready, say), `tokens` fill it, `msg_id` keeps a repeat
    from counting."""

    id: int
    kind: str
    tokens: dict[str, str]
    payload: bytes
    msg_id: str


async def outgoing(db: Database, *, limit: int = 64) -> list[Outgoing]:
    """The oldest messages not yet published, oldest first. Raises sqlite3.Error."""
    return [
        Outgoing(id=id, kind=kind, tokens=json.loads(tokens), payload=payload.encode(), msg_id=msg_id)
        for id, kind, tokens, payload, msg_id in await db.committed.rows("outgoing", limit=limit)
    ]


async def published(db: Database, id: int) -> None:
    """This message and all before it are stored by the bus. Raises sqlite3.Error."""
    async with db.atomic() as sql:
        await sql.rows("delete_outgoing", id=id)


async def published_up_to(db: Database, msg_id: str) -> None:
    """The newest message that the bus holds is this one: it and all before it are published. Nothing if unknown."""
    for (id,) in await db.committed.rows("outgoing_by_msg_id", msg_id=msg_id):
        await published(db, id)


async def waiting(db: Database) -> int:
    """How many messages wait to be published."""
    [(count,)] = await db.committed.rows("count_outgoing")
    return int(count)
