"""Sidecars: what the files next to each path of a model hold, and what that comes to for the model.

Each path has a description of its own. Those count whose path holds the model, is away with its disk, or is not hashed
yet. While the model is at no path, those count that counted last; where it comes back, they count until that path is
described. Of a field, the first path (by root, then by rel) that has something in it counts; trigger words, tags and
pictures are united. What the user wrote, or took off, stands above all of them.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import structlog

from agents.catalog import descriptions as describing
from agents.catalog.database import Statements
from agents.catalog.descriptions import model_name, publish_pictured, publish_tagged, put_layer, tag_name
from agents.catalog.ledger import OVERTAKEN_SECONDS
from agents.catalog.outbox import publish
from agents.storage.layout import BLOBS
from schemas.files import Described, FilePath
from schemas.models import ModelDescribed

log = structlog.get_logger()

_PLAIN_PREVIEWS = (".png", ".jpg", ".jpeg", ".webp")
"""Endings, in small letters only, of the previews that were read before catalogs remembered what was taken off."""


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """What the files next to one path hold, or those next to several, united. Tags are names as they are kept,
    `pictures` pairs of a file's name and the SHA-256 of its bytes, best first."""

    details: dict[str, Any] = {}
    tags: tuple[str, ...] = ()
    pictures: tuple[tuple[str, str], ...] = ()


class PathDescription(msgspec.Struct, frozen=True, kw_only=True):
    """A path's description of a model. `stands`: it counts now. `live`: it counts by what is at the path."""

    path: FilePath
    description: Description
    stands: bool
    live: bool
    at: float


class Repictured(msgspec.Struct, frozen=True, kw_only=True):
    """A model's pictures when paths of it are described anew: those its descriptions gave before, `best` first, and
    those that took the place of others under the same name (`replaced`: the new one's SHA-256, the old one's)."""

    best: tuple[str, ...] = ()
    replaced: dict[str, str] = {}

    def then(self, other: "Repictured") -> "Repictured":
        """Both, one after the other."""
        return Repictured(best=self.best, replaced=self.replaced | other.replaced)


_pictures = msgspec.json.Decoder(tuple[tuple[str, str], ...])
_tags = msgspec.json.Decoder(tuple[str, ...])


def united(descriptions: Sequence[Description]) -> Description:
    """Several descriptions as one: of a field, the first that is not empty; trigger words, tags and pictures of all."""
    details: dict[str, Any] = {}
    for description in descriptions:
        for field, value in description.details.items():
            if field == "trigger_words":
                details[field] = list(dict.fromkeys([*details.get(field, []), *value]))
            else:
                details.setdefault(field, value)
    return Description(
        details=details,
        tags=tuple(dict.fromkeys(tag for description in descriptions for tag in description.tags)),
        pictures=tuple(
            {source: (name, source) for description in descriptions for name, source in description.pictures}.values()
        ),
    )


async def apply_described(sql: Statements, fact: Described) -> Repictured:
    """Write down the description of a path. Returns what that does to the pictures."""
    if await model_name(sql, fact.sha256) is None:
        log.warning("sidecars of a model that is not known", rel=fact.path.rel, sha256=fact.sha256)
        return Repictured()
    known = await _rows(sql, fact.sha256)
    best = _sources(united([row.description for row in known if row.stands]))
    before = next((row for row in known if row.path == fact.path), None)
    if before is not None and 0 < before.at - fact.at < OVERTAKEN_SECONDS:
        return Repictured(best=best)
    description = _described_in(fact)
    if not known:
        await _infer_refusals(sql, fact.sha256, description)
    key = {"sha256": fact.sha256, "root": fact.path.root, "rel": fact.path.rel}
    if description == Description() and not fact.problems:
        await sql.rows("drop_sidecar", **key)
    else:
        await sql.rows("put_sidecar", **key, **_columns(description), problems=_json(fact.problems), at=fact.at)
    now = dict(description.pictures)
    old = before.description.pictures if before is not None else ()
    return Repictured(
        best=best, replaced={now[name]: source for name, source in old if name in now and now[name] != source}
    )


async def move(sql: Statements, sha256: str, old: FilePath, path: FilePath) -> None:
    """A file with this content went from one path to another: so does its description, until the new path has one."""
    await sql.rows("copy_sidecar", sha256=sha256, old_root=old.root, old_rel=old.rel, root=path.root, rel=path.rel)


