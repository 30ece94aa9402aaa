"""What clients show: a job as its stored messages have it, one event of its life, files that wait."""

from typing import Literal

import msgspec

from schemas.files import WaitingFile
from schemas.jobs import Plan, Rejected, Released, Request, Result, Started, Status
from schemas.ticks import PreviewTick, StepTick

JobStatus = Status | Literal["queued", "planned", "running"]
EventName = Literal["planned", "started", "released", "rejected", "finished", "step", "preview"]


class JobView(msgspec.Struct, frozen=True, kw_only=True):
    """A job as its stored messages have it. Times are Unix seconds; those nobody knows are None.

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


class WaitingFiles(msgspec.Struct, frozen=True, kw_only=True):
    """A page of the files that are not let in yet, by root and path; `waiting` counts all of them. `next`, unless
    empty, asks for what follows. Of the roots that are `unknown` no watcher answers."""

    files: tuple[WaitingFile, ...]
    waiting: int
    next: str = ""
    unknown: tuple[str, ...] = ()
