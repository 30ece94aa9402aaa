"""What the commands do: each a coroutine over settings, most of them over the bus of the running service."""

import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import msgspec

from agents.client import scans
from agents.client.views import JobView
from agents.runtime.instance import find
from agents.runtime.logs import configure_logging
from agents.runtime.runner import run_agents, until_signalled
from agents.runtime.supervisor import HEAVY, USER_ERROR, service
from bus.client import Bus, connect
from bus.errors import DarkroomError, NoBus, Reject, UserError
from bus.worker import sole
from schemas.jobs import Request, Result
from schemas.settings import Settings

_SHOWN = 20
"""Of the files that wait in a root, how many `scan` names."""


def say(line: str) -> None:
    """One line on standard output, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def up(settings: Settings) -> None:
    """Run the service until SIGTERM or SIGINT."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(until_signalled, tasks.cancel_scope)
        async with service(settings) as running:
            say(f"ready {running.http_url} {running.nats_url}")
            await anyio.sleep_forever()


async def run(names: Sequence[str], settings: Settings) -> None:
    """Run some agents in this process, on a bus that is there; without one, on one of their own."""
    data = Path(settings.data_dir)
    running = find(data)
    if url := settings.nats_url or (running.nats_url if running else ""):
        await run_agents(names, url, settings, say)
        return
    from agents.runtime.instance import Running, announce, locked
    from agents.runtime.supervisor import make_roots
    from bus.server import local_server

    with locked(data), local_server(data / "nats", store_bytes=settings.bus.store_bytes) as server:
        make_roots(settings)
        announce(data, Running(pid=os.getpid(), nats_url=server.url))
        sys.stderr.write(f"no service runs on {data}: its bus was started here, at {server.url}\n")
        await run_agents(names, server.url, settings, say)


async def run_supervised(names: Sequence[str], url: str) -> None:
    """Run agents as a child of `up`: settings come on standard input, readiness and failure go to standard output."""
    line = await anyio.to_thread.run_sync(sys.stdin.buffer.readline)
    settings = msgspec.json.decode(line, type=Settings)
    configure_logging(settings.log_level)
    try:
        await run_agents(names, url, settings, say, stdin_ends_us=True)
    except BaseException as raised:
        error = sole(raised)
        if isinstance(error, UserError):
            say(f"failed {' '.join(str(error).split())}")
            sys.exit(USER_ERROR)
        raise


@asynccontextmanager
async def running_bus(settings: Settings, *, start: Sequence[Sequence[str]] = ()) -> AsyncIterator[Bus]:
    """The bus of the running service; where none is, a private one of these processes for as long as the body runs."""
    found = find(Path(settings.data_dir))
    url = settings.nats_url or (found.nats_url if found else "")
    if url:
        async with connect(url, settings.bus, name="cli", topology_too=False) as bus:  # the service's settings count
            yield bus
    elif start:
        sys.stderr.write("no service is running here: starting one for this command\n")
        async with service(settings, start) as own, connect(own.nats_url, settings.bus, name="cli") as bus:
            await _catch_up(bus, settings)
            yield bus
    else:
        raise NoBus(
            f"no service runs on {settings.data_dir}: start it with `darkroom up`, or name a bus with --nats or "
            "DARKROOM_NATS_URL"
        )


CATALOGUING = ("migrator", "watcher", "hasher")
DRAWING = (*CATALOGUING, "preprocess", "encoder")


async def _catch_up(bus: Bus, settings: Settings) -> None:
    """Wait until every file that lies in the roots now is hashed and catalogued."""
    await scans.look(bus, settings, quiet=False)
    with anyio.move_on_after(60):
        while True:
            info = await bus.js.consumer_info("FILES", "migrator")
            if not (info.num_pending or info.num_ack_pending):
                return
            await anyio.sleep(0.02)


async def scan(settings: Settings, as_json: bool) -> int:
    """Print a summary for each root and what waits there; the status is 1 when something was refused, or can't be
    looked at or hashed. What waits (is written still, say) is none of that: it is named, with why and since when."""
    from agents.cli.console import printable

    async with running_bus(settings, start=(CATALOGUING,)) as bus:
        began = time.monotonic()
        states = await scans.look(bus, settings, quiet=as_json)
        mended = await scans.compare(bus)
        seconds = time.monotonic() - began
    if as_json:
        say(msgspec.json.encode({"seconds": round(seconds, 3), "mended": mended, "roots": states}).decode())
    else:
        if mended:
            say(f"the catalog differed from the folders: {mended:,} difference{'s' * (mended != 1)} mended")
        for state in states:
            ready = state.files - state.refused - state.waiting - state.unhashed
            waiting = f"{state.waiting:,} waiting, " if state.waiting else ""
            folder = settings.roots[state.root]
            found = f"{ready:,} model{'s' * (ready != 1)} in {folder}"
            say(f"{state.root}: {found}, {waiting}{state.refused:,} refused, {seconds:.1f} s")
            for line in (*state.problems, *map(scans.line, state.waits[:_SHOWN])):
                say(printable(f"  {line}"))
            if (more := state.waiting - len(state.waits[:_SHOWN])) > 0:
                say(f"  and {more:,} more waiting (see --json)")
    return 1 if any(state.problems for state in states) else 0


