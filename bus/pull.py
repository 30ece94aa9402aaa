"""Pulling messages ahead of the work: durables made and kept in line, and the loop that keeps messages coming."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import anyio
import anyio.abc
import nats.errors
import structlog
from anyio.streams.memory import MemoryObjectReceiveStream
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import APIError, NotFoundError

from bus.client import NO_STREAM, NOT_NOW, Bus
from bus.errors import Retry

log = structlog.get_logger()

_IDLE_HEARTBEAT = 2.0
_PULL_EXPIRES = 30.0
_PAUSE = 0.5
_MAX_WAITING = 512
_GIVE_BACK_DELAY = 0.2
"""Seconds. Not at once: 2.9 would hand it to our own pull, which is open for another moment."""
_KEPT_IN_LINE = ("ack_wait", "filter_subject", "max_ack_pending")


def is_job(message: Msg) -> bool:
    """Is this a message of a stream, and no status of the server's?"""
    return message.reply.startswith("$JS.ACK")


async def ensure_consumer(bus: Bus, stream: str, wanted: ConsumerConfig) -> None:
    """Create a durable, or bring an existing one's changed settings in line (subscribing alone would ignore them).

    Raises Retry when the server does not answer, or its stream is gone (which is made again for the next try)."""
    try:
        try:
            have = (await bus.js.consumer_info(stream, wanted.durable_name or "")).config
        except NotFoundError:
            await bus.js.add_consumer(stream, wanted)
            return
        changed = {key: getattr(wanted, key) for key in _KEPT_IN_LINE if getattr(have, key) != getattr(wanted, key)}
        if changed:
            await bus.js.add_consumer(stream, have.evolve(**changed))
    except (*NOT_NOW, APIError) as error:
        if isinstance(error, APIError) and error.err_code == NO_STREAM:
            await bus.mend()
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
        max_waiting=_MAX_WAITING,
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
    latest: float = 0.0
    wake: anyio.Event = field(default_factory=anyio.Event)

    @asynccontextmanager
    async def messages(self) -> AsyncIterator[MemoryObjectReceiveStream[Msg]]:
        """Messages as they come; call `release` once for each when it is decided."""
        send, receive = anyio.create_memory_object_stream[Msg](float("inf"))

        async def arrived(message: Msg) -> None:
            self.latest = anyio.current_time()
            if not is_job(message):
                self._refused(message)
                return
            self.asked = max(0, self.asked - 1)  # one asked for before a reconnect is in no count
            self.held += 1
            self.bus.leases[message.reply] = message
            send.send_nowait(message)
            if self.asked <= self.window // 2:
                self.wake.set()

        with send, receive:
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
                with anyio.CancelScope(shield=True), anyio.move_on_after(3), suppress(nats.errors.Error):
                    await subscription.unsubscribe()
                with anyio.CancelScope(shield=True), anyio.move_on_after(3):
                    await self._give_back(receive)

    async def _give_back(self, receive: MemoryObjectReceiveStream[Msg]) -> None:
        while True:
            try:
                waiting = receive.receive_nowait()
            except (anyio.WouldBlock, anyio.EndOfStream):
                return
            self.release(waiting)
            with suppress(nats.errors.Error):  # then its lease runs out
                await waiting.nak(delay=_GIVE_BACK_DELAY)

    def release(self, message: Msg) -> None:
        """A message was decided: its place in the window is free."""
        self.bus.leases.pop(message.reply, None)
        self.held -= 1
        if self.asked <= self.window // 2:
            self.wake.set()

    def _again(self) -> None:
        self.asked = 0
        self.wake.set()

    def _refused(self, message: Msg) -> None:
        headers = message.headers or {}
        status = headers.get("Status", "")
        if status == "100":  # idle heartbeat
            return
        left = int(headers.get("Nats-Pending-Messages", self.asked))
        self.asked = max(0, self.asked - left) if status in ("404", "408") else 0
        if status not in ("404", "408"):
            self.latest = 0.0  # refused: look at the consumer before asking again
            log.info("pull refused", stream=self.stream, status=headers.get("Description", status))
        self.wake.set()

    async def _ensure(self) -> None:
        while True:
            try:
                await ensure_consumer(self.bus, self.stream, self.consumer)
            except Retry as error:
                log.warning("no consumer yet", stream=self.stream, error=str(error))
                await anyio.sleep(_PAUSE)
            else:
                self.latest = anyio.current_time()
                return

    async def _keep_asking(self, inbox: str) -> None:
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self.stream}.{self.consumer.durable_name}"
        looked = 0.0
        while True:
            self.wake = anyio.Event()  # before looking, so that nothing set meanwhile is missed
            refused, now = self.latest == 0.0, anyio.current_time()
            if refused or (self.asked and now - self.latest > 2.5 * _IDLE_HEARTBEAT):
                await anyio.sleep(max(0.0, looked + _PAUSE - now) if refused else 0.0)  # it may refuse again at once
                looked, self.asked = anyio.current_time(), 0
                await self._ensure()
            room = self.window - self.held - self.asked
            if room > 0 and self.asked <= self.window // 2 and self.bus.nc.is_connected:
                self.asked += room
                ask = {"batch": room, "expires": int(_PULL_EXPIRES * 1e9), "idle_heartbeat": int(_IDLE_HEARTBEAT * 1e9)}
                await self.bus.nc.publish(subject, json.dumps(ask).encode(), reply=inbox)
            with anyio.move_on_after(_IDLE_HEARTBEAT):
                await self.wake.wait()
