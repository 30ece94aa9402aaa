"""Jobs, as HTTP and the command line handle them: submitted, looked up, followed, cancelled. Nothing is kept here.

Publishes job.prepare, asks ask.catalog.models; reads stored facts and results; cancels by writing a result.
"""

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import nats.errors
import structlog
from anyio.streams.memory import MemoryObjectReceiveStream
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError

from agents.client.views import EventName, JobEvent, JobStatus, JobView
from bus import results
from bus.client import Bus, Stored
from bus.errors import Declined, Retry, Taken, Undecodable
from bus.ids import digest_id, new_id, time_of
from bus.subjects import (
    ASK_MODELS,
    EVENTS_OF_A_JOB,
    JOB_FINISHED,
    JOB_PLANNED,
    JOB_REJECTED,
    JOB_RELEASED,
    JOB_STARTED,
    PREPARE,
    TICK_PREVIEW,
    TICK_STEP,
    Subject,
)
from schemas.asks import ListModels, ModelList
from schemas.jobs import Lane, Request
from schemas.models import Model

log = structlog.get_logger()

SUBMIT_SECONDS = 5.0
LOOK_SECONDS = 2.0
"""How often stored facts are looked up when no message came: core NATS is lossy."""
END_SECONDS = 0.5
"""How long the finished fact may come after its result before the end is sent without it."""
_FACTS_PER_JOB = 8
_PATIENCE = 5.0
_AT_ONCE = 32
_UNREAD = 32

_FACTS: tuple[tuple[EventName, Subject[Any]], ...] = (
    ("planned", JOB_PLANNED),
    ("started", JOB_STARTED),
    ("released", JOB_RELEASED),
    ("rejected", JOB_REJECTED),
)


def unknown_job(
    message: str = "Nobody asked for a job with this id, or it was forgotten (results are kept for 7 days).",
) -> Declined:
    """The refusal of a question about a job that is not there."""
    return Declined("unknown-job", message)


def tenant_of(caller: str) -> str:
    """t0 to t7: a function of the caller's key; t0 without one."""
    return f"t{int(digest_id('tenant', caller), 16) % 8}" if caller else "t0"


def id_of(caller: str, key: str) -> str:
    """The job id that one caller's idempotency key stands for."""
    return digest_id("idempotency", caller, key)


async def submit(
    bus: Bus, request: Request, *, lane: Lane = "normal", tenant: str = "t0", id: str | None = None
) -> str:
    """Queue a job and return its id. An id that is queued, planned or ended already keeps its first request.

    Raises Full when the queue is, TooLarge over 64 KiB, BadSubject for an id that is not 32 hex digits, Retry.
    """
    if id is not None and await state(bus, id) is not None:
        return id
    id = id or new_id()
    with suppress(Taken):
        await bus.publish(PREPARE, request, patience=SUBMIT_SECONDS, lane=lane, tenant=tenant, id=id)
    return id


async def state(bus: Bus, id: str) -> JobView | None:
    """A job as its stored messages have it now; None for an id nobody asked for. Raises BadSubject, Retry.

    Looked up from the first stage to the last: a job that moves on meanwhile is met again further on, never missed.
    """
    result = await results.result_of(bus, id)
    queued = None if result else await bus.raw("PREPARE", PREPARE.filter(id=id))
    counts = await bus.waiting("EVENTS", EVENTS_OF_A_JOB.format(id=id))
    plan = await bus.last(JOB_PLANNED, id=id) if JOB_PLANNED(id=id) in counts else None
    started = await bus.last(JOB_STARTED, id=id) if JOB_STARTED(id=id) in counts else None
    result = result or await results.result_of(bus, id)
    finished = None
    if result is None and JOB_FINISHED(id=id) in counts:  # results are forgotten by count and age of their own
        finished = await bus.last(JOB_FINISHED, id=id)
    if not (result or queued or counts):
        return None
    attempts = counts.get(JOB_STARTED(id=id), 0) - counts.get(JOB_RELEASED(id=id), 0)
    status: JobStatus = "running" if attempts > 0 else "planned" if plan else "queued"
    if result:
        status = result.status
    elif finished:
        status = finished.payload.status
    return JobView(
        id=id,
        status=status,
        created_at=_created(id) or (plan.payload.created_at if plan else None),
        planned_at=plan.payload.created_at if plan else None,
        started_at=started.payload.at if started else None,
        ended_at=result.ended_at if result else finished.payload.at if finished else None,
        attempts=max(attempts, 0),
        request=_request(queued) if queued else None,
        plan=plan.payload if plan else None,
        result=result,
    )


