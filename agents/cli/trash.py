"""`darkroom trash …`: what sweeps took away, listed, restored and emptied. It needs no service."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from agents.cli import console
from agents.storage import trash
from bus.clock import Clock
from bus.errors import UserError
from schemas.settings import Settings


def list_trash(settings: Settings, as_json: bool = False) -> None:
    """Print what lies in the trash, a line each."""
    found = trash.listed(Path(settings.data_dir))
    if as_json:
        console.json(found)
        return
    for one in found:
        when = datetime.fromtimestamp(one.at).strftime("%Y-%m-%d %H:%M")
        console.line(console.printable(f"{when}  {one.bytes:>12,}  {one.name}"))
    kept, size = settings.migrator.trash_days, sum(one.bytes for one in found)
    console.line(f"{_files(len(found), size)}; each is kept for {kept:g} day{'s' * (kept != 1)} (migrator.trash_days)")


def restore(
    settings: Settings,
    names: Annotated[list[str] | None, typer.Argument(help="Files as listed, or the folder before them.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Everything.")] = False,
    to: Annotated[Path | None, typer.Option(help="A folder to put them into, instead of where they were.")] = None,
) -> None:
    """Restore the files of these names, or all, and print where each is now. Raises UserError."""
    data = Path(settings.data_dir)
    if bool(names) == every:
        raise UserError("name what to restore, as `darkroom trash` lists it, or --all")
    for path in trash.restore(data, [one.name for one in trash.listed(data)] if every else names or [], to):
        console.line(console.printable(str(path)))


def empty(
    settings: Settings,
    days: Annotated[float, typer.Option(min=0, help="Only what has been there for so many days.")] = 0,
) -> None:
    """Remove what has been in the trash for so many days."""
    before = Clock().now() - days * 24 * 3600.0 if days else None
    console.line(f"{_files(*trash.empty(Path(settings.data_dir), before=before))} removed")


def _files(count: int, size: int) -> str:
    return f"{console.counted(count, 'file')} of {size:,} bytes"
