"""Pictures of models: listed, added, deleted and put into another order, by what users ask for.

A place (`seq`) is counted without gaps and changes; a number is a picture's own for good, and is in its files' names.
"""

import re

from agents.catalog import descriptions
from agents.catalog.database import Database, Statements
from agents.catalog.errors import unknown_model
from agents.catalog.promotion import drop_promoted
from agents.storage.layout import BLOBS
from bus.errors import Declined
from schemas.catalog import AddPicture, DropPicture, ListPictures, ModelPicture, OrderPictures, Pictures

PICTURES = 1000
"""Of one model at most, by hand: the list of them is one answer."""

_KEY = re.compile(r"[0-9a-f]{64}")


async def pictures_of(sql: Statements, sha256: str) -> tuple[ModelPicture, ...]:
    """A model's pictures in order. Raises sqlite3.Error."""
    return tuple(
        ModelPicture(
            seq=seq,
            number=number,
            state=state,
            source=source,
            origin=origin,
            width=width,
            height=height,
            bytes=size,
            error=error,
            created_at=at,
        )
        for seq, number, state, source, origin, width, height, size, error, at in await sql.rows(
            "images_of", sha256=sha256
        )
    )


async def list_pictures(db: Database, ask: ListPictures) -> Pictures:
    """A model's pictures. Raises Declined: unknown-model."""
    await _refuse_unknown(db.committed, ask.sha256)
    return Pictures(pictures=await pictures_of(db.committed, ask.sha256))


async def add_picture(db: Database, ask: AddPicture) -> Pictures:
    """Give a model a picture that lies in the blobs; it is encoded soon. Raises Declined: unknown-model,
    bad-picture (its key is none), too-many."""
    if not _KEY.fullmatch(ask.blob):
        raise Declined("bad-picture", "A blob's key is the SHA-256 of its bytes.")
    async with db.atomic() as sql:
        await _refuse_unknown(sql, ask.sha256)
        original = f"{BLOBS}/{ask.blob}"
        added = await descriptions.add_picture(sql, ask.sha256, ask.blob, original, "upload", db.clock.now())
        pictures = await pictures_of(sql, ask.sha256)
        if added and len(pictures) > PICTURES:
            raise Declined("too-many", f"A model has {PICTURES} pictures at most.")
    number = next(one.number for one in pictures if one.source == ask.blob)
    return Pictures(pictures=pictures, number=number, added=added)


async def order_pictures(db: Database, ask: OrderPictures) -> Pictures:
    """Put a model's pictures into another order. Raises Declined: unknown-model, stale-order (these are not its
    pictures)."""
    async with db.atomic() as sql:
        await _refuse_unknown(sql, ask.sha256)
        before = await pictures_of(sql, ask.sha256)
        if sorted(ask.numbers) != sorted(one.number for one in before):
            raise Declined("stale-order", "An order names each of the model's pictures once, by number; look again.")
        moved = [(seq, number) for seq, number in enumerate(ask.numbers) if before[seq].number != number]
        for seq, number in moved:
            await sql.rows("move_image", sha256=ask.sha256, number=number, seq=seq)
        if moved:
            await descriptions.publish_pictured(sql, ask.sha256, sql.new_id(), db.clock.now())
        after = await pictures_of(sql, ask.sha256)
    return Pictures(pictures=after)


async def drop_picture(db: Database, ask: DropPicture) -> tuple[Pictures, list[str]]:
    """Delete a picture; those after it move up, and no sidecar or import puts it back. The pictures left, and the
    originals (paths below the data directory) that may be done with; its files are left to the caller, who knows them
    by the number. Raises Declined (unknown-model, unknown-picture)."""
    async with db.atomic() as sql:
        await _refuse_unknown(sql, ask.sha256)
        before = await pictures_of(sql, ask.sha256)
        if not 0 <= ask.seq < len(before):
            count = f"it has {len(before)}, counted from 0" if before else "it has none"
            raise Declined("unknown-picture", f"The model has no picture {ask.seq}: {count}.")
        gone = before[ask.seq]
        originals = [str(path) for _, path in await sql.rows("image_state", sha256=ask.sha256, number=gone.number)]
        await sql.rows("refuse_picture", sha256=ask.sha256, source=gone.source)
        await sql.rows("drop_image", sha256=ask.sha256, number=gone.number)
        await sql.rows("close_gap", sha256=ask.sha256, seq=gone.seq)
        if gone.state == "ready":
            await descriptions.publish_pictured(sql, ask.sha256, sql.new_id(), db.clock.now())
        originals += await drop_promoted(sql, [ask.sha256], db.clock.now())
        after = await pictures_of(sql, ask.sha256)
    return Pictures(pictures=after, number=gone.number), [path for path in originals if path]


async def _refuse_unknown(sql: Statements, sha256: str) -> None:
    if await descriptions.model_name(sql, sha256) is None:
        raise unknown_model(sha256)
