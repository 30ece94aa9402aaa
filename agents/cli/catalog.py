"""What the commands of the catalog do: each a coroutine over settings, over the bus of the running service or of one
for as long as it takes."""

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import anyio
import msgspec

from agents.catalog.descriptions import tag_name
from agents.cli.console import counted, printable, table
from agents.cli.jobs import CATALOGUING, running_bus, say
from agents.client import catalog as catalogdesk
from agents.client.catalog import ask
from bus.client import Bus
from bus.errors import Declined, UserError
from schemas import catalog
from schemas.catalog import ModelReply, Outcome, Outcomes, Promote, SearchModels, Strategy, Tagged, TagReply, WholeModel
from schemas.files import Identity
from schemas.imports import Import, ImportReport, ImportState
from schemas.models import Model, Tag
from schemas.settings import Settings

_START = (CATALOGUING,)
_AT_ONCE = 50
_NAMED = 10


def _json(content: object) -> None:
    say(msgspec.json.encode(content).decode())


async def models(settings: Settings, search: SearchModels, as_json: bool) -> int:
    """A table of the models that a search finds."""
    async with running_bus(settings, start=_START) as bus:
        found = [model async for model in catalogdesk.models(bus, search)]
    if as_json:
        _json(found)
        return 0
    rows = [
        (
            model.name,
            model.identity.kind + (" (unsafe)" if model.identity.unsafe else ""),
            _family(model.identity),
            model.sha256[:10],
            f"{model.size / 1e6:,.1f} MB",
            _where(model),
            ", ".join(model.tags),
        )
        for model in found
    ]
    is_all = search == SearchModels(missing=search.missing, sort=search.sort, limit=search.limit)
    nothing = "no models yet: drop one into the folder" if is_all else "no model fits"
    table(("name", "kind", "family", "hash", "size", "where", "tags"), rows, nothing=nothing)
    return 0


def _family(known: Identity) -> str:
    """The family with what is known besides, a question mark where it is a guess."""
    return " ".join(filter(None, (known.family, known.edition, known.variant, "(?)" if known.guess else "")))


def _where(model: Model) -> str:
    if model.missing:
        return "missing"
    return model.identity.problem or f"{model.paths[0].root}/{model.paths[0].rel}"


async def show(settings: Settings, name: str, as_json: bool) -> int:
    """All that is known of one model."""
    async with running_bus(settings, start=_START) as bus:
        whole = await _model(bus, name)
    if as_json:
        _json(whole)
        return 0
    for key, value in _facts(whole):
        if value:
            say(f"{key:<12} {printable(value)}")
    return 0


def _facts(whole: WholeModel) -> Iterator[tuple[str, str]]:
    model, known, details = whole.model, whole.model.identity, whole.model.details
    yield "name", model.name
    yield "sha256", model.sha256
    yield from sorted(model.digests.items())
    yield "kind", " ".join(filter(None, (known.kind, _family(known), "(unsafe)" if known.unsafe else "")))
    yield "a guess", known.guess
    yield "problem", known.problem
    yield "size", f"{model.size:,} bytes, {known.parameters:,} parameters, {' '.join(known.dtypes)}"
    for one in whole.paths:
        yield "at" if one.present else "was at", f"{one.path.root}/{one.path.rel}"
    yield "", f"and {whole.more_paths:,} more" if whole.more_paths else ""
    for problem in whole.sidecar_problems:
        yield "sidecar", f"next to {problem.path.root}/{problem.path.rel}: {problem.problem}"
    yield "tags", ", ".join(tag.name for tag in whole.tags)
    yield "triggers", ", ".join(dict.fromkeys((*details.trigger_words, *known.trigger_words)))
    for field in ("title", "type", "base_model", "source_url", "description", "notes", "positive", "negative"):
        yield field, " ".join(str(getattr(details, field)).split())
    ready = sum(picture.state == "ready" for picture in whole.pictures)
    yield "pictures", f"{ready} of {len(whole.pictures)} ready" if whole.pictures else ""
    for picture in whole.pictures:
        yield "", f"picture {picture.seq}: {picture.error}" if picture.error else ""


async def tags(settings: Settings, as_json: bool) -> int:
    """A table of the tags."""
    async with running_bus(settings, start=_START) as bus:
        found = [tag async for tag in catalogdesk.tags(bus)]
    if as_json:
        _json(found)
        return 0
    rows = [(tag.name, tag.color, f"{tag.models:,}") for tag in found]
    table(("tag", "colour", "models"), rows, nothing="no tags yet")
    return 0


async def add_tag(settings: Settings, name: str, color: str) -> int:
    """Make a tag."""
    async with running_bus(settings, start=_START) as bus:
        await ask(bus, catalog.PutTag(name=name, color=color), TagReply)
    return 0


async def change_tag(settings: Settings, name: str, new: str | None, color: str | None) -> int:
    """Rename or colour a tag; what is None stays."""
    async with running_bus(settings, start=_START) as bus:
        await ask(bus, catalog.PutTag(id=(await _tag(bus, name)).id, name=new, color=color), TagReply)
    return 0


async def drop_tag(settings: Settings, name: str) -> int:
    """Delete a tag."""
    async with running_bus(settings, start=_START) as bus:
        reply = await ask(bus, catalog.DropTag(id=(await _tag(bus, name)).id), TagReply)
    sys.stderr.write(f"{reply.tag.name} is off {counted(reply.tag.models, 'model')}\n")
    return 0


