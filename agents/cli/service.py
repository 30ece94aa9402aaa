"""`darkroom up` and `run`: the service, or some of its agents; and the bus that other commands use, that of a running
service or of one for as long as it takes."""

import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import anyio
import msgspec
import typer

from agents.cli import console
from agents.client import scans
from agents.runtime.instance import Running, announce, find, locked
from agents.runtime.logs import configure_logging
from agents.runtime.runner import run_agents, until_signalled
from agents.runtime.supervisor import USER_ERROR, make_roots, service
from agents.storage.layout import DataDir
from bus.client import Bus, connect
from bus.errors import NoBus, UserError
from bus.server import local_server
from bus.worker import sole
from schemas.settings import Settings

CATALOGUING = ("migrator", "watcher", "hasher")
DRAWING = (*CATALOGUING, "preprocess", "encoder")
_CATCH_UP_SECONDS = 60.0


async def up(settings: Settings) -> None:
    """Run the service until SIGTERM or SIGINT."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(until_signalled, tasks.cancel_scope)
        async with service(settings) as running:
            console.line(f"ready {running.http_url} {running.nats_url}")
            await anyio.sleep_forever()


async def run(
    settings: Settings,
    agents: Annotated[list[str], typer.Argument(help="watcher, hasher, migrator, preprocess, generator, encoder, …")],
) -> None:
    """Run some agents in this process, on a bus that is there; without one, on one of their own."""
    data = Path(settings.data_dir)
    if url := _url(settings):
        await run_agents(agents, url, settings, console.line)
        return
    with locked(data), local_server(DataDir(data).nats, store_bytes=settings.bus.store_bytes) as server:
        make_roots(settings)
        announce(data, Running(pid=os.getpid(), nats_url=server.url))
        console.note(f"no service runs on {data}: its bus was started here, at {server.url}")
        await run_agents(agents, server.url, settings, console.line)


async def run_supervised(agents: list[str], nats: Annotated[str, typer.Option()]) -> None:
    """Run agents as a child of `up`: settings come on standard input, readiness and failure go to standard output."""
    line = await anyio.to_thread.run_sync(sys.stdin.buffer.readline)
    settings = msgspec.json.decode(line, type=Settings)
    configure_logging(settings.log_level)
    try:
        await run_agents(agents, nats, settings, console.line, stdin_ends_us=True)
    except BaseException as raised:
        error = sole(raised)
        if isinstance(error, UserError):
            console.line(f"failed {' '.join(str(error).split())}")
            sys.exit(USER_ERROR)
        raise


def _url(settings: Settings) -> str:
    """Where the bus is: the one that is named, else that of the data directory's running service; "" where none is."""
    if settings.nats_url:
        return settings.nats_url
    return running.nats_url if (running := find(Path(settings.data_dir))) else ""


@asynccontextmanager
async def running_bus(settings: Settings, *, start: Sequence[Sequence[str]] = ()) -> AsyncIterator[Bus]:
    """The bus of the running service; where none is, a private one of these processes for as long as the body runs.
    Raises NoBus."""
    if url := _url(settings):
        async with connect(url, settings.bus, name="cli", topology_too=False) as bus:  # the service's settings count
            yield bus
    elif start:
        console.note("no service is running here: starting one for this command")
        async with service(settings, start) as own, connect(own.nats_url, settings.bus, name="cli") as bus:
            await _catch_up(bus, settings)
            yield bus
    else:
        raise NoBus(
            f"no service runs on {settings.data_dir}: start it with `darkroom up`, or name a bus with --nats or "
            "DARKROOM_NATS_URL"
        )


@asynccontextmanager
async def stored_bus(settings: Settings) -> AsyncIterator[Bus]:
    """The bus of the running service; where none runs, the data directory's own, for as long as the body runs. Raises
    UserError where there never was one."""
    data = Path(settings.data_dir)
    if _url(settings):
        async with running_bus(settings) as bus:
            yield bus
        return
    if not await anyio.Path(DataDir(data).nats).is_dir():
        raise UserError(f"{data} has no history to make a catalog of: name the data directory with --data")
    with locked(data), local_server(DataDir(data).nats, port=0, store_bytes=settings.bus.store_bytes) as server:
        async with connect(server.url, settings.bus, name="cli") as bus:
            yield bus


async def _catch_up(bus: Bus, settings: Settings) -> None:
    """Wait until every file that lies in the roots now is hashed and catalogued."""
    with console.file_bar(quiet=False) as show:
        await scans.look(bus, settings, show)
    with anyio.move_on_after(_CATCH_UP_SECONDS):
        while True:
            info = await bus.js.consumer_info("FILES", "migrator")
            if not (info.num_pending or info.num_ack_pending):
                return
            await anyio.sleep(0.02)