async def described_among(sql: Statements, sha256s: Iterable[str], paths: Iterable[FilePath]) -> set[str]:
    """Those of these contents that sidecars describe, and those that sidecars next to these paths do."""
    places = [(path.root, path.rel) for path in paths]
    found = await sql.rows("described_models", sha256s=json.dumps([*sha256s]), paths=json.dumps(places))
    return {str(sha256) for (sha256,) in found}


async def settle(
    sql: Statements, sha256: str, at: float, *, before: frozenset[FilePath] | None, repictured: Repictured | None
) -> int:
    """Make a model's sidecar layer, and those of its tags and pictures that nobody but sidecars gave, what the
    descriptions of its paths come to. `before` are the paths that held it before this transaction, or None when it was
    about none of them; `repictured` is what `apply_described` returned, or None when no path was described. Returns how
    many facts that made."""
    name = await model_name(sql, sha256)
    last = [row.description for row in await _rows(sql, sha256) if row.stands]
    standing, is_another = await _standing(sql, sha256, before)
    if name is None or (repictured is None and not is_another):
        return 0
    if repictured is None:
        repictured = Repictured(best=_sources(united(last)))
    description = united([row.description for row in standing])
    count = 0
    if await put_layer(sql, sha256, "sidecar", description.details):
        await publish(sql, ModelDescribed(sha256=sha256, name=name, layer="sidecar", at=at))
        count += 1
    count += await _put_tags(sql, sha256, description.tags, at)
    return count + await _put_pictures(sql, sha256, _sources(description), repictured, at)


async def _standing(
    sql: Statements, sha256: str, before: frozenset[FilePath] | None
) -> tuple[list[PathDescription], bool]:
    """The descriptions that count, in order, and whether others counted until now; written down, as far as the model's
    paths decide that."""
    rows = await _rows(sql, sha256)
    last = [row for row in rows if row.stands]
    paths = await sql.rows("paths_of", sha256=sha256)
    here = [FilePath(root=root, rel=rel) for root, rel, there in paths if there]
    if not here:
        return last, False
    is_back = before is not None and before.isdisjoint(here)
    if is_back and last and not any(row.live for row in rows):
        description, place = united([row.description for row in last]), min(here)
        key = {"sha256": sha256, "root": place.root, "rel": place.rel}
        await sql.rows("put_sidecar", **key, **_columns(description), problems="[]", at=max(row.at for row in last))
        rows = await _rows(sql, sha256)
    others = [row for row in rows if row.stands != row.live]
    for row in others:
        key = {"sha256": sha256, "root": row.path.root, "rel": row.path.rel}
        await sql.rows("let_sidecar_stand", **key, stands=row.live)
    return [row for row in rows if row.live], bool(others)


async def _put_tags(sql: Statements, sha256: str, names: Sequence[str], at: float) -> int:
    """Put on what sidecars list and the user does not deny; take off what only sidecars listed and none lists now."""
    meant: dict[str, str] = dict(await sql.rows("names_meant", names=_json(names)))
    refused = {name for (name,) in await sql.rows("refused_tags_of", sha256=sha256)}
    wanted = {
        becomes for name in names if (becomes := meant.get(name, name)) and not refused.intersection((name, becomes))
    }
    has: dict[str, str] = dict(await sql.rows("tags_by_origin", sha256=sha256))
    gone = [name for name, origin in has.items() if origin == "sidecar" and name not in wanted]
    if gone:
        await sql.rows("take_sidecar_tags", sha256=sha256, names=_json(gone))
    if await describing.add_tags(sql, sha256, sorted(wanted), sql.new_id(), at, origin="sidecar"):
        return 1
    if gone:
        await publish_tagged(sql, sha256, sql.new_id(), at)
    return bool(gone)


