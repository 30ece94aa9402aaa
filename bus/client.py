"""One connection to the bus: publish, tick, ask, answer, listen, and look things up. Leases live here too.

Consuming jobs and facts is consumer.py; how a job ends is results.py; the subjects are subjects.py.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import anyio
import anyio.abc
import msgspec
import nats
import nats.errors
import structlog
from anyio.streams.memory import MemoryObjectReceiveStream
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError

from bus import trace
from bus.errors import Full, NoAnswer, NoBus, Retry, Taken, TooLarge, Undecodable
from bus.ids import new_id
from bus.streams import MAX_MESSAGE, reconcile, topology
from bus.subjects import Subject
from schemas.settings import BusSettings

log = structlog.get_logger()

T = TypeVar("T")
R = TypeVar("R")

encode = msgspec.json.Encoder(decimal_format="number").encode

_NOT_NOW = (
    nats.errors.TimeoutError,
    nats.errors.NoRespondersError,
    nats.errors.ConnectionReconnectingError,
    nats.errors.OutboundBufferLimitError,
    nats.errors.StaleConnectionError,
    NoStreamResponseError,
)
_NOT_FIRST, _REFUSED_BY_LIMIT, _NO_RESOURCES = 10071, 10077, (10023, 10047)
_API_TIMEOUT = 5.0
_CONNECT_SECONDS = 5.0
DEFAULT_STORE_BYTES = 8 * 1024**3
"""What the streams share on a server that does not say how much it has and with no setting that does."""


@dataclass(frozen=True)
class Stored(Generic[T]):
    """A message as its stream keeps it."""

    seq: int
    subject: str
    payload: T


class Bus:
    """What agents do with the bus. Made by `connect`; every method is safe to call from many tasks."""

    def __init__(self, nc: Client, settings: BusSettings, tasks: anyio.abc.TaskGroup, name: str) -> None:
        self.nc = nc
        self.js: JetStreamContext = nc.jetstream(timeout=_API_TIMEOUT)
        self.settings = settings
        self.tasks = tasks
        self.name = name
        self.instance = f"{name}-{new_id()[-12:]}"
        self.echo = nc.new_inbox()
        self.leases: dict[str, Msg] = {}
        self.on_reconnect: set[Callable[[], None]] = set()

    async def publish(
        self,
        subject: Subject[T],
        payload: T,
        *,
        msg_id: str | None = None,
        first: bool = False,
        wait: bool = False,
        patience: float = 60.0,
        **tokens: str,
    ) -> int:
        """Store a message; returns its sequence once the server has it on disk.

        `first` makes it the first on its subject or nothing; `wait` waits for as long as the stream is full. A server
        that does not answer is asked again for `patience` seconds: a message id (drawn when none is given) keeps the
        repeat from counting. Raises Taken, Full, TooLarge, BadSubject, and Retry when the server stays away.
        """
        return await self.publish_raw(
            subject(**tokens), encode(payload), msg_id=msg_id, first=first, wait=wait, patience=patience
        )

    async def publish_raw(
        self,
        subject: str,
        data: bytes,
        *,
        msg_id: str | None = None,
        first: bool = False,
        wait: bool = False,
        patience: float = 60.0,
        headers: dict[str, str] | None = None,
    ) -> int:
        """`publish` for bytes that are encoded already; see there."""
        if len(data) > MAX_MESSAGE:
            raise TooLarge(f"{len(data):,} bytes for {subject}: at most {MAX_MESSAGE:,} ride the bus")
        # Jobs and results are fenced by their subject, so they need no id (and a job may come back within the window).
        fenced = first or ".job." in subject or ".result." in subject
        head = {trace.HEADER: trace.current(), "Content-Type": "application/json", **(headers or {})}
        if msg_id or not fenced:
            head["Nats-Msg-Id"] = msg_id or new_id()
        if first:
            head["Nats-Expected-Last-Subject-Sequence"] = "0"
        deadline, pause = anyio.current_time() + patience, 0.05
        while True:
            try:
                return (await self.js.publish(subject, data, timeout=_API_TIMEOUT, headers=head)).seq
            except APIError as error:
                refusal = _refusal(subject, error)
                if not (wait and isinstance(refusal, Full)):
                    raise refusal from error
            except _NOT_NOW as error:
                if anyio.current_time() > deadline:
                    raise Retry(f"the bus did not take {subject} within {patience:.0f} s") from error
            await anyio.sleep(pause)
            pause = min(pause * 1.5, 1.0)

    async def tick(self, subject: Subject[T], payload: T, **tokens: str) -> None:
        """Say something nobody depends on; dropped while the connection is away."""
        if self.nc.is_connected:
            await self.nc.publish(subject(**tokens), encode(payload))

    async def ask(self, subject: Subject[T], payload: T, reply: type[R], *, timeout: float = 2.0) -> R:
        """Ask and wait for one answer. Raises NoAnswer, Undecodable."""
        try:
            answer = await self.nc.request(subject(), encode(payload), timeout, headers={trace.HEADER: trace.current()})
        except (*_NOT_NOW, nats.errors.ConnectionClosedError) as error:
            raise NoAnswer(f"nobody answered {subject.template} within {timeout:g} s: is its agent running?") from error
        try:
            return msgspec.json.decode(answer.data, type=reply)
        except msgspec.DecodeError as error:
            raise Undecodable(f"the answer to {subject.template} is no {reply.__name__}: {error}") from error

    async def answer(
        self,
        subject: Subject[T],
        handler: Callable[[T], Awaitable[Any]],
        *,
        task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Answer an ask, one after the other, until cancelled; where that fails there is silence and a log line."""
        async with self.listen(subject.filter()) as asked:
            task_status.started()
            async for message in asked:
                with trace.continued(message.headers):
                    try:
                        await self.nc.publish(message.reply, encode(await handler(subject.decode(message.data))))
                    except Exception:
                        log.exception("ask not answered", ask=subject.template)

    @asynccontextmanager
    async def listen(self, pattern: str, *, buffer: int = 1024) -> AsyncIterator[MemoryObjectReceiveStream[Msg]]:
        """Hear what is said from now on (core NATS: lossy). A reader `buffer` behind loses the new ones."""
        send, receive = anyio.create_memory_object_stream[Msg](buffer)

        async def heard(message: Msg) -> None:
            try:
                send.send_nowait(message)
            except anyio.WouldBlock:
                log.debug("listener too slow, dropped", subject=message.subject)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                return

        subscription = await self.nc.subscribe(pattern, cb=heard)
        await self.flush()
        try:
            with send, receive:
                yield receive
        finally:
            if not self.nc.is_closed:
                await subscription.unsubscribe()

    async def last(self, subject: Subject[T], **tokens: str) -> Stored[T] | None:
        """The newest stored message of a row; tokens left out match any. Raises Undecodable, Retry."""
        return await self._get(subject, 0, subject.filter(**tokens))

    async def after(self, subject: Subject[T], seq: int, **tokens: str) -> Stored[T] | None:
        """The first stored message of a row with a sequence greater than `seq`. Raises Undecodable, Retry."""
        return await self._get(subject, seq + 1, subject.filter(**tokens))

    async def _get(self, subject: Subject[T], seq: int, pattern: str) -> Stored[T] | None:
        assert subject.stream, f"{subject.template} is not stored"
        raw = await self.raw(subject.stream, pattern, seq=seq)
        return Stored(raw.seq, raw.subject, subject.decode(raw.payload)) if raw else None

    async def raw(self, stream: str, pattern: str, *, seq: int = 0) -> Stored[bytes] | None:
        """The newest message on a pattern, or with `seq` the first from there on; as bytes. Raises Retry."""
        try:
            found = await self.js.get_msg(stream, seq or None, pattern, next=bool(seq))
        except NotFoundError:
            return None
        except (*_NOT_NOW, APIError) as error:
            raise Retry(f"the bus did not answer about {stream}: {error}") from error
        return Stored(found.seq or 0, found.subject or "", found.data or b"")

    async def waiting(self, stream: str, pattern: str) -> dict[str, int]:
        """How many messages a stream holds on a pattern, by subject (100,000 of them at most). Raises Retry."""
        try:
            info = await self.js.stream_info(stream, subjects_filter=pattern)
        except (*_NOT_NOW, APIError) as error:
            raise Retry(f"the bus did not answer about {stream}: {error}") from error
        return dict(info.state.subjects or {})

    async def flush(self) -> None:
        """Everything said so far has reached the server. Raises Retry.

        A message to ourselves, not the client's own flush: when that is cancelled, the late PONG ends its reading task.
        """
        try:
            await self.nc.request(self.echo, b"", timeout=10)
        except _NOT_NOW as error:
            raise Retry("the bus did not answer") from error

    async def return_echo(self) -> None:
        """Answer our own flushes."""

        async def back(message: Msg) -> None:
            await self.nc.publish(message.reply, b"")

        await self.nc.subscribe(self.echo, cb=back)

    async def keep_leases(self) -> None:
        """Tell the server every `heartbeat` seconds that the jobs held here are being worked on."""
        while True:
            await anyio.sleep(self.settings.heartbeat)
            for reply, message in tuple(self.leases.items()):
                if reply in self.leases and self.nc.is_connected:
                    await message.in_progress()


