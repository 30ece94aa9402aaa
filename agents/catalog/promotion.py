"""Promotion: a pending record whose file's content is known becomes part of the model with that content.

The first transaction moves the record's details, its tags and the places of its pictures, all at once; the record
stays, `promoting`, while the encoder makes the pictures' files. The second one, when the last of them is there, drops
it. What a kill leaves is either of the two, and both go on by themselves.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from agents.catalog import descriptions
from agents.catalog.database import Database, Statements
from agents.catalog.matching import Wanted, files_for
from agents.catalog.names import file_name, fold
from agents.catalog.outbox import publish
from agents.storage.layout import PENDING
from schemas.catalog import Outcome, Strategy
from schemas.files import Details, FilePath
from schemas.models import ModelPromoted, PendingConflict, PendingDropped

_details = msgspec.json.Decoder(Details)

REASONS = {
    "waiting": "",
    "conflict": "The model is described already: choose merge, override, ignore or delete.",
    "promoting": "Its pictures are being encoded.",
}
"""Why a record is pending still; what one waits for depends on the files."""
AT_ONCE = 256
"""Records looked at in one transaction."""


async def promote_placed(
    sql: Statements, placed: Iterable[tuple[FilePath, int, str]], strategy: Strategy, at: float
) -> int:
    """Promote the records that files now known (path, bytes, SHA-256) are of; how many were."""
    wanted = [[path.root, path.rel, fold(file_name(path.rel)), size, sha256] for path, size, sha256 in placed]
    if not wanted:
        return 0
    matched: dict[int, str] = {}
    rivals: dict[tuple[str, str, str], list[tuple[int, str]]] = {}
    for id, legacy_path, sha256, rel, known_by in await sql.rows("pending_of_files", files=json.dumps(wanted)):
        if known_by == "place":
            matched[int(id)] = str(sha256)
        else:
            rivals.setdefault((known_by, sha256, rel), []).append((int(id), str(legacy_path)))
    sole = await _of_one_content([rel for known_by, _, rel in rivals if known_by == "name"], sql)
    for (known_by, sha256, rel), records in rivals.items():
        if known_by == "name" and (("size", sha256, rel) in rivals or rel not in sole):
            continue
        id = longest_common_suffix(records, rel)
        if id is not None and id not in matched:
            matched[id] = sha256
    for id, sha256 in matched.items():
        await promote(sql, id, sha256, strategy, at)
    return len(matched)


async def _of_one_content(rels: Sequence[str], sql: Statements) -> set[str]:
    """Of these paths below roots, those with a name that files of one content alone have."""
    wanted = {rel: Wanted(None, fold(file_name(rel)), None) for rel in rels}
    files = await files_for(sql, wanted.values()) if wanted else None
    return {rel for rel, record in wanted.items() if files is not None and files.match(record).sha256 is not None}


def longest_common_suffix(records: Sequence[tuple[int, str]], rel: str) -> int | None:
    """Which of the records (id, legacy path), all with the name and size of the file at `rel`, it is of: the one whose
    folders, from the file up, are most like it. None when two are as near: a guess could be wrong for good. Pure."""

    def shared_parts(path: str) -> int:
        ours, theirs = reversed(fold(rel).split("/")), reversed(fold(path).replace("\\", "/").split("/"))
        same = 0
        for one, other in zip(ours, theirs, strict=False):
            if one != other:
                break
            same += 1
        return same

    ranked = sorted(((shared_parts(path), id) for id, path in records), reverse=True)
    if len(ranked) > 1 and ranked[0][0] == ranked[1][0]:
        return None
    return ranked[0][1] if ranked else None


async def promote_present(db: Database, strategy: Strategy, at: float) -> int:
    """Promote every waiting record whose file is hashed already; how many were. In transactions of AT_ONCE files."""
    promoted, after = 0, ("", "")
    while True:
        async with db.atomic() as sql:
            rows = await sql.rows("hashed_files_pending", root=after[0], rel=after[1], limit=AT_ONCE)
            placed = [(FilePath(root=root, rel=rel), int(size), str(sha256)) for root, rel, size, sha256 in rows]
            promoted += await promote_placed(sql, placed, strategy, at)
        if len(rows) < AT_ONCE:
            return promoted
        after = (rows[-1][0], rows[-1][1])


async def promote(sql: Statements, id: int, sha256: str, strategy: Strategy, at: float) -> Outcome:
    """Make a record's details part of the model. Where that is described already, by an import or a user, the strategy
    decides: report it, leave the record (ignore), delete it, merge (fill what is empty), or override."""
    for path, text in await sql.rows("pending_details", id=id):
        details: dict[str, Any] = json.loads(text)
        before = {
            layer: json.loads(stored)
            for layer, stored in await sql.rows("layers_of", sha256=sha256)
            if layer != "sidecar"
        }
        conflict = bool(before and details)  # a record without details contradicts nothing
        if conflict and strategy in ("report", "ignore", "delete"):
            return await _not_promoted(sql, id, str(path), sha256, strategy, at)
        if conflict and strategy == "override":
            details = {**before.get("import", {}), **details}
            user = {key: value for key, value in before.get("user", {}).items() if key not in details}
            await descriptions.put_layer(sql, sha256, "user", user)
        elif before:
            details = _merged(before.get("import", {}), details)
        await descriptions.put_layer(sql, sha256, "import", details)
        replace = conflict and strategy == "override"
        await _move_tags(sql, id, sha256, replace=replace, at=at)
        await _move_pictures(sql, id, sha256, replace=replace, at=at)
        name = await descriptions.model_name(sql, sha256) or ""
        fact = ModelPromoted(sha256=sha256, name=name, pending_id=id, strategy=strategy if conflict else "", at=at)
        await publish(sql, fact)
        await sql.rows("pending_promoting", id=id, sha256=sha256)
        await drop_promoted(sql, [sha256], at)
        return Outcome(id=id, outcome="promoted", sha256=sha256)
    return unknown_record(id)


async def _not_promoted(sql: Statements, id: int, path: str, sha256: str, strategy: Strategy, at: float) -> Outcome:
    if strategy == "delete":
        await sql.rows("drop_pending", id=id)
        await publish(sql, PendingDropped(pending_id=id, path=path, reason="deleted", at=at))
        return Outcome(id=id, outcome="deleted", sha256=sha256)
    if strategy == "ignore":
        return Outcome(id=id, outcome="ignored", sha256=sha256)
    if await sql.rows("pending_conflict", id=id, sha256=sha256):
        await publish(sql, PendingConflict(pending_id=id, sha256=sha256, path=path, at=at))
    return Outcome(id=id, outcome="conflict", sha256=sha256, error=REASONS["conflict"])


def _merged(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Ours, with what is empty in it taken from theirs; of what has no field of its own, too."""
    merged = {**theirs, **{key: value for key, value in ours.items() if value not in ("", [], {}, None)}}
    if "extra" in ours and "extra" in theirs:
        merged["extra"] = {**theirs["extra"], **ours["extra"]}
    return merged


