"""A job as the stored messages show it: derived anew each time, nothing is kept."""

from collections.abc import Mapping
from typing import TypeVar

import msgspec
import structlog

from bus import results
from bus.client import Bus
from bus.errors import Undecodable
from bus.ids import time_of
from bus.subjects import (
    EVENTS_OF_A_JOB,
    JOB_FINISHED,
    JOB_PLANNED,
    JOB_RELEASED,
    JOB_STARTED,
    PREPARE,
    Subject,
)
from schemas.jobs import JobPlace, JobStatus, JobView, Plan, Released, Request, Started

log = structlog.get_logger()

T = TypeVar("T")

EARLIEST = 1_577_836_800.0
"""The time in a plausible id is after this (2020), and at most an hour from now."""


UNDATED = 1e15
"""The time of a queued job without one: later than all others."""


async def state(bus: Bus, id: str) -> JobView | None:
    """The job now; None for an id nobody asked for. Raises BadSubject, Retry.

    Looked up from the first stage to the last: a job that moves on meanwhile is met again further on, never missed.
    """
    result = await results.result_of(bus, id)
    request = None if result else await bus.raw("PREPARE", PREPARE.filter(id=id))
    counts = await bus.waiting("EVENTS", EVENTS_OF_A_JOB.format(id=id))
    plan = await _last(bus, JOB_PLANNED, id, counts)
    started = await _last(bus, JOB_STARTED, id, counts)
    result = result or await results.result_of(bus, id)
    finished = await _last(bus, JOB_FINISHED, id, {} if result else counts)  # (a result is forgotten by its own age)
    if not (result or request or counts):
        return None
    attempts = counts.get(JOB_STARTED(id=id), 0) - counts.get(JOB_RELEASED(id=id), 0)
    status: JobStatus = "running" if attempts > 0 else "planned" if plan else "queued"
    if result:
        status = result.status
    elif finished:
        status = finished.status
    return JobView(
        id=id,
        status=status,
        created_at=created(id, bus.clock.now()) or (plan.created_at if plan else None),
        planned_at=plan.created_at if plan else None,
        started_at=started.at if started else None,
        ended_at=result.ended_at if result else finished.at if finished else None,
        attempts=max(attempts, 0),
        request=decoded(request.payload) if request else None,
        plan=plan,
        result=result,
    )


async def _last(bus: Bus, row: Subject[T], id: str, counts: Mapping[str, int]) -> T | None:
    """The last fact of a job on one of the subjects that have any; None where nobody can read it. Raises Retry."""
    if row(id=id) not in counts:
        return None
    try:
        stored = await bus.last(row, id=id)
    except Undecodable as error:
        log.warning("a fact that can't be read", job=id, fact=row.template, error=str(error))
        return None
    return stored.payload if stored else None


async def request_of(bus: Bus, id: str) -> Request | None:
    """The request of a job that waits to be planned; None when it does not, or nobody can read it. Raises Retry."""
    found = await bus.raw("PREPARE", PREPARE.filter(id=id))
    return decoded(found.payload) if found else None


def decoded(payload: bytes) -> Request | None:
    """The request in a message; None when nobody can read it."""
    try:
        return PREPARE.decode(payload)
    except Undecodable:
        return None


def created(id: str, now: float) -> float | None:
    """The time in an id that holds a plausible one (Unix seconds, 2020 up to an hour from `now`)."""
    at = time_of(id)
    return at if at is not None and EARLIEST <= at < now + 3600 else None


def place_of(id: str, now: float) -> JobPlace:
    """Where a queued job stands in lists. One without a time in its id is among the newest."""
    return created(id, now) or UNDATED, id


def queued(id: str, request: Request | None, now: float) -> JobView:
    """A job that nobody has planned yet."""
    return JobView(id=id, status="queued", created_at=created(id, now), request=request)


def after(view: JobView, fact: Plan | Started | Released) -> JobView:
    """An unfinished job after one more fact about it. A fact that counts already changes nothing. Pure."""
    match fact:
        case Plan() if view.plan is None:
            born = view.created_at or fact.created_at
            at = {"created_at": born, "planned_at": fact.created_at}
            return msgspec.structs.replace(view, status="planned", plan=fact, request=None, **at)
        case Started():
            attempts = max(view.attempts, fact.attempt)
            return msgspec.structs.replace(view, status="running", started_at=fact.at, attempts=attempts)
        case Released():
            attempts = max(view.attempts - 1, 0)
            return msgspec.structs.replace(view, status="running" if attempts else "planned", attempts=attempts)
    return view
