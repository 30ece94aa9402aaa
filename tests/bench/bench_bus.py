"""One hop over the bus, and how much goes through it, against bare nats-py on the same server in the same run.

A hop is from before the publish to the handler's first line, one message at a time with the reader waiting for it; the
server syncs every message to disk before it answers, for both sides. What is compared:

  fact   Darkroom's `follow` (encoded, with trace and message id, decoded again) against two bare readers of the same
         bytes: a `fetch(1)` loop, and the quickest we could write, a pull of many that a callback answers.
         Budget: at most 2 × the `fetch(1)` loop.
  job    Darkroom's `serve`: before a handler sees a job, its result is looked up, its attempts are counted, and the new
         attempt is stored, durably. Against the `fetch(1)` loop, which does nothing of it (so that one sees what the
         promises cost), and against the same three requests written by hand after a `fetch(1)`. Budget: at most 2 ×
         the latter.

Through it: messages a second published side by side, and read and acknowledged. No budget.
"""

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from statistics import median

import anyio
import anyio.abc
import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig
from nats.js.errors import NotFoundError

from bus.client import Bus, connect, encode
from bus.followers import Fact, follow
from bus.ids import new_id
from bus.queues import serve
from bus.results import ended
from bus.server import local_server
from bus.streams import config, topology
from bus.subjects import FILE_REMOVED, PREFIX, PREPARE
from bus.worker import Delivery, Work
from schemas.files import FilePath, Removed
from schemas.jobs import Request
from schemas.settings import BusSettings
from tests.bench.figures import Figure, milliseconds, p50, p99, ratios

