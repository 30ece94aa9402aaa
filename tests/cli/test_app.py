"""The command line as a whole: its table, what it imports, how it ends."""

import re
import sys
from importlib import metadata
from pathlib import Path

import pytest

from agents.cli.app import COMMANDS
from agents.cli.options import Command, CommandGroup, LazyCommand
from tests.cli.test_files import darkroom, imported

GROUPS = [command.commands for command in COMMANDS.values() if isinstance(command, CommandGroup)]
ROWS = [
    pytest.param(name, row, id=row.function)
    for commands in (COMMANDS, *GROUPS)
    for name, row in commands.items()
    if isinstance(row, Command)
]


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_a_row_leads_to_a_function_with_a_docstring_whose_arguments_typer_takes(name: str, row: Command):
    context = LazyCommand(name, row).make_context(name, [], resilient_parsing=True)
    options = {option for parameter in context.command.params for option in parameter.opts}
    assert {f"--{option}" for option in row.options.split()} <= options
    module, _, function = row.function.partition(":")
    assert getattr(sys.modules[f"agents.cli.{module}"], function).__doc__


def test_help_imports_no_command():
    modules = imported("--help")
    assert not {"torch", "nats", "structlog", "sqlite3", "asyncio"} & modules
    ours = {module for module in modules if module.startswith("agents.")}
    assert ours == {"agents.cli", "agents.cli.app", "agents.cli.options"}


def test_version_names_what_a_report_of_a_fault_needs_and_imports_no_torch():
    shown = darkroom("--version", folder=Path.cwd()).stdout.decode()
    torch = metadata.version("torch")
    expected = rf"darkroom \S+\npython {sys.version.split()[0]}\ntorch {re.escape(torch)}\nnats-server 2\.\d+\.\d+\n"
    assert re.fullmatch(expected, shown)
    assert not {"torch", "nats"} & imported("--version")


@pytest.mark.parametrize("group", ["tags", "trash"])
def test_options_before_a_command_of_a_group_are_refused(group: str, tmp_path: Path):
    done = darkroom(group, "--data", str(tmp_path), "list", folder=tmp_path)
    assert done.returncode == 2
    assert f"options go after the command: darkroom {group} list …" in done.stderr.decode()
