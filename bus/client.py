"""One connection to the bus: publish, tick, ask, answer, listen, and look things up. Leases live here too.

Consuming jobs is queues.py, facts followers.py; how a job ends is results.py; the subjects are subjects.py.
"""

import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import quote, unquote

import anyio
import anyio.abc
import msgspec
import nats.errors
import structlog
from anyio.streams.memory import MemoryObjectReceiveStream
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError

from bus import trace
from bus.clock import Clock
from bus.connection import connected
from bus.errors import INTERNAL, Declined, Full, NoAnswer, NoBus, Retry, Taken, TooLarge, Undecodable, UserError
from bus.streams import MAX_MESSAGE, make_streams
from bus.subjects import PREFIX, Subject, row_of
from schemas.settings import BusSettings

log = structlog.get_logger()

T = TypeVar("T")
R = TypeVar("R")

encode = msgspec.json.Encoder(decimal_format="number").encode

NOT_NOW = (
    nats.errors.TimeoutError,
    nats.errors.NoRespondersError,
    nats.errors.ConnectionReconnectingError,
    nats.errors.OutboundBufferLimitError,
    nats.errors.StaleConnectionError,
    nats.errors.ConnectionClosedError,
    NoStreamResponseError,
)
"""What the client raises when the server is away."""
NO_STREAM = 10059
_NOT_FIRST, _REFUSED_BY_LIMIT, _NO_RESOURCES, _TOO_LARGE = 10071, 10077, (10023, 10047), 10054
_FENCED = (PREFIX + "job.", PREFIX + "result.")
"""Kept once per subject, so they need no message id (and a job may come back within its window)."""
PIECE_BYTES = 512 * 1024
"""Of an answer, in one message at most: a server takes 1 MiB, unless it was set to less."""
PIECES = "Darkroom-Pieces"
"""The header of each message of an answer that comes in several: how many there are."""
ERROR, ERROR_CODE, REASON = "Nats-Service-Error", "Nats-Service-Error-Code", "Darkroom-Reason"
"""The headers of an answer that is an error: a message and a code, as services of nats.micro send them, and our reason.
What is not printable ASCII in them is percent-encoded."""
_PRINTABLE = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
_LONGEST_ERROR = 4000
"""Characters of a message in a header."""
_NOBODY = "503"
_MEND_EVERY = 1.0
_API_TIMEOUT = 5.0


@dataclass(frozen=True)
class Stored(Generic[T]):
    """A message as its stream keeps it."""

    seq: int
    subject: str
    payload: T