async def _move_tags(sql: Statements, id: int, sha256: str, *, replace: bool, at: float) -> None:
    """What the user took off the model stays off; only who replaces its tags by the record's chose anew."""
    before = await sql.rows("tags_of", sha256=sha256)
    if replace:
        await sql.rows("refuse_replaced_tags", id=id, sha256=sha256)
        await sql.rows("allow_tags_of_pending", id=id, sha256=sha256)
        await sql.rows("untag_model", sha256=sha256)
    await sql.rows("tags_of_pending", id=id, sha256=sha256)
    if before != await sql.rows("tags_of", sha256=sha256):
        await descriptions.publish_tagged(sql, sha256, sql.new_id(), at)


async def _move_pictures(sql: Statements, id: int, sha256: str, *, replace: bool, at: float) -> None:
    for file, source in await sql.rows("pictures_of_pending", id=id):
        if replace:
            await sql.rows("allow_picture", sha256=sha256, source=source)
        await descriptions.add_picture(sql, sha256, str(source), f"{PENDING}/{file}", "import", at)


async def drop_promoted(sql: Statements, sha256s: Iterable[str], at: float) -> list[str]:
    """Drop the records that were promoted to these models and have no picture left to be encoded. Returns their
    originals, which may be done with (see `unused_originals`)."""
    originals = []
    for id, path in await sql.rows("pending_done", sha256s=json.dumps([*sha256s])):
        originals += [f"{PENDING}/{file}" for file, _ in await sql.rows("pictures_of_pending", id=id)]
        await sql.rows("drop_pending", id=id)
        fact = PendingDropped(pending_id=int(id), path=str(path), reason="promoted", at=at)
        await publish(sql, fact)
    return originals


async def unused_originals(sql: Statements, originals: Iterable[str]) -> list[str]:
    """Those of these paths (below the data directory) that nothing in the catalog needs any more."""
    return [
        str(path) for (path,) in await sql.rows("unused_originals", originals=json.dumps([*originals]), pending=PENDING)
    ]


def unknown_record(id: int) -> Outcome:
    return Outcome(id=id, outcome="unknown", error="There is no such pending record.")
