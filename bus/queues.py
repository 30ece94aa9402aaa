"""Taking messages off streams: work queues, followers of facts, and picking from many queues."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

import anyio
import anyio.abc
import nats.errors
import structlog
from anyio.streams.memory import MemoryObjectReceiveStream
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig, DeliverPolicy
from nats.js.errors import APIError, NotFoundError

from bus.client import NO_STREAM, NOT_NOW, Bus, encode
from bus.errors import DarkroomError, Retry, Taken, Undecodable
from bus.ids import digest_id
from bus.pull import Puller, durable, ensure_consumer, is_job
from bus.subjects import Subject
from bus.worker import Work, dead_letter, process

log = structlog.get_logger()

T = TypeVar("T")

_LONGEST_PAUSE = 30.0
_PULL_SECONDS = 1.0


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
    """Work a queue off: `concurrency` jobs side by side, `window` pulled ahead. Ready when the first pull is out."""
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


@dataclass(frozen=True)
class Fact:
    """One stored fact as a follower gets it."""

    row: Subject[Any]
    payload: Any
    seq: int


Apply = Callable[[list[Fact]], Awaitable[None]]


async def follow(
    bus: Bus,
    stream: str,
    rows: tuple[Subject[Any], ...],
    name: str,
    handle: Apply,
    *,
    pattern: str,
    batch: int = 256,
    afresh: int | None = None,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Read a stream of facts in order, in batches, from where this durable stopped. Ready when the first pull is out.

    `handle` gets facts it has not acknowledged before (after a kill: perhaps again) and must apply them all or raise.
    What it raises is tried again, in order, for ever: a fact is never skipped, except one that can't be decoded, which
    goes to the dead letters. `afresh` forgets where the durable stopped and reads the stream from that sequence on, or
    all of it where it is shorter.

    One follower of a name at a time. What a lost connection swallowed would come again behind newer facts, and what a
    blocked loop held too long would come twice: so the deliveries are counted, and where one is missing the durable is
    made again behind the last fact that was applied.
    """
    consumer = durable(bus, name, pattern, max_ack_pending=batch * 4)
    follower = _Follower(bus, stream, rows, consumer, handle)
    while True:
        await follower.take_up(afresh)
        puller = Puller(bus, stream, consumer, batch * 2)
        async with puller.messages() as messages:
            task_status.started()
            task_status, afresh = anyio.TASK_STATUS_IGNORED, None
            while await follower.apply_some(puller, await _batch(messages, batch)):
                pass
        log.warning("deliveries missed, facts taken up again", stream=stream, follower=name, after=follower.applied)


async def _batch(messages: MemoryObjectReceiveStream[Msg], most: int) -> list[Msg]:
    """What waits, at least one."""
    taken = [await messages.receive()]
    while len(taken) < most:
        try:
            taken.append(messages.receive_nowait())
        except anyio.WouldBlock:
            break
    return taken


