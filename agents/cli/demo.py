"""`darkroom demo`: what a newcomer would do in the first two minutes, done and timed: a checkpoint, two pictures."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import anyio
import msgspec
import typer
from anyio import to_thread

from agents.cli import console
from agents.cli.jobs import copy_pictures, watched
from agents.client import jobs
from agents.diffusion.tiny_checkpoint import write_tiny_checkpoint
from agents.runtime.logs import configure_logging
from agents.runtime.runner import until_signalled
from agents.runtime.supervisor import service
from bus.client import Bus, connect
from bus.clock import Clock
from bus.errors import DarkroomError
from bus.subjects import MODEL_READY
from schemas.jobs import Request
from schemas.settings import Settings

NAME = "tiny-demo"
PROMPTS = ("a lighthouse on a cliff at dawn", "a bowl of oranges on a blue table")
_READY_SECONDS = 60.0


async def demo(
    settings: Settings,
    once: Annotated[bool, typer.Option("--once", help="Exit when the pictures are made.")] = False,
) -> None:
    """Start everything, make a tiny checkpoint, drop it, wait until it is ready, make two pictures; then serve the page
    until interrupted, or end with `once`."""
    clock = Clock()
    began = clock.steady()

    def report(line: str) -> None:
        console.line(f"{clock.steady() - began:6.2f} s  {line}")

    settings = _quiet(settings)
    folder = Path(next(iter(settings.roots.values())))
    target = folder / f"{NAME}.safetensors"
    target.unlink(missing_ok=True)
    report("starting the bus and the agents")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(until_signalled, tasks.cancel_scope)
        await _shown(settings, folder, target, once, report)
        tasks.cancel_scope.cancel()


async def _shown(settings: Settings, folder: Path, target: Path, once: bool, report: Callable[[str], None]) -> None:
    async with service(settings, on_ready=lambda name: report(f"  {name} is ready")) as running:
        report(f"ready {running.http_url} {running.nats_url}")
        async with connect(running.nats_url, settings.bus, name="demo") as bus:
            await _drop(bus, target, report)
            for prompt in PROMPTS:
                await _make(bus, settings, prompt, report)
        if once:
            return
        console.line(f"\nThe page is at {running.http_url} and checkpoints go into {folder}. Ctrl-C stops it.")
        await anyio.sleep_forever()


def _quiet(settings: Settings) -> Settings:
    """Only what matters is logged, and a port in use is no reason to show nothing."""
    configure_logging("warning")
    http = settings.http
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((http.host, http.port))
        except OSError:
            console.line(f"port {http.port} is in use: the page takes another")
            http = msgspec.structs.replace(http, port=0)
    roots = {"models": str(Path(settings.data_dir) / "models")}  # never among the user's own models
    return msgspec.structs.replace(settings, http=http, roots=roots, log_level="warning")


async def _drop(bus: Bus, target: Path, report: Callable[[str], None]) -> None:
    made = target.parent / f".{NAME}.{os.getpid()}.part"
    await to_thread.run_sync(write_tiny_checkpoint, made)
    async with bus.listen(MODEL_READY.filter()) as facts:
        size = made.stat().st_size
        dropped = bus.clock.steady()
        made.replace(target)
        report(f"dropped a checkpoint of {size / 1e6:.1f} MB into {target.parent}")
        with anyio.move_on_after(_READY_SECONDS):
            while True:
                fact = MODEL_READY.decode((await facts.receive()).data)
                if any(path.rel == target.name for path in fact.model.paths):
                    identity = fact.model.identity
                    report(
                        f"model ready {bus.clock.steady() - dropped:.2f} s later: {fact.model.name}, {identity.family} "
                        f"{identity.kind}, SHA-256 {fact.model.sha256[:10]}…"
                    )
                    return
    raise DarkroomError(f"{target} was not ready within {_READY_SECONDS:.0f} s; `darkroom doctor` may show why")


async def _make(bus: Bus, settings: Settings, prompt: str, report: Callable[[str], None]) -> None:
    request = jobs.checked(Request(prompt=prompt, model=NAME, steps=12, width=64, height=64), settings.limits)
    asked = bus.clock.steady()
    id = await jobs.submit(bus, request, lane="normal", tenant="t0")
    result = (await watched(bus, id, quiet=True)).result
    if result is None or result.status != "succeeded":
        raise DarkroomError(f"the demo's job {id} did not succeed: {result.error if result else 'no result'}")
    for path in copy_pictures(result, Path(settings.data_dir), None):
        report(f"“{prompt}” in {bus.clock.steady() - asked:.2f} s: {path}")
