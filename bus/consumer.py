"""Taking messages off streams: the pull-ahead loop, work queues, followers of facts, and picking from many queues."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import anyio
import anyio.abc
import nats.errors
import structlog
from anyio.streams.memory import MemoryObjectReceiveStream
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import APIError, NotFoundError

from bus.client import Bus, encode
from bus.errors import Retry, Taken, Undecodable
from bus.ids import digest_id
from bus.subjects import Subject
from bus.work import Work, dead_letter, process

log = structlog.get_logger()

T = TypeVar("T")

_IDLE_HEARTBEAT = 2.0
_PULL_EXPIRES = 30.0


async def ensure_consumer(bus: Bus, stream: str, wanted: ConsumerConfig) -> None:
    """Create a durable, or bring an existing one's changed settings in line (subscribing alone would ignore them).

    Raises Retry when the server does not answer or its stream is gone (it is made again at the next connect)."""
    try:
        have = (await bus.js.consumer_info(stream, wanted.durable_name or "")).config
        same = all(
            getattr(have, name) == getattr(wanted, name) for name in ("ack_wait", "filter_subject", "max_ack_pending")
        )
        if same:
            return
    except NotFoundError:
        pass
    except (nats.errors.TimeoutError, nats.errors.NoRespondersError) as error:
        raise Retry(f"the bus did not answer about {stream}") from error
    try:
        await bus.js.add_consumer(stream, wanted)
    except (nats.errors.TimeoutError, nats.errors.NoRespondersError, APIError) as error:
        raise Retry(f"no consumer {wanted.durable_name} on {stream}: {error}") from error


def durable(
    bus: Bus, name: str, pattern: str, *, max_ack_pending: int = 10_000, inactive: float | None = None
) -> ConsumerConfig:
    """A pull consumer with explicit acks that never gives up by itself: attempts are counted elsewhere."""
    return ConsumerConfig(
        durable_name=name,
        filter_subject=pattern,
        deliver_policy=DeliverPolicy.ALL,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=bus.settings.ack_wait,
        max_deliver=-1,
        max_ack_pending=max_ack_pending,
        max_waiting=512,
        inactive_threshold=inactive,
    )


@dataclass
class Puller:
    """The pull-ahead loop of one durable: keeps up to `window` messages coming, leased while they wait here.

    Pulls are not restored by a reconnect, and a deleted consumer answers nothing: so pulls are issued again on
    reconnect, on any refusal, and whenever the server's idle heartbeats stop.
    """

    bus: Bus
    stream: str
    consumer: ConsumerConfig
    window: int
    held: int = 0
    asked: int = 0
    heard: float = 0.0
    wake: anyio.Event = field(default_factory=anyio.Event)

    @asynccontextmanager
    async def messages(self) -> AsyncIterator[MemoryObjectReceiveStream[Msg]]:
        """Messages as they come; call `release` once for each when it is decided."""
        send, receive = anyio.create_memory_object_stream[Msg](float("inf"))

        async def arrived(message: Msg) -> None:
            self.heard = anyio.current_time()
            if (status := (message.headers or {}).get("Status")) and not message.reply.startswith("$JS.ACK"):
                self._refused(status, message)
                return
            self.asked -= 1
            self.held += 1
            self.bus.leases[message.reply] = message
            send.send_nowait(message)
            if self.asked <= self.window // 2:
                self.wake.set()

        await self._ensure()
        inbox = self.bus.nc.new_inbox()
        subscription = await self.bus.nc.subscribe(inbox, cb=arrived, pending_msgs_limit=-1, pending_bytes_limit=-1)
        self.bus.on_reconnect.add(self._again)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._keep_asking, inbox)
                yield receive
                tasks.cancel_scope.cancel()
        finally:
            self.bus.on_reconnect.discard(self._again)
            with anyio.CancelScope(shield=True), anyio.move_on_after(3):
                if not self.bus.nc.is_closed:
                    await subscription.unsubscribe()
                send.close()
                while True:
                    try:
                        waiting = receive.receive_nowait()
                    except (anyio.WouldBlock, anyio.EndOfStream):
                        break
                    self.bus.leases.pop(waiting.reply, None)
                    await waiting.nak()
                receive.close()

    def release(self, message: Msg) -> None:
        """A message was decided: its place in the window is free."""
        self.bus.leases.pop(message.reply, None)
        self.held -= 1
        if self.asked <= self.window // 2:
            self.wake.set()

    def _again(self) -> None:
        self.asked = 0
        self.wake.set()

    def _refused(self, status: str, message: Msg) -> None:
        if status == "100":  # idle heartbeat
            return
        left = int((message.headers or {}).get("Nats-Pending-Messages", self.asked))
        self.asked = max(0, self.asked - left) if status in ("404", "408") else 0
        if status not in ("404", "408"):
            self.heard = 0.0  # refused: look at the consumer before asking again
            log.info("pull refused", stream=self.stream, status=(message.headers or {}).get("Description", status))
        self.wake.set()

    async def _ensure(self) -> None:
        while True:
            try:
                await ensure_consumer(self.bus, self.stream, self.consumer)
            except Retry as error:
                log.warning("no consumer yet", stream=self.stream, error=str(error))
                await anyio.sleep(0.5)
            else:
                self.heard = anyio.current_time()
                return

    async def _keep_asking(self, inbox: str) -> None:
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self.stream}.{self.consumer.durable_name}"
        while True:
            self.wake = anyio.Event()  # before looking, so that nothing said meanwhile is missed
            silent = anyio.current_time() - self.heard > 2.5 * _IDLE_HEARTBEAT
            if (self.asked and silent) or self.heard == 0.0:
                self.asked = 0
                await self._ensure()
            room = self.window - self.held - self.asked
            if room > 0 and self.asked <= self.window // 2 and self.bus.nc.is_connected:
                self.asked += room
                ask = {"batch": room, "expires": int(_PULL_EXPIRES * 1e9), "idle_heartbeat": int(_IDLE_HEARTBEAT * 1e9)}
                await self.bus.nc.publish(subject, json.dumps(ask).encode(), reply=inbox)
            with anyio.move_on_after(_IDLE_HEARTBEAT):
                await self.wake.wait()


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


async def follow(
    bus: Bus,
    stream: str,
    rows: tuple[Subject[Any], ...],
    name: str,
    handle: Callable[[list[Fact]], Awaitable[None]],
    *,
    pattern: str,
    batch: int = 256,
    afresh: bool = False,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Read a stream of facts in order, in batches, from where this durable stopped. Ready when the first pull is out.

    `handle` gets facts it has not acknowledged before (after a kill: perhaps again) and must apply them all or raise.
    What it raises is tried again, in order, for ever: a fact is never skipped, except one that can't be decoded, which
    goes to the dead letters. `afresh` forgets where the durable stopped and reads the stream from its beginning.
    """
    consumer = durable(bus, name, pattern, max_ack_pending=batch * 4)
    await _take_up(bus, stream, consumer, afresh)
    puller = Puller(bus, stream, consumer, batch * 2)
    async with puller.messages() as messages:
        task_status.started()
        while True:
            taken = [await messages.receive()]
            while len(taken) < batch:
                try:
                    taken.append(messages.receive_nowait())
                except anyio.WouldBlock:
                    break
            facts = [fact for message in taken if (fact := await _fact(bus, rows, message)) is not None]
            pause = bus.settings.retry_delay
            while facts:
                try:
                    await handle(facts)
                    break
                except Exception:
                    log.exception("facts not applied, trying again", stream=stream, follower=name, facts=len(facts))
                    await anyio.sleep(pause)
                    pause = min(pause * 2, 30.0)
            for message in taken:
                await message.ack()
                puller.release(message)


