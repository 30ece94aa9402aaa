"""Ticks: lossy, fire and forget, never stored."""

from typing import Literal

import msgspec

from schemas.files import FilePath, Stat


class HashTick(msgspec.Struct, frozen=True, kw_only=True):
    """Progress of one hash job: bytes done and in all, bytes per second, seconds to go. At most 4 a second."""

    id: str
    rel: str
    done: int
    total: int
    rate: float
    eta: float


class GrowingTick(msgspec.Struct, frozen=True, kw_only=True):
    """A large file that is being written has become longer: `stat` is of now. At most 10 a second for each file."""

    key: str
    path: FilePath
    stat: Stat


class StepTick(msgspec.Struct, frozen=True, kw_only=True):
    """One denoising step done: `step` of `steps` for picture `image` (from 0) of `images`; `eta` seconds."""

    job: str
    step: int
    steps: int
    image: int
    images: int
    rate: float
    eta: float
    stage: Literal["loading", "encoding prompt", "denoising", "decoding"] = "denoising"


class PreviewTick(msgspec.Struct, frozen=True, kw_only=True):
    """A small JPEG (at most 256 KiB, base64 in JSON) of what the picture looks like so far."""

    job: str
    step: int
    image: int
    jpeg: bytes


class AgentTick(msgspec.Struct, frozen=True, kw_only=True):
    """An agent is alive: sent when ready and every few seconds. Memory in bytes; worst loop lag since, in seconds."""

    name: str
    instance: str
    state: Literal["ready", "stopping"]
    pid: int
    host: str
    rss: int
    lag: float
    detail: dict[str, str] = {}