@dataclass
class _Follower:
    """Where a follower is: the stream's sequence applied last (0: none yet), and the number of the delivery due."""

    bus: Bus
    stream: str
    rows: tuple[Subject[Any], ...]
    consumer: ConsumerConfig
    handle: Apply
    applied: int = 0
    due: int = 1
    born: object = None

    async def take_up(self, afresh: int | None) -> None:
        """Begin after the last fact that was applied here, or acknowledged before. Waits for the server.

        What a killed follower held would come again only when its leases end, and behind newer facts: so its durable is
        made again where it stopped. (A kill between the two steps makes it hear all again: that changes nothing.)
        """
        while True:
            try:
                self.due = await self._take_up(afresh)
                return
            except (*NOT_NOW, APIError, Retry) as error:
                if isinstance(error, APIError) and error.err_code == NO_STREAM:
                    await self.bus.mend()
                log.warning("the bus did not answer yet", stream=self.stream, error=str(error))
                await anyio.sleep(0.5)

    async def _take_up(self, afresh: int | None) -> int:
        js, name, start = self.bus.js, self.consumer.durable_name or "", 0
        stream = await js.stream_info(self.stream)
        born = stream.created
        if born != self.born:  # a stream that was deleted and made again counts from one
            self.born, self.applied = born, 0
        with suppress(NotFoundError):
            info = await js.consumer_info(self.stream, name)
            if not (afresh is not None or self.applied or info.num_ack_pending):
                return (info.delivered.consumer_seq if info.delivered else 0) + 1
            start = (info.ack_floor.stream_seq if info.ack_floor else 0) + 1
            await js.delete_consumer(self.stream, name)
        if afresh is not None:
            start = afresh if afresh <= stream.state.last_seq + 1 else 1
        consumer, start = self.consumer, self.applied + 1 if self.applied else start
        if start > 1:
            consumer = consumer.evolve(deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=start)
        await ensure_consumer(self.bus, self.stream, consumer)
        return 1

    async def apply_some(self, puller: Puller, taken: list[Msg]) -> bool:
        """Apply facts and acknowledge them; False when a delivery is missing, and those from there on are left."""
        try:
            good, newest, facts = self._contiguous(taken), self.applied, []
            for message in good:
                if (seq := message.metadata.sequence.stream) > newest:  # else it is delivered again
                    newest = seq
                    facts += await self._decoded(message, seq)
            if facts:
                await self._until_done(lambda: self.handle(facts))
            self.applied = newest
            for message in good:
                with suppress(nats.errors.Error):  # then it comes again, and is known
                    await message.ack()
            return len(good) == len(taken)
        finally:
            for message in taken:
                puller.release(message)

    def _contiguous(self, taken: list[Msg]) -> list[Msg]:
        for index, message in enumerate(taken):
            if message.metadata.sequence.consumer != self.due:
                return taken[:index]
            self.due += 1
        return taken

    async def _decoded(self, message: Msg, seq: int) -> list[Fact]:
        for row in self.rows:
            if row.matches(message.subject):
                try:
                    return [Fact(row, row.decode(message.data), seq)]
                except Undecodable as error:
                    id = digest_id(message.subject, seq)
                    bury = partial(dead_letter, self.bus, "fact", "undecodable", id, message, str(error))
                    await self._until_done(bury)
        return []

    async def _until_done(self, step: Callable[[], Awaitable[None]]) -> None:
        pause = self.bus.settings.retry_delay
        while True:
            try:
                await step()
                return
            except Exception:
                log.exception("not applied, trying again", stream=self.stream, follower=self.consumer.durable_name)
                await anyio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)


@dataclass
class _Pull:
    """One question for one job: where its answer comes, and of which durable."""

    inbox: str
    name: str
    answer: Msg | None = None
    answered: anyio.Event = field(default_factory=anyio.Event)


class Picker(Generic[T]):
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
                await self._bury(stream, full)
        return found

    async def _bury(self, stream: str, full: str) -> None:
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

    async def take(self, **tokens: str) -> Msg | None:
        """One job on a filter, or None when none is free (held ones are not). The caller must `process` it.

        Raises Retry when the bus does not answer."""
        stream, name = self.subject.stream or "", "-".join([self.subject.stream or "", *tokens.values()]).lower()
        for _ in range(2):
            if name not in self._made:
                wanted = durable(self.bus, name, self.subject.filter(**tokens), inactive=600.0)
                await ensure_consumer(self.bus, stream, wanted)
                self._made.add(name)
            message = await self._pull(stream, name)
            if is_job(message):
                return message
            if (message.headers or {}).get("Status") == "404":
                return None
            self._made.discard(name)  # it expired while nobody used it, or was deleted
        raise Retry(f"the bus has no consumer {name}")

    async def _pull(self, stream: str, name: str) -> Msg:
        """Ask once without waiting; the answer is a job or a status. Raises Retry."""
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
                await self.bus.nc.publish(subject, b'{"batch":1,"no_wait":true}', reply=pull.inbox)
                with anyio.move_on_after(_PULL_SECONDS):
                    await pull.answered.wait()
            except anyio.get_cancelled_exc_class():
                if pull.answer and is_job(pull.answer):
                    with anyio.CancelScope(shield=True), suppress(nats.errors.Error):
                        await pull.answer.nak()
                raise
            finally:
                self._pulling = None
        if pull.answer is None:
            self._made.discard(name)  # 2.9 says nothing where a durable is gone
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


async def enqueue(bus: Bus, subject: Subject[T], payload: T, **tokens: str) -> None:
    """Put a job into its queue, waiting for room; one that is there already is fine. Raises TooLarge, Retry."""
    try:
        await bus.publish_raw(subject(**tokens), encode(payload), wait=True)
    except Taken:
        log.debug("job is queued already", subject=subject(**tokens))
