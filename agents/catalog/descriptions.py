"""Descriptions: what is known of a model besides what its file is: details in layers, tags, and pictures.

Everything here happens within a transaction of the caller's, which also publishes it. A model's pictures are
counted from 0 without gaps (`seq`); the number in their files' names is another one, which is never given twice, so
that deleting and moving pictures renames no file.
"""

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import msgspec
import structlog

from agents.catalog.database import Database, Statements
from agents.catalog.names import fold
from agents.catalog.outbox import publish
from agents.storage.layout import PENDING, DataDir
from agents.storage.trash import TrashBatch
from schemas.images import Encoded, PictureRefused
from schemas.models import Layer, ModelPictured, ModelTagged, TagPut

log = structlog.get_logger()

"""Where originals of pending records are, below the data directory."""

TAG_LENGTH = 200
"""Characters of a tag's name at most."""


def tag_name(text: str) -> str:
    """A tag's name as it is kept: normalised, case-folded, with single spaces; empty when nothing is left."""
    return spelled(text)[:TAG_LENGTH].strip()


def spelled(text: str) -> str:
    """`tag_name` in full length. A NUL is a space: SQLite's JSON would lose what follows one."""
    return " ".join(fold(text.replace("\0", " ")).split())


async def model_name(sql: Statements, sha256: str) -> str | None:
    """What a model is called, or None when there is no such model."""
    return next((str(name) for (name,) in await sql.rows("model_name", sha256=sha256)), None)


async def put_layer(sql: Statements, sha256: str, layer: Layer, details: dict[str, Any]) -> bool:
    """Make `details` all that a layer has of a model; nothing removes the layer. Whether that changed anything."""
    before = [json.loads(text) for (text,) in await sql.rows("description", sha256=sha256, layer=layer)]
    if before == ([details] if details else []):
        return False
    if details:
        await sql.rows("put_description", sha256=sha256, layer=layer, details=json.dumps(details, ensure_ascii=False))
    else:
        await sql.rows("drop_description", sha256=sha256, layer=layer)
    return True


async def tag_ids(sql: Statements, names: Iterable[str], msg_id: str, at: float) -> dict[str, int]:
    """The ids of tags by their kept names, made where they do not exist yet."""
    wanted = list(dict.fromkeys(name for name in map(tag_name, names) if name))
    found = {str(name): int(id) for id, name in await sql.rows("tags_named", names=json.dumps(wanted))}
    for name in wanted:
        if name not in found:
            [(id,)] = await sql.rows("add_tag", id=None, name=name, color="", created_at=at)
            found[name] = int(id)
            await publish(sql, TagPut(id=int(id), name=name, color="", at=at), f"{msg_id}.{id}")
    return found


async def add_tags(
    sql: Statements,
    sha256: str,
    names: Iterable[str],
    msg_id: str,
    at: float,
    *,
    origin: Literal["sidecar", "user"] = "user",
) -> int:
    """Put tags on a model, in addition to its own, as the user's or as a sidecar's. Returns how many facts of the
    model that made."""
    ids = await tag_ids(sql, names, msg_id, at)
    before = {name for (name,) in await sql.rows("tags_of", sha256=sha256)}
    if not ids.keys() - before:
        return 0
    await sql.many("add_model_tag", [{"sha256": sha256, "tag_id": id, "origin": origin} for id in ids.values()])
    await publish_tagged(sql, sha256, f"{msg_id}.s", at)
    return 1


async def publish_tagged(sql: Statements, sha256: str, msg_id: str, at: float) -> None:
    """The tags of a model changed: publish all of them."""
    name = await model_name(sql, sha256) or ""
    tags = tuple(str(tag) for (tag,) in await sql.rows("tags_of", sha256=sha256))
    await publish(sql, ModelTagged(sha256=sha256, name=name, tags=tags, at=at), msg_id)


async def add_picture(sql: Statements, sha256: str, source: str, original: str, origin: str, at: float) -> bool:
    """Give a picture the model's next number, to be encoded from `original` (a path below the data directory). False
    when the model has this very picture (by the SHA-256 `source` of its bytes) already, and when the user took it off:
    then only an upload puts it back."""
    if origin == "upload":
        await sql.rows("allow_picture", sha256=sha256, source=source)
    if await sql.rows("has_image", sha256=sha256, source=source):
        await sql.rows("claim_image", sha256=sha256, source=source, origin=origin)
        return False
    if (source,) in await sql.rows("refused_pictures_of", sha256=sha256):
        return False
    [(number,)] = await sql.rows("next_number", sha256=sha256)
    values = {"sha256": sha256, "number": number, "source": source, "original": original, "origin": origin}
    await sql.rows("add_image", **values, created_at=at)
    return True


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """A picture that has still to be encoded; see schemas.images.EncodePicture."""

    sha256: str
    number: int
    original: str
    source: str


