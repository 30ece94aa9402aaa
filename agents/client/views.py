"""What clients show: a job as its stored messages have it, one event of its life, files that wait."""

from collections.abc import AsyncGenerator
from typing import Literal, Protocol, TypeVar

import msgspec

from schemas.catalog import Adopted, FileReply, Pictures
from schemas.files import WaitingFile
from schemas.imports import Import, ImportState
from schemas.jobs import Lane, Plan, Rejected, Released, Request, Result, Started, Status
from schemas.ticks import PreviewTick, StepTick

R = TypeVar("R", bound=msgspec.Struct)

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


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that has to work before the service does, and what is known of it."""

    ok: bool
    detail: str = ""


class WaitingFiles(msgspec.Struct, frozen=True, kw_only=True):
    """A page of the files that are not let in yet, by root and path; `waiting` counts all of them. `next`, unless
    empty, asks for what follows. Of the roots that are `unknown` no watcher answers."""

    files: tuple[WaitingFile, ...]
    waiting: int
    next: str = ""
    unknown: tuple[str, ...] = ()


class Library(Protocol):
    """What a front door may ask of the catalog. Beside the errors named, each raises Declined for what can't be done,
    and NoAnswer when no catalog answers."""

    async def ask(self, question: msgspec.Struct, reply: type[R]) -> R:
        """The catalog's answer to one question (schemas.asks, schemas.catalog)."""

    async def add_picture(self, sha256: str, data: bytes) -> Pictures:
        """Give a model a picture, by its bytes. BadPicture; OSError when it can't be kept."""

    async def take_over(self, job: Import, wait: float) -> tuple[str, ImportState]:
        """Import a legacy catalog (its job's id is drawn here), watched for `wait` seconds. Returns the id, and how far
        it is. Full, Retry."""

    async def import_state(self, id: str) -> ImportState | None:
        """How far an import is; None for one that nobody asked for. Retry."""

    async def adopt(self) -> Adopted:
        """Make pending records of what lies in the roots and is not hashed; all `added` by this."""

    async def waiting(self, *, after: str, limit: int) -> WaitingFiles:
        """Which files of the roots are not let in yet, and why: at most `limit`, after the one that `after` names."""

    async def hash_of(self, path: str, *, promote: bool, wait: float) -> FileReply:
        """What a file below a configured root holds, waited for up to `wait` seconds. Without a SHA-256 in the answer
        it is not hashed yet."""


class Service(Protocol):
    """What a front door may ask for. Beside the errors named, each raises Retry when the bus is away."""

    async def submit(self, request: Request, *, lane: Lane, caller: str, key: str) -> JobView:
        """Queue a job; the same `caller` and `key` (unless empty) name the same job. Reject, Full, TooLarge."""

    async def state(self, id: str) -> JobView:
        """The job. Declined (unknown-job)."""

    async def jobs(self, limit: int) -> list[JobView]:
        """The newest jobs, newest first."""

    def events(self, id: str, after: int) -> AsyncGenerator[JobEvent, None]:
        """What happened since the fact with sequence `after`, then what happens, up to the end.

        Declined (unknown-job) when the first is asked for."""

    async def heard_all(self, id: str, after: int) -> bool:
        """Did somebody who has heard all up to sequence `after` hear the job's end?"""

    async def cancel(self, id: str) -> JobView:
        """End the job as cancelled, unless it has ended already. Declined (unknown-job)."""

    async def metrics(self) -> str:
        """Prometheus text. NoAnswer."""

    async def checks(self) -> dict[str, Check]:
        """What readiness depends on, by name."""