async def tag_models(settings: Settings, names: Sequence[str], put: Sequence[str], take: Sequence[str]) -> int:
    """Put tags on models, or take them off; says what each has then."""
    async with running_bus(settings, start=_START) as bus:
        meant = {(model := (await _model(bus, name)).model).sha256: model.name for name in names}
        change = catalog.TagModels(models=tuple(meant), put=tuple(put), take=tuple(take))
        reply = await ask(bus, change, Tagged)
    rows = [(name, ", ".join(has)) for name, has in zip(meant.values(), reply.tags, strict=True)]
    table(("model", "tags"), rows, nothing="")
    return 0


async def pending(settings: Settings, as_json: bool) -> int:
    """A table of the pending records, and why each is pending still."""
    async with running_bus(settings, start=_START) as bus:
        found = [record async for record in catalogdesk.pending(bus)]
    if as_json:
        _json(found)
        return 0
    rows = [
        (str(one.id), one.state, one.name[:60], one.path, ", ".join(one.tags), f"{one.images}" if one.images else "")
        for one in found
    ]
    table(("id", "state", "name", "path", "tags", "pictures"), rows, nothing="nothing is pending")
    for reason, ids in _grouped((one.reason, str(one.id)) for one in found):
        others = f" and {len(ids) - _NAMED:,} more" if len(ids) > _NAMED else ""
        sys.stderr.write(f"{', '.join(ids[:_NAMED])}{others}: {reason}\n")
    return 0


def _grouped(pairs: Iterable[tuple[str, str]]) -> Iterable[tuple[str, list[str]]]:
    groups: dict[str, list[str]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups.items()


async def promote(settings: Settings, ids: Sequence[int], strategy: str, as_json: bool) -> int:
    """Promote pending records; the status is 1 when one of them was not."""
    chosen: list[Strategy] = [one for one in get_args(Strategy) if one == strategy]
    if not chosen:
        raise UserError(f"--strategy {strategy}: there are {', '.join(get_args(Strategy))}")
    outcomes: list[Outcome] = []
    async with running_bus(settings, start=_START) as bus:
        for first in range(0, len(ids), _AT_ONCE):
            question = Promote(ids=tuple(ids[first : first + _AT_ONCE]), strategy=chosen[0])
            outcomes += (await ask(bus, question, Outcomes)).outcomes
    if as_json:
        _json(outcomes)
    else:
        rows = [(str(one.id), one.outcome, (one.sha256 or "")[:10], one.error) for one in outcomes]
        table(("id", "outcome", "hash", "why"), rows, nothing="")
    return 1 if any(one.outcome in ("conflict", "waiting", "unknown") for one in outcomes) else 0


async def take_over(settings: Settings, database: Path, images: Path | None, dry_run: bool, as_json: bool) -> int:
    """Import a legacy catalog; the status is 1 when it, or a row of it, failed."""
    paths = [str(await anyio.Path(path).absolute()) if path else "" for path in (database, images)]
    job = Import(id="", database=paths[0], images=paths[1], dry_run=dry_run)
    async with running_bus(settings, start=_START) as bus:
        id = await catalogdesk.submit_import(bus, job)
        with _shown(quiet=as_json) as show:
            state = await catalogdesk.followed(bus, id, math.inf, show)
    report = state.report
    if as_json:
        _json(state)
    else:
        _tell(report)
    failed = state.state == "failed" or any(tally.failed for tally in report.tables.values())
    return 1 if failed else 0


@contextmanager
def _shown(*, quiet: bool) -> Iterator[Any]:
    """Shows how far an import is, in one line of a terminal; else nothing."""
    if quiet or not sys.stderr.isatty():
        yield lambda state: None
        return
    from rich.console import Console

    with Console(stderr=True).status("waiting for the migrator") as status:

        def show(state: ImportState) -> None:
            if state.state == "running":
                seen = ", ".join(f"{tally.seen:,} {name}" for name, tally in state.report.tables.items())
                status.update(f"importing: {seen or 'reading'}")

        yield show


def _tell(report: ImportReport) -> None:
    """An import's report, for people."""
    if report.error:
        sys.stderr.write(f"darkroom: {report.error}\n")
    if not report.tables:
        return
    rows = [
        (name, *(f"{count:,}" for count in (one.seen, one.inserted, one.merged, one.skipped, one.failed)))
        for name, one in report.tables.items()
    ]
    table(("what", "seen", "inserted", "merged", "skipped", "failed"), rows, nothing="")
    found = f"{report.images_found:,} found, {report.images_missing:,} missing, {report.images_broken:,} broken"
    sys.stderr.write(f"pictures: {found}; {report.seconds:.1f} s{', a dry run' if report.dry_run else ''}\n")
    for why, count in report.reason_counts.items():
        sys.stderr.write(f"{count:,} × {why}\n")
    for reason in report.reasons:
        where = reason.table if reason.id is None else f"{reason.table} {reason.id}"
        sys.stderr.write(f"  {where}: {reason.why} {printable(reason.detail)}\n")


async def _model(bus: Bus, name: str) -> WholeModel:
    return (await ask(bus, catalog.ShowModel(name=name), ModelReply)).model


async def _tag(bus: Bus, name: str) -> Tag:
    """The tag that is called so, however it is written. Raises Declined."""
    kept = tag_name(name)
    async for tag in catalogdesk.tags(bus):
        if tag.name == kept:
            return tag
    raise Declined("unknown-tag", f"There is no tag {kept!r}; `darkroom tags` lists them.")
