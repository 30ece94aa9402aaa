"""Which model does a name mean? And which models are there? A name never means anything but what it spells."""

import json
import re
from collections.abc import Callable

import msgspec
from anyio import to_thread

from agents.catalog.database import Database, Row
from agents.catalog.names import file_name, fold, loose, shown, stem
from bus.errors import Declined
from schemas.files import Details, FilePath, Identity
from schemas.models import Model

LISTED = 10
"""Models named in a sentence at most."""

HASH_PREFIX = re.compile(r"([0-9A-Fa-f]{8,64})")
_INFOTEXT = re.compile(r"\[([0-9A-Fa-f]{8,64})\]$")

_identity = msgspec.json.Decoder(Identity)
_paths = msgspec.json.Decoder(list[tuple[str, str, int]])
_details = msgspec.json.Decoder(Details)
_names = msgspec.json.Decoder(tuple[str, ...])
_digests = msgspec.json.Decoder(dict[str, str])


class ModelCandidate(msgspec.Struct, frozen=True, kw_only=True):
    """A model a name could mean; `known_as` are the paths by which it can be called: where it is, or was at last."""

    model: Model
    loadable: bool
    known_as: tuple[str, ...]


async def resolve(db: Database, name: str) -> Model:
    """The one usable checkpoint that `name` means.

    A name is a model's name, a file's name with or without its extension, a path below a root, 8 or more hex digits
    from the start of a SHA-256, or an infotext's form ("name [hash]", where the hash decides). The exact spelling
    goes before one that differs in case, and that before one that differs in spaces. An empty name means the only
    checkpoint there is. Nothing is ever substituted. Raises Declined: unknown-model, ambiguous-model, model-missing,
    unsafe-model, not-a-checkpoint.
    """
    if not (plain := name.strip()):
        return await _only(db)
    hashed = HASH_PREFIX.fullmatch(plain) or _INFOTEXT.search(plain)
    meant = await meant_by(db, name, hashed[1].lower() if hashed else "")
    if not meant:
        raise Declined("unknown-model", f'No model is called "{name}". {await _what_there_is(db)}')
    usable = [candidate for candidate in meant if candidate.loadable and not candidate.model.missing]
    if len(usable) == 1:
        return usable[0].model
    raise _ambiguous(name, usable) if usable else _unusable(name, meant)


async def meant_by(db: Database, name: str, prefix: str) -> list[ModelCandidate]:
    """The models that the first fitting way of reading the name finds; `prefix` is the hash in it, if there is one.
    Raises sqlite3.Error."""
    bases = {text.rsplit("/", 1)[-1] for text in (name, name.strip())}
    parts = {part for base in bases for part in (base, base.rpartition(".")[0]) if part}
    loosely = {loose(part) for part in parts}
    folded = json.dumps([*{fold(part) for part in parts} | loosely])
    rows = await db.committed.rows("models_named", folded=folded, prefix=prefix)
    if not (found := _meant_by([read_candidate(row) for row in rows], name, prefix)):
        rows = await db.committed.rows("models_named_loosely", loosely=json.dumps([*loosely]))
        found = _meant_by([read_candidate(row) for row in rows], name, prefix)
    return found


def _meant_by(candidates: list[ModelCandidate], name: str, prefix: str) -> list[ModelCandidate]:
    """What models and files are called goes before paths and hashes, all of them before a spelling in another case, and
    that before one with other spaces."""

    def called(one: ModelCandidate, text: str, same: Callable[[str], str]) -> bool:
        names = {one.model.name, *map(file_name, one.known_as), *map(stem, one.known_as)}
        return same(text) in map(same, names)

    def at(one: ModelCandidate, text: str, same: Callable[[str], str]) -> bool:
        return any(same(text) in (same(rel), same(shown(rel))) for rel in one.known_as)

    def hashed(one: ModelCandidate, text: str, same: Callable[[str], str]) -> bool:
        return bool(prefix) and (one.model.sha256.startswith(prefix) or prefix in one.model.digests.values())

    plain = name.strip()
    for text, same in ((name, str), (plain, str), (name, fold), (plain, fold), (plain, loose)):
        for reading in (called, at, hashed):
            if found := [candidate for candidate in candidates if reading(candidate, text, same)]:
                return found
    return []