async def generate(settings: Settings, request: Request, output: Path | None, as_json: bool) -> int:
    """Submit, show progress, copy the pictures where they are wanted. Exit status 0 only when they are made."""
    from agents.cli.console import printable, shown
    from agents.client import jobs as desk
    from agents.diffusion.plan import check

    try:
        check(request, settings.limits)
    except Reject as error:
        raise UserError(str(error)) from error
    async with running_bus(settings, start=(DRAWING, HEAVY)) as bus:
        began = time.monotonic()
        id = await desk.submit(bus, request, lane="high", tenant="t0")
        view = await _cancelled_by_interrupt(bus, id, shown(bus, id, quiet=as_json))
        seconds = time.monotonic() - began
    result = view.result
    if result is None:
        raise DarkroomError(f"job {id} has no result")
    copies = copy_pictures(result, Path(settings.data_dir), output) if result.images else []
    if as_json:
        say(msgspec.json.encode({"seconds": round(seconds, 3), "files": copies, "result": result}).decode())
    elif result.status == "succeeded":
        for path in copies:
            say(path)
        sys.stderr.write(f"{len(copies)} picture{'s' * (len(copies) != 1)} in {seconds:.1f} s, job {id}\n")
    else:
        sys.stderr.write(f"darkroom: {result.status}: {printable(result.error)}\n")
    return 0 if result.status == "succeeded" else 1


async def _cancelled_by_interrupt(bus: Bus, id: str, showing: Awaitable[JobView]) -> JobView:
    """The end of a job; the first Ctrl-C cancels it, and its end is waited for."""
    from bus.results import cancel

    async def on_interrupt() -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for _ in signals:
                await cancel(bus, id)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(on_interrupt)
        view = await showing
        tasks.cancel_scope.cancel()
    return view


def copy_pictures(result: Result, data_dir: Path, output: Path | None) -> list[str]:
    """Where the pictures are for the user: in the data directory, or copied to `output` (a file, or a folder)."""
    sources = [data_dir / picture.file for picture in result.images]
    if output is None:
        return [str(source) for source in sources]
    if output.suffix == "" or output.is_dir():
        output.mkdir(parents=True, exist_ok=True)
        targets = [output / source.name for source in sources]
    elif len(sources) == 1:
        targets = [output]
    else:
        targets = [output.with_stem(f"{output.stem}-{index}") for index in range(len(sources))]
    for source, target in zip(sources, targets, strict=True):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        except OSError as error:
            raise UserError(f"{target} can't be written ({error.strerror}); the picture is at {source}") from error
    return [str(target) for target in targets]


async def jobs(settings: Settings, limit: int, as_json: bool) -> int:
    """A table of the latest jobs."""
    from agents.cli.console import table
    from agents.client import jobs as desk

    async with running_bus(settings) as bus:
        found = await desk.jobs(bus, limit)
    if as_json:
        say(msgspec.json.encode(found).decode())
        return 0
    rows = [(view.id, view.status, _model_of(view), _prompt_of(view)) for view in found]
    table(("job", "status", "model", "prompt"), rows, nothing="no jobs yet")
    return 0


def _model_of(view: JobView) -> str:
    return view.plan.model.name if view.plan else view.request.model if view.request else ""


def _prompt_of(view: JobView) -> str:
    text = view.plan.prompt if view.plan else view.request.prompt if view.request else ""
    return " ".join(text.split())[:60]


async def cancel(settings: Settings, ids: Sequence[str]) -> int:
    """Cancel each; the status is 1 when one had ended otherwise or is unknown."""
    from agents.client import jobs as desk

    status = 0
    async with running_bus(settings) as bus:
        for id in ids:
            try:
                view = await desk.cancel(bus, id)
            except DarkroomError as error:
                sys.stderr.write(f"darkroom: {error}\n")
                status = 1
                continue
            say(f"{id} {view.status}")
            status = status if view.status == "cancelled" else 1
    return status


async def tail(settings: Settings, pattern: str, as_json: bool) -> int:
    """Follow the bus until interrupted."""
    from agents.telemetry import agent as telemetry

    async with running_bus(settings) as bus:
        async for message in telemetry.tail(bus, pattern):
            if as_json:
                subject, data = message.subject, msgspec.Raw(message.data)
                say(msgspec.json.encode({"subject": subject, "payload": data}).decode())
            else:
                say(telemetry.line(message.subject, message.data, time.time()))
    return 0
