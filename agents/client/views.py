"""What clients show: a job as its stored messages have it, one event of its life, files that wait."""

from typing import Literal

import msgspec

from schemas.files import WaitingFile
from schemas.jobs import JobView as JobView
from schemas.jobs import Plan, Rejected, Released, Started
from schemas.ticks import PreviewTick, StepTick

EventName = Literal["planned", "started", "released", "rejected", "finished", "step", "preview"]


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
