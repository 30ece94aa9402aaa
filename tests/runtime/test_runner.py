"""Running agents: what a process logs has nothing of its users in it."""

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
from agents.runtime.logs import configure_logging
configure_logging("info")
try:
    fail()
except RuntimeError:
    structlog.get_logger().exception("ask not answered")
"""

COMMANDS = """
import types
from agents.cli import app
from agents.cli.options import Command
sys.modules["agents.cli.failing"] = types.SimpleNamespace(fail=fail)
app.COMMANDS["fail"] = app.COMMANDS["tags"].commands["fail"] = Command("failing:fail", "Fail.", "")
sys.argv = ["darkroom", *sys.argv[1:]]
app.main()
"""


def on_a_terminal(code: str, *arguments: str) -> str:
    """What a child prints to standard error when that is a terminal."""
    ours, theirs = os.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        child = subprocess.Popen(
            [sys.executable, "-c", code, *arguments], stdout=theirs, stderr=theirs, cwd=Path(__file__).parents[2]
        )
        os.close(theirs)
        shown = b""
        try:
            while data := terminal.read(1 << 16):
                shown += data
        except OSError:  # which is how a terminal ends
            pass
        child.wait()
    return shown.decode()


@pytest.mark.parametrize(
    ("code", "arguments"),
    [(LOGS, ()), (COMMANDS, ("fail",)), (COMMANDS, ("tags", "fail"))],
    ids=["log", "command", "subcommand"],
)
def test_a_traceback_on_a_terminal_has_no_prompts_and_no_keys_in_it(code: str, arguments: tuple[str, ...]):
    shown = on_a_terminal(FAILS + code, *arguments)
    assert "RuntimeError" in shown and "it broke" in shown
    assert PROMPT not in shown and KEY not in shown
