"""Tags: listed, made, changed, deleted, and put on models or taken off, by what users ask for."""

import json
import re
from collections.abc import Iterable

from agents.catalog import descriptions
from agents.catalog.database import Database, Statements
from agents.catalog.descriptions import TAG_LENGTH
from agents.catalog.errors import unknown_model
from agents.catalog.outbox import publish
from bus.errors import Declined
from schemas.catalog import DropTag, ListTags, PutTag, Tagged, TagModels, TagPage, TagReply
from schemas.fitting import fitted
from schemas.models import Tag, TagDropped, TagPut

AT_ONCE = 1000
"""Tags in one answer, and models in one change, at most."""
TAGS_OF_A_MODEL = 200
"""What a user can put on one model: all of them are in one fact."""

_COLOR = re.compile(r"(#[0-9a-f]{6})?")


async def list_tags(db: Database, ask: ListTags) -> TagPage:
    """A page of tags by name, each with the number of models that have it. Raises sqlite3.Error."""
    limit = max(1, min(ask.limit, AT_ONCE))
    rows = await db.committed.rows("tags_after", after=ask.after, limit=limit + 1)
    tags = fitted([Tag(id=id, name=name, color=color, models=models) for id, name, color, models in rows[:limit]])
    return TagPage(tags=tags, more=len(tags) < len(rows))


async def put_tag(db: Database, ask: PutTag) -> TagReply:
    """Make a tag, or change one. Raises Declined: bad-tag (a name or colour that can't be one), tag-exists,
    unknown-tag."""
    name = None if ask.name is None else kept_name(ask.name)
    color = None if ask.color is None else ask.color.lower()
    if color is not None and not _COLOR.fullmatch(color):
        raise Declined("bad-tag", f"A tag's colour is #rrggbb, or empty for none; {color[:50]!r} is neither.")
    async with db.atomic() as sql:
        if name is not None:
            await _refuse_taken(sql, name, ask.id)
        if ask.id is None:
            tag = await _made(sql, name, color or "", db.clock.now())
        else:
            tag = await _changed(sql, ask.id, name, color, db.clock.now())
    return TagReply(tag=tag)


async def drop_tag(db: Database, ask: DropTag) -> TagReply:
    """Delete a tag, off every model that has it. No sidecar makes it anew: only the user does, and even then no sidecar
    puts it on those models. Raises Declined: unknown-tag."""
    async with db.atomic() as sql:
        tag = await _tag(sql, ask.id)
        await sql.rows("refuse_tag_everywhere", id=ask.id, name=tag.name)
        await sql.rows("rename_meant", before=tag.name, becomes="")
        await sql.rows("put_name_meant", name=tag.name, becomes="")
        await sql.rows("drop_tag", id=ask.id)
        await publish(sql, TagDropped(id=tag.id, name=tag.name, at=db.clock.now()))
    return TagReply(tag=tag)


async def tag_models(db: Database, ask: TagModels) -> Tagged:
    """Put tags on models and take others off. Raises Declined: unknown-model, unknown-tag (of one to take off),
    bad-tag, too-many."""
    put, take = _kept_names(ask.put), _kept_names(ask.take)
    models = list(dict.fromkeys(ask.models))
    if len(models) > AT_ONCE or max(len(put), len(take)) > TAGS_OF_A_MODEL:
        raise Declined("too-many", f"At most {AT_ONCE} models and {TAGS_OF_A_MODEL} tags can be changed at once.")
    changed, after = 0, []
    async with db.atomic() as sql:
        known = {name for _, name in await sql.rows("tags_named", names=json.dumps(take))}
        if unknown := [name for name in take if name not in known]:
            raise Declined("unknown-tag", f"There is no tag {unknown[0]!r}.")
        ids = await descriptions.tag_ids(sql, put, sql.new_id(), db.clock.now())
        await sql.rows("names_again", names=json.dumps(put))
        for sha256 in models:
            before, now = await _retag(sql, sha256, ids, take)
            if before != now:
                await descriptions.publish_tagged(sql, sha256, sql.new_id(), db.clock.now())
                changed += 1
            after.append(now)
    return Tagged(changed=changed, tags=tuple(after))


def kept_name(text: str) -> str:
    """A tag's name as it is kept (see descriptions.tag_name). Raises Declined for an empty one, and for one that
    would have to be cut."""
    if len(descriptions.spelled(text)) > TAG_LENGTH:
        raise Declined("bad-tag", f"A tag's name has {TAG_LENGTH} characters at most.")
    if not (name := descriptions.tag_name(text)):
        raise Declined("bad-tag", "A tag's name has at least one character besides spaces.")
    return name


def _kept_names(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(map(kept_name, texts)))


async def _retag(
    sql: Statements, sha256: str, put: dict[str, int], take: list[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """One model's tags before and after. What is taken off stays off, whatever sidecars hold, until it is put on again:
    also what is not on at this moment, when a sidecar is just being written. Raises Declined."""
    if await descriptions.model_name(sql, sha256) is None:
        raise unknown_model(sha256)
    before = await _tags_of(sql, sha256)
    await sql.rows("take_tags", sha256=sha256, names=json.dumps(take))
    await sql.many("refuse_tag", [{"sha256": sha256, "name": name} for name in take])
    await sql.many("add_model_tag", [{"sha256": sha256, "tag_id": id, "origin": "user"} for id in put.values()])
    await sql.rows("allow_tags", sha256=sha256, names=json.dumps([*put]))
    after = await _tags_of(sql, sha256)
    if len(after) > max(TAGS_OF_A_MODEL, len(before)):
        raise Declined("too-many", f"A model has {TAGS_OF_A_MODEL} tags at most.")
    return before, after


async def _tags_of(sql: Statements, sha256: str) -> tuple[str, ...]:
    return tuple(str(name) for (name,) in await sql.rows("tags_of", sha256=sha256))


async def _refuse_taken(sql: Statements, name: str, id: int | None) -> None:
    for other, _ in await sql.rows("tags_named", names=json.dumps([name])):
        if other != id:
            raise Declined("tag-exists", f"There is a tag {name!r} already: it has the id {other}.")


async def _made(sql: Statements, name: str | None, color: str, at: float) -> Tag:
    if name is None:
        raise Declined("bad-tag", "A new tag needs a name.")
    [(id,)] = await sql.rows("add_tag", id=None, name=name, color=color, created_at=at)
    await sql.rows("names_again", names=json.dumps([name]))
    await publish(sql, TagPut(id=int(id), name=name, color=color, at=at))
    return Tag(id=int(id), name=name, color=color)


async def _changed(sql: Statements, id: int, name: str | None, color: str | None, at: float) -> Tag:
    before = await _tag(sql, id)
    name, color = before.name if name is None else name, before.color if color is None else color
    if (name, color) == (before.name, before.color):
        return before
    await sql.rows("change_tag", id=id, name=name, color=color)
    if name != before.name:  # what sidecars call by the old name is this tag
        await sql.rows("refuse_renamed", before=before.name, name=name)
        await sql.rows("drop_refused", name=before.name)
        await sql.rows("rename_meant", before=before.name, becomes=name)
        await sql.rows("put_name_meant", name=before.name, becomes=name)
        await sql.rows("drop_name_meant", name=name)
    await publish(sql, TagPut(id=id, name=name, color=color, at=at))
    return Tag(id=id, name=name, color=color, models=before.models)


async def _tag(sql: Statements, id: int) -> Tag:
    if 0 < id < 2**63:
        for name, color, models in await sql.rows("tag", id=id):
            return Tag(id=id, name=name, color=color, models=models)
    raise Declined("unknown-tag", f"There is no tag with the id {id}.")