def _refusal(subject: str, error: APIError) -> Exception:
    """What the server's refusal to store means; the limit's kind stands in the description alone."""
    description = error.description or ""
    if error.err_code == _NOT_FIRST or (error.err_code == _REFUSED_BY_LIMIT and "per subject" in description):
        return Taken(f"{subject} is already there")
    if error.err_code == _REFUSED_BY_LIMIT or error.err_code in _NO_RESOURCES:
        return Full(f"the bus has no room for {subject}: {description}")
    return Retry(f"the bus refused {subject}: {description or error}")


async def store_limit(nc: Client, settings: BusSettings) -> int:
    """Bytes that the streams may share: the setting, else what the account may store, else a default."""
    if settings.store_bytes:
        return settings.store_bytes
    limit = (await nc.jetstream(timeout=_API_TIMEOUT).account_info()).limits.max_storage
    return limit if limit > 0 else DEFAULT_STORE_BYTES


@asynccontextmanager
async def connect(url: str, settings: BusSettings, *, name: str, topology_too: bool = True) -> AsyncIterator[Bus]:
    """A Bus on the server at `url`, with the streams reconciled. Raises NoBus when it can't be reached, UserError."""
    reconnected: set[Callable[[], None]] = set()

    async def on_reconnect() -> None:
        log.info("bus reconnected")
        for call in tuple(reconnected):
            call()

    closer: asyncio.Task[Any] | None = None
    nc: Client | None = None
    why = ""

    async def on_error(error: Exception) -> None:
        nonlocal why
        why = str(error) or type(error).__name__
        # The client's reconnecting task outlives a close that meets it halfway: end it here.
        if closer and asyncio.current_task() is not closer:
            raise asyncio.CancelledError
        if nc:
            log.warning("bus", error=why)

    try:
        with anyio.fail_after(_CONNECT_SECONDS):
            nc = await nats.connect(
                url,
                name=f"darkroom-{name}",
                allow_reconnect=True,
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.5,
                connect_timeout=3,
                ping_interval=10,
                max_outstanding_pings=3,
                pending_size=8 * 1024 * 1024,
                reconnected_cb=on_reconnect,
                error_cb=on_error,
            )
    except (OSError, nats.errors.Error, TimeoutError) as error:
        raise NoBus(
            f"no NATS server answers at {url} ({why or error or type(error).__name__}): start one, correct the "
            "address, or leave it out and let `darkroom up` start its own"
        ) from error
    try:
        if topology_too:
            try:
                await reconcile(nc.jetstream(timeout=_API_TIMEOUT), topology(settings), await store_limit(nc, settings))
            except (*_NOT_NOW, APIError) as error:
                raise NoBus(f"the NATS server at {url} has no JetStream: start it with `-js` ({error})") from error
        async with anyio.create_task_group() as tasks:
            bus = Bus(nc, settings, tasks, name)
            bus.on_reconnect = reconnected
            await bus.return_echo()
            tasks.start_soon(bus.keep_leases)
            try:
                yield bus
            finally:
                tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(5):
            if nc.is_connected:
                with contextlib.suppress(nats.errors.Error, TimeoutError):  # a courtesy; what matters was acknowledged
                    await nc.flush(timeout=2)
            closer = asyncio.current_task()
            nc.options["allow_reconnect"] = False
            await nc.close()


def worker_name() -> str:
    """Who works here, for facts about attempts: host and process id."""
    return f"{socket.gethostname()}:{os.getpid()}"
