"""`darkroom tags`: the command line of tags."""

from typing import Annotated

import anyio
import typer

from agents.cli.options import Config, Data, Json, Nats, exit_with, read_settings
from bus.errors import UserError

app = typer.Typer(pretty_exceptions_enable=False)

Tag = Annotated[str, typer.Argument(help="A tag's name.")]
Models = Annotated[list[str], typer.Argument(help="Models: names, file names, or 8 or more digits of a hash.")]
Color = Annotated[str, typer.Argument(help="#rrggbb, or '' for none.")]


@app.callback(invoke_without_command=True)
def default(
    context: typer.Context, data: Data = None, nats: Nats = None, config: Config = None, json: Json = False
) -> None:
    """List, make, change and delete tags; put them on models and take them off. Without a command: list them."""
    if context.invoked_subcommand is None:
        list_tags(data, nats, config, json)
    elif data or nats or config or json:
        raise UserError(f"options go behind the command: darkroom tags {context.invoked_subcommand} …")


@app.command("list")
def list_tags(data: Data = None, nats: Nats = None, config: Config = None, json: Json = False) -> None:
    """List the tags, with how many models have each."""
    from agents.cli.catalog import tags as command

    exit_with(anyio.run(command, read_settings(data, nats, config), json))


@app.command()
def add(
    name: Tag,
    color: Annotated[str, typer.Option(help="#rrggbb")] = "",
    data: Data = None,
    nats: Nats = None,
    config: Config = None,
) -> None:
    """Make a tag."""
    from agents.cli.catalog import add_tag as command

    exit_with(anyio.run(command, read_settings(data, nats, config), name, color))


@app.command()
def rename(name: Tag, new: Tag, data: Data = None, nats: Nats = None, config: Config = None) -> None:
    """Call a tag something else."""
    from agents.cli.catalog import change_tag as command

    exit_with(anyio.run(command, read_settings(data, nats, config), name, new, None))


@app.command()
def color(name: Tag, color: Color, data: Data = None, nats: Nats = None, config: Config = None) -> None:
    """Give a tag a colour."""
    from agents.cli.catalog import change_tag as command

    exit_with(anyio.run(command, read_settings(data, nats, config), name, None, color))


@app.command()
def delete(name: Tag, data: Data = None, nats: Nats = None, config: Config = None) -> None:
    """Delete a tag; it is taken off every model."""
    from agents.cli.catalog import drop_tag as command

    exit_with(anyio.run(command, read_settings(data, nats, config), name))


@app.command()
def put(name: Tag, models: Models, data: Data = None, nats: Nats = None, config: Config = None) -> None:
    """Put a tag on models; one that does not exist is made."""
    from agents.cli.catalog import tag_models as command

    exit_with(anyio.run(command, read_settings(data, nats, config), models, [name], []))


@app.command()
def take(name: Tag, models: Models, data: Data = None, nats: Nats = None, config: Config = None) -> None:
    """Take a tag off models."""
    from agents.cli.catalog import tag_models as command

    exit_with(anyio.run(command, read_settings(data, nats, config), models, [], [name]))
