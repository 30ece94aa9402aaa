"""Adopting: files that lie in the roots and that nobody has hashed yet become pending records; and what is known of one
file, with the records that wait for it."""

import json
import uuid
from collections.abc import Mapping

from agents.catalog.database import Database, Statements
from agents.catalog.names import file_name, fold, shown, stem
from agents.catalog.outbox import say
from agents.catalog.promotion import promote_placed
from schemas.asks import Strategy
from schemas.catalog import Adopted, AdoptFiles, FileReply, FileState
from schemas.files import FilePath
from schemas.models import PendingAdded

FIRST_ID = 1 << 40
"""Ids from here on are given to records that no legacy catalog has numbered."""
AT_ONCE = 1000
"""Records made in one transaction, and by one question."""


async def adopt_files(db: Database, roots: Mapping[str, str], ask: AdoptFiles) -> Adopted:
    """Make a pending record of each file in the configured `roots` that is there, settled, not hashed (or could not be)
    and not pending. Raises sqlite3.Error."""
    async with db.atomic() as sql:
        rows = await sql.rows("adoptable", roots=json.dumps([*roots]), limit=AT_ONCE + 1)
        [(largest,)] = await sql.rows("largest_pending")
        [(before,)] = await sql.rows("count_pending")
        first, at = max(FIRST_ID, largest + 1), db.now()
        values = [
            {
                "id": id,
                "path": f"{roots[root].rstrip('/')}/{shown(rel)}",
                "root": root,
                "rel": rel,
                "folded": fold(file_name(rel)),
                "name": stem(rel),
                "size": size,
                "created_at": at,
            }
            for id, (root, rel, size) in enumerate(rows[:AT_ONCE], first)
        ]
        await sql.many("adopt", values)
        [(after,)] = await sql.rows("count_pending")
        added = after - before
        if added:
            last = first + len(values) - 1
            fact = PendingAdded(source="scan", count=added, first_id=first, last_id=last, at=at)
            await say(sql, fact, uuid.uuid4().hex)
    return Adopted(added=added, pending=after, more=len(rows) > AT_ONCE)


async def file_state(db: Database, strategy: Strategy, ask: FileState) -> FileReply:
    """What is known of a file; see schemas.catalog.FileState. `strategy` is for records whose model is described
    already. Raises sqlite3.Error."""
    async with db.atomic() as sql:
        for place in ask.places:
            for size, sha256 in await sql.rows("file_at", root=place.root, rel=place.rel):
                return await _state(sql, place, size, sha256, strategy, ask, db.now())
        heralded = [await _waiting(sql, place, ask.size) for place in ask.places]
    return FileReply(waiting=tuple(sorted({id for ids in heralded for id in ids})))


async def _state(
    sql: Statements, place: FilePath, size: int, sha256: str | None, strategy: Strategy, ask: FileState, at: float
) -> FileReply:
    waiting = await _waiting(sql, place, size)
    if sha256 is None:
        return FileReply(known=True, waiting=waiting)
    if ask.promote:
        await promote_placed(sql, [(place, size, sha256)], strategy, at)
    asked = json.dumps([*{*ask.asked, *waiting}])
    left = {id for id, state in await sql.rows("pending_states", ids=asked) if state != "promoting"}
    promoted = tuple(sorted({*ask.asked, *waiting} - left))
    return FileReply(known=True, sha256=sha256, waiting=await _waiting(sql, place, size), promoted=promoted)


async def _waiting(sql: Statements, place: FilePath, size: int) -> tuple[int, ...]:
    """The records that a file could be of, by its place or by its name and size."""
    file = [place.root, place.rel, fold(file_name(place.rel)), size, ""]
    return tuple(sorted({int(row[0]) for row in await sql.rows("pending_of_files", files=json.dumps([file]))}))
