"""Preprocess: consumes job.prepare, resolves and draws everything, publishes the plan once, then job.generate.

Lanes are served by weight and the tenants of a lane in turn, and the generate queue is kept short: so a flood from one
tenant delays another's single job by little. No torch here.
"""

import functools
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import anyio
import anyio.abc
import structlog
from anyio.streams.memory import MemoryObjectReceiveStream
from nats.aio.msg import Msg

from agents.diffusion.plan import make_plan
from bus.client import Bus
from bus.errors import INTERNAL, BadSubject, Declined, NoAnswer, Reject, Retry, Taken
from bus.ids import day_of
from bus.queues import LanePicker, enqueue, was_last
from bus.results import ended, give_up
from bus.subjects import ASK_RESOLVE, GENERATE, JOB_PLANNED, JOB_REJECTED, PREPARE
from bus.wakeup import Found, IdleBackoff
from bus.worker import Delivery, Work, process
from schemas.catalog import ResolveModel, ResolveReply
from schemas.jobs import LANES, Lane, Plan, Rejected, Request
from schemas.models import Model
from schemas.settings import LimitSettings

log = structlog.get_logger()

WEIGHTS: dict[str, int] = {"high": 8, "normal": 4, "low": 1}
_JOBS_PER_LOOK = 32

Queue = tuple[str, str]
"""A lane and a tenant."""


@dataclass
class FairQueue:
    """Whose turn it is: the lane with the most credit, and in it the tenant that waited longest. Pure."""

    credit: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LANES, 0))
    served: dict[Queue, int] = field(default_factory=dict)
    clock: int = 0

    def order(self, queues: Iterable[Queue]) -> list[Queue]:
        """The queues that hold jobs, the one whose turn it is first."""
        return sorted(
            set(queues),
            key=lambda queue: (-(self.credit[queue[0]] + WEIGHTS[queue[0]]), self.served.get(queue, 0), queue),
        )

    def took(self, queue: Queue, queues: Iterable[Queue]) -> None:
        """A job of `queue` was taken while `queues` held jobs: smooth weighted round robin over their lanes."""
        lanes = {lane for lane, _ in queues} | {queue[0]}
        for lane in LANES:
            self.credit[lane] = self.credit[lane] + WEIGHTS[lane] if lane in lanes else 0
        self.credit[queue[0]] -= sum(WEIGHTS[lane] for lane in lanes)
        self.clock += 1
        self.served[queue] = self.clock


async def run(
    bus: Bus, limits: LimitSettings, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
) -> None:
    """Plan jobs until cancelled. Ready when new jobs are noticed."""
    work = Work(
        PREPARE,
        functools.partial(prepare, bus, limits),
        ended=lambda delivery: ended(bus, delivery.id),
        give_up=functools.partial(refuse, bus),
    )
    async with bus.listen(PREPARE.filter(), buffer=64) as arrivals:
        task_status.started()
        planner = Planner(bus, LanePicker(bus, PREPARE), work, arrivals)
        backoff = IdleBackoff(PREPARE, arrivals)
        found = Found.SOME
        while True:
            announced = await backoff.wait(found)
            try:
                found = await planner.serve(announced)
            except Retry as error:
                log.warning("queue not seen", error=str(error))
                found = Found.NOTHING


def _queue(tokens: Mapping[str, str]) -> Queue:
    return tokens["lane"], tokens["tenant"]


@dataclass
class Planner:
    """Takes what waits, fairly, and plans it, one job after the other."""

    bus: Bus
    picker: LanePicker[Request]
    work: Work[Request]
    arrivals: MemoryObjectReceiveStream[Msg]
    fair: FairQueue = field(default_factory=FairQueue)

    async def serve(self, announced: Mapping[str, str] | None) -> Found:
        """Plan the one job that was announced and what comes in meanwhile, or what a look finds, for a while. A queue
        whose last job was taken is not asked again. Raises Retry."""
        queues = {_queue(announced)} if announced else {_queue(tokens) for tokens in await self.picker.waiting()}
        taken, all_known = 0, announced is not None
        while queues and taken < _JOBS_PER_LOOK:
            lane, tenant = queue = self.fair.order(queues)[0]
            message = await self.picker.take(announced=all_known and len(queues) == 1, lane=lane, tenant=tenant)
            if message is None:  # held by somebody, or not stored yet
                all_known = False
                queues.discard(queue)
            else:
                taken += 1
                self.fair.took(queue, queues)
                if was_last(message):
                    queues.discard(queue)
                await process(self.bus, self.work, message)
            queues |= self._just_arrived()
        if not taken:
            return Found.NOTHING
        return Found.ALL if all_known and not queues else Found.SOME

    def _just_arrived(self) -> set[Queue]:
        """The queues of the jobs that came in since the last call."""
        queues = set()
        for _ in range(self.arrivals.statistics().current_buffer_used):
            with suppress(BadSubject):  # a stray, which the next look removes
                queues.add(_queue(PREPARE.parse(self.arrivals.receive_nowait().subject)))
        return queues


async def prepare(bus: Bus, limits: LimitSettings, request: Request, delivery: Delivery) -> None:
    """Plan one job and queue it; a plan that is stored already is used as it stands. Raises Reject, Retry.

    Where nobody has begun the job before, no plan can be stored, since an attempt is stored before its plan."""
    stored = None if delivery.first else await bus.last(JOB_PLANNED, id=delivery.id)
    plan = stored.payload if stored else await _planned(bus, limits, request, delivery)
    await enqueue(
        bus, GENERATE, plan, lane=plan.lane, model=plan.model.sha256[:12], id=plan.id, release=delivery.release
    )


async def _planned(bus: Bus, limits: LimitSettings, request: Request, delivery: Delivery) -> Plan:
    model = await _resolved(bus, request.model)
    now = bus.clock.now()
    lane: Lane = next(lane for lane in LANES if lane == delivery.tokens["lane"])
    plan = make_plan(
        delivery.id, lane, delivery.tokens["tenant"], request, model, limits, day=day_of(delivery.id, now), now=now
    )
    try:
        await bus.publish(JOB_PLANNED, plan, first=True, id=delivery.id)
    except Taken:  # another preprocess was first: its plan is the plan
        if (stored := await bus.last(JOB_PLANNED, id=delivery.id)) is None:
            raise Retry("the plan can't be read back yet") from None
        return stored.payload
    return plan


async def _resolved(bus: Bus, name: str) -> Model:
    try:
        return (await bus.ask(ASK_RESOLVE, ResolveModel(name=name), ResolveReply)).model
    except NoAnswer as error:
        raise Retry("the catalog does not answer: is the migrator running?") from error
    except Declined as error:
        if error.reason == INTERNAL:
            raise Retry(str(error)) from error
        raise Reject(error.reason, str(error)) from error


async def refuse(bus: Bus, delivery: Delivery, status: str, reason: str, error: str) -> None:
    """End a job that can't be planned; the fact comes before the result, which is the end of it."""
    if status == "rejected":
        fact = Rejected(id=delivery.id, reason=reason, error=error, at=bus.clock.now())
        await bus.publish(JOB_REJECTED, fact, msg_id=f"{delivery.id}-rejected", id=delivery.id)
    await give_up(bus, delivery, status, reason, error)
