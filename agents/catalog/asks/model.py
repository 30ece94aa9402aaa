"""One model: all that is known of it, which one a name means, and what a user changes of it."""

import json
from typing import Any

import msgspec
from anyio import to_thread

from agents.catalog import descriptions
from agents.catalog.asks.pictures import pictures_of
from agents.catalog.database import Database
from agents.catalog.errors import unknown_model
from agents.catalog.outbox import publish
from agents.catalog.resolve import HASH_PREFIX, ModelCandidate, meant_by, read_candidate
from bus.errors import Declined
from schemas.catalog import EditModel, KnownPath, ModelReply, ShowModel, SidecarProblem, WholeModel
from schemas.files import FilePath
from schemas.fitting import fitted
from schemas.models import Layer, ModelDescribed, Tag

PATHS_BYTES = 400_000
"""Of the list of one model's paths at most: a content may lie at any number of them."""
_NAMED = 10
"""Models named in a sentence at most."""

_PROBLEMS = 50
"""Of the files next to a model that are listed at most."""


async def show_model(db: Database, ask: ShowModel) -> ModelReply:
    """The one model that a name means, with or without a file, of whatever kind. Raises Declined: unknown-model,
    ambiguous-model."""
    name = ask.name.strip()
    meant = await meant_by(db, ask.name, name.lower() if HASH_PREFIX.fullmatch(name) else "")
    if not meant:
        raise Declined("unknown-model", f"No model is called {name[:200]!r}.")
    if len(meant) > 1:
        raise Declined("ambiguous-model", f"{name!r} means {len(meant)} models. Name one by its hash: {_list(meant)}.")
    return ModelReply(model=await whole_model(db, meant[0].model.sha256))


async def whole_model(db: Database, sha256: str) -> WholeModel:
    """All about one model, however long it is; of very many paths, the first. Raises Declined:
    unknown-model; sqlite3.Error."""
    rows = await db.committed.rows("whole_model", sha256=sha256)
    if not rows:
        raise unknown_model(sha256)
    paths = await db.committed.rows("paths_of", sha256=sha256)
    layers: dict[Layer, dict[str, Any]] = {
        layer: json.loads(fields) for layer, fields in await db.committed.rows("layers_of", sha256=sha256)
    }
    tags = await db.committed.rows("tags_on", sha256=sha256)
    pictures = await pictures_of(db.committed, sha256)
    problems = await db.committed.rows("sidecar_problems", sha256=sha256, limit=_PROBLEMS)

    def made() -> WholeModel:
        every = [KnownPath(path=FilePath(root=root, rel=rel), present=bool(there)) for root, rel, there in paths]
        listed = fitted(every, PATHS_BYTES)
        model = read_candidate(rows[0]).model
        return WholeModel(
            model=msgspec.structs.replace(model, paths=model.paths[: len(listed)]),
            paths=listed,
            layers=layers,
            tags=tuple(Tag(id=id, name=name, color=color, models=models) for id, name, color, models in tags),
            pictures=pictures,
            more_paths=len(every) - len(listed),
            sidecar_problems=tuple(
                SidecarProblem(path=FilePath(root=root, rel=rel), problem=problem) for root, rel, problem in problems
            ),
        )

    return await to_thread.run_sync(made)


async def edit_model(db: Database, ask: EditModel) -> ModelReply:
    """Change the user's layer of a model; the model as it is then. An edit that changes nothing is no fact. Raises
    Declined: unknown-model."""
    async with db.atomic() as sql:
        name = await descriptions.model_name(sql, ask.sha256)
        if name is None:
            raise unknown_model(ask.sha256)
        rows = await sql.rows("description", sha256=ask.sha256, layer="user")
        details = json.loads(rows[0][0]) if rows else {}
        for field, value in json.loads(msgspec.json.encode(ask.edit)).items():
            if value is None:
                details.pop(field, None)
            else:
                details[field] = value
        if await descriptions.put_layer(sql, ask.sha256, "user", details):
            fact = ModelDescribed(sha256=ask.sha256, name=name, layer="user", at=db.clock.now())
            await publish(sql, fact)
    return ModelReply(model=await whole_model(db, ask.sha256))


def _list(meant: list[ModelCandidate]) -> str:
    named = ", ".join(f"{one.model.name} [{one.model.sha256[:10]}]" for one in meant[:_NAMED])
    return named + (" and others" if len(meant) > _NAMED else "")