HOPS = 300
PAUSE = 0.002
"""Seconds between two hops, in which readers ask for the next message."""
ROUNDS = 5
PUBLISHED, AT_ONCE = 1000, 200
READ, WORKED, SIDE_BY_SIDE = 2000, 200, 8
STORE = 1024**3
SETTINGS = BusSettings(store_bytes=STORE // 2)
"""Half of the store for Darkroom's streams, so that the bare ones fit beside them."""

Hop = Callable[[], Awaitable[float]]


class Entered:
    """When a handler was entered, told to whoever waits for it."""

    def __init__(self) -> None:
        self.at, self.event = 0.0, asyncio.Event()

    def now(self) -> None:
        self.at = time.perf_counter()
        self.event.set()


async def figures(folder: Path) -> list[Figure]:
    """Run it all on a server of its own."""
    with local_server(folder / "nats", port=0, store_bytes=STORE) as server:
        async with (
            connect(server.url, SETTINGS, name="reader") as reader,
            connect(server.url, SETTINGS, name="writer") as writer,
            bare_client(server.url) as bare_reader,
            bare_client(server.url) as bare_writer,
        ):
            await bare_streams(bare_reader.jetstream())
            hops = await measured_hops(reader, writer, bare_reader, bare_writer)
            published = await measured_publishing(writer, bare_writer)
            read = await measured_reading(reader, bare_reader)
            worked = await measured_working(reader, writer, bare_reader, bare_writer)
    return [*hops, *published, *read, *worked]


@asynccontextmanager
async def bare_client(url: str) -> AsyncIterator[Client]:
    """nats-py as it comes."""
    client = await nats.connect(url)
    try:
        yield client
    finally:
        await client.close()


async def bare_streams(js: JetStreamContext) -> None:
    """Darkroom's own stream of facts and its queue once more, under names of their own."""
    for stream in topology(SETTINGS):
        if stream.name in ("FILES", "PREPARE"):
            await js.add_stream(
                config(stream, STORE // 2).evolve(name=f"BARE_{stream.name}", subjects=[f"{stream.name}.>"])
            )


def a_fact() -> Removed:
    """A fact of ordinary size."""
    return Removed(key=new_id(), path=FilePath(root="models", rel="some/folder/model.safetensors"), at=time.time())


async def measured_hops(reader: Bus, writer: Bus, bare_reader: Client, bare_writer: Client) -> list[Figure]:
    """All kinds of hops in turns, one at a time."""
    taken: dict[str, list[float]] = {}
    async with anyio.create_task_group() as tasks:
        hops = {
            "fetch": await bare_fetch(tasks, bare_reader.jetstream(), bare_writer.jetstream()),
            "callback": await bare_callback(bare_reader, bare_writer.jetstream()),
            "follow": await followed(tasks, reader, writer),
            "fetch a job": await bare_worker(tasks, bare_reader.jetstream(), bare_writer.jetstream(), steps=False),
            "same steps": await bare_worker(tasks, bare_reader.jetstream(), bare_writer.jetstream(), steps=True),
            "serve": await served(tasks, reader, writer),
        }
        for turn in range(HOPS + 10):
            for name, hop in hops.items():
                seconds = await hop()
                if turn >= 10:  # the first ones make connections, caches and files warm
                    taken.setdefault(name, []).append(seconds)
                await asyncio.sleep(PAUSE)
        tasks.cancel_scope.cancel()
    aside = {name: f"{name} {milliseconds(values)}" for name, values in taken.items()}

    def compared(what: str, one: str, other: str, budget: float | None) -> Figure:
        value = p50(taken[one]) / p50(taken[other])
        return Figure(what=what, value=value, at_most=budget, aside=f"p50/p99: {aside[one]}, {aside[other]}")

    return [
        compared("fact hop p50: follow / bare fetch(1)", "follow", "fetch", 2.0),
        Figure(what="fact hop p99: follow / bare fetch(1)", value=p99(taken["follow"]) / p99(taken["fetch"])),
        compared("fact hop p50: follow / bare callback", "follow", "callback", None),
        compared("job hop p50: serve / bare with the same steps", "serve", "same steps", 2.0),
        Figure(
            what="job hop p99: serve / bare with the same steps", value=p99(taken["serve"]) / p99(taken["same steps"])
        ),
        compared("job hop p50: serve / bare fetch(1)", "serve", "fetch a job", None),
    ]


async def bare_fetch(tasks: anyio.abc.TaskGroup, js: JetStreamContext, writer: JetStreamContext) -> Hop:
    """The loop of nats-py's own examples."""
    entered = Entered()
    subscription = await js.pull_subscribe("FILES.fetch", "fetch", "BARE_FILES")

    async def reading() -> None:
        while True:
            for message in await subscription.fetch(1, timeout=60):
                entered.now()
                await message.ack()

    tasks.start_soon(reading)
    return bare_hop(entered, lambda: writer.publish("FILES.fetch", encode(a_fact())))


async def bare_callback(client: Client, writer: JetStreamContext) -> Hop:
    """One pull for more messages than come, answered by a callback: nothing is asked for between two of them."""
    entered = Entered()
    wanted = ConsumerConfig(durable_name="callback", filter_subject="FILES.callback", ack_policy=AckPolicy.EXPLICIT)
    await client.jetstream().add_consumer("BARE_FILES", wanted)
    inbox = client.new_inbox()

    async def arrived(message: Msg) -> None:
        if message.reply.startswith("$JS.ACK"):
            entered.now()
            await message.ack()

    await client.subscribe(inbox, cb=arrived)
    ask = b'{"batch":100000,"expires":600000000000}'
    await client.publish("$JS.API.CONSUMER.MSG.NEXT.BARE_FILES.callback", ask, reply=inbox)
    return bare_hop(entered, lambda: writer.publish("FILES.callback", encode(a_fact())))


async def bare_worker(
    tasks: anyio.abc.TaskGroup, js: JetStreamContext, writer: JetStreamContext, *, steps: bool
) -> Hop:
    """A work queue read by `fetch(1)`; with `steps` it asks and stores what Darkroom does before it hands a job over,
    on streams of Darkroom's."""
    entered, kind = Entered(), "steps" if steps else "plain"
    subscription = await js.pull_subscribe(f"PREPARE.{kind}.*", kind, "BARE_PREPARE")

    async def prepared(id: str) -> None:
        with suppress(NotFoundError):
            await js.get_msg("RESULTS", subject=f"{PREFIX}result.{id}")
        await js.stream_info("EVENTS", subjects_filter=f"{PREFIX}evt.attempt.*.bare.{id}")
        await js.publish(f"{PREFIX}evt.attempt.started.bare.{id}", encode(Request(prompt="an attempt")))

    async def reading() -> None:
        while True:
            for message in await subscription.fetch(1, timeout=60):
                if steps:
                    await prepared(message.subject.rsplit(".", 1)[1])
                entered.now()
                await message.ack()

    tasks.start_soon(reading)
    return bare_hop(entered, lambda: writer.publish(f"PREPARE.{kind}.{new_id()}", encode(a_request())))


def a_request() -> Request:
    """A request of ordinary size."""
    return Request(prompt="a lighthouse on a cliff at dawn, gulls, heavy sea", model="tiny", width=512, height=512)


async def followed(tasks: anyio.abc.TaskGroup, reader: Bus, writer: Bus) -> Hop:
    """Darkroom's reader of facts."""
    entered = Entered()

    async def handle(facts: list[Fact]) -> None:
        entered.now()

    await tasks.start(
        functools.partial(follow, reader, "FILES", (FILE_REMOVED,), "hops", handle, pattern=FILE_REMOVED.filter())
    )

    def say() -> Awaitable[object]:
        fact = a_fact()
        return writer.publish(FILE_REMOVED, fact, key=fact.key)

    return bare_hop(entered, say)


async def served(tasks: anyio.abc.TaskGroup, reader: Bus, writer: Bus) -> Hop:
    """Darkroom's worker."""
    entered = Entered()

    async def handle(request: Request, delivery: Delivery) -> None:
        entered.now()

    await tasks.start(functools.partial(serve, reader, work(reader, handle), "hops"))
    return bare_hop(entered, lambda: writer.publish(PREPARE, a_request(), lane="normal", tenant="t0", id=new_id()))


def work(bus: Bus, handle: Callable[[Request, Delivery], Awaitable[None]]) -> Work[Request]:
    """Jobs whose end is looked up as the agents do it."""

    async def give_up(delivery: Delivery, status: str, reason: str, error: str) -> None:
        raise AssertionError(f"{status}: {error}")

    return Work(PREPARE, handle, ended=lambda delivery: ended(bus, delivery.id), give_up=give_up)


def bare_hop(entered: Entered, say: Callable[[], Awaitable[object]]) -> Hop:
    """Publish, wait for the handler and for the acknowledgement; seconds from the one to the other."""

    async def hop() -> float:
        entered.event.clear()
        began = time.perf_counter()
        await say()
        await asyncio.wait_for(entered.event.wait(), 10)
        return entered.at - began

    return hop


async def measured_publishing(writer: Bus, bare: Client) -> list[Figure]:
    """Facts published `AT_ONCE` at a time."""
    js = bare.jetstream()

    def say() -> Awaitable[object]:
        fact = a_fact()
        return writer.publish(FILE_REMOVED, fact, key=fact.key)

    async def gathered(publish: Callable[[], Awaitable[object]]) -> float:
        began = time.perf_counter()
        for _ in range(0, PUBLISHED, AT_ONCE):
            await asyncio.gather(*(publish() for _ in range(AT_ONCE)))
        return PUBLISHED / (time.perf_counter() - began)

    ours, theirs = [], []
    for _ in range(ROUNDS):
        theirs.append(await gathered(lambda: js.publish("FILES.many", encode(a_fact()))))
        ours.append(await gathered(say))
    return [rate("facts published, 200 at once: Darkroom / bare", ours, theirs)]


def rate(what: str, ours: list[float], theirs: list[float]) -> Figure:
    aside = f"{median(ours):,.0f}/s, bare {median(theirs):,.0f}/s"
    return Figure(what=what, value=median(ratios(ours, theirs)), aside=aside)


async def measured_reading(reader: Bus, bare: Client) -> list[Figure]:
    """The first `READ` facts of a stream, read and acknowledged by a new durable each time."""
    ours: list[float] = []
    theirs: dict[int, list[float]] = {1: [], 100: []}
    for turn in range(ROUNDS):
        for size, rates in theirs.items():
            rates.append(await fetched(bare, f"read-{size}-{turn}", size))
        ours.append(await followed_to(reader, f"read-{turn}"))
    return [
        rate("facts read: follow / bare fetch(100)", ours, theirs[100]),
        rate("facts read: follow / bare fetch(1)", ours, theirs[1]),
    ]


async def fetched(bare: Client, name: str, size: int) -> float:
    js = bare.jetstream()
    began, read = time.perf_counter(), 0
    subscription = await js.pull_subscribe("FILES.many", name, "BARE_FILES")
    while read < READ:
        for message in await subscription.fetch(size, timeout=10):
            await message.ack()
            read += 1
    await bare.flush()
    seconds = time.perf_counter() - began
    await subscription.unsubscribe()
    await js.delete_consumer("BARE_FILES", name)
    return READ / seconds


async def followed_to(reader: Bus, name: str) -> float:
    read, enough = 0, anyio.Event()

    async def handle(facts: list[Fact]) -> None:
        nonlocal read
        read += len(facts)
        if read >= READ:
            enough.set()

    began = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(
            functools.partial(follow, reader, "FILES", (FILE_REMOVED,), name, handle, pattern=FILE_REMOVED.filter())
        )
        await enough.wait()
        await reader.flush()
        seconds = time.perf_counter() - began
        tasks.cancel_scope.cancel()
    await reader.js.delete_consumer("FILES", name)
    return read / seconds


async def measured_working(reader: Bus, writer: Bus, bare: Client, bare_writer: Client) -> list[Figure]:
    """Jobs that wait already, worked off side by side; what is bare does nothing but fetch and acknowledge."""
    js = bare_writer.jetstream()
    ours, theirs = [], []
    for turn in range(ROUNDS):
        await asyncio.gather(*(js.publish(f"PREPARE.many.{new_id()}", encode(a_request())) for _ in range(WORKED)))
        theirs.append(await worked_bare(bare, f"many-{turn}"))
        await asyncio.gather(
            *(writer.publish(PREPARE, a_request(), lane="normal", tenant="t0", id=new_id()) for _ in range(WORKED))
        )
        ours.append(await worked_off(reader))
    return [rate(f"jobs worked off: serve, {SIDE_BY_SIDE} at once / bare fetch(1)", ours, theirs)]


async def worked_bare(bare: Client, name: str) -> float:
    js = bare.jetstream()
    began = time.perf_counter()
    subscription = await js.pull_subscribe("PREPARE.many.*", name, "BARE_PREPARE")
    for _ in range(WORKED):
        for message in await subscription.fetch(1, timeout=10):
            await message.ack()
    await bare.flush()
    seconds = time.perf_counter() - began
    await subscription.unsubscribe()
    await js.delete_consumer("BARE_PREPARE", name)
    return WORKED / seconds


async def worked_off(reader: Bus) -> float:
    done, enough = 0, anyio.Event()

    async def handle(request: Request, delivery: Delivery) -> None:
        nonlocal done
        done += 1
        if done == WORKED:
            enough.set()

    began = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(functools.partial(serve, reader, work(reader, handle), "hops", concurrency=SIDE_BY_SIDE))
        await enough.wait()
        seconds = time.perf_counter() - began
        while await reader.waiting("PREPARE", PREPARE.filter()):
            await reader.flush()  # the last acknowledgements are on their way
        tasks.cancel_scope.cancel()
    return WORKED / seconds
