"""Bridge: hears HTTP and says job.prepare, job.import, ask.catalog.* and ask.telemetry.metrics; answers with what the
bus holds.

It keeps nothing that a restart could lose: jobs, events and results are read from the streams each time.
The front doors themselves are in http/; what they do with the bus is desk.py's and catalogdesk.py's.
"""

import errno
import shutil
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.abc
import anyio.to_thread
import msgspec
import nats.errors
import structlog
import uvicorn
from nats.js.errors import NotFoundError
from starlette.types import ASGIApp

from agents.client import catalog, scans
from agents.client import jobs as desk
from agents.client.views import Check, JobEvent, JobView, R, WaitingFiles
from agents.diffusion.plan import check
from agents.http import jobs as native
from agents.http.security import Guard, is_loopback
from bus.client import Bus
from bus.errors import DarkroomError, UserError
from bus.subjects import ASK_HELLO, ASK_METRICS, PREPARE
from schemas.asks import Hello, Metrics, Nothing
from schemas.catalog import Adopted, FileReply, Pictures
from schemas.imports import Import, ImportState
from schemas.jobs import Lane, Request
from schemas.settings import HttpSettings, LimitSettings, Settings

log = structlog.get_logger()

GRACE_SECONDS = 3
CHECK_SECONDS = 1.5
LOW_DISK_BYTES = 512 * 1024**2
PAGE = Path(__file__).parent / "web"


async def run(
    bus: Bus,
    settings: Settings,
    *,
    task_status: anyio.abc.TaskStatus[str] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve HTTP until cancelled; ready, with the base URL, when connections are accepted.

    Raises UserError for an address that can't be bound and for one beyond loopback without an API key.
    """
    listener, stopping = bound(settings.http), anyio.Event()
    data = Path(settings.data_dir)
    door = native.app(
        _Behind(bus, data, settings.limits),
        _Library(bus, data, settings.roots),
        data=data,
        page=PAGE,
        stopping=stopping,
        import_roots=settings.http.import_roots,
    )
    server = _Server(door, settings.http)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_serve, server, listener)
        try:
            await server.accepting.wait()
            url = base_url(listener)
            log.info("bridge", url=url)
            task_status.started(url)
            await anyio.sleep_forever()
        finally:
            stopping.set()
            server.end()


async def _serve(server: "_Server", listener: socket.socket) -> None:
    with listener, anyio.CancelScope(shield=True):  # it ends by should_exit, within its grace
        await server.serve(sockets=[listener])


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, and with an event for being ready."""

    def __init__(self, app: ASGIApp, settings: HttpSettings) -> None:
        super().__init__(
            uvicorn.Config(
                Guard(app, settings),
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=GRACE_SECONDS,
            )
        )
        self.accepting = anyio.Event()
        self._ending = anyio.Event()

    def end(self) -> None:
        """Take nothing more, and finish what is under way."""
        self.should_exit = True
        self._ending.set()

    async def main_loop(self) -> None:
        """uvicorn's, woken once a second, for the date that it sends, and not ten times: an idle service is idle."""
        while not await self.on_tick(0):
            with anyio.move_on_after(1.0):
                await self._ending.wait()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.accepting.set()


def bound(settings: HttpSettings) -> socket.socket:
    """A socket at the address of the settings. Raises UserError."""
    host, port = settings.host, settings.port
    if not is_loopback(host) and not settings.api_key:
        raise UserError(
            f"{host} can be reached from other machines, so the bridge needs a key there: set DARKROOM_HTTP__API_KEY "
            "or http.api_key in darkroom.toml, or take --host 127.0.0.1"
        )
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UserError(
            f"{host} is no address of this machine ({error.strerror}): choose another with --host"
        ) from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1)  # a second bind fails from here on, not only at the first accept
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"port {port} on {host} is in use: end the program that has it, or choose another with --port N, or "
                "--port 0 for any free one"
            ) from error
        raise UserError(
            f"port {port} on {host} can't be taken ({error.strerror}): choose another with --host and --port"
        ) from error
    return listener