class Bus:
    """What agents do with the bus. Made by `connect`; every method is safe to call from many tasks."""

    def __init__(self, nc: Client, settings: BusSettings, tasks: anyio.abc.TaskGroup, name: str, clock: Clock) -> None:
        self.nc = nc
        self.js: JetStreamContext = nc.jetstream(timeout=_API_TIMEOUT)
        self.settings = settings
        self.tasks = tasks
        self.name = name
        self.clock = clock
        self.instance = f"{name}-{clock.new_id()[-12:]}"
        self.echo = nc.new_inbox()
        self.leases: dict[str, Msg] = {}
        self.on_reconnect: set[Callable[[], None]] = set()
        self._mending, self._mended = anyio.Lock(), 0.0

    async def publish(
        self,
        subject: Subject[T],
        payload: T,
        *,
        msg_id: str | None = None,
        first: bool = False,
        wait: bool = False,
        within: float = 60.0,
        **tokens: str,
    ) -> int:
        """Store a message; returns its sequence once the server has it on disk.

        `first` makes it the first on its subject or nothing; `wait` waits for as long as the stream is full. A server
        that does not answer is asked again for `within` seconds: a message id (drawn when none is given) keeps the
        repeat from counting. Raises Taken, Full, TooLarge, BadSubject, and Retry when the server stays away.
        """
        return await self.publish_raw(
            subject(**tokens), encode(payload), msg_id=msg_id, first=first, wait=wait, within=within
        )

    async def publish_raw(
        self,
        subject: str,
        data: bytes,
        *,
        msg_id: str | None = None,
        first: bool = False,
        wait: bool = False,
        within: float = 60.0,
        headers: dict[str, str] | None = None,
    ) -> int:
        """`publish` for bytes that are encoded already; see there."""
        if len(data) > MAX_MESSAGE:
            raise TooLarge(f"{len(data):,} bytes for {subject}: at most {MAX_MESSAGE:,} ride the bus")
        head = {trace.HEADER: trace.current(), "Content-Type": "application/json", **(headers or {})}
        if msg_id or not (first or subject.startswith(_FENCED)):
            head["Nats-Msg-Id"] = msg_id or self.clock.new_id()
        if first:
            head["Nats-Expected-Last-Subject-Sequence"] = "0"
        deadline, pause, unsure = anyio.current_time() + within, 0.05, False
        while True:
            try:
                if self.nc.is_connected:  # else the client would keep each of our tries, and send them all
                    return (await self.js.publish(subject, data, timeout=_API_TIMEOUT, headers=head)).seq
                refusal: Exception = Retry(f"the bus is away, {subject} was not taken within {within:.0f} s")
            except APIError as error:
                refusal = _refusal(subject, error)
                if unsure and isinstance(refusal, Taken) and (seq := await self._ours(subject, data)):
                    return seq
                if not (wait and isinstance(refusal, Full)):
                    raise refusal from error
                deadline = anyio.current_time() + within
            except NOT_NOW as error:
                unsure = True  # it may be stored, and only the answer be lost
                refusal = Retry(f"the bus did not take {subject} within {within:.0f} s: {error}")
                if isinstance(error, NoStreamResponseError):
                    await self.mend()
            if anyio.current_time() > deadline:
                raise refusal
            await anyio.sleep(pause)
            pause = min(pause * 1.5, 0.5)

    async def _ours(self, subject: str, data: bytes) -> int:
        """The sequence of the message that holds a subject, if it is this one; else 0. Raises Retry."""
        row = row_of(subject)
        found = await self.raw(row.stream, subject) if row and row.stream else None
        return found.seq if found and found.payload == data else 0

    async def mend(self) -> None:
        """Make streams again that somebody deleted under us: at most once a second; a log line where that fails."""
        async with self._mending:
            if anyio.current_time() < self._mended + _MEND_EVERY:
                return
            try:
                await make_streams(self.js, self.settings)
            except (*NOT_NOW, APIError, UserError) as error:
                log.warning("streams not mended", error=str(error))
            self._mended = anyio.current_time()

    async def tick(self, subject: Subject[T], payload: T, **tokens: str) -> None:
        """Publish something nobody depends on; dropped while the connection is away."""
        full, data = subject(**tokens), encode(payload)
        if self.nc.is_connected:
            with contextlib.suppress(nats.errors.Error, OSError):
                await self.nc.publish(full, data)

    async def ask(self, subject: Subject[T], payload: T, reply: type[R], *, timeout: float = 2.0, **tokens: str) -> R:
        """Ask and wait for one answer, of any length: `timeout` seconds for each piece of it.

        Raises Declined as the one who was asked did (with the reason INTERNAL for a bug there), NoAnswer when there is
        nobody, Undecodable for an answer of another form, BadSubject, and TooLarge for a question that no message
        holds."""
        full = subject(**tokens)
        try:
            answer = await self._answer_to(full, encode(payload), timeout)
        except NOT_NOW as error:
            raise NoAnswer(f"nobody answered {subject.template} within {timeout:g} s: is its agent running?") from error
        except nats.errors.MaxPayloadError as error:
            raise TooLarge(f"{subject.template} is more than one message holds: ask for less at once") from error
        try:
            return msgspec.json.decode(answer, type=reply)
        except msgspec.DecodeError as error:
            raise Undecodable(f"the answer to {subject.template} is no {reply.__name__}: {error}") from error

    async def _answer_to(self, subject: str, data: bytes, timeout: float) -> bytes:
        """One whole answer: its messages come in the order in which the one connection published them."""
        inbox = self.nc.new_inbox()
        replies = await self.nc.subscribe(inbox)
        try:
            await self.nc.publish(subject, data, reply=inbox, headers={trace.HEADER: trace.current()})
            pieces, count = list[bytes](), 1
            while len(pieces) < count:
                message = await replies.next_msg(timeout)
                headers = message.headers or {}
                if headers.get("Status") == _NOBODY:
                    raise nats.errors.NoRespondersError
                if ERROR in headers:
                    raise Declined(unquote(headers.get(REASON, INTERNAL)), unquote(headers[ERROR]))
                pieces.append(message.data)
                count = int(headers.get(PIECES, 1))
            return b"".join(pieces)
        finally:
            with anyio.CancelScope(shield=True), contextlib.suppress(nats.errors.Error):
                await replies.unsubscribe()

    async def answer(
        self,
        subject: Subject[T],
        handler: Callable[[T], Awaitable[Any]],
        *,
        pattern: str = "",
        task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Answer an ask (those on `pattern` only, where one is given), one after the other, until cancelled. What is
        too long for one message goes out in several.

        A handler that raises Declined, and a question that can't be decoded, are answered with that error; any other
        exception is logged, and answered with the reason INTERNAL.
        """
        async with self.listen(pattern or subject.filter()) as asked:
            task_status.started()
            async for message in asked:
                with trace.continued(message.headers):
                    try:
                        await self._answer(subject, handler, message)
                    except (nats.errors.Error, OSError) as error:
                        log.warning("answer not sent", ask=subject.template, error=str(error))

    async def _answer(self, subject: Subject[T], handler: Callable[[T], Awaitable[Any]], asked: Msg) -> None:
        try:
            data = encode(await handler(subject.decode(asked.data)))
        except Declined as error:
            headers = _error_headers("400", error.reason, str(error))
        except Undecodable as error:
            headers = _error_headers("400", "undecodable", str(error))
        except Exception:
            log.exception("ask failed", ask=subject.template)
            headers = _error_headers(
                "500", INTERNAL, f"{self.name} failed at {subject.template}: its log has the reason"
            )
        else:
            await self._publish_pieces(asked.reply, data)
            return
        await self.nc.publish(asked.reply, headers=headers)

    async def _publish_pieces(self, inbox: str, data: bytes) -> None:
        length = min(PIECE_BYTES, self.nc.max_payload * 3 // 4)
        if len(data) <= length:
            await self.nc.publish(inbox, data)
            return
        starts = range(0, len(data), length)
        for start in starts:
            await self.nc.publish(inbox, data[start : start + length], headers={PIECES: str(len(starts))})

    @asynccontextmanager
    async def listen(
        self, pattern: str, *, buffer: int = 1024, flush: bool = True
    ) -> AsyncIterator[MemoryObjectReceiveStream[Msg]]:
        """Messages published from now on (core NATS: lossy). With `buffer` messages unread, new ones are lost.
        Without `flush` they count from what is asked of the server next, which learns of it in that order."""
        send, receive = anyio.create_memory_object_stream[Msg](buffer)

        async def received(message: Msg) -> None:
            try:
                send.send_nowait(message)
            except anyio.WouldBlock:
                log.debug("listener too slow, dropped", subject=message.subject)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                return

        with send, receive:
            subscription = await self.nc.subscribe(pattern, cb=received)
            try:
                if flush:
                    await self.flush()
                yield receive
            finally:
                with anyio.CancelScope(shield=True), contextlib.suppress(nats.errors.Error):
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
        except (*NOT_NOW, APIError) as error:
            if isinstance(error, NotFoundError) and error.err_code != NO_STREAM:
                return None
            raise await self._unanswered(stream, error) from error
        return Stored(found.seq or 0, found.subject or "", found.data or b"")

    async def waiting(self, stream: str, pattern: str) -> dict[str, int]:
        """How many messages a stream holds on a pattern, by subject (100,000 of them at most). Raises Retry."""
        try:
            info = await self.js.stream_info(stream, subjects_filter=pattern)
        except (*NOT_NOW, APIError) as error:
            raise await self._unanswered(stream, error) from error
        return dict(info.state.subjects or {})

    async def _unanswered(self, stream: str, error: Exception) -> Retry:
        if isinstance(error, APIError) and error.err_code == NO_STREAM:
            await self.mend()
        return Retry(f"the bus did not answer about {stream}: {error}")

    async def flush(self) -> None:
        """Everything published so far has reached the server. Raises Retry.

        A message to ourselves, not the client's own flush: when that is cancelled, the late PONG ends its reading task.
        """
        try:
            await self.nc.request(self.echo, b"", timeout=10)
        except NOT_NOW as error:
            raise Retry("the bus did not answer") from error

    async def return_echo(self) -> None:
        """Answer our own flushes."""

        async def back(message: Msg) -> None:
            await self.nc.publish(message.reply, b"")

        await self.nc.subscribe(self.echo, cb=back)

    async def keep_leases(self) -> None:
        """Report to the server every `heartbeat` seconds that the jobs held here are being worked on."""
        while True:
            await anyio.sleep(self.settings.heartbeat)
            for reply, message in tuple(self.leases.items()):
                if reply in self.leases and self.nc.is_connected:
                    with contextlib.suppress(nats.errors.Error, OSError):  # sent again in a moment
                        await message.in_progress()


def _error_headers(code: str, reason: str, message: str) -> dict[str, str]:
    """The headers of an answer that is an error; `unquote` gives reason and message back."""
    shown = {ERROR: message.strip()[:_LONGEST_ERROR], ERROR_CODE: code, REASON: reason}
    return {name: quote(text, safe=_PRINTABLE, errors="replace") for name, text in shown.items()}


def _refusal(subject: str, error: APIError) -> Exception:
    """What the server's refusal to store means; the limit's kind stands in the description alone."""
    description = error.description or ""
    if error.err_code == _NOT_FIRST or (error.err_code == _REFUSED_BY_LIMIT and "per subject" in description):
        return Taken(f"{subject} is already there")
    if error.err_code == _TOO_LARGE:
        return TooLarge(f"{subject} and its headers: {description}")
    if error.err_code == _REFUSED_BY_LIMIT or error.err_code in _NO_RESOURCES:
        return Full(f"the bus has no room for {subject}: {description}")
    return Retry(f"the bus refused {subject}: {description or error}")


@asynccontextmanager
async def connect(
    url: str, settings: BusSettings, *, name: str, topology_too: bool = True, clock: Clock | None = None
) -> AsyncIterator[Bus]:
    """A Bus on the server at `url`, with the streams reconciled. Raises NoBus when it can't be reached, UserError."""
    async with connected(url, f"darkroom-{name}") as connection:
        if topology_too:
            try:
                await make_streams(connection.nc.jetstream(timeout=_API_TIMEOUT), settings)
            except (*NOT_NOW, APIError) as error:
                raise NoBus(f"the NATS server at {url} has no JetStream: start it with `-js` ({error})") from error
        async with anyio.create_task_group() as tasks:
            bus = Bus(connection.nc, settings, tasks, name, clock or Clock())
            bus.on_reconnect = connection.on_reconnect
            await bus.return_echo()
            tasks.start_soon(bus.keep_leases)
            tasks.start_soon(connection.fail_when_over)
            try:
                yield bus
            finally:
                tasks.cancel_scope.cancel()


def worker_name() -> str:
    """Who works here, for facts about attempts: host and process id."""
    return f"{socket.gethostname()}:{os.getpid()}"
