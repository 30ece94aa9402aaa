"""`darkroom tags …`."""

from collections.abc import Sequence
from typing import Annotated

import typer

from agents.catalog.descriptions import tag_name
from agents.cli import console
from agents.cli.catalog import model_called
from agents.cli.service import CATALOGUING, running_bus
from agents.client import catalog as client
from agents.client.catalog import ask
from bus.client import Bus
from bus.errors import Declined
from schemas.catalog import DropTag, PutTag, Tagged, TagModels, TagReply
from schemas.models import Tag
from schemas.settings import Settings

Name = Annotated[str, typer.Argument(help="A tag's name.")]
Color = Annotated[str, typer.Argument(help="#rrggbb, or '' for none.")]
Models = Annotated[list[str], typer.Argument(help="Models: names, file names, or 8 or more digits of a hash.")]


async def list_tags(settings: Settings, as_json: bool = False) -> None:
    """A table of the tags."""
    async with running_bus(settings, start=(CATALOGUING,)) as bus:
        found = [tag async for tag in client.tags(bus)]
    if as_json:
        console.json(found)
        return
    rows = [(tag.name, tag.color, f"{tag.models:,}") for tag in found]
    console.table(("tag", "colour", "models"), rows, nothing="no tags yet")


async def add(settings: Settings, name: Name, color: Annotated[str, typer.Option(help="#rrggbb")] = "") -> None:
    """Make a tag."""
    async with running_bus(settings, start=(CATALOGUING,)) as bus:
        await ask(bus, PutTag(name=name, color=color), TagReply)


async def rename(settings: Settings, name: Name, new: Name) -> None:
    """Give a tag another name."""
    async with running_bus(settings, start=(CATALOGUING,)) as bus:
        await ask(bus, PutTag(id=(await _tag(bus, name)).id, name=new), TagReply)


async def color(settings: Settings, name: Name, color: Color) -> None:
    """Give a tag a colour."""
    async with running_bus(settings, start=(CATALOGUING,)) as bus:
        await ask(bus, PutTag(id=(await _tag(bus, name)).id, color=color), TagReply)


async def delete(settings: Settings, name: Name) -> None:
    """Delete a tag."""
    async with running_bus(settings, start=(CATALOGUING,)) as bus:
        reply = await ask(bus, DropTag(id=(await _tag(bus, name)).id), TagReply)
    console.note(f"{reply.tag.name} is off {console.counted(reply.tag.models, 'model')}")


async def put(settings: Settings, name: Name, models: Models) -> None:
    """Put a tag on models, and print what tags each has then."""
    await _change(settings, models, put=(name,))


async def take(settings: Settings, name: Name, models: Models) -> None:
    """Take a tag off models, and print what tags each has then."""
    await _change(settings, models, take=(name,))


async def _change(
    settings: Settings, names: Sequence[str], *, put: tuple[str, ...] = (), take: tuple[str, ...] = ()
) -> None:
    async with running_bus(settings, start=(CATALOGUING,)) as bus:
        meant = {(model := (await model_called(bus, name)).model).sha256: model.name for name in names}
        reply = await ask(bus, TagModels(models=tuple(meant), put=put, take=take), Tagged)
    rows = [(name, ", ".join(has)) for name, has in zip(meant.values(), reply.tags, strict=True)]
    console.table(("model", "tags"), rows, nothing="")


async def _tag(bus: Bus, name: str) -> Tag:
    """The tag that is called so, however it is written. Raises Declined."""
    kept = tag_name(name)
    async for tag in client.tags(bus):
        if tag.name == kept:
            return tag
    raise Declined("unknown-tag", f"There is no tag {kept!r}; `darkroom tags` lists them.")
