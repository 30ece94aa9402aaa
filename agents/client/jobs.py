"""Jobs, as HTTP and the command line handle them: submitted, looked up, followed, cancelled. Nothing is kept here.

Publishes job.prepare, asks ask.catalog.jobs and ask.catalog.models; reads stored facts and results; cancels by writing
a result.
"""

import heapq
import math
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import structlog
from anyio.streams.memory import MemoryObjectReceiveStream
from nats.aio.msg import Msg

from agents.client.views import EventName, JobEvent
from agents.diffusion.plan import check
from bus import results
from bus.client import Bus, Stored
from bus.errors import Declined, Retry, Taken, Undecodable
from bus.ids import digest_id
from bus.jobs import place_of
from bus.jobs import state as state
from bus.subjects import (
    ASK_JOBS,
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
from bus.wakeup import SHORTEST
from schemas.asks import ListModels, ModelList
from schemas.jobs import AnyStatus, JobPage, JobPlace, JobView, Lane, ListJobs, Request
from schemas.models import Model
from schemas.settings import LimitSettings

log = structlog.get_logger()

SUBMIT_SECONDS = 5.0
LOOK_SECONDS = 2.0
"""How often stored facts are looked up when no message came: core NATS is lossy. (After one that is not stored yet,
they are looked up soon and then ever later.)"""
END_SECONDS = 0.5
"""How long the finished fact may come after its result before the end is sent without it."""
SEARCHED = 1000
"""Queued jobs among which words are looked for at most: the newest, whose requests the catalog remembers."""
_UNREAD = 32
_CURSOR = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,20})?(?:e[+-]?[0-9]{1,2})?)-([0-9a-f]{32})")

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


def checked(request: Request, limits: LimitSettings) -> Request:
    """A request as `submit` takes it. Raises Reject, as `make_plan` would, but before anything is started or queued."""
    check(request, limits)
    return request


async def submit(
    bus: Bus, request: Request, *, lane: Lane = "normal", tenant: str = "t0", id: str | None = None
) -> str:
    """Queue a `checked` job and return its id. An id that is queued, planned or ended already keeps its first request.

    Raises Full when the queue is, TooLarge over 64 KiB, BadSubject for an id that is not 32 hex digits, Retry.
    """
    if id is not None and await state(bus, id) is not None:
        return id
    id = id or bus.clock.new_id()
    with suppress(Taken):
        await bus.publish(PREPARE, request, within=SUBMIT_SECONDS, lane=lane, tenant=tenant, id=id)
    return id


async def jobs(
    bus: Bus, limit: int, *, text: str = "", status: AnyStatus = "", before: str = ""
) -> tuple[tuple[JobView, ...], str]:
    """The newest `limit` jobs, newest first: those that `text` finds, with this `status`, after the cursor `before`;
    and the cursor of what follows, empty at the end. One look at the queue and one ask, where they fit into one answer.

    Ids without a time in them count from their plan, or their end; while they are still queued, as the newest.
    Raises Declined (bad-cursor, bad-query), Retry, NoAnswer.
    """
    now, place = bus.clock.now(), _place(before) if before else None
    waiting = await bus.waiting("PREPARE", PREPARE.filter()) if status in ("", "queued") else {}
    places = [place_of(PREPARE.parse(subject)["id"], now) for subject in waiting if PREPARE.matches(subject)]
    found: list[JobView] = []
    while len(found) < limit:
        older = (one for one in places if place is None or one < place)
        count = max(limit - len(found) + 1, SEARCHED if text else 0)
        newest = tuple(id for _, id in heapq.nlargest(count, older))
        ask = ListJobs(text=text, status=status, before=place, limit=limit - len(found), queued=newest)
        page = await bus.ask(ASK_JOBS, ask, JobPage)
        found += page.jobs
        place = page.next
        if place is None:
            return tuple(found), ""
    return tuple(found), _cursor(place) if place else ""


def _cursor(place: JobPlace) -> str:
    at, id = place
    return f"{at!r}-{id}"


def _place(cursor: str) -> JobPlace:
    """The place that a cursor names. Raises Declined (bad-cursor)."""
    if (found := _CURSOR.fullmatch(cursor)) is None:
        raise Declined("bad-cursor", "A cursor is what the page before gave as `next`.")
    return float(found[1]), found[2]


async def events(bus: Bus, id: str, after_seq: int = 0) -> AsyncGenerator[JobEvent, None]:
    """What happened to a job since the fact with sequence `after_seq`, then what happens, until its end.

    The stream is the truth and messages only wake: facts come in order, none twice and none missed; ticks may be.
    The last event is always `finished` with the job as data; its `seq` is None where the fact was never published or is
    forgotten. A bus that is away is waited for. Close it (contextlib.aclosing) when leaving early. Raises Declined
    (unknown-job), Retry when the bus is away at the start.
    """
    if await state(bus, id) is None:
        raise unknown_job()
    seq, over_at, pause = after_seq, math.inf, LOOK_SECONDS
    async with _listening(bus, EVENTS_OF_A_JOB.format(id=id), TICK_STEP(id=id), TICK_PREVIEW(id=id)) as live:
        while True:
            try:
                while (stored := await bus.raw("EVENTS", EVENTS_OF_A_JOB.format(id=id), seq=seq + 1)) is not None:
                    seq, pause = stored.seq, LOOK_SECONDS
                    if (event := await _event(bus, id, stored)) is None:
                        continue
                    yield event
                    if event.name == "finished":
                        return
                now = anyio.current_time()
                if now >= over_at + END_SECONDS and (view := await state(bus, id)) is not None:
                    yield JobEvent(name="finished", seq=None, data=view)
                    return
                if over_at == math.inf and (await results.result_of(bus, id) or await bus.last(JOB_FINISHED, id=id)):
                    over_at = now
            except Retry as error:
                log.info("event stream waits for the bus", job=id, why=str(error))
            pause = min(pause * 4, LOOK_SECONDS if over_at == math.inf else END_SECONDS)
            async for tick in _ticks(live, pause):
                if tick is None:  # a subscriber gets a fact before its stream has stored it
                    pause = SHORTEST
                else:
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


async def _ticks(live: MemoryObjectReceiveStream[Msg], seconds: float) -> AsyncGenerator[JobEvent | None, None]:
    """Ticks as they come, until a fact comes (None) or the time is over."""
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
                yield None
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