async def list_models(
    db: Database, *, kind: str = "", missing: bool = False, after: str = "", limit: int = -1
) -> tuple[Model, ...]:
    """Models by name: all, or those of one kind; `missing` includes the ones with no file at present. At most `limit`
    (any number when negative), after the one with the SHA-256 `after`."""
    rows = await db.committed.rows("models", kind=kind, missing=missing, after=after, limit=limit)
    return await to_thread.run_sync(lambda: tuple(read_candidate(row).model for row in rows))


async def _only(db: Database) -> Model:
    usable = [read_candidate(row) for row in await db.committed.rows("usable_models", limit=2)]
    if len(usable) == 1:
        return usable[0].model
    reason = "ambiguous-model" if usable else "unknown-model"
    raise Declined(reason, f"No model was named. {await _what_there_is(db)}")


async def _what_there_is(db: Database) -> str:
    names = [read_candidate(row).model.name for row in await db.committed.rows("usable_models", limit=LISTED + 1)]
    if not names:
        return "There is no checkpoint yet: drop one (.safetensors) into the models folder."
    return f"Name one of these: {_listed(names)}."


def _ambiguous(name: str, usable: list[ModelCandidate]) -> Declined:
    which = [f"{shown(one.model.paths[0].rel)} [{one.model.sha256[:10]}]" for one in usable]
    return Declined(
        "ambiguous-model",
        f'"{name}" means {len(usable)} models. Name one of these, hash and all: {_listed(which)}.',
    )


def _unusable(name: str, meant: list[ModelCandidate]) -> Declined:
    """Why none of the models that a name means can be used; of several, what is nearest to being usable counts."""
    gone = [one for one in meant if one.loadable]
    if gone:
        model = gone[0].model
        where = f" It was last seen at {shown(gone[0].known_as[0])}." if gone[0].known_as else ""
        return Declined(
            "model-missing",
            f'"{name}" [{model.sha256[:10]}] is known, but its file is gone.{where} Put it back to use it.',
        )
    model = meant[0].model
    identity = model.identity
    if identity.unsafe:
        return Declined(
            "unsafe-model",
            f'"{name}" is a pickle, which can run code when it is loaded, so it never is. Use it as .safetensors.',
        )
    if identity.problem:
        return Declined("not-a-checkpoint", f'"{name}" is no usable checkpoint: {identity.problem}')
    what = "of an unknown kind" if identity.kind == "unknown" else f"of kind {identity.kind}"
    return Declined("not-a-checkpoint", f'"{name}" is no checkpoint: it is {what}.')


def _listed(names: list[str]) -> str:
    return ", ".join(names[:LISTED]) + (" and others" if len(names) > LISTED else "")


def read_candidate(row: Row) -> ModelCandidate:
    """A row of the view whole_models, as every query of models gives it."""
    sha256, name, size, identity, created_at, loadable, paths, details, tags, digests, pictures = row
    lying = [(FilePath(root=root, rel=rel), present) for root, rel, present in _paths.decode(paths)]
    here = tuple(sorted(path for path, present in lying if present))
    model = Model(
        sha256=sha256,
        name=name,
        size=size,
        identity=_identity.decode(identity),
        paths=here,
        missing=not here,
        created_at=created_at,
        details=_details.decode(details),
        tags=_names.decode(tags),
        digests=_digests.decode(digests),
        pictures=pictures,
    )
    known_as = tuple(path.rel for path in here or sorted(path for path, _ in lying))
    return ModelCandidate(model=model, loadable=bool(loadable), known_as=known_as)
