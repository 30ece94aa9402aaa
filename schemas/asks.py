"""Asks: short requests and their replies."""

from typing import Literal

import msgspec

from schemas.files import Details, FilePath, Known, Stat
from schemas.models import ImportReport, Model


class Nothing(msgspec.Struct, frozen=True, kw_only=True):
    """An ask or a reply that carries nothing."""


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """An ask that was understood and can't be answered: a stable word, and a sentence that says what to do."""

    reason: str
    error: str


class AskImport(msgspec.Struct, frozen=True, kw_only=True):
    """How far is the import of a legacy catalog with this job id?"""

    id: str


class ImportState(msgspec.Struct, frozen=True, kw_only=True):
    """An import: `unknown` (not begun here, or never asked for), `running`, `done` or `failed`; its report so far."""

    id: str
    state: Literal["unknown", "running", "done", "failed"]
    source: str = ""
    report: ImportReport = ImportReport()
    began_at: float | None = None
    ended_at: float | None = None


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """Who answers for the catalog."""

    instance: str


class ResolveModel(msgspec.Struct, frozen=True, kw_only=True):
    """Which model does a name, a file name or the start of a SHA-256 mean? Empty means the only checkpoint there is."""

    name: str


class ListModels(msgspec.Struct, frozen=True, kw_only=True):
    """Models by name: all, or those of one kind; `missing` includes the ones with no file at present. A page of at most
    `limit`, after the one with the SHA-256 `after` (empty: from the first)."""

    kind: str = ""
    missing: bool = False
    after: str = ""
    limit: int = 1000


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """Models by name, without the metadata of their headers; `more` follow after the last."""

    models: tuple[Model, ...]
    more: bool = False


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """Prometheus text exposition."""

    text: str


class ResolveReply(msgspec.Struct, frozen=True, kw_only=True):
    """Exactly one of the two."""

    model: Model | None = None
    problem: Problem | None = None


class Compare(msgspec.Struct, frozen=True, kw_only=True):
    """How far is the comparison of the catalog with the watchers' tables? `again` begins one first."""

    again: bool = False


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """`done` comparisons are complete; the next to begin, which is the one asked for, is `number`. `mended` counts the
    differences found since the migrator started."""

    number: int
    done: int
    mended: int


class ListFiles(msgspec.Struct, frozen=True, kw_only=True):
    """What lies below a root, by the watcher's table: a page of at most `limit`, after the path `after`."""

    after: str = ""
    limit: int = 1000


class ScanRoot(msgspec.Struct, frozen=True, kw_only=True):
    """How is a root? With `look`, a scan is begun first. Of the files that wait, a page of at most `limit` is named,
    after the path `after`."""

    look: bool = False
    after: str = ""
    limit: int = 20


class WaitingFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is not let in yet: why, in a sentence, and since when it waits (Unix seconds)."""

    path: FilePath
    why: str
    since: float


class RootState(msgspec.Struct, frozen=True, kw_only=True):
    """A root by the watcher's table. `looks` scans are complete; the one that was asked for is number `look`. `folders`
    counts those that were looked at since the watcher started.

    Of `files`, `waiting` are not known to be complete yet, `refused` can't be models, and `unhashed` are on the way;
    `problems` are sentences about what can't be looked at, or was refused (the first of them). `waits` names those that
    are waiting, by path, a page of them.
    """

    root: str
    look: int
    looks: int
    files: int
    waiting: int
    refused: int
    unhashed: int
    problems: tuple[str, ...] = ()
    waits: tuple[WaitingFile, ...] = ()
    folders: int = 0


class ListedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A settled file, and what is known of its content (None while its hash is on the way)."""

    path: FilePath
    key: str
    stat: Stat
    known: Known | None = None


class FileList(msgspec.Struct, frozen=True, kw_only=True):
    """Settled files by path, as they were at `at` (Unix seconds of the watcher's clock); `more` follow."""

    files: tuple[ListedFile, ...]
    at: float
    more: bool = False


Strategy = Literal["report", "override", "merge", "ignore", "delete"]
"""What becomes of a pending record whose model is described already."""


class ListPending(msgspec.Struct, frozen=True, kw_only=True):
    """Pending records by id: a page of at most `limit`, after the one with the id `after`."""

    after: int = 0
    limit: int = 200


class PendingRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A model whose content is not known yet. `path` is as its catalog wrote it, `place` where that lies below a root;
    `sha256` is the model it would go to (state conflict) or goes to (promoting); `images` counts its pictures. `reason`
    says why it is pending still, `cut` names the fields that are not here in full."""

    id: int
    legacy_id: int | None = None
    path: str
    place: FilePath | None = None
    name: str
    size: int | None = None
    details: Details = Details()
    origin: Literal["import", "scan"]
    state: Literal["waiting", "conflict", "promoting"]
    sha256: str | None = None
    tags: tuple[str, ...] = ()
    images: int = 0
    reason: str = ""
    cut: tuple[str, ...] = ()


class PendingList(msgspec.Struct, frozen=True, kw_only=True):
    """Pending records; `more` follow after the last."""

    records: tuple[PendingRecord, ...]
    more: bool = False


class Promote(msgspec.Struct, frozen=True, kw_only=True):
    """Promote these pending records now, where their files are hashed."""

    ids: tuple[int, ...]
    strategy: Strategy = "report"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one pending record; `waiting` means that its file is not hashed yet."""

    id: int
    outcome: Literal["promoted", "conflict", "ignored", "deleted", "waiting", "unknown"]
    sha256: str | None = None
    error: str = ""


class Outcomes(msgspec.Struct, frozen=True, kw_only=True):
    """One for each id that was asked for, in that order."""

    outcomes: tuple[Outcome, ...]
