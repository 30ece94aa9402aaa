"""The catalog, as HTTP and the command line ask and change it. Nothing is kept here.

Asks ask.catalog.*, publishes job.import; reads what is queued.
"""

import os
import stat
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import anyio
import msgspec
from anyio import to_thread

from agents.images.decode import picture
from agents.ingest.scanning.names import why_ignored
from agents.storage import blobs
from agents.storage.paths import is_inside
from agents.storage.roots import RootIndex
from bus.client import Bus
from bus.errors import Declined
from bus.subjects import ASK_IMPORT, IMPORT, OF_CATALOG
from schemas.catalog import (
    AddPicture,
    Adopted,
    AdoptFiles,
    FileReply,
    FileState,
    ListPending,
    ListPictures,
    ListTags,
    ModelPage,
    PendingList,
    PendingRecord,
    Pictures,
    SearchModels,
    TagPage,
)
from schemas.files import FilePath
from schemas.imports import AskImport, Import, ImportState
from schemas.models import Model, Tag

ANSWER_SECONDS = 10.0
"""How long an answer may take: one that changes much waits for the disk."""
SUBMIT_SECONDS = 5.0
LOOK_SECONDS = (0.05, 0.5)
"""How often what is under way is looked at: at first, and later."""

R = TypeVar("R", bound=msgspec.Struct)


async def ask(bus: Bus, question: msgspec.Struct, reply: type[R]) -> R:
    """The catalog's answer to a question. Raises Declined for what can't be done, NoAnswer, Undecodable."""
    return await bus.ask(OF_CATALOG[type(question)], question, reply, timeout=ANSWER_SECONDS)


async def models(bus: Bus, search: SearchModels) -> AsyncGenerator[Model, None]:
    """Every model that a search finds. Raises Declined, NoAnswer."""
    while True:
        page = await ask(bus, search, ModelPage)
        for model in page.models:
            yield model
        if not page.next:
            return
        search = msgspec.structs.replace(search, cursor=page.next)


async def tags(bus: Bus) -> AsyncGenerator[Tag, None]:
    """Every tag by name. Raises NoAnswer."""
    after, more = "", True
    while more:
        page = await ask(bus, ListTags(after=after), TagPage)
        for tag in page.tags:
            yield tag
        after, more = page.tags[-1].name if page.tags else "", page.more


async def pending(bus: Bus) -> AsyncGenerator[PendingRecord, None]:
    """Every pending record by id. Raises NoAnswer."""
    after, more = 0, True
    while more:
        page = await ask(bus, ListPending(after=after), PendingList)
        for record in page.records:
            yield record
        after, more = page.records[-1].id if page.records else 0, page.more


async def adopt(bus: Bus) -> Adopted:
    """Make pending records of what lies in the roots and is not hashed; all that were `added`. Raises NoAnswer."""
    added = 0
    while True:
        found = await ask(bus, AdoptFiles(), Adopted)
        added += found.added
        if not (found.more and found.added):
            return msgspec.structs.replace(found, added=added)


async def add_picture(bus: Bus, data: Path, sha256: str, content: bytes) -> Pictures:
    """Give a model the picture with these bytes; it is kept below `data` before the catalog mentions it.

    Raises Declined (unknown-model), BadPicture for what can't be decoded, NoAnswer, and OSError."""
    await ask(bus, ListPictures(sha256=sha256), Pictures)
    await to_thread.run_sync(lambda: picture(content, enough=(1, 1)).close())
    blob = await to_thread.run_sync(blobs.put, data, content)
    return await ask(bus, AddPicture(sha256=sha256, blob=blob), Pictures)


async def submit_import(bus: Bus, job: Import) -> str:
    """Queue an import, under an id of its own. Raises Full when there are too many, and Retry."""
    id = bus.clock.new_id()
    job = msgspec.structs.replace(job, id=id)
    await bus.publish(IMPORT, job, within=SUBMIT_SECONDS, id=id)
    return id


async def import_state(bus: Bus, id: str) -> ImportState | None:
    """How far an import is (`unknown`: it is queued); None for one that nobody asked for. Raises NoAnswer, Retry."""
    queued = await bus.raw("IMPORT", IMPORT(id=id))  # first: it leaves the queue when its end is written
    state = await bus.ask(ASK_IMPORT, AskImport(id=id), ImportState, timeout=ANSWER_SECONDS)
    return state if queued is not None or state.state != "unknown" else None


async def followed(
    bus: Bus, id: str, wait: float, show: Callable[[ImportState], None] = lambda state: None
) -> ImportState:
    """An import as it is when it is over, or after `wait` seconds; `show` is called with each look. Raises NoAnswer,
    Retry."""
    until = bus.clock.steady() + wait
    pause, slowest = LOOK_SECONDS
    while True:
        state = await import_state(bus, id) or ImportState(id=id, state="unknown")
        show(state)
        left = until - bus.clock.steady()
        if state.state in ("done", "failed") or left <= 0:
            return state
        await anyio.sleep(min(pause, left))
        pause = min(pause * 1.5, slowest)


@dataclass(frozen=True)
class Place:
    """A file by its real path, and where below the configured roots it can be catalogued."""

    real: bytes
    places: tuple[FilePath, ...]


def placed(path: str, roots: Mapping[str, str]) -> Place:
    """Where a file given by its absolute path lies below the roots (folders by name). Raises Declined for one that is,
    or leads, elsewhere, and for one that no watcher would look at."""
    raw = os.fsencode(path)
    real = os.path.realpath(raw)
    folders = [os.path.realpath(os.fsencode(folder)) for folder in roots.values()]
    if real in folders:
        raise Declined("not-a-model", f"{path} is a folder: name a file in it.")
    if not any(is_inside(real, folder) for folder in folders):
        raise Declined("outside-roots", f"{path} is in none of the configured folders: {', '.join(roots.values())}.")
    if why := why_ignored(raw.rpartition(b"/")[2]):
        raise Declined("not-a-model", why)
    root_index = RootIndex(roots)
    found = dict.fromkeys(place for one in (raw, real) if (place := root_index(one)) is not None)
    return Place(real, tuple(FilePath(root=root, rel=rel) for root, rel in found))


async def hash_of(bus: Bus, file: Place, *, promote: bool, wait: float) -> FileReply:
    """What a file holds, waited for up to `wait` seconds while it is settled and hashed; with `promote`, the records
    that wait for it are promoted, and all that were meanwhile are in the answer. Raises Declined (unknown-file),
    NoAnswer."""
    until = bus.clock.steady() + wait
    pause, slowest = LOOK_SECONDS
    waiting: tuple[int, ...] = ()
    while True:
        size = await to_thread.run_sync(_size, file.real)
        question = FileState(places=file.places, size=size, promote=promote, asked=waiting)
        found = await ask(bus, question, FileReply)
        waiting = tuple(sorted({*waiting, *found.waiting}))
        if not found.known and size < 0:
            raise Declined("unknown-file", "There is no such file.")
        left = until - bus.clock.steady()
        if found.sha256 is not None or left <= 0:
            return found
        await anyio.sleep(min(pause, left))
        pause = min(pause * 1.5, slowest)


def _size(path: bytes) -> int:
    """Bytes of a regular file; -1 for anything else."""
    try:
        found = Path(os.fsdecode(path)).stat()
    except OSError:
        return -1
    return found.st_size if stat.S_ISREG(found.st_mode) else -1
