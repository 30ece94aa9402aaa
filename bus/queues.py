"""Taking jobs off streams: work queues, and picking from many queues."""

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import anyio
import anyio.abc
import nats.errors
import structlog
from anyio.streams.memory import MemoryObjectReceiveStream
from nats.aio.msg import Msg
from nats.js.errors import APIError

from bus.client import NOT_NOW, Bus, encode
from bus.dead_letters import dead_letter
from bus.errors import DarkroomError, Full, Retry, Taken
from bus.ids import digest_id
from bus.pull import Puller, durable, ensure_consumer, is_job
from bus.subjects import Subject
from bus.worker import Release, Work, nothing_begun, process

log = structlog.get_logger()

T = TypeVar("T")

_PULL_SECONDS = 1.0
_PARKED_SECONDS = 0.1
"""How long a pull waits at the server for a job that was announced and may not be stored yet."""


async def serve(
    bus: Bus,
    work: Work[T],
    name: str,
    *,
    pattern: str | None = None,
    concurrency: int = 1,
    window: int | None = None,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Work a queue off: `concurrency` jobs at once, `window` pulled ahead. Ready when the first pull is out."""
    window = window or concurrency * 2
    consumer = durable(bus, name, pattern or work.subject.filter())
    puller = Puller(bus, work.subject.stream or "", consumer, window)

    async def worker(messages: MemoryObjectReceiveStream[Msg]) -> None:
        async for message in messages:
            try:
                await process(bus, work, message)
            finally:
                puller.release(message)

    async with puller.messages() as messages, anyio.create_task_group() as tasks:
        for _ in range(concurrency):
            tasks.start_soon(worker, messages)
        task_status.started()


@dataclass
class _Pull:
    """One question for one job: where its answer comes, and of which durable."""

    inbox: str
    name: str
    answer: Msg | None = None
    answered: anyio.Event = field(default_factory=anyio.Event)


class LanePicker(Generic[T]):
    """Takes jobs one at a time from a queue of its choice: one durable per filter, made on demand, left to expire."""

    def __init__(self, bus: Bus, subject: Subject[T]) -> None:
        self.bus, self.subject = bus, subject
        self._made: set[str] = set()
        self._turn = anyio.Lock()
        self._inbox, self._pulls = "", 0
        self._pulling: _Pull | None = None

    async def waiting(self) -> list[dict[str, str]]:
        """The tokens of every job in the stream, held ones too. Strays nobody could ever take become dead letters.

        Raises Retry."""
        stream = self.subject.stream or ""
        found = []
        root = self.subject.filter().split("*")[0] + ">"
        for full in await self.bus.waiting(stream, root):
            if self.subject.matches(full):
                found.append(self.subject.parse(full))
            else:
                await self._dead_letter(stream, full)
        return found

    async def _dead_letter(self, stream: str, full: str) -> None:
        if (raw := await self.bus.raw(stream, full)) is None:
            return
        stray = Msg(_client=self.bus.nc, subject=full, data=raw.payload)
        why = f"not a {self.subject.template}"
        try:
            await dead_letter(self.bus, stream.lower(), "bad_subject", digest_id(full), stray, why)
            await self.bus.js.delete_msg(stream, raw.seq)
        except (*NOT_NOW, APIError, DarkroomError) as error:  # somebody else was quicker, or it is seen again
            log.info("stray not removed", subject=full, error=str(error))

    async def oldest(self, **tokens: str) -> int | None:
        """The sequence of the oldest job on a filter, or None. Raises Retry."""
        raw = await self.bus.raw(self.subject.stream or "", self.subject.filter(**tokens), seq=1)
        return raw.seq if raw else None

    async def take(self, *, announced: bool = False, **tokens: str) -> Msg | None:
        """One job on a filter, or None when none is free (held ones are not). The caller must `process` it.

        One that was `announced`, and is perhaps not stored yet, is waited for, for a moment. Raises Retry when the bus
        does not answer."""
        stream, name = self.subject.stream or "", "-".join([self.subject.stream or "", *tokens.values()]).lower()
        for _ in range(2):
            if name not in self._made:
                wanted = durable(self.bus, name, self.subject.filter(**tokens), inactive=600.0)
                await ensure_consumer(self.bus, stream, wanted)
                self._made.add(name)
            message = await self._pull(stream, name, _PARKED_SECONDS if announced else 0.0)
            if is_job(message):
                return message
            if (message.headers or {}).get("Status") in ("404", "408"):
                return None
            self._made.discard(name)  # it expired while nobody used it, or was deleted
        raise Retry(f"the bus has no consumer {name}")

    async def _pull(self, stream: str, name: str, parked: float) -> Msg:
        """Ask once, and let the question wait at the server for `parked` seconds; the answer is a job or a status.
        Raises Retry."""
        ask = {"batch": 1, "expires": int(parked * 1e9)} if parked else {"batch": 1, "no_wait": True}
        async with self._turn:
            if not self._inbox:
                self._inbox = self.bus.nc.new_inbox()
                await self.bus.nc.subscribe(f"{self._inbox}.*", cb=self._arrived)
                self.bus.on_reconnect.add(self._lost)
            if not self.bus.nc.is_connected:
                raise Retry("the bus is away")
            self._pulls += 1
            pull = self._pulling = _Pull(f"{self._inbox}.{self._pulls}", name)
            try:
                subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}"
                await self.bus.nc.publish(subject, encode(ask), reply=pull.inbox)
                with anyio.move_on_after(parked + _PULL_SECONDS):
                    await pull.answered.wait()
            except anyio.get_cancelled_exc_class():
                with anyio.CancelScope(shield=True), suppress(nats.errors.Error):
                    with anyio.move_on_after(parked):  # a job it gets here would be held for its whole lease
                        await pull.answered.wait()
                    if pull.answer and is_job(pull.answer):
                        await pull.answer.nak()
                raise
            finally:
                self._pulling = None
        if pull.answer is None:
            self._made.discard(name)  # 2.9 answers nothing where a durable is gone
            raise Retry(f"the bus did not answer a pull on {stream}")
        return pull.answer

    async def _arrived(self, message: Msg) -> None:
        """An answer to a pull. A job that comes too late, when nobody waits for it any more, goes straight back."""
        pull = self._pulling
        if pull is None or pull.answer is not None:
            ours = False
        elif is_job(message):
            ours = message.metadata.consumer == pull.name
        else:
            ours = message.subject == pull.inbox
        if ours and pull:
            pull.answer = message
            pull.answered.set()
        elif is_job(message):
            await message.nak()

    def _lost(self) -> None:
        """The connection was another one when we asked."""
        if self._pulling:
            self._pulling.answered.set()


def was_last(message: Msg) -> bool:
    """Did the queue hold no other free job when this one was handed over? (One put back meanwhile does not count.)"""
    return message.metadata.num_pending == 0


async def enqueue(
    bus: Bus, subject: Subject[T], payload: T, *, release: Release = nothing_begun, **tokens: str
) -> None:
    """Put a job into its queue, waiting for room; one that is there already is fine. `release` gives back the attempt
    at the job it comes of, when there is no room now. Raises TooLarge, Retry."""
    name, data = subject(**tokens), encode(payload)
    try:
        try:
            await bus.publish_raw(name, data)
        except Full as error:
            await release(str(error))
            await bus.publish_raw(name, data, wait=True)
    except Taken:
        log.debug("job is queued already", subject=subject(**tokens))