async def _take_up(bus: Bus, stream: str, consumer: ConsumerConfig, afresh: bool) -> None:
    """Begin after the last fact that was acknowledged.

    What a killed follower held would come again only when its leases end, and behind newer facts: so its durable is
    made again where it stopped. (A kill between the two steps makes it hear everything again: that changes nothing.)
    """
    name = consumer.durable_name or ""
    while True:
        try:
            info = await bus.js.consumer_info(stream, name)
            if not (afresh or info.num_ack_pending):
                return
            await bus.js.delete_consumer(stream, name)
            if not afresh:
                start = (info.ack_floor.stream_seq if info.ack_floor else 0) + 1
                again = consumer.evolve(deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=start)
                await bus.js.add_consumer(stream, again)
        except NotFoundError:
            return
        except (nats.errors.TimeoutError, nats.errors.NoRespondersError, APIError) as error:
            log.warning("the bus did not answer yet", stream=stream, error=str(error))
            await anyio.sleep(0.5)
        else:
            return


async def _fact(bus: Bus, rows: tuple[Subject[Any], ...], message: Msg) -> Fact | None:
    row = next((row for row in rows if row.matches(message.subject)), None)
    if row is None:
        return None
    try:
        return Fact(row, row.decode(message.data), message.metadata.sequence.stream)
    except Undecodable as error:
        await dead_letter(bus, "fact", "undecodable", digest_id(message.subject), message, str(error))
        return None


class Picker(Generic[T]):
    """Takes jobs one at a time from a queue of its choice: one durable per filter, made on demand, left to expire."""

    def __init__(self, bus: Bus, subject: Subject[T]) -> None:
        self.bus, self.subject = bus, subject
        self._made: set[str] = set()
        self._turn = anyio.Lock()

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
        await dead_letter(
            self.bus, stream.lower(), "bad_subject", digest_id(full), stray, f"not a {self.subject.template}"
        )
        await self.bus.js.delete_msg(stream, raw.seq)

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
            message = await self._pull(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}")
            if message.reply.startswith("$JS.ACK"):
                return message
            if (message.headers or {}).get("Status") == "404":
                return None
            self._made.discard(name)  # it expired while nobody used it, or was deleted
        raise Retry(f"the bus has no consumer {name}")

    async def _pull(self, subject: str) -> Msg:
        """Ask once without waiting; the answer is a job or a status. A job that comes too late goes straight back."""
        answer: list[Msg] = []
        answered = anyio.Event()

        async def arrived(message: Msg) -> None:
            if answered.is_set():
                if message.reply.startswith("$JS.ACK"):
                    await message.nak()
                return
            answer.append(message)
            answered.set()

        inbox = self.bus.nc.new_inbox()
        async with self._turn:
            subscription = await self.bus.nc.subscribe(inbox, cb=arrived)
            try:
                await self.bus.nc.publish(subject, b'{"batch":1,"no_wait":true}', reply=inbox)
                with anyio.move_on_after(3):
                    await answered.wait()
            finally:
                answered.set()
                if not self.bus.nc.is_closed:
                    await subscription.unsubscribe()
        if not answer:
            raise Retry(f"the bus did not answer a pull on {self.subject.stream}")
        return answer[0]


async def enqueue(bus: Bus, subject: Subject[T], payload: T, **tokens: str) -> None:
    """Put a job into its queue, waiting for room; one that is there already is fine. Raises TooLarge, Retry."""
    try:
        await bus.publish_raw(subject(**tokens), encode(payload), wait=True)
    except Taken:
        log.debug("job is queued already", subject=subject(**tokens))
