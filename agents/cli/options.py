"""How a function becomes a command: the options that commands share, settings made of them, modules imported late."""

import importlib
import inspect
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import anyio
import typer
import typer.core

from bus.errors import UserError
from schemas.settings import Settings


class Option(NamedTuple):
    """An option that several commands take: its type as typer reads it, and the setting it stands for, if any."""

    type: Any
    setting: str = ""


OPTIONS: dict[str, Option] = {
    "data": Option(
        Annotated[Path | None, typer.Option("--data", help="The data directory (default: data).")], "data_dir"
    ),
    "nats": Option(
        Annotated[str | None, typer.Option("--nats", help="A NATS server's URL; left out, a local one is used.")],
        "nats_url",
    ),
    "config": Option(
        Annotated[Path | None, typer.Option("--config", help="A settings file (default: ./darkroom.toml).")]
    ),
    "json": Option(Annotated[bool, typer.Option("--json", help="JSON on standard output.")]),
    "host": Option(
        Annotated[str | None, typer.Option("--host", help="Where the page and the API listen.")], "http.host"
    ),
    "port": Option(
        Annotated[int | None, typer.Option("--port", help="The port of the page and the API; 0 takes a free one.")],
        "http.port",
    ),
    "parallel": Option(
        Annotated[int | None, typer.Option("--parallel", min=1, help="How many are read side by side.")],
        "hasher.parallel",
    ),
}


class Command(NamedTuple):
    """A command: its function (`module:name` below agents.cli), its help, the names of its shared options.

    The function's own parameters are typer's. `settings` is made of the options, and `as_json` is --json, where the
    function takes them. What it returns is the exit status; a coroutine function is run.
    """

    function: str
    help: str
    options: str = "data nats config json"
    hidden: bool = False


class LazyCommand(typer.core.TyperCommand):
    """A command of which help and name are known. Its module is imported when it is called: listing all commands, or
    running another one, must not wait for that."""

    def __init__(self, name: str, command: Command) -> None:
        super().__init__(name, help=command.help, hidden=command.hidden)
        self.command = command

    def make_context(self, *arguments: Any, **more: Any) -> Any:
        """The context of the command itself, which the group then runs."""
        single = typer.Typer(add_completion=False)
        single.command(self.name, help=self.command.help)(_callback(self.command))
        return typer.main.get_command(single).make_context(*arguments, **more)


def group(app: typer.Typer, commands: Mapping[str, "Command | CommandGroup"]) -> typer.core.TyperGroup:
    """What typer makes of an app with a callback, with these commands in it."""
    made = typer.main.get_group(app)
    for name, command in commands.items():
        made.add_command(LazyCommand(name, command) if isinstance(command, Command) else command.made(name), name)
    return made


class CommandGroup(NamedTuple):
    """Commands below a command: `darkroom tags add`. Without one, `list` is run."""

    help: str
    commands: Mapping[str, Command]

    def made(self, name: str) -> typer.core.TyperGroup:
        """The group as typer has it. Options before one of its commands raise UserError."""
        first = self.commands["list"]

        def callback(context: typer.Context, **given: Any) -> Any:
            if context.invoked_subcommand is None:
                return _callback(first)(**given)
            if any(given.values()):
                raise UserError(f"options go after the command: darkroom {name} {context.invoked_subcommand} …")
            return None

        context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        app = typer.Typer(name=name, add_completion=False)
        app.callback(invoke_without_command=True, help=self.help)(_signed(callback, [context, *_shared(first)]))
        return group(app, self.commands)


def _callback(command: Command) -> Callable[..., Any]:
    """The function that typer calls for a command, with the signature that typer reads."""
    module, _, name = command.function.partition(":")
    function = getattr(importlib.import_module(f"agents.cli.{module}"), name)
    shared, takes = _shared(command), inspect.signature(function).parameters
    given_here = {"settings"} | ({"as_json"} if "json" in command.options.split() else set())
    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in takes.values()
        if parameter.name not in given_here
    ]

    def call(**given: Any) -> Any:
        options = {parameter.name: given.pop(parameter.name) for parameter in shared}
        if "json" in options:
            given["as_json"] = options.pop("json")
        if "settings" in takes:
            given["settings"] = read_settings(options)
        return _run(function, given) if inspect.iscoroutinefunction(function) else function(**given)

    return _signed(call, [*own, *shared])


def _run(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    """Run a coroutine function, with logging as the settings have it; plain functions log nothing."""
    from agents.runtime.logs import configure_logging

    if settings := given.get("settings"):
        configure_logging(settings.log_level)
    return anyio.run(partial(function, **given))


def _shared(command: Command) -> list[inspect.Parameter]:
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=False if name == "json" else None,
            annotation=OPTIONS[name].type,
        )
        for name in command.options.split()
    ]


def _signed(function: Callable[..., Any], parameters: list[inspect.Parameter]) -> Callable[..., Any]:
    """The function with these parameters, as `inspect.signature` and `get_type_hints` return them."""
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return function


def read_settings(options: Mapping[str, Any]) -> Settings:
    """The settings with the options of a command over them. Raises UserError."""
    from agents.runtime.settings import load

    flags = {
        OPTIONS[name].setting: str(value) if isinstance(value, Path) else value
        for name, value in options.items()
        if name != "config"
    }
    return load(flags, os.environ, options.get("config"))
