"""Sidecar watch: when the files next to a model are new, hold still, and are to be published; and reading them.

A model is described once its content is known: the description is of a content, wherever that moves later.
"""

import functools
import itertools
import math
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import anyio
import msgspec
import structlog
from anyio import to_thread

from agents.ingest.scanning.names import why_ignored
from agents.ingest.scanning.scan import Scan, marks_in, names_in
from agents.ingest.sidecars.parse import Sidecars, opened, read_sidecars
from agents.ingest.store import HashedModel, Store, Table
from agents.storage import blobs
from agents.storage.errors import BadPath, IngestError, OutsideRoot
from agents.storage.paths import is_inside, join
from bus.clock import Clock
from schemas.files import Described, Details, Preview
from schemas.fitting import cut

log = structlog.get_logger()

PREVIEWS = 8
THUMBNAIL = "thumbnail"
"""What the picture within a JSON sidecar is called."""
PREVIEW_BYTES = 16 << 20
LARGEST_FACT = 48 << 10
"""Bytes of JSON; of a longer one the texts are cut."""
_BATCH = 32
_CHECK_AGAIN, _CHECK_SHARE, _CHECK_PAUSE = 0.1, 4, 5.0
"""Seconds between looks at folders that events named at least, how many times as long as a look takes, and at most."""
_AGAIN = 5.0


class Due(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is to be described, and the mark of its sidecars now (empty: none any more)."""

    model: HashedModel
    mark: str


class SidecarMarks:
    """The marks of the models' sidecars, and since when each is what it is (seconds of a clock that never goes
    back)."""

    def __init__(self, stable: float) -> None:
        self.stable = stable
        self.marks: dict[str, dict[str, tuple[str, float]]] = {}
        self.updated: dict[tuple[str, str], float] = {}
        self.absent: dict[tuple[str, str], float] = {}
        self.has_described = True

    def update(self, scans: Iterable[Scan], now: float, began: float) -> bool:
        """Take in what scans saw that began at that time; whether any mark is another one. A root that is away
        is left as it was, and so is a folder that was looked at since."""
        changed = False
        self.updated = {place: at for place, at in self.updated.items() if at >= began}
        for one in scans:
            if one.state != "present":
                continue
            since = {folder for root, folder in self.updated if root == one.root}
            seen = {rel: mark for rel, mark in one.marks.items() if _folder(rel) not in since}
            kept = {
                rel: known for rel, known in self.marks.get(one.root, {}).items() if since and _folder(rel) in since
            }
            changed |= self._take(one.root, seen, kept, now)
        return changed

    def update_folder(self, root: str, folder: str, marks: Mapping[str, str], now: float) -> bool:
        """Take in what lies in one folder at this moment; whether any mark is another one."""
        self.updated[root, folder] = now
        kept = {rel: known for rel, known in self.marks.get(root, {}).items() if _folder(rel) != folder}
        return self._take(root, marks, kept, now)

    def _take(self, root: str, seen: Mapping[str, str], kept: dict[str, tuple[str, float]], now: float) -> bool:
        before = self.marks.get(root, {})
        after = dict(kept)
        for rel, mark in seen.items():
            known = before.get(rel)
            after[rel] = known if known is not None and known[0] == mark else (mark, now)
        self.marks[root] = after
        return after != before

    def settles_at(self, now: float) -> float:
        """When the next mark that does not hold still for long enough `now` will; infinite when all do."""
        since = itertools.chain((at for marks in self.marks.values() for _, at in marks.values()), self.absent.values())
        return min((at + self.stable for at in since if at + self.stable > now), default=float("inf"))

    def due(self, db: Store, now: float) -> list[Due]:
        """What is to be described: marks that hold still and were not published of this content; and where there is
        none any more for as long, that there is none. (A model is often moved a moment before its sidecars.)"""
        found, absent = [], {}
        self.has_described = db.has_described()
        for root, marks in [*self.marks.items()]:
            still = {rel: mark for rel, (mark, since) in marks.items() if since + self.stable <= now}
            for model in db.with_sidecars(root, still):
                rel = model.path.rel
                if rel in marks and rel not in still:
                    continue
                mark = still.get(rel, "")
                if (mark, model.sha256 if mark else "") == (model.mark, model.described if model.mark else ""):
                    continue
                since = -math.inf if mark else self.absent.get((root, rel), now)
                if since + self.stable > now:
                    absent[root, rel] = since
                else:
                    found.append(Due(model=model, mark=mark))
        self.absent = absent
        return found


class SidecarWatch:
    """Publishes what the sidecars of the models of these roots hold; `wake` is called when the outbox has more."""

    def __init__(
        self,
        table: Table,
        roots: Mapping[str, str],
        data: Path,
        stable: float,
        clock: Clock,
        wake: Callable[[], None],
    ) -> None:
        self.table, self.roots, self.data, self.clock, self.wake_relay = table, roots, data, clock, wake
        self.marks = SidecarMarks(stable)
        self.wake = anyio.Event()
        self.folders: set[tuple[str, str]] = set()

    def scanned(self, scans: Iterable[Scan], began: float) -> None:
        """Take in what scans saw that began at that time (of the clock that never goes back)."""
        if self.marks.update(scans, self.clock.steady(), began):
            self.wake.set()

    def folder_changed(self, root: str, folder: str) -> None:
        """A sidecar in a folder changed, by an event: the folder is looked at by itself, soon."""
        self.folders.add((root, folder))
        self.wake.set()

    def arrived(self, root: str, rel: str) -> None:
        """A name is new, by an event; sidecars of a model may have waited for it."""
        if not why_ignored(rel.rpartition("/")[2].encode()):
            self.folder_changed(root, _folder(rel))

    def hashed(self) -> None:
        """The content of more files is known, or of files that were let in it was."""
        if self.marks.has_described or any(self.marks.marks.values()):
            self.wake.set()

    async def keep(self) -> None:
        """Describe what is due, for ever; what can't be kept (a full disk) is tried again."""
        while True:
            self.wake = anyio.Event()
            await self._check_folders()
            now = self.clock.steady()
            try:
                due = await self.table.do(functools.partial(self.marks.due, now=now))
                for start in range(0, len(due), _BATCH):
                    await self._describe(due[start : start + _BATCH])
            except OSError as error:
                log.warning("sidecars not described yet", error=str(error))
                await anyio.sleep(_AGAIN)
                continue
            # (Counted from when that was asked: what settles while others are described is due at once.)
            with anyio.move_on_after(self.marks.settles_at(now) - self.clock.steady()):
                await self.wake.wait()

    async def _check_folders(self) -> None:
        """Look at the folders that events named, now and then."""
        if not self.folders:
            return
        folders, self.folders = self.folders, set()
        began = self.clock.steady()
        seen = await to_thread.run_sync(lambda: [(*place, self._marks_in(*place)) for place in folders])
        for root, folder, marks in seen:
            if marks is not None:
                self.marks.update_folder(root, folder, marks, began)
        await anyio.sleep(min(_CHECK_PAUSE, max(_CHECK_AGAIN, _CHECK_SHARE * (self.clock.steady() - began))))

    def _marks_in(self, root: str, folder: str) -> dict[str, str] | None:
        """In a thread. None where only a scan can find out: of a folder that is gone, for example."""
        try:
            return marks_in(os.path.realpath(os.fsencode(self.roots[root])), folder)
        except (OSError, BadPath):
            return None

    async def _describe(self, due: list[Due]) -> None:
        at = self.clock.now()

        def read() -> list[Described]:
            return [describe(one, self.roots, self.data, at) for one in due]

        facts = await to_thread.run_sync(read)

        def write(db: Store) -> None:
            with db.atomic():
                for one, fact in zip(due, facts, strict=True):
                    db.describe(fact, one.mark)

        await self.table.do(write)
        for fact in facts:
            if fact.problems:
                log.warning("not every sidecar of a model can be used", rel=fact.path.rel, problems=fact.problems)
        self.wake_relay()


