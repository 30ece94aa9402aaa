"""Applying facts about files to the catalog: rows in, ledger, rows out, and what changed into the outbox."""

import json
from collections.abc import Container, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec
from anyio import to_thread

from agents.catalog import sidecars
from agents.catalog.database import Database, Row, Statements
from agents.catalog.ledger import Entry, FileFact, Ledger, LedgerRow, ModelFact
from agents.catalog.names import fold, stem
from agents.catalog.outbox import publish
from agents.catalog.promotion import promote_placed
from bus.clock import Clock
from schemas.catalog import Strategy
from schemas.files import Described, FilePath, Hashed, HashFailed, Identity, Moved, Refused, Removed, Settled, Stat

PIECE_SECONDS = 1.0
"""Of working out what facts change, before what is worked out is written."""

_identity = msgspec.json.Decoder(Identity)


async def apply(
    db: Database,
    facts: Sequence[tuple[str, FileFact | Described]],
    *,
    now: float,
    strategy: Strategy = "report",
    cursor: Mapping[str, int] = MappingProxyType({}),
) -> int:
    """Apply facts, each with its message id, in order and in one transaction: all of them or none. Those that take
    longer than PIECE_SECONDS (of a file with thousands of links) are applied in pieces, each a transaction of its own,
    between which others get their turn.

    A message id that was applied before changes nothing. What changed about models goes into the outbox as facts of
    their own, whose message ids are made of the id of the fact that caused them. `now` (Unix seconds) is when that
    happened, by the inbox. Pending records of files whose content is known now are promoted; `strategy` is for those
    whose model is described already. `cursor` is the sequence of the last of them, by stream. Returns how many facts
    went into the outbox.

    Raises sqlite3.IntegrityError, or OverflowError for a number over 63 bits, for a fact that no true watcher or hasher
    publishes, and sqlite3.OperationalError when the file can't be written.
    """
    count, left = 0, list(facts)
    while True:
        more, done = await _apply_some(db, left, now, strategy, cursor)
        count, left = count + more, left[done:]
        if not left:
            return count


async def _apply_some(
    db: Database,
    facts: Sequence[tuple[str, FileFact | Described]],
    now: float,
    strategy: Strategy,
    cursor: Mapping[str, int],
) -> tuple[int, int]:
    """The first of these facts in one transaction: how many facts went into the outbox, and how many were applied. The
    cursor is moved with the last."""
    async with db.atomic() as sql:
        known = {id for (id,) in await sql.rows("applied_messages", ids=json.dumps([id for id, _ in facts]))}
        ledger = await _ledger(sql, [fact for id, fact in facts if id not in known and not isinstance(fact, Described)])
        before = ledger.whereabouts()
        news, done = await to_thread.run_sync(_applied, ledger, facts, known, db.clock)
        fresh = {id: fact for id, fact in facts[:done] if id not in known}
        files = [fact for fact in fresh.values() if not isinstance(fact, Described)]
        await sql.many("put_model", [_model_values(entry) for entry in ledger.changed_entries.values()])
        await sql.many("put_path", [_path_values(place) for place in ledger.changed_rows.values()])
        await sql.many("put_digest", [row for fact in files for row in _digest_values(fact)])
        for msg_id, change in news:
            await publish(sql, change, msg_id)
        count = len(news) + await _settle_sidecars(sql, [*fresh.values()], ledger, before)
        placed = [
            (place.path, place.stat.size, place.sha256)
            for place in ledger.changed_rows.values()
            if place.present and place.sha256
        ]
        count += await promote_placed(sql, placed, strategy, now)
        if done == len(facts):
            await note_cursor(sql, cursor)
        await sql.many("add_message", [{"message_id": id, "applied_at": now} for id in fresh])
    return count, done


def _applied(
    ledger: Ledger, facts: Sequence[tuple[str, FileFact | Described]], known: Container[str], clock: Clock
) -> tuple[list[tuple[str, ModelFact]], int]:
    """What facts change about models, each change with its message id; and how many facts were looked at. In a thread:
    a content with thousands of copies takes a while, and others ask the catalog meanwhile."""
    news: list[tuple[str, ModelFact]] = []
    seen: set[str] = set()
    until = clock.steady() + PIECE_SECONDS
    for done, (id, fact) in enumerate(facts):
        if done and clock.steady() > until:
            return news, done
        if id not in known and id not in seen and not isinstance(fact, Described):
            news += [(f"{id}.{n}", change) for n, change in enumerate(ledger.apply(fact))]
        seen.add(id)
    return news, len(facts)


async def note_cursor(sql: Statements, cursor: Mapping[str, int]) -> None:
    """The facts of these streams are applied up to these sequences: a catalog that is made of its history goes on
    there."""
    await sql.many("put_meta", [{"key": f"cursor.{stream}", "value": str(seq)} for stream, seq in cursor.items()])


