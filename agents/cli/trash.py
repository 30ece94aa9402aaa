"""`darkroom trash`: what sweeps took away, listed, restored and emptied. It needs no service."""

import time
from datetime import datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from agents.cli.console import printable
from agents.cli.jobs import say
from agents.cli.options import Config, Data, Json, read_settings
from agents.storage import trash
from bus.errors import UserError
from schemas.settings import Settings

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
    show(read_settings(data, None, config), json)


@app.command()
def restore(
    names: Annotated[list[str] | None, typer.Argument(help="Files as listed, or the folder before them.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Everything.")] = False,
    to: Annotated[Path | None, typer.Option(help="A folder to put them into, instead of where they were.")] = None,
    data: Data = None,
    config: Config = None,
) -> None:
    """Move files back to where they were; nothing is replaced. What the catalog still does not need goes to the trash
    again after an hour: --to keeps it elsewhere."""
    put_back(read_settings(data, None, config), names or [], every, to)


@app.command()
def empty(
    days: Annotated[float, typer.Option(min=0, help="Only what has been there for so many days.")] = 0,
    data: Data = None,
    config: Config = None,
) -> None:
    """Remove what lies in the trash, for good."""
    remove(read_settings(data, None, config), days)


def show(settings: Settings, as_json: bool) -> None:
    """Print what lies in the trash, a line each."""
    found = trash.listed(Path(settings.data_dir))
    if as_json:
        say(msgspec.json.encode(found).decode())
        return
    for one in found:
        when = datetime.fromtimestamp(one.at).strftime("%Y-%m-%d %H:%M")
        say(printable(f"{when}  {one.bytes:>12,}  {one.name}"))
    kept, size = settings.migrator.trash_days, sum(one.bytes for one in found)
    say(f"{_files(len(found), size)}; each is kept for {kept:g} day{'s' * (kept != 1)} (migrator.trash_days)")


def put_back(settings: Settings, names: list[str], every: bool, to: Path | None) -> None:
    """Restore the files of these names, or all, and print where each is now. Raises UserError."""
    data = Path(settings.data_dir)
    if bool(names) == every:
        raise UserError("name what to restore, as `darkroom trash` lists it, or --all")
    for path in trash.restore(data, [one.name for one in trash.listed(data)] if every else names, to):
        say(printable(str(path)))


def remove(settings: Settings, days: float) -> None:
    """Remove what has been in the trash for so many days."""
    before = time.time() - days * 24 * 3600.0 if days else None
    say(f"{_files(*trash.empty(Path(settings.data_dir), before=before))} removed")


def _files(count: int, size: int) -> str:
    return f"{count:,} file{'s' * (count != 1)} of {size:,} bytes"
