"""Adopting: files that lie in the roots and that nobody has hashed yet become pending records; and what is known of one
file, with the records that wait for it."""

import json
from collections.abc import Mapping, Sequence

import msgspec

from agents.catalog.database import Database, Statements
from agents.catalog.matching import RIVALS, Wanted, files_for
from agents.catalog.names import file_name, fold, shown, stem
from agents.catalog.outbox import publish
from agents.catalog.promotion import REASONS, promote, promote_placed, unknown_record
from agents.storage.layout import PENDING
from schemas.catalog import Adopted, AdoptFiles, FileReply, FileState, Outcome, PendingRecord, Strategy
from schemas.files import Details, FilePath
from schemas.models import PendingAdded

_details = msgspec.json.Decoder(Details)

LARGEST_ID = (1 << 63) - 1
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
        first, at = max(FIRST_ID, largest + 1), db.clock.now()
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
            await publish(sql, fact)
    return Adopted(added=added, pending=after, more=len(rows) > AT_ONCE)


async def file_state(db: Database, strategy: Strategy, ask: FileState) -> FileReply:
    """What is known of a file; see schemas.catalog.FileState. `strategy` is for records whose model is described
    already. Raises sqlite3.Error."""
    async with db.atomic() as sql:
        for place in ask.places:
            for size, sha256 in await sql.rows("file_at", root=place.root, rel=place.rel):
                return await _state(sql, place, size, sha256, strategy, ask, db.clock.now())
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


async def promote_chosen(
    db: Database, ids: Sequence[int], strategy: Strategy, at: float
) -> tuple[tuple[Outcome, ...], list[str]]:
    """Promote these records with the strategy that somebody chose, each for itself. What became of each, and originals
    that may be done with."""
    outcomes, originals = [], []
    for id in ids:
        if not 0 < id <= LARGEST_ID:
            outcomes.append(unknown_record(id))
            continue
        async with db.atomic() as sql:
            originals += [f"{PENDING}/{file}" for file, _ in await sql.rows("pictures_of_pending", id=id)]
            outcomes.append(await _chosen(sql, id, strategy, at))
    return tuple(outcomes), originals


async def _chosen(sql: Statements, id: int, strategy: Strategy, at: float) -> Outcome:
    for state, sha256 in await sql.rows("pending_state", id=id):
        if state == "promoting":
            return Outcome(id=id, outcome="promoted", sha256=sha256)
        if sha256 is None:
            [(root, rel, folded, size)] = await sql.rows("record_to_match", id=id)
            record = _wanted(root, rel, folded, size)
            sha256, why_not = (await files_for(sql, [record])).match(record)
            if sha256 is None:
                return Outcome(id=id, outcome="waiting", error=why_not)
        return await promote(sql, id, str(sha256), strategy, at)
    return unknown_record(id)


async def list_pending(db: Database, *, after: int, limit: int) -> tuple[PendingRecord, ...]:
    """Pending records by id, after one. Raises sqlite3.Error."""
    rows = await db.committed.rows("pending", after=after, limit=limit)
    wanted = {row[0]: _wanted(row[3], row[4], row[5], row[7]) for row in rows}
    files = await files_for(db.committed, wanted.values())
    found = []
    for row in rows:
        id, legacy_id, path, root, rel, _, name, size, details, origin, state, sha256, tags, images = row
        reason = REASONS[state] or files.match(wanted[id]).why_not or RIVALS
        found.append(
            PendingRecord(
                id=id,
                legacy_id=legacy_id,
                path=path,
                place=FilePath(root=root, rel=rel) if rel is not None else None,
                name=name,
                size=size,
                details=_details.decode(details),
                origin=origin,
                state=state,
                sha256=sha256,
                tags=tuple(json.loads(tags)),
                images=images,
                reason=reason,
            )
        )
    return tuple(found)


def _wanted(root: str | None, rel: str | None, folded: str, size: int | None) -> Wanted:
    place = FilePath(root=root, rel=rel) if root is not None and rel is not None else None
    return Wanted(place, folded, size)
