"""The command line: bars on a terminal, plain lines otherwise, JSON where a script wants it, errors in one line."""

import os
import sys
from typing import Annotated

import msgspec
import typer

from agents.cli.options import Command, CommandGroup, group
from bus.errors import DarkroomError, UserError

USER_ERROR, FAILED, INTERRUPTED = 2, 1, 130

COMMANDS: dict[str, Command | CommandGroup] = {
    "up": Command(
        "service:up",
        "Run everything on this machine: the local bus, all agents, the page.",
        "data nats config host port",
    ),
    "run": Command(
        "service:run",
        "Run some agents here, on a bus that is running (--nats, or that of the data directory's service).",
        "data nats config port",
    ),
    "supervised": Command("service:run_supervised", "Run agents as a child of `up`.", "", hidden=True),
    "generate": Command("jobs:generate", "Make pictures and wait for them; Ctrl-C cancels."),
    "models": Command("catalog:models", "List the models in the catalog, or those that fit."),
    "show": Command("catalog:show", "Show all that is known of one model: files, header, details, tags, pictures."),
    "pending": Command("catalog:pending", "List the records of models whose file is not hashed yet."),
    "promote": Command("catalog:promote", "Make pending records whose files are hashed part of their models."),
    "import": Command(
        "imports:take_over",
        "Take over a legacy catalog: tags, models, pictures; what is not hashed waits for its file.",
    ),
    "scan": Command(
        "scan:scan", "Look at the roots now, and wait until every file in them is settled and hashed, or refused."
    ),
    "jobs": Command("jobs:jobs", "List the latest jobs."),
    "cancel": Command("jobs:cancel", "Cancel jobs, waiting or running.", "data nats config"),
    "tail": Command("tail:tail", "Follow what is published on the bus, a line each."),
    "doctor": Command("doctor:doctor", "Check what Darkroom needs and show what is wrong."),
    "verify": Command(
        "verify:verify",
        "Check the catalog against the disk: every file that it refers to is there, and is what it was.",
        "data config json",
    ),
    "rebuild": Command(
        "rebuild:rebuild", "Make the catalog anew of its history alone, and compare it with the live one row for row."
    ),
    "new-history": Command(
        "rebuild:new_history",
        "Begin a new history with what the catalog holds: for one that does not go with the history on its bus. The "
        "old history stays on the bus, and is no longer replayed. Nothing may run.",
        "data nats config",
    ),
    "hash": Command(
        "files:hash_files",
        "Hash files, a line each as sha256sum writes it; needs no service.",
        "parallel config",
    ),
    "inspect": Command(
        "files:inspect_files",
        "Show what model files are by their headers and sidecars, without loading a weight; needs no service.",
        "json",
    ),
    "demo": Command(
        "demo:demo",
        "See it work: a tiny checkpoint is dropped into the models folder and makes two pictures.",
        "data port",
    ),
    "tags": CommandGroup(
        "List, make, change and delete tags; put them on models and take them off. Without a command: list them.",
        {
            "list": Command("tags:list_tags", "List the tags, with how many models have each."),
            "add": Command("tags:add", "Make a tag.", "data nats config"),
            "rename": Command("tags:rename", "Call a tag something else.", "data nats config"),
            "color": Command("tags:color", "Give a tag a colour.", "data nats config"),
            "delete": Command("tags:delete", "Delete a tag; it is taken off every model.", "data nats config"),
            "put": Command("tags:put", "Put a tag on models; one that does not exist is made.", "data nats config"),
            "take": Command("tags:take", "Take a tag off models.", "data nats config"),
        },
    ),
    "trash": CommandGroup(
        "What nothing in the catalog needed: list it, move it back, or remove it. Without a command: list it.",
        {
            "list": Command("trash:list_trash", "List what lies in the trash, oldest first.", "data config json"),
            "restore": Command(
                "trash:restore",
                "Move files back to where they were; nothing is replaced. What the catalog still does not need goes to "
                "the trash again after an hour: --to keeps it elsewhere.",
                "data config",
            ),
            "empty": Command("trash:empty", "Remove what lies in the trash, for good.", "data config"),
        },
    ),
}
"""The whole command line. A row has what `--help` lists; the function has the arguments."""


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    from bus.server import find_server, version_of

    print(f"darkroom {_installed('darkroom')}\npython {sys.version.split()[0]}\ntorch {_installed('torch')}")
    try:
        print(f"nats-server {'.'.join(map(str, version_of(find_server())))}")
    except UserError:
        print("nats-server not found")
    raise typer.Exit


def _installed(package: str) -> str:
    """The version of a package; it is not imported."""
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show versions, and exit.")
    ] = False,
) -> None:
    pass


def command_line() -> typer.core.TyperGroup:
    """The commands as typer has them."""
    app = typer.Typer(no_args_is_help=True, add_completion=False)
    help = "Drop a checkpoint into a folder, ask for pictures: an event-driven pipeline for image models."
    app.callback(help=help)(_root)
    return group(app, COMMANDS)


def main() -> None:
    """The console script: every error that its user can mend is one line, and the exit status is not zero."""
    try:
        sys.exit(command_line()(standalone_mode=False))  # which returns what a command does: its status
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    except BaseException as raised:
        error = _sole(raised)
        if isinstance(error, SystemExit):
            raise error from None
        if isinstance(error, KeyboardInterrupt):
            sys.exit(INTERRUPTED)
        if isinstance(error, BrokenPipeError):  # a reader that has seen enough (`| head`)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be written at exit
            sys.exit(FAILED)
        if callable(show := getattr(error, "show", None)):  # a wrong flag, shown by the parser
            show()
            sys.exit(USER_ERROR)
        if isinstance(error, DarkroomError | msgspec.ValidationError):
            from agents.cli.console import printable

            print(f"darkroom: {printable(str(error))}", file=sys.stderr)
            sys.exit(USER_ERROR if isinstance(error, UserError) else FAILED)
        raise


def _sole(raised: BaseException) -> BaseException:
    """The one error in groups of one. The bus is imported only where there is a group."""
    if not isinstance(raised, BaseExceptionGroup):
        return raised
    from bus.worker import sole

    return sole(raised)


if __name__ == "__main__":
    main()
