"""Searching: models and generated pictures by words, filters and pages."""

import base64
import binascii
import json
from typing import Any, TypeVar

import msgspec
from anyio import to_thread

from agents.catalog.database import Database, Row
from agents.catalog.descriptions import tag_name
from agents.catalog.index_words import is_of_a_word, searchable
from agents.catalog.names import fold
from agents.catalog.resolve import read_candidate
from bus.errors import Declined
from schemas.catalog import ListOutputs, ModelPage, Output, OutputPage, SearchModels
from schemas.fitting import fitted
from schemas.models import Model

AT_ONCE = 1000
"""Models, or pictures, in one answer at most."""
WORDS = 32
"""In one search at most."""

T = TypeVar("T")


async def search_models(db: Database, ask: SearchModels) -> ModelPage:
    """A page of the models that a search finds. Raises Declined: bad-query, bad-cursor."""
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
        at, sha256 = from_cursor(ask.cursor, tuple[float, str]) if ask.cursor else (0.0, "")
        rows = await db.committed.rows("models_by_time", **filters, place=at, sha256=sha256, limit=limit + 1)
    else:
        name, sha256 = from_cursor(ask.cursor, tuple[str, str]) if ask.cursor else ("", "")
        rows = await db.committed.rows("models_by_name", **filters, place=name, sha256=sha256, limit=limit + 1)
    return await to_thread.run_sync(_page, rows, limit, ask.sort)


def _page(rows: list[Row], limit: int, sort: str) -> ModelPage:
    models = fitted(_slim(read_candidate(row).model) for row in rows[:limit])
    if len(models) == len(rows):
        return ModelPage(models=models)
    last = models[-1]
    place = (-last.created_at if sort == "newest" else fold(last.name), last.sha256)
    return ModelPage(models=models, next=to_cursor(place))


def _slim(model: Model) -> Model:
    """Without what can be very long and is not for lists."""
    return msgspec.structs.replace(
        model,
        identity=msgspec.structs.replace(model.identity, metadata={}),
        details=msgspec.structs.replace(model.details, extra={}),
    )


async def list_outputs(db: Database, ask: ListOutputs) -> OutputPage:
    """A page of the gallery. Raises Declined: bad-query, bad-cursor."""
    limit = max(1, min(ask.limit, AT_ONCE))
    at, job, n = from_cursor(ask.cursor, tuple[float, str, int]) if ask.cursor else (None, "", 0)
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
    return OutputPage(outputs=outputs, next=to_cursor((last.created_at, last.job, last.n)))


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


def expression(text: str) -> str | None:
    """Every word of `text`, as the beginning of a word, has to be there; None for no text at all. Raises Declined
    (bad-query) for too many words.

    Whatever is no letter, digit or symbol only separates words, as it does in what is searched: text of nothing else
    finds nothing. So do ASCII's own symbols, which stand between the words of file names.
    """
    words = text.replace("\0", " ").split()
    if len(words) > WORDS:
        raise Declined("bad-query", f"A search has {WORDS} words at most.")
    if not words:
        return None
    # A phrase without a word in it would be ignored between others, as it should be, but find nothing by itself.
    phrases = [phrase for phrase in map(searchable, words) if any(map(is_of_a_word, phrase))]
    return " ".join('"' + phrase.replace('"', '""') + '"*' for phrase in phrases) or '""'


def to_cursor(place: object) -> str:
    """Where a page ended (a tuple of text and numbers) as opaque text. It is the place itself, not
    a row, so that the next page begins there whatever came, went or was renamed meanwhile."""
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def from_cursor(cursor: str, form: type[T]) -> T:
    """The place in a cursor. Raises Declined (bad-cursor) for anything else."""
    try:
        text = base64.b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        return msgspec.json.decode(text, type=form)
    except (binascii.Error, UnicodeEncodeError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Declined("bad-cursor", "A cursor is the `next` of the page before.") from error