async def images_waiting(db: Database, *, limit: int) -> list[Waiting]:
    """Pictures to be encoded, oldest first. Raises sqlite3.Error."""
    rows = await db.committed.rows("images_waiting", limit=limit)
    return [
        Waiting(sha256=sha, number=number, original=original, source=source) for sha, number, original, source in rows
    ]


async def picture_encoded(sql: Statements, fact: Encoded) -> list[str]:
    """The files of pictures are there. Returns the originals (paths below the data directory) that they needed."""
    done = []
    for picture in fact.pictures:
        key = {"sha256": fact.model, "number": picture.index}
        for state, original in await sql.rows("image_state", **key):
            if state != "ready":
                size = {"width": picture.width, "height": picture.height, "bytes": picture.bytes}
                await sql.rows("image_ready", **key, **size)
                await publish_pictured(sql, fact.model, f"{fact.id}.{picture.index}", fact.at)
                done.append(str(original))
    return done


async def originals_used(db: Database) -> list[str]:
    """The originals (paths below the data directory) that pictures and pending records need. Raises sqlite3.Error."""
    return [str(path) for (path,) in await db.committed.rows("originals_used", pending=PENDING)]


async def pictures_used(db: Database) -> list[tuple[str, int]]:
    """Every picture there is or will be: its model and its number. Raises sqlite3.Error."""
    return [(str(sha256), int(number)) for sha256, number in await db.committed.rows("pictures_used")]


def pending_originals(data: Path, since: float = 0.0) -> list[str]:
    """Every file among the pending originals that got its name after a time (seconds since 1970), as a path below the
    data directory."""
    found = []
    with suppress(FileNotFoundError), os.scandir(DataDir(data).pending) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # a sweep takes it this moment
                if entry.is_file() and entry.stat().st_ctime >= since:
                    found.append(f"{PENDING}/{entry.name}")
    return found


def forget_originals(data: Path, originals: Iterable[str]) -> None:
    """Remove pending originals that nothing needs any more, after that was committed; blobs have a sweep of their
    own."""
    for original in originals:
        if original.startswith(f"{PENDING}/"):
            (data / original).unlink(missing_ok=True)


def trash_originals(data: Path, originals: Iterable[str], now: float) -> None:
    """Move pending originals that nothing needs to the trash; `now` is seconds since 1970. Raises OSError."""
    trash = TrashBatch(data, now)
    for original in originals:
        if original.startswith(f"{PENDING}/"):
            trash.move(original)


async def picture_refused(sql: Statements, fact: PictureRefused) -> None:
    """A picture can't be encoded: it keeps its place, its original and the reason. One whose number is taken, by the
    files of a catalog that was lost, for example, waits again under the next."""
    if fact.taken:
        await _renumber(sql, fact.sha256, fact.number)
        return
    await sql.rows("image_failed", sha256=fact.sha256, number=fact.number, error=fact.error or "It can't be encoded.")


async def _renumber(sql: Statements, sha256: str, number: int) -> None:
    for seq, source, origin, original, at in await sql.rows("image_waiting", sha256=sha256, number=number):
        [(free,)] = await sql.rows("next_number", sha256=sha256)
        await sql.rows("drop_image", sha256=sha256, number=number)
        values = {"sha256": sha256, "number": free, "source": source, "original": original, "origin": origin}
        await sql.rows("add_image", **values, created_at=at)
        await sql.rows("move_image", sha256=sha256, number=free, seq=seq)


async def publish_pictured(sql: Statements, sha256: str, msg_id: str, at: float) -> None:
    """The finished pictures of a model changed: publish all of them, in order."""
    name = await model_name(sql, sha256) or ""
    numbers = tuple(int(number) for (number,) in await sql.rows("numbers_of", sha256=sha256))
    await publish(sql, ModelPictured(sha256=sha256, name=name, numbers=numbers, at=at), msg_id)
