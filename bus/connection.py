"""The connection itself: opened or explained; lost, found again or over; closed without leftovers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import nats.errors
import structlog
from nats.aio.client import Client

from bus.errors import NoBus

log = structlog.get_logger()

_CONNECT_SECONDS = 5.0
_OPTIONS: dict[str, Any] = {
    "allow_reconnect": True,
    "max_reconnect_attempts": -1,
    "reconnect_time_wait": 0.5,
    "connect_timeout": 3,
    "ping_interval": 10,
    "max_outstanding_pings": 3,
    "pending_size": 8 * 1024 * 1024,
}
"""Seconds and bytes."""


class Connection:
    """One client connection. `on_reconnect` holds what is called when it is there again."""

    def __init__(self, url: str) -> None:
        self.url, self.nc = url, Client()
        self.on_reconnect: set[Callable[[], None]] = set()
        self._closed = anyio.Event()
        self._closer: asyncio.Task[Any] | None = None
        self._opened, self._why = False, ""

    async def open(self, name: str) -> None:
        """Connect. Raises NoBus."""
        try:
            with anyio.fail_after(_CONNECT_SECONDS):
                await self.nc.connect(
                    self.url,
                    name=name,
                    reconnected_cb=self._reconnected,
                    disconnected_cb=self._disconnected,
                    closed_cb=self._over,
                    error_cb=self._failed,
                    **_OPTIONS,
                )
        except (OSError, nats.errors.Error, TimeoutError) as error:
            raise NoBus(
                f"no NATS server answers at {self.url} ({self._why or error or type(error).__name__}): start one, "
                "correct the address, or leave it out and let `darkroom up` start its own"
            ) from error
        self._opened = True

    async def fail_when_over(self) -> None:
        """The client gives a connection up by itself on some errors of the server's. Raises NoBus then."""
        await self._closed.wait()
        why = self.nc.last_error or self._why
        raise NoBus(f"the NATS server at {self.url} closed the connection for good ({why})")

    async def close(self) -> None:
        """Send what is left, and end every task of the client's."""
        with anyio.CancelScope(shield=True), anyio.move_on_after(5):
            if self.nc.is_connected:
                with contextlib.suppress(nats.errors.Error, TimeoutError):  # a courtesy; what matters was acknowledged
                    await self.nc.flush(timeout=2)
            self._closer = asyncio.current_task()
            self.nc.options["allow_reconnect"] = False
            await self.nc.close()

    async def _reconnected(self) -> None:
        log.info("bus reconnected")
        for call in tuple(self.on_reconnect):
            call()

    async def _disconnected(self) -> None:
        """Answers to what was asked on a lost connection never come: fail them now, not when the time is up."""
        for answer in tuple(self.nc._resp_map.values()):
            if not answer.done():
                answer.set_exception(nats.errors.ConnectionReconnectingError())

    async def _over(self) -> None:
        self._closed.set()

    async def _failed(self, error: Exception) -> None:
        self._why = str(error) or type(error).__name__
        if self.nc.is_connecting and self.nc._transport:  # the client leaves the socket of a failed handshake open
            self.nc._transport.close()  # type: ignore[no-untyped-call]
        # The client's reconnecting task outlives a close that meets it halfway: end it here.
        if self._closer and asyncio.current_task() is not self._closer:
            raise asyncio.CancelledError
        if self._opened:
            log.warning("bus", error=self._why)


@asynccontextmanager
async def connected(url: str, name: str) -> AsyncIterator[Connection]:
    """A connection for as long as the body runs. Raises NoBus."""
    connection = Connection(url)
    await connection.open(name)
    try:
        yield connection
    finally:
        await connection.close()