def _request(queued: Stored[bytes]) -> Request | None:
    with suppress(Undecodable):
        return PREPARE.decode(queued.payload)
    return None


def _created(id: str) -> float | None:
    """The time inside an id that holds a plausible one (2020 up to an hour from now)."""
    at = time_of(id)
    return at if at is not None and 1_577_836_800 <= at < time.time() + 3600 else None


async def jobs(bus: Bus, limit: int) -> list[JobView]:
    """The newest `limit` jobs, newest first. Raises Retry.

    Ids without a time in them count from their first fact; while they are still queued, as the newest.
    """
    born = await _lately(bus, limit)
    for subject in await bus.waiting("PREPARE", PREPARE.filter()):
        if PREPARE.matches(subject):
            id = PREPARE.parse(subject)["id"]
            born.setdefault(id, _created(id) or float("inf"))
    newest = sorted(born, key=lambda id: (born[id], id), reverse=True)[:limit]
    found: dict[str, JobView | None] = {}
    slots = anyio.CapacityLimiter(_AT_ONCE)

    async def look(id: str) -> None:
        async with slots:
            found[id] = await state(bus, id)

    try:
        async with anyio.create_task_group() as tasks:
            for id in newest:
                tasks.start_soon(look, id)
    except ExceptionGroup as group:
        if group.split(Retry)[1]:
            raise
        raise Retry("the bus did not tell the latest jobs") from group
    return [view for id in newest if (view := found[id]) is not None]


async def _lately(bus: Bus, limit: int) -> dict[str, float]:
    """Ids of at least the `limit` jobs that were spoken of last (where there are as many), with when each was born.

    Reads the subjects of the end of EVENTS, further and further back: what it costs depends on `limit`, not on the
    length of the history. Raises Retry.
    """
    try:
        stream = (await bus.js.stream_info("EVENTS")).state
        span = limit * _FACTS_PER_JOB
        while True:
            start = max(stream.first_seq, stream.last_seq + 1 - span)
            born: dict[str, float] = {}
            async for subject, at in _subjects_since(bus, start):
                id = subject.rsplit(".", 1)[1]
                born.setdefault(id, _created(id) or at)
            if len(born) >= limit or start <= stream.first_seq:
                return born
            span *= 4
    except (nats.errors.Error, TimeoutError) as error:
        raise Retry("the bus did not tell the latest jobs") from error


async def _subjects_since(bus: Bus, seq: int) -> AsyncGenerator[tuple[str, float], None]:
    """Subject and Unix time of every stored fact about a job from `seq` to the present end. No payload is read."""
    inbox = bus.nc.new_inbox()
    wanted = ConsumerConfig(
        deliver_subject=inbox,
        deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
        opt_start_seq=max(seq, 1),
        filter_subject=EVENTS_OF_A_JOB.format(id="*"),
        ack_policy=AckPolicy.NONE,
        headers_only=True,
        inactive_threshold=5.0,
        mem_storage=True,
    )
    async with bus.listen(inbox, buffer=1_000_000) as heard:
        made = await bus.js.add_consumer("EVENTS", wanted)
        with suppress(NotFoundError):
            for _ in range(made.num_pending or 0):
                with anyio.fail_after(_PATIENCE):
                    message = await heard.receive()
                yield message.subject, message.metadata.timestamp.timestamp()
        await bus.js.delete_consumer("EVENTS", made.name)


