"""How long a cold `darkroom run hasher` takes until it says `ready hasher`. Budget: under 1 s.

Cold is a new process whose files the machine has in memory, compiled. Three ways: on a running server that knows the
streams (--nats), on one that is new, and without one (it starts its own). Beside them, in turns: an interpreter that
does nothing, and one that imports what every agent needs from outside (anyio, msgspec, nats-py, structlog, typer).

The process must not have loaded torch; where /proc tells, that is looked up.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bus.server import local_server
from tests.bench.figures import Figure, p50, seconds

ROUNDS = 7
OUTSIDE = "import anyio, msgspec, nats, structlog, typer"
READY_SECONDS = 30.0
STORE = 16 * 1024**3
"""Bytes the server may take; what is not stored takes none."""


async def figures(folder: Path) -> list[Figure]:
    """Everything in turns, on folders and servers of its own."""
    took: dict[str, list[float]] = {}
    with local_server(folder / "known", port=0, store_bytes=STORE) as known:
        ready(folder / "first", known.url)  # makes the streams, and every file warm
        for turn in range(ROUNDS):
            took.setdefault("interpreter", []).append(python("pass"))
            took.setdefault("outside", []).append(python(OUTSIDE))
            took.setdefault("known", []).append(ready(folder / f"known-{turn}", known.url))
            with local_server(folder / f"new-{turn}", port=0, store_bytes=STORE) as new:
                took.setdefault("new", []).append(ready(folder / f"data-{turn}", new.url))
            took.setdefault("none", []).append(ready(folder / f"own-{turn}", ""))
    bare = f"interpreter {p50(took['interpreter']):.2f} s, importing the packages {p50(took['outside']):.2f} s"
    return [
        Figure(
            what="run hasher to ready, on a running bus", value=p50(took["known"]), unit="s", at_most=1.0, aside=bare
        ),
        Figure(what="… on a new server (makes the streams)", value=p50(took["new"]), unit="s", at_most=1.0),
        Figure(what="… without one (starts its own)", value=p50(took["none"]), unit="s", at_most=1.0),
        Figure(what="run hasher / importing its packages", value=p50(took["known"]) / p50(took["outside"])),
    ]


def python(code: str) -> float:
    """Seconds that an interpreter takes for it, from its start to its end."""
    return seconds(lambda: subprocess.run([sys.executable, "-c", code], check=True))


def ready(data: Path, url: str) -> float:
    """Seconds from the start of the process to its line. It is stopped, and gone, afterwards."""
    command = [sys.executable, "-m", "agents.cli.app", "run", "hasher", "--data", str(data)]
    began = time.perf_counter()
    with started([*command, "--nats", url] if url else command) as process:
        assert process.stdout
        line = process.stdout.readline()
        took = time.perf_counter() - began
        assert line.strip() == b"ready hasher", f"it said {line!r}"
        assert "libtorch" not in maps(process.pid), "the hasher has loaded torch"
    return took


def maps(pid: int) -> str:
    """The libraries of a process, where the system tells (Linux)."""
    table = Path(f"/proc/{pid}/maps")
    return table.read_text() if table.exists() else ""


@contextmanager
def started(command: list[str]) -> Iterator["subprocess.Popen[bytes]"]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment | {"DARKROOM_LOG_LEVEL": "error"}
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(READY_SECONDS)
        finally:
            process.kill()
            process.communicate()
