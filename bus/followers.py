"""Followers: a durable consumer that reads stored facts in order, a batch at a time; what can't be applied becomes a
dead letter."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
import anyio.abc
import nats.errors
import structlog
from anyio.streams.memory import MemoryObjectReceiveStream
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig, DeliverPolicy
from nats.js.errors import APIError, NotFoundError

from bus.client import NO_STREAM, NOT_NOW, Bus, encode
from bus.dead_letters import dead_letter
from bus.errors import Retry, Undecodable
from bus.ids import digest_id
from bus.pull import Puller, durable, ensure_consumer
from bus.subjects import DEAD, Subject

log = structlog.get_logger()


_LONGEST_PAUSE = 30.0


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

    One follower of a name at a time. What a lost connection swallowed would come again after newer facts, and what a
    blocked loop held too long would come twice: so the deliveries are counted, and where one is missing the durable is
    made again after the last fact that was applied.
    """
    consumer = durable(bus, name, pattern, max_ack_pending=batch * 4)
    follower = _Follower(bus, stream, rows, consumer, handle)
    while True:
        await follower.begin(afresh)
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

    async def begin(self, afresh: int | None) -> None:
        """Begin after the last fact that was applied here, or acknowledged before. Waits for the server.

        What a killed follower held would come again only when its leases end, and after newer facts: so its durable is
        made again where it stopped. (A kill between the two steps makes it read all again: that changes nothing.)
        """
        while True:
            try:
                self.due = await self._begin(afresh)
                return
            except (*NOT_NOW, APIError, Retry) as error:
                if isinstance(error, APIError) and error.err_code == NO_STREAM:
                    await self.bus.mend()
                log.warning("the bus did not answer yet", stream=self.stream, error=str(error))
                await anyio.sleep(0.5)

    async def _begin(self, afresh: int | None) -> int:
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
                    keep = partial(dead_letter, self.bus, "fact", "undecodable", id, message, str(error))
                    await self._until_done(keep)
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


_WHY_LENGTH = 1000


async def dead_letter_fact(bus: Bus, fact: Fact, error: Exception) -> None:
    """Make a dead letter of a fact; the same words again are the same letter. Raises Retry."""
    id, why = digest_id(fact.row.template, encode(fact.payload)), " ".join(str(error).split())[:_WHY_LENGTH]
    log.error("impossible fact", fact=fact.row.template, error=why)
    subject = DEAD(kind="fact", reason="impossible", id=id)
    await bus.publish_raw(subject, encode(fact.payload), msg_id=id, headers={"Darkroom-Error": why})
