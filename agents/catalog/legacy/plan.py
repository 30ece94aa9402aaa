"""Import plan: what one batch of legacy models changes in the catalog, given what the catalog has of it. No IO."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Self, TypeVar

import msgspec

from agents.catalog.legacy.pictures import BROKEN, MISSING, Copied, Unusable
from agents.catalog.legacy.report import ImportTally, Outcome
from agents.catalog.legacy.rows import NO_PATH, LegacyModel, merged
from agents.catalog.legacy.source import ODD, Link, shown
from agents.catalog.names import fold, stem

NOTHING = "{}"
PORTION = 1000
DISPLACED = 1 << 40
"""Ids from here on are given to records whose own id is taken, or impossible."""

ID_TAKEN = "Its id was taken by another record: it got a new one."
SAME_MODEL = "Another row, or the catalog itself, has this content already: what is missing there is filled in."
SAME_PATH = "A pending record has this path already: what is missing there is filled in."
PROMOTED = "A pending record with this path was promoted, or is being promoted, already."
NO_MODEL = "A tag is linked to a model that is not there, or could not be taken."
NO_TAG = "A model is linked to a tag that is not there, or could not be taken."
NO_OWNER = "A picture's model could not be taken."


class Batch(msgspec.Struct, frozen=True):
    """Legacy models in order of their ids, `last` being the last id looked at, and the links of all ids up to there;
    how many pictures they name, and their contents, and the paths and ids of the others, as JSON."""

    models: list[LegacyModel]
    links: list[Link]
    last: int
    images: int
    sha256s: str
    paths: str
    ids: str

    @classmethod
    def of(cls, models: list[LegacyModel], links: list[Link]) -> Self:
        """The batch of at least one model."""
        others = [row for row in models if not row.sha256 and row.path]
        return cls(
            models=models,
            links=links,
            last=models[-1].id,
            images=sum(len(row.images) for row in models),
            sha256s=to_json([row.sha256 for row in models if row.sha256]),
            paths=to_json([row.path for row in others]),
            ids=to_json([row.id for row in others]),
        )


class MetPending(msgspec.Struct):
    """A pending record that the catalog has: what a batch may fill in, and its pictures by their SHA-256."""

    id: int
    state: str
    details: str
    size: int | None
    root: str | None
    sources: set[str]
    next_n: int


class Met(msgspec.Struct):
    """What the catalog has of a batch: the import layer of each of its contents, its pending records by path, which
    pending ids are taken and which is the next to give, which names of pending originals are in use, and the paths
    that were imported and are known by content since."""

    models: dict[str, str]
    pending: dict[str, MetPending]
    taken: set[int]
    next_id: int
    files: set[str]
    promoted: Collection[str]


class ImportPlan(msgspec.Struct):
    """What to write: rows to insert (descriptions by content); values for the statements `fill_pending` and
    `add_pending_image`; links as pairs; pictures of models as (sha256, source); `files` are the SHA-256 of copied
    pictures, by the names that they get among the pending originals."""

    models: list[dict[str, Any]] = []
    descriptions: dict[str, dict[str, Any]] = {}
    pending: list[dict[str, Any]] = []
    fill_pending: list[dict[str, Any]] = []
    add_pending_image: list[dict[str, Any]] = []
    link_models: list[tuple[str, int]] = []
    link_pending: list[tuple[int, int]] = []
    pictures: list[tuple[str, str]] = []
    files: dict[str, str] = {}


Pictures = Mapping[int, list[Copied | Unusable]]
"""What became of the pictures that a row names, by the row's id."""


def plan_batch(
    batch: Batch, met: Met, tags: Mapping[int, int], pictures: Pictures, tally: ImportTally, *, now: float
) -> ImportPlan:
    """The plan for a batch; `tags` are the catalog's ids of legacy tags, `now` stands in for times that are missing.
    All that happens to rows is counted, but for links and pictures of models, which only writing shows."""
    plan, owners = ImportPlan(), dict[int, str | int | None]()
    for row in batch.models:
        for why, detail in row.notes:
            tally.note("models" if row.sha256 else "pending_import", row.id, why, detail)
        took = pictures.get(row.id, [])
        if row.sha256:
            owners[row.id] = _take_model(row, met, plan, tally, now)
            plan.pictures += [(row.sha256, one.source) for one in _usable(row, took, tally)]
        elif not row.path:
            tally.count("pending_import", "failed")
            tally.note("pending_import", row.id, NO_PATH)
            for name in row.images:
                tally.count("images", "failed")
                tally.note("images", row.id, NO_OWNER, name)
        else:
            record, owners[row.id] = _take_pending(row, met, plan, tally, now)
            _add_pictures(record, list(_usable(row, took, tally)), met, plan, tally)
    _link(batch.links, owners, tags, plan, tally)
    return plan


def _take_model(row: LegacyModel, met: Met, plan: ImportPlan, tally: ImportTally, now: float) -> str:
    """A hashed row becomes a model, or adds to the one that has its content."""
    before = met.models.get(row.sha256)
    details = row.details if before is None else _together(before, row.details)
    outcome: Outcome = "inserted" if before is None else "merged" if details != before else "skipped"
    if before is None:
        name = row.name
        plan.models.append(
            {
                "sha256": row.sha256,
                "name": name,
                "folded": fold(name),
                "size": row.size or 0,
                "identity": row.identity,
                "created_at": now if row.created_at is None else row.created_at,
            }
        )
    if details not in (before, NOTHING):
        plan.descriptions[row.sha256] = {"sha256": row.sha256, "details": details}
    if outcome == "merged":
        tally.note("models", row.id, SAME_MODEL, row.path)
    met.models[row.sha256] = details
    tally.count("models", outcome)
    return row.sha256


