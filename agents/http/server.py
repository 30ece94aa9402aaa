"""The HTTP server: the socket it listens on, and uvicorn without what the program it runs in does itself."""

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import uvicorn
from starlette.types import ASGIApp

from agents.http.security import Guard, is_loopback
from bus.errors import UserError
from schemas.settings import HttpSettings

GRACE_SECONDS = 3
"""How long requests under way may take when the server ends."""


class Server(uvicorn.Server):
    """uvicorn with the guard in front, without its signal handlers, and with an event for being ready."""

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

    async def serve_on(self, listener: socket.socket) -> None:
        """Serve on a socket until `end`, whatever is cancelled: it ends by itself, within its grace."""
        with listener, anyio.CancelScope(shield=True):
            await self.serve(sockets=[listener])

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
