"""What goes between a front door and what stands behind it: a job as it can be told now, one event of its life, and the
service that a front door is given (so that it need not know the bus)."""

from collections.abc import AsyncGenerator
from typing import Literal, Protocol

import msgspec

from bus.errors import DarkroomError
from schemas.jobs import Lane, Plan, Rejected, Released, Request, Result, Started, Status
from schemas.models import Model
from schemas.ticks import PreviewTick, StepTick

JobStatus = Status | Literal["queued", "planned", "running"]
EventName = Literal["planned", "started", "released", "rejected", "finished", "step", "preview"]


class UnknownJob(DarkroomError):
    """Nobody asked for a job with this id, or it was forgotten (results are kept for 7 days)."""


class JobView(msgspec.Struct, frozen=True, kw_only=True):
    """A job as stored messages tell it. Times are Unix seconds; those nobody knows are None.

    `request` is known while the job waits to be planned, `plan` from then on. `attempts` are the starts of a generator,
    less those given back unharmed. A job whose result was forgotten before its facts has a final status, no `result`.
    """

    id: str
    status: JobStatus
    created_at: float | None = None
    planned_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    attempts: int = 0
    request: Request | None = None
    plan: Plan | None = None
    result: Result | None = None

    @property
    def ended(self) -> bool:
        """Has the job come to its one end?"""
        return self.status not in ("queued", "planned", "running")


class JobEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to a job. `seq` is its place in the stream EVENTS; ticks have none. The data of
    `finished`, the last event, is the job itself."""

    name: EventName
    seq: int | None
    data: Plan | Started | Released | Rejected | StepTick | PreviewTick | JobView


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that has to work before the service does, and what is known of it."""

    ok: bool
    detail: str = ""


class Service(Protocol):
    """What a front door may ask for. Beside the errors named, each raises Retry when the bus is away."""

    async def submit(self, request: Request, *, lane: Lane, caller: str, key: str) -> JobView:
        """Queue a job; the same `caller` and `key` (unless empty) name the same job. Reject, Full, TooLarge."""

    async def state(self, id: str) -> JobView:
        """The job. UnknownJob."""

    async def jobs(self, limit: int) -> list[JobView]:
        """The newest jobs, newest first."""

    def events(self, id: str, after: int) -> AsyncGenerator[JobEvent, None]:
        """What happened since the fact with sequence `after`, then what happens, up to the end.

        UnknownJob when the first is asked for."""

    async def heard_all(self, id: str, after: int) -> bool:
        """Did somebody who has heard all up to sequence `after` hear the job's end?"""

    async def cancel(self, id: str) -> JobView:
        """End the job as cancelled, unless it has ended already. UnknownJob."""

    async def models(self) -> tuple[Model, ...]:
        """All models, those without a file too. NoAnswer."""

    async def metrics(self) -> str:
        """Prometheus text. NoAnswer."""

    async def checks(self) -> dict[str, Check]:
        """What readiness depends on, by name."""