async def _settle_sidecars(
    sql: Statements,
    facts: Sequence[FileFact | Described],
    ledger: Ledger,
    before: Mapping[str, frozenset[FilePath]],
) -> int:
    """Write down how paths are described, and make that count for the models that these facts are about. `before` are
    the paths of each content before them. Returns how many facts that made."""
    touched = {place.sha256 for place in ledger.changed_rows.values() if place.sha256} | before.keys()
    models = dict.fromkeys(await sidecars.described_among(sql, touched, ledger.changed_rows))
    repictured: dict[str, sidecars.Repictured] = {}
    for fact in facts:
        if isinstance(fact, Described):
            one = await sidecars.apply_described(sql, fact)
            repictured[fact.sha256] = repictured[fact.sha256].then(one) if fact.sha256 in repictured else one
            models[fact.sha256] = None
        elif isinstance(fact, Moved):
            for sha256 in {ledger.sha256_at(path) for path in (fact.path, fact.old)} & models.keys():
                await sidecars.move(sql, sha256, fact.old, fact.path)
    at, count = max((fact.at for fact in facts), default=0.0), 0
    for sha256 in models:
        were = before.get(sha256, frozenset()) if sha256 in touched else None
        count += await sidecars.settle(sql, sha256, at, before=were, repictured=repictured.get(sha256))
    return count


async def rows_of(db: Database, root: str) -> dict[FilePath, LedgerRow]:
    """What is present below a root, by the catalog."""
    return {place.path: place for place in map(_place, await db.committed.rows("places_of_root", root=root))}


async def roots_of(db: Database) -> set[str]:
    """The roots below which something is present, by the catalog."""
    return {str(row[0]) for row in await db.committed.rows("roots")}


async def forget_messages(db: Database, *, before: float) -> None:
    """Drop the inbox's memory of messages applied before a time (Unix seconds). Facts that old still do no harm when
    they come again: a state that is already there is not entered twice."""
    async with db.atomic() as sql:
        await sql.rows("forget_messages", before=before)


async def _ledger(sql: Statements, facts: Iterable[FileFact]) -> Ledger:
    """A ledger with every row that these facts can touch."""
    paths: set[FilePath] = set()
    keys: set[str] = set()
    sha256s: set[str] = set()
    for fact in facts:
        paths.add(fact.path)
        keys.add(fact.key)
        match fact:
            case Moved():
                paths.add(fact.old)
                sha256s.update([fact.known.sha256] if fact.known else [])
            case Settled():
                sha256s.update([fact.known.sha256] if fact.known else [])
            case Hashed():
                sha256s.add(fact.sha256)
            case Removed() | Refused() | HashFailed():
                pass
    wanted = json.dumps([[path.root, path.rel] for path in paths])
    places = {
        place.path: place for place in map(_place, await sql.rows("places", paths=wanted, keys=json.dumps([*keys])))
    }
    sha256s.update(place.sha256 for place in places.values() if place.sha256)
    listed = json.dumps([*sha256s])
    places.update((place.path, place) for place in map(_place, await sql.rows("places_of_models", sha256s=listed)))
    return Ledger(places.values(), map(_entry, await sql.rows("entries", sha256s=listed)))


def _place(row: Row) -> LedgerRow:
    root, rel, key, sha256, dev, ino, size, mtime_ns, ctime_ns, present, away, seen_at = row
    stat = Stat(dev=int(dev), ino=int(ino), size=size, mtime_ns=mtime_ns, ctime_ns=ctime_ns)
    path = FilePath(root=root, rel=rel)
    return LedgerRow(
        path=path, key=key, stat=stat, sha256=sha256, present=bool(present), seen_at=seen_at, away=bool(away)
    )


def _entry(row: Row) -> Entry:
    sha256, name, size, identity, created_at = row
    return Entry(sha256=sha256, name=name, size=size, identity=_identity.decode(identity), created_at=created_at)


def _model_values(entry: Entry) -> dict[str, Any]:
    return {
        "sha256": entry.sha256,
        "name": entry.name,
        "folded": fold(entry.name),
        "size": entry.size,
        "identity": msgspec.json.encode(entry.identity).decode(),
        "created_at": entry.created_at,
    }


def _digest_values(fact: FileFact) -> list[dict[str, str]]:
    if not isinstance(fact, Hashed):
        return []
    return [{"sha256": fact.sha256, "algorithm": name, "digest": digest} for name, digest in fact.digests.items()]


def _path_values(place: LedgerRow) -> dict[str, Any]:
    return {
        "root": place.path.root,
        "rel": place.path.rel,
        "folded": fold(stem(place.path.rel)),
        "file_key": place.key,
        "sha256": place.sha256,
        "dev": str(place.stat.dev),
        "ino": str(place.stat.ino),
        "size": place.stat.size,
        "mtime_ns": place.stat.mtime_ns,
        "ctime_ns": place.stat.ctime_ns,
        "present": place.present,
        "away": place.away,
        "seen_at": place.seen_at,
    }