async def _put_pictures(sql: Statements, sha256: str, sources: Sequence[str], repictured: Repictured, at: float) -> int:
    """The same for pictures, and their order."""
    refused = {source for (source,) in await sql.rows("refused_pictures_of", sha256=sha256)}
    images = [(str(row[3]), int(row[1]), row[4] == "sidecar") for row in await sql.rows("images_of", sha256=sha256)]
    has = {source for source, _, _ in images}
    wanted = [source for source in sources if source not in refused]
    before = [source for source, _, is_ours in images if is_ours]
    after = [source for source in wanted if source not in has or source in before]
    if before == after:
        return 0
    shown = await sql.rows("numbers_of", sha256=sha256)
    numbers = {source: number for source, number, _ in images}
    for source in set(before) - set(after):
        await sql.rows("drop_image", sha256=sha256, number=numbers.pop(source))
    for source in after:
        if source not in has:
            await describing.add_picture(sql, sha256, source, f"{BLOBS}/{source}", "sidecar", at)
    numbers = {str(row[3]): int(row[1]) for row in await sql.rows("images_of", sha256=sha256)}
    order = ordered([source for source, _, _ in images], before, after, repictured)
    await sql.many(
        "move_image", [{"sha256": sha256, "number": numbers[source], "seq": seq} for seq, source in enumerate(order)]
    )
    if shown == await sql.rows("numbers_of", sha256=sha256):
        return 0
    await publish_pictured(sql, sha256, sql.new_id(), at)
    return 1


def ordered(images: Sequence[str], before: Sequence[str], after: Sequence[str], repictured: Repictured) -> list[str]:
    """A model's pictures in order, when of all its `images` those that sidecars gave were `before` (in the order of the
    images) and are `after` (best first). Pure.

    A picture that replaced another takes its place, other new ones come after the last that a sidecar gave. In the
    places that those have they are best first, unless the user had put them into another order than they had then.
    """
    replaced = repictured.replaced.items()
    heirs = {old: new for new, old in replaced if old in before and old not in after and new in after}
    places = [heirs.get(source, source) for source in images]
    was_best = [source for source in repictured.best or after if source in before]
    is_by_hand = was_best != [source for source in before if source in was_best]
    new = [source for source in after if source not in places]
    ours = {*before, *after}
    last = max((n for n, source in enumerate(places) if source in ours), default=len(places) - 1)
    places[last + 1 : last + 1] = new
    left = [source for source in places if source in after or source not in ours]
    if is_by_hand:
        return left
    best = iter(after)
    return [next(best) if source in ours else source for source in left]


async def _infer_refusals(sql: Statements, sha256: str, description: Description) -> None:
    """Of a model that was described in these very words before catalogs remembered what users take off: its tags and
    pictures were all put on then, so what is missing was taken off."""
    layers = {layer: json.loads(stored) for layer, stored in await sql.rows("layers_of", sha256=sha256)}
    if not description.details or layers.get("sidecar") != description.details:
        return
    has: dict[str, str] = dict(await sql.rows("tags_by_origin", sha256=sha256))
    missing = [{"sha256": sha256, "name": name} for name in description.tags if name not in has]
    await sql.many("refuse_tag", missing)
    for name, source in description.pictures:
        if name.endswith(_PLAIN_PREVIEWS) and not await sql.rows("has_image", sha256=sha256, source=source):
            await sql.rows("refuse_picture", sha256=sha256, source=source)


def _described_in(fact: Described) -> Description:
    return Description(
        details=json.loads(msgspec.json.encode(fact.details)),
        tags=tuple(dict.fromkeys(name for name in map(tag_name, fact.tags) if name)),
        pictures=tuple((preview.name, preview.blob) for preview in fact.previews),
    )


def _sources(description: Description) -> tuple[str, ...]:
    return tuple(source for _, source in description.pictures)


async def _rows(sql: Statements, sha256: str) -> list[PathDescription]:
    return [
        PathDescription(
            path=FilePath(root=root, rel=rel),
            description=Description(
                details=json.loads(details), tags=_tags.decode(tags), pictures=_pictures.decode(pictures)
            ),
            stands=bool(stands),
            live=bool(holds or is_open) if present else bool(holds and away),
            at=at,
        )
        for root, rel, stands, details, tags, pictures, at, present, away, holds, is_open in await sql.rows(
            "sidecars_of", sha256=sha256
        )
    ]


def _columns(description: Description) -> dict[str, str]:
    return {
        "details": _json(description.details),
        "tags": _json(description.tags),
        "pictures": _json(description.pictures),
    }


def _json(content: object) -> str:
    return json.dumps(content, ensure_ascii=False)
