"""`darkroom trash`: what sweeps took away, listed, restored and emptied. It needs no service."""

import time
from datetime import datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from agents.commands import say
from agents.options import Config, Data, Json, read_settings
from agents.progress import printable
from agents.storage import trash
from agents.storage.trash import Trashed
from bus.errors import UserError

app = typer.Typer()


@app.callback(invoke_without_command=True)
def default(context: typer.Context, data: Data = None, config: Config = None, json: Json = False) -> None:
    """What nothing in the catalog needed: list it, move it back, or remove it. Without a command: list it."""
    if context.invoked_subcommand is None:
        list_trash(data, config, json)
    elif data or config or json:
        raise UserError(f"options go behind the command: darkroom trash {context.invoked_subcommand} …")


@app.command("list")
def list_trash(data: Data = None, config: Config = None, json: Json = False) -> None:
    """List what lies in the trash, oldest first."""
    settings = read_settings(data, None, config)
    found = trash.listed(Path(settings.data_dir))
    if json:
        say(msgspec.json.encode(found).decode())
        return
    for one in found:
        when = datetime.fromtimestamp(one.at).strftime("%Y-%m-%d %H:%M")
        say(printable(f"{when}  {one.bytes:>12,}  {one.name}"))
    kept = settings.migrator.trash_days
    say(f"{_counted(found)}; each is kept for {kept:g} day{'s' * (kept != 1)} (migrator.trash_days)")


@app.command()
def restore(
    names: Annotated[
        list[str] | None, typer.Argument(help="Files as they are listed, or the folder before them.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Everything.")] = False,
    to: Annotated[Path | None, typer.Option(help="A folder to put them into, instead of where they were.")] = None,
    data: Data = None,
    config: Config = None,
) -> None:
    """Move files back to where they were; nothing is replaced. What the catalog still does not need goes to the trash
    again after an hour: --to keeps it elsewhere."""
    folder = Path(read_settings(data, None, config).data_dir)
    if bool(names) == every:
        raise UserError("name what to restore, as `darkroom trash` lists it, or --all")
    wanted = [one.name for one in trash.listed(folder)] if every else names or []
    for path in trash.restore(folder, wanted, to):
        say(printable(str(path)))


@app.command()
def empty(
    days: Annotated[float, typer.Option(min=0, help="Only what has been there for so many days.")] = 0,
    data: Data = None,
    config: Config = None,
) -> None:
    """Remove what lies in the trash, for good."""
    folder = Path(read_settings(data, None, config).data_dir)
    files, size = trash.empty(folder, before=time.time() - days * 24 * 3600.0 if days else None)
    say(f"{files:,} file{'s' * (files != 1)} of {size:,} bytes removed")


def _counted(found: list[Trashed]) -> str:
    return f"{len(found):,} file{'s' * (len(found) != 1)} of {sum(one.bytes for one in found):,} bytes"
