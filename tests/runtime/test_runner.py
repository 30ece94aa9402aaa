"""Running agents: what a process tells of itself tells nothing of its users."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROMPT, KEY = "a prompt nobody else reads", "sk-nobody-else-uses"

FAILS = f"""
import sys
def work(prompt, api_key):
    request = {{"prompt": prompt, "headers": [api_key]}}
    raise RuntimeError("it broke")
def fail():
    work(" ".join({PROMPT.split()!r}), "-".join({KEY.split("-")!r}))  # nowhere in the source as it is printed
"""

LOGS = """
import structlog
from agents.runtime.runner import configure_logging
configure_logging("info")
try:
    fail()
except RuntimeError:
    structlog.get_logger().exception("ask not answered")
"""

COMMANDS = """
from agents import cli, tagcli
cli.app.command("fail")(fail)
tagcli.app.command("fail")(fail)
sys.argv = ["darkroom", *sys.argv[1:]]
cli.main()
"""


def told_on_a_terminal(code: str, *arguments: str) -> str:
    """What a child prints to standard error when that is a terminal."""
    ours, theirs = os.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        child = subprocess.Popen(
            [sys.executable, "-c", code, *arguments], stdout=theirs, stderr=theirs, cwd=Path(__file__).parents[2]
        )
        os.close(theirs)
        said = b""
        try:
            while data := terminal.read(1 << 16):
                said += data
        except OSError:  # which is how a terminal ends
            pass
        child.wait()
    return said.decode()


@pytest.mark.parametrize(
    ("code", "arguments"),
    [(LOGS, ()), (COMMANDS, ("fail",)), (COMMANDS, ("tags", "fail"))],
    ids=["log", "command", "subcommand"],
)
def test_a_traceback_on_a_terminal_has_no_prompts_and_no_keys_in_it(code: str, arguments: tuple[str, ...]):
    said = told_on_a_terminal(FAILS + code, *arguments)
    assert "RuntimeError" in said and "it broke" in said
    assert PROMPT not in said and KEY not in said