def base_url(listener: socket.socket) -> str:
    """Where a program on this machine finds the bridge."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@dataclass(frozen=True)
class _Behind:
    """What stands behind the front doors: agents.client.views.Service on a bus."""

    bus: Bus
    data: Path
    limits: LimitSettings

    async def submit(self, request: Request, *, lane: Lane, caller: str, key: str) -> JobView:
        check(request, self.limits)  # as preprocess will, but told at once
        id = desk.id_of(caller, key) if key else None
        id = await desk.submit(self.bus, request, lane=lane, tenant=desk.tenant_of(caller), id=id)
        view = await desk.state(self.bus, id) if key else None
        return view or JobView(id=id, status="queued", request=request)

    async def state(self, id: str) -> JobView:
        if (view := await desk.state(self.bus, id)) is None:
            raise desk.unknown_job()
        return view

    async def jobs(self, limit: int) -> list[JobView]:
        return await desk.jobs(self.bus, limit)

    def events(self, id: str, after: int) -> AsyncGenerator[JobEvent, None]:
        return desk.events(self.bus, id, after)

    async def heard_all(self, id: str, after: int) -> bool:
        return await desk.heard_all(self.bus, id, after)

    async def cancel(self, id: str) -> JobView:
        return await desk.cancel(self.bus, id)

    async def metrics(self) -> str:
        return (await self.bus.ask(ASK_METRICS, Nothing(), Metrics)).text

    async def checks(self) -> dict[str, Check]:
        found: dict[str, Check] = {}

        async def one(name: str, looked: Callable[[], Awaitable[Check]]) -> None:
            found[name] = Check(ok=False, detail=f"no answer within {CHECK_SECONDS:g} s")
            with anyio.move_on_after(CHECK_SECONDS):
                found[name] = await looked()

        async with anyio.create_task_group() as tasks:
            for name, looked in (
                ("bus", self._connected),
                ("jetstream", self._streams),
                ("catalog", self._catalog),
                ("disk", self._disk),
            ):
                tasks.start_soon(one, name, looked)
        return dict(sorted(found.items()))

    async def _connected(self) -> Check:
        up = self.bus.nc.is_connected
        return Check(ok=up, detail="connected" if up else "not connected to the NATS server")

    async def _streams(self) -> Check:
        try:
            queued = len(await self.bus.waiting("PREPARE", PREPARE.filter()))
        except NotFoundError:
            return Check(ok=False, detail="the streams are gone; restart Darkroom to make them again")
        except (DarkroomError, nats.errors.Error) as error:
            return Check(ok=False, detail=str(error))
        return Check(ok=True, detail=f"{queued} job{'s' * (queued != 1)} queued")

    async def _catalog(self) -> Check:
        try:
            hello = await self.bus.ask(ASK_HELLO, Nothing(), Hello, timeout=CHECK_SECONDS)
        except DarkroomError as error:
            return Check(ok=False, detail=str(error))
        return Check(ok=True, detail=hello.instance)

    async def _disk(self) -> Check:
        try:
            free = (await anyio.to_thread.run_sync(shutil.disk_usage, self.data)).free
        except OSError as error:
            return Check(ok=False, detail=f"the data directory can't be read: {error.strerror}")
        return Check(ok=free >= LOW_DISK_BYTES, detail=f"{free:,} bytes free in the data directory")


@dataclass(frozen=True)
class _Library:
    """The catalog behind the front doors: agents.client.views.Library on a bus."""

    bus: Bus
    data: Path
    roots: Mapping[str, str]

    async def ask(self, question: msgspec.Struct, reply: type[R]) -> R:
        return await catalog.ask(self.bus, question, reply)

    async def add_picture(self, sha256: str, data: bytes) -> Pictures:
        return await catalog.add_picture(self.bus, self.data, sha256, data)

    async def take_over(self, job: Import, wait: float) -> tuple[str, ImportState]:
        id = await catalog.submit_import(self.bus, job)
        return id, await catalog.followed(self.bus, id, wait)

    async def import_state(self, id: str) -> ImportState | None:
        return await catalog.import_state(self.bus, id)

    async def adopt(self) -> Adopted:
        return await catalog.adopt(self.bus)

    async def waiting(self, *, after: str, limit: int) -> WaitingFiles:
        return await scans.waiting(self.bus, self.roots, after=after, limit=limit)

    async def hash_of(self, path: str, *, promote: bool, wait: float) -> FileReply:
        file = await anyio.to_thread.run_sync(catalog.placed, path, self.roots)
        return await catalog.hash_of(self.bus, file, promote=promote, wait=wait)
