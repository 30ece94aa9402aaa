"""Generation jobs: what a caller asks for, what preprocess plans, what every job ends with."""

from typing import Any, Literal

import msgspec

from schemas.files import FilePath
from schemas.images import ImageFormat, Picture

Lane = Literal["high", "normal", "low"]
Status = Literal["succeeded", "failed", "rejected", "cancelled"]

LANES: tuple[Lane, ...] = ("high", "normal", "low")


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
