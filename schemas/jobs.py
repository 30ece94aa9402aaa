"""Generation jobs: what a caller asks for, what preprocess plans, what every job ends with."""

from typing import Any, Literal

import msgspec

from schemas.files import FilePath
from schemas.images import ImageFormat, Picture

Lane = Literal["high", "normal", "low"]
Status = Literal["succeeded", "failed", "rejected", "cancelled"]
JobStatus = Status | Literal["queued", "planned", "running"]

AnyStatus = JobStatus | Literal[""]
"""Of the jobs in a list; empty: any."""
JobPlace = tuple[float, str]
"""Of a job in lists: when it came (Unix seconds), and its id."""

LANES: tuple[Lane, ...] = ("high", "normal", "low")
UNDER_WAY: tuple[JobStatus, ...] = ("queued", "planned", "running")
ENDED: tuple[Status, ...] = ("succeeded", "failed", "rejected", "cancelled")


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What another service publishes on `job.prepare.<lane>.<tenant>.<id>`; only `prompt` is required.

    `model` is a model's name, file name, or the first 8 or more hex digits of its SHA-256; it may be left out when only
    one checkpoint is there. `width` and `height` are pixels, multiples of 8; left out, they are the model family's own
    size. `seed` is for the first image; left out or negative, one is drawn. `cfg_scale` of 1 or less skips guidance.
    """

    prompt: str
    negative_prompt: str = ""
    model: str = ""
    steps: int = 20
    seed: int | None = None
    width: int | None = None
    height: int | None = None
    sampler: str = "euler"
    scheduler: str = "normal"
    cfg_scale: float = 7.0
    n: int = 1
    format: ImageFormat = "webp"
    quality: int = 90
    lossless: bool = False
    retry_of: str | None = None


class ModelRef(msgspec.Struct, frozen=True, kw_only=True):
    """The checkpoint a plan is bound to: content first, then where it was when the plan was made."""

    sha256: str
    name: str
    family: str
    path: FilePath


class SchedulerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A diffusers scheduler class by name and the arguments that go over the family's own configuration."""

    class_name: str
    args: dict[str, Any] = {}


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything drawn and resolved: a plan replayed gives the same pictures. One seed per image."""

    id: str
    lane: Lane
    tenant: str
    day: str
    created_at: float
    model: ModelRef
    prompt: str
    negative_prompt: str
    steps: int
    cfg_scale: float
    width: int
    height: int
    sampler: str
    scheduler: str
    spec: SchedulerSpec
    seeds: tuple[int, ...]
    format: ImageFormat
    quality: int
    lossless: bool
    retry_of: str | None = None


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The one end of a job. `reason` is a stable word for programs, `error` a sentence for people.

    Only `status` is required of who cancels by writing one: the id stands in the subject too."""

    id: str = ""
    status: Status
    ended_at: float = 0.0
    reason: str = ""
    error: str = ""
    images: tuple[Picture, ...] = ()


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt at a job began."""

    id: str
    attempt: int
    worker: str
    at: float


class Released(msgspec.Struct, frozen=True, kw_only=True):
    """A worker gave a started job back unharmed (shutdown, missing dependency): that start is no attempt."""

    id: str
    worker: str
    why: str
    at: float


class AttemptFailed(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt at a job came to nothing, and why: a start with neither this nor a release ended with its worker."""

    id: str
    worker: str
    why: str
    at: float


class Rejected(msgspec.Struct, frozen=True, kw_only=True):
    """A request that can never run, and why."""

    id: str
    reason: str
    error: str
    at: float


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """A job's result is written; follows it, once."""

    id: str
    status: Status
    at: float


class JobView(msgspec.Struct, frozen=True, kw_only=True):
    """A job as its stored messages show it. Times are Unix seconds; those nobody knows are None.

    `request` is known while the job waits to be planned, and where it ended unplanned; `plan` from then on. `attempts`
    are the starts of a generator, less those given back unharmed. A job whose result was forgotten before its facts has
    a final status, no `result`.
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
        return self.status not in UNDER_WAY


class ListJobs(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs, newest first: those in whose prompt, model or id each word of `text` begins a word, with this `status`
    (empty: any). A page of at most `limit`, after the place `before` (what the page before gave as `next`).
    `queued` are the newest ids in the queue PREPARE: of a job that is queued only its queue knows for certain."""

    text: str = ""
    status: AnyStatus = ""
    before: JobPlace | None = None
    limit: int = 50
    queued: tuple[str, ...] = ()


class JobPage(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs; `next` is the place of the last one where more follow."""

    jobs: tuple[JobView, ...] = ()
    next: JobPlace | None = None
