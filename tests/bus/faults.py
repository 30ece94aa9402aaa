"""What the fault tests share: a server that can be killed and comes back, workers that can be stopped, waiting."""

import functools
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio

from bus.client import Bus
from bus.ids import new_id
from bus.results import ended, give_up, result_of, watched
from bus.server import LocalServer, local_server
from bus.subjects import ASK_RESOLVE, PREPARE
from bus.worker import Delivery, Work
from schemas.catalog import ResolveModel, ResolveReply
from schemas.files import FilePath, Identity
from schemas.jobs import Request, Result
from schemas.models import Model

STORE = 1024**3
MODEL = Model(
    sha256="ab" * 32,
    name="tiny",
    size=1,
    identity=Identity(kind="checkpoint", family="sd15"),
    paths=(FilePath(root="models", rel="tiny.safetensors"),),
    missing=False,
    created_at=0.0,
)


class Server:
    """A server on a port of its own that can be killed and started again, with what it stored."""

    def __init__(self, folder: Path, store_bytes: int = STORE) -> None:
        self.folder, self.store_bytes, self.port = folder, store_bytes, 0
        self.url = ""

    def __enter__(self) -> "Server":
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._context.__exit__(None, None, None)

    def _start(self) -> None:
        self._context = local_server(self.folder, port=self.port, store_bytes=self.store_bytes, move=not self.port)
        self.server: LocalServer = self._context.__enter__()
        self.url, self.port = self.server.url, int(self.server.url.rsplit(":", 1)[1])

    def kill(self) -> None:
        """As by `kill -9`."""
        self.server.process.kill()
        self.server.process.wait()

    async def restart(self, number: int = signal.SIGKILL) -> None:
        """End it by a signal and start it again on its port."""
        self.server.process.send_signal(number)
        await anyio.to_thread.run_sync(self.server.process.wait)
        self._context.__exit__(None, None, None)
        await anyio.to_thread.run_sync(self._start)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It does nothing while the body runs."""
        self.server.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.server.process.send_signal(signal.SIGCONT)


class Worker:
    """A process of tests.bus.worker; entered when it is ready."""

    def __init__(self, url: str, name: str) -> None:
        command = [sys.executable, "-m", "tests.bus.worker", url, name]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    async def hear(self, word: str, *, seconds: float = 20) -> str:
        """The rest of the next line that begins with a word."""
        assert self.process.stdout
        with anyio.fail_after(seconds):
            while line := await anyio.to_thread.run_sync(self.process.stdout.readline, abandon_on_cancel=True):
                if line.startswith(word):
                    return line.removeprefix(word).strip()
        raise AssertionError(f"the worker ended with {self.process.wait()} and did not say {word!r}")

    def go_on(self) -> None:
        """Let a `hold` end."""
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    async def __aenter__(self) -> "Worker":
        await self.hear("ready")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()


async def ask(bus: Bus, prompt: str = "quick", *, tenant: str = "t0", id: str | None = None) -> str:
    """Queue a job; returns its id."""
    id = id or new_id()
    await bus.publish(PREPARE, Request(prompt=prompt, model="tiny"), lane="normal", tenant=tenant, id=id)
    return id


async def result(bus: Bus, id: str, *, seconds: float = 15) -> Result:
    """A job's result, when it is written."""
    async with watched(bus, id) as done:
        assert await anyio.to_thread.run_sync(done.wait, seconds, abandon_on_cancel=True), f"{id} has no result"
    told = await result_of(bus, id)
    assert told
    return told


async def until(holds: Callable[[], Awaitable[object]], *, seconds: float = 15) -> None:
    """Ask the bus until something holds."""
    with anyio.fail_after(seconds):
        while not await holds():
            await anyio.lowlevel.checkpoint()


def work(bus: Bus, handle: Callable[[Request, Delivery], Awaitable[None]]) -> Work[Request]:
    """A queue of requests, done by `handle`."""
    return Work(
        PREPARE, handle, ended=lambda delivery: ended(bus, delivery.id), give_up=functools.partial(give_up, bus)
    )


async def play_catalog(bus: Bus, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
    """Answer every question for a model with the one there is."""

    async def answer(question: ResolveModel) -> ResolveReply:
        return ResolveReply(model=MODEL)

    await bus.answer(ASK_RESOLVE, answer, task_status=task_status)