async def events(bus: Bus, id: str, after_seq: int = 0) -> AsyncGenerator[JobEvent, None]:
    """What happened to a job since the fact with sequence `after_seq`, then what happens, until its end.

    The stream is the truth and messages only wake: facts come in order, none twice and none missed; ticks may be.
    The last event is always `finished` with the job as data; its `seq` is None where the fact was never published or is
    forgotten. A bus that is away is waited for. Close it (contextlib.aclosing) when leaving early. Raises Declined
    (unknown-job), Retry when the bus is away at the start.
    """
    if await state(bus, id) is None:
        raise unknown_job()
    seq, over = after_seq, False
    async with _listening(bus, EVENTS_OF_A_JOB.format(id=id), TICK_STEP(id=id), TICK_PREVIEW(id=id)) as live:
        while True:
            try:
                while (stored := await bus.raw("EVENTS", EVENTS_OF_A_JOB.format(id=id), seq=seq + 1)) is not None:
                    seq = stored.seq
                    if (event := await _event(bus, id, stored)) is None:
                        continue
                    yield event
                    if event.name == "finished":
                        return
                if over and (view := await state(bus, id)) is not None:
                    yield JobEvent(name="finished", seq=None, data=view)
                    return
                over = bool(await results.result_of(bus, id) or await bus.last(JOB_FINISHED, id=id))
            except Retry as error:
                log.info("event stream waits for the bus", job=id, why=str(error))
            async for tick in _ticks(live, END_SECONDS if over else LOOK_SECONDS):
                yield tick


async def _event(bus: Bus, id: str, stored: Stored[bytes]) -> JobEvent | None:
    """The event that a stored fact is, or None for one that can't be read."""
    if JOB_FINISHED.matches(stored.subject):
        view = await state(bus, id)
        return JobEvent(name="finished", seq=stored.seq, data=view) if view else None
    for name, row in _FACTS:
        if row.matches(stored.subject):
            with suppress(Undecodable):
                return JobEvent(name=name, seq=stored.seq, data=row.decode(stored.payload))
    log.warning("fact not shown", subject=stored.subject)
    return None


async def _ticks(live: MemoryObjectReceiveStream[Msg], seconds: float) -> AsyncGenerator[JobEvent, None]:
    """Ticks as they come, until a fact comes or the time is over."""
    until = anyio.current_time() + seconds
    while (left := until - anyio.current_time()) > 0:
        with anyio.move_on_after(left) as scope:
            message = await live.receive()
        if scope.cancelled_caught:
            return
        with suppress(Undecodable):
            if TICK_STEP.matches(message.subject):
                yield JobEvent(name="step", seq=None, data=TICK_STEP.decode(message.data))
            elif TICK_PREVIEW.matches(message.subject):
                yield JobEvent(name="preview", seq=None, data=TICK_PREVIEW.decode(message.data))
            else:
                return


@asynccontextmanager
async def _listening(bus: Bus, *patterns: str) -> AsyncIterator[MemoryObjectReceiveStream[Msg]]:
    """`Bus.listen` on several patterns at once."""
    send, receive = anyio.create_memory_object_stream[Msg](_UNREAD)

    async def received(message: Msg) -> None:
        with suppress(anyio.WouldBlock, anyio.BrokenResourceError, anyio.ClosedResourceError):
            send.send_nowait(message)

    subscriptions = [await bus.nc.subscribe(pattern, cb=received) for pattern in patterns]
    try:
        await bus.flush()
        with send, receive:
            yield receive
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(2):
            for subscription in subscriptions:
                if not bus.nc.is_closed:
                    await subscription.unsubscribe()


async def ended_by(bus: Bus, id: str, seq: int) -> bool:
    """Is the job's finished fact among those up to the sequence `seq`? Raises Retry."""
    finished = await bus.last(JOB_FINISHED, id=id)
    return finished is not None and finished.seq <= seq


async def cancel(bus: Bus, id: str) -> JobView:
    """End a job as cancelled; one that has ended keeps its result. Returns the job. Raises Declined (unknown-job),
    Retry."""
    view = await state(bus, id)
    if view is None:
        raise unknown_job()
    if not view.ended:
        await results.cancel(bus, id)
        view = await state(bus, id) or view
    return view


async def models(bus: Bus) -> tuple[Model, ...]:
    """Every model of the catalog by name, those without a file too. Raises NoAnswer, Undecodable."""
    found: list[Model] = []
    more = True
    while more:
        page = await bus.ask(ASK_MODELS, ListModels(missing=True, after=found[-1].sha256 if found else ""), ModelList)
        found += page.models
        more = page.more and bool(page.models)
    return tuple(found)
