"""What commands have in common: the options that say which service, its settings, and how a command ends."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from agents.runtime import settings as config
from schemas.settings import Settings

Data = Annotated[Path | None, typer.Option("--data", help="The data directory (default: data).")]
Nats = Annotated[str | None, typer.Option("--nats", help="A NATS server's URL; left out, a local one is used.")]
Config = Annotated[Path | None, typer.Option("--config", help="A settings file (default: ./darkroom.toml).")]
Json = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]


def read_settings(data: Path | None, nats: str | None, file: Path | None, **flags: Any) -> Settings:
    """The settings with a command's options over them, and logging as they say. Raises UserError."""
    from agents.runtime.logs import configure_logging

    tree = {"data_dir": str(data) if data else None, "nats_url": nats, **flags}
    settings = config.load(tree, os.environ, file)
    configure_logging(settings.log_level)
    return settings


def exit_with(status: int | None) -> None:
    """End the command with this exit status, unless it is none or 0."""
    if status:
        raise typer.Exit(status)
