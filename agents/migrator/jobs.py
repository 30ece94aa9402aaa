"""Jobs: consumes evt.job.* and job.prepare.*, keeps those that have ended in the catalog, answers ask.catalog.jobs.

A job is written down once, when its finished fact comes, with what the streams hold of it. What is known of unfinished
jobs is a copy in memory, made of the streams at start and after each lost connection: it is for lists only.
"""

import sqlite3
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import anyio
import anyio.abc
import msgspec
import structlog
from nats.aio.msg import Msg

from agents.catalog.database import Database
from agents.catalog.errors import IMPOSSIBLE
from agents.catalog.facts import note_cursor
from agents.catalog.jobs import add_jobs, drop_jobs, known_jobs, list_jobs
from bus import results
from bus.client import Bus
from bus.errors import Retry, Undecodable
from bus.followers import Fact, dead_letter_fact
from bus.jobs import after, created, decoded, place_of, queued, request_of, state
from bus.subjects import (
    ENCODE,
    EVENTS_OF_A_JOB,
    GENERATE,
    JOB_FINISHED,
    JOB_PLANNED,
    JOB_RELEASED,
    JOB_STARTED,
    PREPARE,
    Subject,
)
from bus.wakeup import Wakeup
from schemas.jobs import Finished, JobPage, JobPlace, JobView, ListJobs, Plan, Released, Started

log = structlog.get_logger()

FOLLOWED = (JOB_FINISHED,)
CURSOR = "EVENTS.jobs"
"""Of the last finished fact whose job is written down, next to those of whole streams."""
DAY = 24 * 3600.0
PRUNE_SECONDS = 3600.0
QUEUED = 1000
"""Requests of queued jobs that are remembered at most: the latest."""
_AT_ONCE = 16
_UNREAD = 100_000
_CHANGES: tuple[Subject[Plan] | Subject[Started] | Subject[Released], ...] = (JOB_PLANNED, JOB_STARTED, JOB_RELEASED)


class UnfinishedJobs:
    """What is known of the jobs under way. `followed` are those of which no fact was missed since their plan."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._views: dict[str, JobView] = {}
        self._waiting: dict[str, JobView] = {}
        self._to_read: set[str] = set()
        self._stale = Wakeup()
        self.followed: set[str] = set()

    def of(self, id: str) -> JobView | None:
        """What is known of one."""
        return self._views.get(id) or self._waiting.get(id)

    def forget(self, ids: Iterable[str]) -> None:
        """These have ended."""
        for id in ids:
            self._views.pop(id, None)
            self._waiting.pop(id, None)
            self._to_read.discard(id)
            self.followed.discard(id)

    def _miss(self) -> None:
        """Facts may have been missed."""
        self.followed.clear()
        self._stale.set()

    def places(self, ids: Iterable[str], now: float) -> dict[JobPlace, JobView]:
        """All that are planned, and those of `ids` that are not, by their places in lists."""
        views = {id: self._waiting.get(id) or queued(id, None, now) for id in ids} | self._views
        return {(view.created_at or place_of(view.id, now)[0], view.id): view for view in views.values()}

    async def keep(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Follow the jobs for ever. Ready when all that were under way are known, if the bus answers."""
        facts, requests = EVENTS_OF_A_JOB.format(id="*"), PREPARE.filter()
        self._bus.on_reconnect.add(self._miss)
        try:
            async with (
                self._bus.listen(facts, buffer=_UNREAD) as events,
                self._bus.listen(requests, buffer=_UNREAD) as jobs,
                anyio.create_task_group() as tasks,
            ):
                await self._look()
                task_status.started()
                tasks.start_soon(self._look_again)
                tasks.start_soon(self._note_requests, jobs)
                slots = anyio.CapacityLimiter(_AT_ONCE)
                async for message in events:
                    if unplanned := self._note(message):
                        tasks.start_soon(self._read_unplanned, unplanned, slots)
        finally:
            self._bus.on_reconnect.discard(self._miss)
            self.followed.clear()

    async def _look_again(self) -> None:
        while True:
            await self._stale.wait()
            await self._look()

    async def _look(self) -> None:
        """Make the copy anew: planned jobs are in the queues after PREPARE (or on their way there), the latest requests
        in that. Looked up from the first queue to the last: a job that moves on meanwhile is met again."""
        try:
            before = {*self._views}
            waiting = sorted(await self._queued(PREPARE), key=lambda id: place_of(id, self._bus.clock.now()))
            planned = {*await self._queued(GENERATE), *await self._queued(ENCODE), *before.intersection(waiting)}
            self.forget(before - planned)
            self._to_read = {*planned, *waiting[-QUEUED:]}
            slots = anyio.CapacityLimiter(_AT_ONCE)
            async with anyio.create_task_group() as tasks:
                for id in planned:
                    tasks.start_soon(self._read_state, id, slots)
                for id in waiting[-QUEUED:]:
                    tasks.start_soon(self._read_request, id, slots)
        except* Retry as group:
            log.warning("unfinished jobs not known yet", error=str(group.exceptions[0]))
            self._stale.set()
            await anyio.sleep(self._bus.settings.retry_delay)

    async def _queued(self, row: Subject[Any]) -> list[str]:
        assert row.stream
        subjects = await self._bus.waiting(row.stream, row.filter())
        return [row.parse(subject)["id"] for subject in subjects if row.matches(subject)]

    async def _read_state(self, id: str, slots: anyio.CapacityLimiter) -> None:
        async with slots:
            view = await state(self._bus, id)
        if id in self._to_read and view and view.plan and not view.ended:
            self._views[id] = view
            self.followed.discard(id)

    async def _read_unplanned(self, id: str, slots: anyio.CapacityLimiter) -> None:
        """Read a job whose plan was published before this listened, and which no queue had yet."""
        self._to_read.add(id)
        try:
            await self._read_state(id, slots)
        except Retry as error:
            log.warning("a job is not known yet", job=id, error=str(error))
            self._stale.set()

    async def _read_request(self, id: str, slots: anyio.CapacityLimiter) -> None:
        async with slots:
            request = await request_of(self._bus, id)
            if request and id in self._to_read:
                self._waiting[id] = queued(id, request, self._bus.clock.now())

    async def _note_requests(self, messages: anyio.abc.ObjectReceiveStream[Msg]) -> None:
        async for message in messages:
            if PREPARE.matches(message.subject):
                id = PREPARE.parse(message.subject)["id"]
                if id not in self._views:
                    self._waiting[id] = queued(id, decoded(message.data), self._bus.clock.now())
            while len(self._waiting) > QUEUED:
                del self._waiting[next(iter(self._waiting))]

    def _note(self, message: Msg) -> str | None:
        """Take in a fact; the id of its job when the plan of that is not known."""
        if JOB_FINISHED.matches(message.subject):
            return None  # it is forgotten once it is written down: then the catalog has it
        for row in _CHANGES:
            if row.matches(message.subject):
                id = row.parse(message.subject)["id"]
                before = self.of(id) or queued(id, None, self._bus.clock.now())
                with suppress(Undecodable):
                    view = after(before, row.decode(message.data))
                    if view.plan is None:
                        return id
                    self._follow(row, id)
                    self._views[id] = view
                    self._waiting.pop(id, None)
        return None

    def _follow(self, row: Subject[Any], id: str) -> None:
        if row is JOB_PLANNED and id not in self._views:
            self.followed.add(id)
        elif row is JOB_RELEASED:  # a repeat of it would count twice
            self.followed.discard(id)


