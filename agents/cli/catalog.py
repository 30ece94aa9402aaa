"""`darkroom models`, `show`, `pending` and `promote`."""

from collections.abc import Iterable, Iterator
from typing import Annotated, get_args

import msgspec
import typer

from agents.cli import console
from agents.cli.service import CATALOGUING, running_bus
from agents.client import catalog as client
from agents.client.catalog import ask
from bus.client import Bus
from bus.errors import UserError
from schemas.catalog import ModelReply, Outcome, Outcomes, Promote, SearchModels, ShowModel, Strategy, WholeModel
from schemas.files import Identity
from schemas.models import Model
from schemas.settings import Settings

_MOST_MODELS = 1000
_AT_ONCE = 50
_NAMED = 10


async def models(
    settings: Settings,
    query: Annotated[str, typer.Argument(help="Words, each the beginning of one in a name, tag or description.")] = "",
    kind: Annotated[str, typer.Option(help="checkpoint, lora, vae, … as in its header.")] = "",
    type: Annotated[str, typer.Option(help="As it is described; without a description, its kind.")] = "",
    family: Annotated[str, typer.Option(help="sd15, sdxl, flux, …")] = "",
    tag: Annotated[list[str] | None, typer.Option(help="With this tag; may be repeated.")] = None,
    not_tag: Annotated[list[str] | None, typer.Option(help="Without this tag; may be repeated.")] = None,
    missing: Annotated[bool, typer.Option("--missing", help="Also those whose file is not there now.")] = False,
    newest: Annotated[bool, typer.Option("--newest", help="Newest first, not by name.")] = False,
    as_json: bool = False,
) -> None:
    """A table of the models that a search finds."""
    everything = SearchModels(
        missing="yes" if missing else "no", sort="newest" if newest else "name", limit=_MOST_MODELS
    )
    search = msgspec.structs.replace(
        everything,
        text=query,
        kind=kind,
        type=type,
        family=family,
        tags=tuple(tag or ()),
        without=tuple(not_tag or ()),
    )
    async with running_bus(settings, start=(CATALOGUING,)) as bus:
        found = [model async for model in client.models(bus, search)]
    if as_json:
        console.json(found)
        return
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
    nothing = "no models yet: drop one into the folder" if search == everything else "no model fits"
    console.table(("name", "kind", "family", "hash", "size", "where", "tags"), rows, nothing=nothing)


def _family(known: Identity) -> str:
    """The family with what is known besides, a question mark where it is a guess."""
    return " ".join(filter(None, (known.family, known.edition, known.variant, "(?)" if known.guess else "")))


def _where(model: Model) -> str:
    if model.missing:
        return "missing"
    return model.identity.problem or f"{model.paths[0].root}/{model.paths[0].rel}"


async def show(
    settings: Settings,
    model: Annotated[str, typer.Argument(help="Its name, a file name, or 8 or more digits of a hash.")],
    as_json: bool = False,
) -> None:
    """All that is known of one model."""
    async with running_bus(settings, start=(CATALOGUING,)) as bus:
        whole = await model_called(bus, model)
    if as_json:
        console.json(whole)
        return
    for key, value in _facts(whole):
        if value:
            console.line(f"{key:<12} {console.printable(value)}")


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


async def pending(settings: Settings, as_json: bool = False) -> None:
    """A table of the pending records, and why each is pending still."""
    async with running_bus(settings, start=(CATALOGUING,)) as bus:
        found = [record async for record in client.pending(bus)]
    if as_json:
        console.json(found)
        return
    rows = [
        (str(one.id), one.state, one.name[:60], one.path, ", ".join(one.tags), f"{one.images}" if one.images else "")
        for one in found
    ]
    console.table(("id", "state", "name", "path", "tags", "pictures"), rows, nothing="nothing is pending")
    for reason, ids in _grouped((one.reason, str(one.id)) for one in found):
        others = f" and {len(ids) - _NAMED:,} more" if len(ids) > _NAMED else ""
        console.note(f"{', '.join(ids[:_NAMED])}{others}: {reason}")


def _grouped(pairs: Iterable[tuple[str, str]]) -> Iterable[tuple[str, list[str]]]:
    groups: dict[str, list[str]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups.items()


async def promote(
    settings: Settings,
    ids: Annotated[list[int], typer.Argument(min=1, max=2**63 - 1, help="The ids of pending records.")],
    strategy: Annotated[str, typer.Option(help="For a described model: merge, override, ignore, delete.")] = "report",
    as_json: bool = False,
) -> int:
    """Promote pending records; the status is 1 when one of them was not."""
    chosen: list[Strategy] = [one for one in get_args(Strategy) if one == strategy]
    if not chosen:
        raise UserError(f"--strategy {strategy}: there are {', '.join(get_args(Strategy))}")
    outcomes: list[Outcome] = []
    async with running_bus(settings, start=(CATALOGUING,)) as bus:
        for first in range(0, len(ids), _AT_ONCE):
            question = Promote(ids=tuple(ids[first : first + _AT_ONCE]), strategy=chosen[0])
            outcomes += (await ask(bus, question, Outcomes)).outcomes
    if as_json:
        console.json(outcomes)
    else:
        rows = [(str(one.id), one.outcome, (one.sha256 or "")[:10], one.error) for one in outcomes]
        console.table(("id", "outcome", "hash", "why"), rows, nothing="")
    return 1 if any(one.outcome in ("conflict", "waiting", "unknown") for one in outcomes) else 0


async def model_called(bus: Bus, name: str) -> WholeModel:
    """All that is known of the model with this name, file name or start of a hash. Raises Declined."""
    return (await ask(bus, ShowModel(name=name), ModelReply)).model