def describe(due: Due, folders: Mapping[str, str], data: Path, at: float) -> Described:
    """Read the sidecars of a model below one of the roots (`folders` by name), its pictures into the blobs of the data
    directory. What can't be read or used is a problem in a sentence. Raises OSError when the blobs can't be written."""
    path = due.model.path
    roots = tuple(os.path.realpath(os.fsencode(folder)) for folder in folders.values())
    try:
        found = _read(due, folders[path.root], roots) if due.mark else Sidecars()
    except (IngestError, OSError) as error:
        found = Sidecars(problems=(str(error),))
    previews, problems = [], list(found.problems)
    for file in found.previews[:PREVIEWS]:
        picture, problem = _picture(file, roots)
        if problem:
            problems.append(problem)
        else:
            previews.append(Preview(name=file.name.encode("utf-8", "replace").decode(), blob=blobs.put(data, picture)))
    if found.thumbnail and not previews:
        previews.append(Preview(name=THUMBNAIL, blob=blobs.put(data, found.thumbnail)))
    details = Details(
        title=found.name,
        description=found.description,
        notes=found.notes,
        base_model=found.base_model,
        source_url=found.source_url,
        trigger_words=found.trigger_words,
        nsfw=found.nsfw,
    )
    fact = Described(
        key=due.model.key,
        path=path,
        sha256=due.model.sha256,
        details=details,
        tags=found.tags,
        previews=tuple(previews),
        problems=tuple(problems[:20]),
        at=at,
    )
    return cut(fact, LARGEST_FACT)


def _read(due: Due, folder: str, roots: tuple[bytes, ...]) -> Sidecars:
    """The sidecars of a model by its own name, a link's too: not those of what that leads to. Raises OutsideRoot,
    BadPath."""
    path = join(folder, due.model.path.rel)
    above, _, name = path.rpartition(b"/")
    real = os.path.realpath(above)
    if real not in roots and not any(is_inside(real, root) for root in roots):
        raise OutsideRoot(f"{due.model.path.rel!r} is in a folder that leads out of its root, where nothing is read.")
    return read_sidecars(real + b"/" + name, roots=roots, names=names_in(due.mark), sha256=due.model.sha256)


def _picture(file: Path, roots: tuple[bytes, ...]) -> tuple[bytes, str]:
    """The bytes of a picture, or why they are not used. No link out of the roots is followed, nothing but a file is
    read."""
    shown = file.name.encode("utf-8", "replace").decode()
    try:
        fd = opened(file, roots)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                return b"", f"{shown} is no file and is not shown."
            if status.st_size > PREVIEW_BYTES:
                return b"", f"{shown} is larger than {PREVIEW_BYTES >> 20} MiB and is not shown."
            with os.fdopen(os.dup(fd), "rb") as reading:
                return reading.read(PREVIEW_BYTES), ""
        finally:
            os.close(fd)
    except OSError as error:
        return b"", f"{shown} can't be read ({error.strerror})."
    except OutsideRoot as error:
        return b"", f"{shown} can't be read ({error})."


def _folder(rel: str) -> str:
    return rel.rpartition("/")[0]