class JobRecords:
    """The jobs in one catalog: those that ended less than `days` ago (0: all)."""

    def __init__(self, bus: Bus, db: Database, days: float) -> None:
        self._bus, self._db, self._days = bus, db, days
        self.unfinished = UnfinishedJobs(bus)

    async def write_down(self, facts: list[Fact]) -> None:
        """Write down the jobs that have finished by these facts. A fact that no row can hold becomes a dead letter,
        and the others go on. Raises Retry, sqlite3.Error."""
        try:
            await self._write_down(facts)
        except* IMPOSSIBLE as group:
            if len(facts) > 1:
                for fact in facts:
                    await self.write_down([fact])
            else:
                await dead_letter_fact(self._bus, facts[0], group.exceptions[0])

    async def _write_down(self, facts: list[Fact]) -> None:
        ended: dict[str, Finished] = {fact.payload.id: fact.payload for fact in facts}
        known = await known_jobs(self._db, ended)
        views: list[JobView] = []
        slots = anyio.CapacityLimiter(_AT_ONCE)

        async def read(fact: Finished) -> None:
            async with slots:
                views.append(await self._end_of(fact))

        async with anyio.create_task_group() as tasks:
            for id, fact in ended.items():
                if id not in known:
                    tasks.start_soon(read, fact)
        now = self._bus.clock.now()
        oldest = now - self._days * DAY if self._days else 0.0
        rows = [(view.created_at or view.ended_at or now, view) for view in views]
        rows = [(at, view) for at, view in rows if max(at, view.ended_at or 0.0) >= oldest]
        async with self._db.atomic() as sql:
            await add_jobs(sql, rows)
            await note_cursor(sql, {CURSOR: facts[-1].seq})
        self.unfinished.forget(ended)

    async def _end_of(self, fact: Finished) -> JobView:
        """A job that has ended, as the streams show it; what they have forgotten is not known."""
        seen = self.unfinished.of(fact.id)
        if seen and fact.id in self.unfinished.followed and (result := await results.result_of(self._bus, fact.id)):
            return msgspec.structs.replace(seen, status=result.status, ended_at=result.ended_at, result=result)
        view = await state(self._bus, fact.id) or JobView(
            id=fact.id, status=fact.status, created_at=created(fact.id, self._bus.clock.now())
        )
        if not view.ended:  # its facts were forgotten between
            view = msgspec.structs.replace(view, status=fact.status, ended_at=fact.at)
        if view.plan is None:
            request = seen.request if seen and seen.request else await request_of(self._bus, fact.id)
            view = msgspec.structs.replace(view, request=request)
        return view

    async def list(self, ask: ListJobs) -> JobPage:
        """A page of the jobs. Raises Declined (bad-query)."""
        places = self.unfinished.places(ask.queued, self._bus.clock.now())
        return await list_jobs(self._db, ask, places)

    async def keep_pruned(self) -> None:
        """Every hour, drop what ended too long ago."""
        while self._days:
            try:
                if count := await drop_jobs(self._db, before=self._bus.clock.now() - self._days * DAY):
                    log.info("old jobs dropped", count=count)
            except (OSError, sqlite3.Error) as error:
                log.warning("old jobs not dropped", error=str(error))
            await anyio.sleep(PRUNE_SECONDS)
