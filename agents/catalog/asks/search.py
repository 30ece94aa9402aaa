"""Searching: models and generated pictures by words, filters and pages."""

import json
from typing import Any

import msgspec
from anyio import to_thread

from agents.catalog import cursors
from agents.catalog.asks.replies import told_in
from agents.catalog.database import Database, Row
from agents.catalog.descriptions import tag_name
from agents.catalog.names import fold
from agents.catalog.resolve import read_candidate
from agents.catalog.words import expression
from schemas.catalog import ListOutputs, ModelPage, Output, OutputPage, SearchModels
from schemas.fitting import fitted
from schemas.models import Model

AT_ONCE = 1000
"""Models, or pictures, in one answer at most."""


@told_in(ModelPage)
async def search_models(db: Database, ask: SearchModels) -> ModelPage:
    """A page of the models that a search finds. Problems: bad-query, bad-cursor."""
    tags, without = ([tag_name(name) for name in names] for names in (ask.tags, ask.without))
    filters: dict[str, Any] = {
        "text": expression(ask.text),
        "kind": ask.kind,
        "type": ask.type,
        "family": ask.family,
        "tags": json.dumps(sorted(set(tags))),
        "without": json.dumps(without),
        "missing": ask.missing,
    }
    limit = max(1, min(ask.limit, AT_ONCE))
    if ask.sort == "newest":
        at, sha256 = cursors.read(ask.cursor, tuple[float, str]) if ask.cursor else (0.0, "")
        rows = await db.committed.rows("models_by_time", **filters, place=at, sha256=sha256, limit=limit + 1)
    else:
        name, sha256 = cursors.read(ask.cursor, tuple[str, str]) if ask.cursor else ("", "")
        rows = await db.committed.rows("models_by_name", **filters, place=name, sha256=sha256, limit=limit + 1)
    return await to_thread.run_sync(_page, rows, limit, ask.sort)


def _page(rows: list[Row], limit: int, sort: str) -> ModelPage:
    models = fitted(_slim(read_candidate(row).model) for row in rows[:limit])
    if len(models) == len(rows):
        return ModelPage(models=models)
    last = models[-1]
    place = (-last.created_at if sort == "newest" else fold(last.name), last.sha256)
    return ModelPage(models=models, next=cursors.written(place))


def _slim(model: Model) -> Model:
    """Without what can be very long and is not for lists."""
    return msgspec.structs.replace(
        model,
        identity=msgspec.structs.replace(model.identity, metadata={}),
        details=msgspec.structs.replace(model.details, extra={}),
    )


@told_in(OutputPage)
async def list_outputs(db: Database, ask: ListOutputs) -> OutputPage:
    """A page of the gallery. Problems: bad-query, bad-cursor."""
    limit = max(1, min(ask.limit, AT_ONCE))
    at, job, n = cursors.read(ask.cursor, tuple[float, str, int]) if ask.cursor else (None, "", 0)
    rows = await db.committed.rows(
        "outputs_found",
        text=expression(ask.text),
        model=ask.model.lower(),
        at=at,
        job=job,
        n=n,
        limit=limit + 1,
    )
    outputs = await to_thread.run_sync(lambda: fitted(map(_output, rows[:limit])))
    if len(outputs) == len(rows):
        return OutputPage(outputs=outputs)
    last = outputs[-1]
    return OutputPage(outputs=outputs, next=cursors.written((last.created_at, last.job, last.n)))


def _output(row: Row) -> Output:
    job, n, file, digest, width, height, size, seed, model, infotext, at = row
    return Output(
        job=job,
        n=n,
        file=file,
        digest=digest,
        width=width,
        height=height,
        bytes=size,
        seed=seed,
        model=model,
        infotext=infotext,
        created_at=at,
    )
