"""The supervisor: one machine's whole pipeline. Locks the data directory, runs the local bus unless one is named, one
process for the agents without torch and one generator, and restarts what dies.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.abc
import msgspec
import structlog
from anyio.streams.text import TextReceiveStream

from agents.runtime.instance import Running, announce, locked
from agents.storage.layout import DataDir
from bus.errors import UserError
from bus.server import DEFAULT_PORT, LocalServer, local_server
from schemas.settings import Settings

log = structlog.get_logger()

LIGHT = ("telemetry", "migrator", "watcher", "hasher", "preprocess", "encoder", "bridge")
HEAVY = ("generator",)
USER_ERROR = 2
"""Exit status of a command that ended for a reason its user can mend."""
_STOP_SECONDS = 6.0
_STEADY_SECONDS = 30.0
_LONGEST_PAUSE = 10.0
_LOOK_SECONDS = 0.2
_STARVED_BYTES, _ROOM_BYTES = 1024**2, 32 * 1024**2


@dataclass
class Group:
    """One child process and the agents in it. `failed` holds what a child reported before it gave up."""

    names: Sequence[str]
    ready: dict[str, str] = field(default_factory=dict)
    all_ready: anyio.Event = field(default_factory=anyio.Event)
    failed: str = ""
    pid: int = 0


@asynccontextmanager
async def service(
    settings: Settings, groups: Sequence[Sequence[str]] = (LIGHT, HEAVY), *, on_ready: Callable[[str], object] = str
) -> AsyncIterator[Running]:
    """Run the pipeline while the body runs; entered when every agent is ready. Raises UserError, NoBus."""
    data_dir = Path(settings.data_dir)
    with locked(data_dir):
        make_roots(settings)
        with ExitStack() as stack:
            server = None
            if not settings.nats_url:
                server = stack.enter_context(_LocalBus(DataDir(data_dir).nats, settings.bus.store_bytes))
            url = settings.nats_url or (server.running.url if server else "")
            announce(data_dir, Running(pid=os.getpid(), nats_url=url))
            children = [Group(names) for names in groups]
            async with anyio.create_task_group() as tasks:
                if server:
                    tasks.start_soon(server.keep)
                for group in children:
                    tasks.start_soon(_supervise, group, url, settings, on_ready)
                for group in children:
                    await group.all_ready.wait()
                    if group.failed:
                        tasks.cancel_scope.cancel()
                        break
                else:
                    http = next((group.ready["bridge"] for group in children if "bridge" in group.ready), "")
                    running = Running(pid=os.getpid(), nats_url=url, http_url=http)
                    announce(data_dir, running)
                    yield running
                    tasks.cancel_scope.cancel()
            if failures := [group.failed for group in children if group.failed]:
                raise UserError(failures[0])


def make_roots(settings: Settings) -> None:
    """The default models folder is made; one that the user named must be there or come later (an unmounted disk)."""
    inside = Path(settings.data_dir)
    for folder in settings.roots.values():
        if inside in Path(folder).parents:
            Path(folder).mkdir(parents=True, exist_ok=True)


class _LocalBus:
    """The local nats-server, started again on the same port when it dies."""

    def __init__(self, folder: Path, store_bytes: int) -> None:
        self.folder, self.store_bytes = folder, store_bytes
        self.stack = ExitStack()
        self.starved = False
        self.running: LocalServer

    def __enter__(self) -> "_LocalBus":
        self.running = self.stack.enter_context(
            local_server(self.folder, port=DEFAULT_PORT, store_bytes=self.store_bytes)
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    async def keep(self) -> None:
        """Watch it; a server that died is started again, and its clients reconnect by themselves. So is one whose disk
        was full, once there is room: JetStream takes nothing more until it is."""
        while True:
            await anyio.sleep(_LOOK_SECONDS)
            free = shutil.disk_usage(self.folder).free
            if free < _STARVED_BYTES and not self.starved:
                self.starved = True
                log.error("the disk is full: the bus takes nothing until there is room", folder=str(self.folder))
            if self.running.process.poll() is not None:
                log.warning("local bus died, starting it again", status=self.running.process.returncode)
                self._start_again()
            elif self.starved and free > _ROOM_BYTES:
                log.warning("there is room on the disk again, starting the local bus again")
                self._start_again()

    def _start_again(self) -> None:
        port = int(self.running.url.rsplit(":", 1)[1])
        self.stack.close()
        try:  # in this thread: the kernel ends the server with the thread that started it
            self.running = self.stack.enter_context(
                local_server(self.folder, port=port, store_bytes=self.store_bytes, move=False)
            )
        except UserError as error:  # NoBus too; the next look tries again
            log.warning("local bus did not start", error=str(error))
        else:
            self.starved = False


async def _supervise(group: Group, url: str, settings: Settings, on_ready: Callable[[str], object]) -> None:
    """Run a group's process, again after a pause when it dies; give up when its user has to mend something first."""
    pause = 0.2
    while True:
        began = anyio.current_time()
        status = await _run_child(group, url, settings, on_ready)
        if status == USER_ERROR and not group.all_ready.is_set():
            group.failed = group.failed or f"{', '.join(group.names)} could not start"
            group.all_ready.set()
            return
        pause = 0.2 if anyio.current_time() - began > _STEADY_SECONDS else min(pause * 2, _LONGEST_PAUSE)
        log.warning("agents died, starting them again", agents=list(group.names), status=status, pause=pause)
        await anyio.sleep(pause)


async def _run_child(group: Group, url: str, settings: Settings, on_ready: Callable[[str], object]) -> int:
    command = [sys.executable, "-m", "agents.cli.app", "supervised", *group.names, "--nats", url]
    process = await anyio.open_process(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None,
        start_new_session=True,
    )
    group.pid = process.pid
    try:
        assert process.stdin and process.stdout
        if address := group.ready.get("bridge"):  # whoever knows it finds it there again
            http = msgspec.structs.replace(settings.http, port=int(address.rsplit(":", 1)[1]))
            settings = msgspec.structs.replace(settings, http=http)
        with suppress(anyio.BrokenResourceError):  # it died at once; its status is the reason
            await process.stdin.send(msgspec.json.encode(settings) + b"\n")
        async for line in _lines(TextReceiveStream(process.stdout)):
            word, _, rest = line.partition(" ")
            if word == "ready":
                name, _, detail = rest.partition(" ")
                group.ready[name] = detail
                on_ready(name)
                if set(group.ready) == set(group.names):
                    group.all_ready.set()
            elif word == "failed" and group.all_ready.is_set():  # it is started again
                log.error("agents can't go on", agents=list(group.names), why=rest)
            elif word == "failed":
                group.failed = rest
        return await process.wait()
    finally:
        with anyio.CancelScope(shield=True):
            await _stop(process)


async def _lines(text: TextReceiveStream) -> AsyncIterator[str]:
    rest = ""
    async for part in text:
        *lines, rest = (rest + part).split("\n")
        for line in lines:
            yield line


async def _stop(process: anyio.abc.Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
        with anyio.move_on_after(_STOP_SECONDS):
            await process.wait()
    if process.returncode is None:
        process.kill()
        await process.wait()
    await process.aclose()