def _take_pending(
    row: LegacyModel, met: Met, plan: ImportPlan, tally: ImportTally, now: float
) -> tuple[MetPending | None, int | None]:
    """A row without a hash becomes a pending record, or adds to the one with its path; None, where that is over."""
    record = met.pending.get(row.path)
    if row.path in met.promoted or (record is not None and record.state != "waiting"):
        tally.count("pending_import", "skipped")
        tally.note("pending_import", row.id, PROMOTED, row.path)
        return None, None
    root, rel = row.place or (None, None)
    values = {"legacy_id": row.id if row.id < ODD else None, "root": root, "rel": rel, "size": row.size}
    values["name"] = row.title or stem(row.file)
    if record is not None:
        details = _together(record.details, row.details)
        if details == record.details and (record.size, record.root) == (
            _or(record.size, row.size),
            _or(record.root, root),
        ):
            tally.count("pending_import", "skipped")
            return record, record.id
        plan.fill_pending.append({**values, "id": record.id, "details": details})
        record.details, record.size, record.root = details, _or(record.size, row.size), _or(record.root, root)
        tally.count("pending_import", "merged")
        tally.note("pending_import", row.id, SAME_PATH, row.path)
        return record, record.id
    id = row.id
    if not 0 < id < DISPLACED or id in met.taken:
        id, met.next_id = met.next_id, met.next_id + 1
        if row.id < ODD:
            tally.note("pending_import", row.id, ID_TAKEN, str(id))
    met.taken.add(id)
    created_at = now if row.created_at is None else row.created_at
    values |= {"id": id, "path": row.path, "folded": fold(row.file) or row.path, "details": row.details}
    plan.pending.append({**values, "created_at": created_at})
    record = MetPending(id, "waiting", row.details, row.size, root, set(), 0)
    met.pending[row.path] = record
    tally.count("pending_import", "inserted")
    return record, id


def _usable(row: LegacyModel, took: list[Copied | Unusable], tally: ImportTally) -> Iterable[Copied]:
    """The pictures of a row that can be used; the others are counted, with why not."""
    for one in took:
        if isinstance(one, Copied):
            tally.found += 1
            yield one
            continue
        tally.count("images", "failed")
        tally.note("images", row.id, one.why, one.detail)
        tally.missing += one.why == MISSING
        tally.broken += one.why == BROKEN


def _add_pictures(
    record: MetPending | None, copied: list[Copied], met: Met, plan: ImportPlan, tally: ImportTally
) -> None:
    """Originals for a pending record: each of its pictures once."""
    for one in copied:
        if record is None or one.source in record.sources:
            tally.count("images", "skipped")
            continue
        while (file := f"{record.id}-{record.next_n}.{one.suffix}") in met.files:
            record.next_n += 1
        plan.add_pending_image.append({"pending_id": record.id, "n": record.next_n, "file": file, "source": one.source})
        plan.files[file] = one.source
        record.sources.add(one.source)
        record.next_n += 1
        tally.count("images", "inserted")


def _link(
    links: list[Link],
    owners: Mapping[int, str | int | None],
    tags: Mapping[int, int],
    plan: ImportPlan,
    tally: ImportTally,
) -> None:
    for model, tag in links:
        owner = owners.get(model, "") if isinstance(model, int) else ""
        table = "pending_model_tags" if owner is None or isinstance(owner, int) else "model_tags"
        if owner == "":
            _fail_link(model, tag, table, NO_MODEL, tally)
        elif not isinstance(tag, int) or tag not in tags:
            _fail_link(model, tag, table, NO_TAG, tally)
        elif owner is None:
            tally.count(table, "skipped")
        elif isinstance(owner, str):
            plan.link_models.append((owner, tags[tag]))
        else:
            plan.link_pending.append((owner, tags[tag]))


def fail_strays(links: Iterable[Link], tally: ImportTally) -> None:
    """Links of models that the legacy catalog does not have."""
    for model, tag in links:
        _fail_link(model, tag, "model_tags", NO_MODEL, tally)


def _fail_link(model: Any, tag: Any, table: str, why: str, tally: ImportTally) -> None:
    tally.count(table, "failed")
    tally.note(table, model if isinstance(model, int) else None, why, f"model {_id(model)}, tag {_id(tag)}")


def _id(value: Any) -> str:
    if isinstance(value, int):
        return str(value) if value < ODD else "without a number"
    return "NULL" if value is None else repr(shown(value))


T = TypeVar("T")


def _or(first: T | None, second: T | None) -> T | None:
    return second if first is None else first


def _together(first: str, second: str) -> str:
    """Two details as one; the very first where the second adds nothing."""
    if first == second:
        return first
    before = msgspec.json.decode(first)
    both = merged(before, msgspec.json.decode(second))
    return first if both == before else to_json(both)


def to_json(value: Any) -> str:
    """JSON of anything, a long list portion by portion: making it holds Python's lock all the while."""
    if not isinstance(value, list):
        return msgspec.json.encode(value).decode()
    portions = (value[start : start + PORTION] for start in range(0, len(value), PORTION))
    return f"[{','.join(msgspec.json.encode(portion)[1:-1].decode() for portion in portions)}]"
