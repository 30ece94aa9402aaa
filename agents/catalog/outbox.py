"""The outbox: what the catalog has still to publish, in order. It is filled in the transaction that makes it true."""

import json

import msgspec

from agents.catalog.database import Database, Statements
from schemas.fitting import cut
from schemas.models import (
    ModelDescribed,
    ModelMissing,
    ModelMoved,
    ModelPictured,
    ModelPromoted,
    ModelReady,
    ModelTagged,
    PendingAdded,
    PendingConflict,
    PendingDropped,
    TagDropped,
    TagPut,
)

LARGEST_PAYLOAD = 64 * 1024
"""Bytes of JSON that ride the bus at most."""

CatalogFact = (
    ModelReady
    | ModelMissing
    | ModelMoved
    | ModelDescribed
    | ModelTagged
    | ModelPictured
    | ModelPromoted
    | TagPut
    | TagDropped
    | PendingAdded
    | PendingConflict
    | PendingDropped
)

KINDS: dict[type, tuple[str, str]] = {
    ModelReady: ("model.ready", "sha256"),
    ModelMissing: ("model.missing", "sha256"),
    ModelMoved: ("model.moved", "sha256"),
    ModelDescribed: ("model.described", "sha256"),
    ModelTagged: ("model.tagged", "sha256"),
    ModelPictured: ("model.pictured", "sha256"),
    ModelPromoted: ("model.promoted", "sha256"),
    TagPut: ("tag.put", "id"),
    TagDropped: ("tag.dropped", "id"),
    PendingAdded: ("pending.added", "first_id"),
    PendingConflict: ("pending.conflict", "pending_id"),
    PendingDropped: ("pending.dropped", "pending_id"),
}
"""What each fact is called in the outbox, and the field that its subject is made of."""

_TOKENS = {"id": "number", "first_id": "number", "pending_id": "number"}


class Outgoing(msgspec.Struct, frozen=True, kw_only=True):
    """One message to publish: `kind` names its subject (model.ready, for example), `tokens` fill it, `msg_id` keeps a
    repeat from counting."""

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


async def stored_up_to(db: Database, msg_id: str) -> None:
    """The message of this id is the last of ours that the bus stored: where it is in the outbox, it and all before it
    need not be published. Raises sqlite3.Error."""
    async with db.atomic() as sql:
        await sql.rows("delete_stored", msg_id=msg_id)


async def publish(sql: Statements, fact: CatalogFact, msg_id: str = "") -> None:
    """Put a fact into the outbox, within the transaction that makes it true; a message id is drawn when none is given.
    Raises sqlite3.Error, and OverflowError for one that is too large for the bus however much is left out."""
    kind, token = KINDS[type(fact)]
    value = getattr(fact.model if isinstance(fact, ModelReady) else fact, token)
    await sql.rows(
        "add_outgoing",
        kind=kind,
        tokens=json.dumps({_TOKENS.get(token, token): str(value)}),
        payload=fitted(fact).decode(),
        msg_id=msg_id or sql.new_id(),
    )


def fitted(fact: CatalogFact) -> bytes:
    """The fact as JSON, small enough for the bus.

    One that is too large is published without the header's metadata, then with as much of what is longest in it (paths,
    tags, pictures, a name) as fits: whoever needs all of it asks the catalog, which keeps it. Raises OverflowError for
    one that is too large all the same: in the outbox it would hold up all others for ever.
    """
    data = msgspec.json.encode(fact)
    if len(data) > LARGEST_PAYLOAD and isinstance(fact, ModelReady):
        slim = msgspec.structs.replace(fact.model.identity, metadata={}, trigger_words=())
        fact = msgspec.structs.replace(fact, model=msgspec.structs.replace(fact.model, identity=slim))
    data = msgspec.json.encode(cut(fact, LARGEST_PAYLOAD))
    if len(data) > LARGEST_PAYLOAD:
        raise OverflowError(f"{KINDS[type(fact)][0]} of {len(data):,} bytes is too large for the bus")
    return data
