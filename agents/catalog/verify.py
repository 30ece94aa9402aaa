"""Verifying: the catalog against the disk. Every file that it refers to is there, with the content on record; the
database itself is whole; pictures are numbered without gaps.

Synchronous and read-only, for a worker thread, while the catalog is in use.
"""

import hashlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from agents.catalog.rebuild import read_only
from agents.images.model_pictures import picture_names
from agents.storage.layout import DataDir

Subject = Literal["database", "model", "picture", "original", "output", "history"]


class VerifyProblem(msgspec.Struct, frozen=True, kw_only=True):
    """Something that differs from the catalog's record: what it is about, its name, and a sentence."""

    about: Subject
    name: str
    error: str


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """How many of each kind were looked at, and what was wrong."""

    counts: dict[str, int]
    problems: tuple[VerifyProblem, ...]


class CatalogedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A path below a root that holds a model, by the catalog."""

    root: str
    rel: str
    sha256: str
    size: int


def database_problems(connection: sqlite3.Connection) -> Iterator[VerifyProblem]:
    """What SQLite itself finds wrong, and what no constraint can express: gaps in the order of a model's pictures."""
    for (text,) in connection.execute("PRAGMA integrity_check"):
        if text != "ok":
            yield VerifyProblem(about="database", name="integrity", error=str(text))
    for table, row, parent, _ in connection.execute("PRAGMA foreign_key_check"):
        yield VerifyProblem(
            about="database", name=str(table), error=f"row {row} refers to a row of {parent} that is not there"
        )
    gaps = (
        "SELECT sha256 FROM images GROUP BY sha256 HAVING max(seq) <> count(*) - 1 OR count(DISTINCT seq) <> count(*)"
    )
    for (sha256,) in connection.execute(gaps):
        yield VerifyProblem(about="picture", name=str(sha256), error="its pictures are not numbered 0, 1, 2 and so on")
    unsearched = "SELECT count(*) FROM models WHERE sha256 NOT IN (SELECT sha256 FROM searched)"
    [(count,)] = connection.execute(unsearched)
    if count:
        yield VerifyProblem(about="database", name="search", error=f"{count} models can't be found by a search")


def places(connection: sqlite3.Connection) -> list[CatalogedFile]:
    """Every path that holds a model now."""
    rows = connection.execute(
        "SELECT root, rel, sha256, size FROM paths WHERE present = 1 AND sha256 IS NOT NULL ORDER BY root, rel"
    )
    return [CatalogedFile(root=root, rel=rel, sha256=sha256, size=size) for root, rel, sha256, size in rows]


def picture_problems(
    connection: sqlite3.Connection, data: Path, seen: Callable[[str], None]
) -> Iterator[VerifyProblem]:
    """Pictures of models whose files are not all there; originals that are needed still, and are not there or have
    other bytes."""
    for sha256, number, state, original, source in connection.execute(
        "SELECT sha256, number, state, original, source FROM images ORDER BY sha256, seq"
    ):
        seen("picture")
        if state == "ready":
            for file in picture_names(sha256, number).values():
                if problem := _missing(data / file):
                    yield VerifyProblem(about="picture", name=file, error=problem)
        elif problem := _wrong(data / original, source):
            yield VerifyProblem(about="original", name=original, error=problem)
    for file, source in connection.execute("SELECT file, source FROM pending_images ORDER BY pending_id, n"):
        seen("original")
        if problem := _wrong(DataDir(data).pending / file, source):
            yield VerifyProblem(about="original", name=file, error=problem)


def output_problems(connection: sqlite3.Connection, data: Path, seen: Callable[[str], None]) -> Iterator[VerifyProblem]:
    """Generated pictures that are not there, or are not what they were."""
    for file, digest in connection.execute("SELECT file, digest FROM outputs ORDER BY created_at, job, n"):
        seen("output")
        if problem := _wrong(data / file, digest):
            yield VerifyProblem(about="output", name=file, error=problem)


def history_problems(folder: Path, seen: Callable[[str], None]) -> Iterator[VerifyProblem]:
    """Files of the history that are not what they were: without them nothing can be made anew."""
    for file in sorted(folder.glob("*.json.gz")) if folder.is_dir() else ():
        seen("history")
        if problem := _wrong(file, file.name.removesuffix(".json.gz")):
            yield VerifyProblem(about="history", name=file.name, error=problem)


def model_problem(
    place: CatalogedFile, folders: Mapping[str, str], digest: Callable[[Path], str], path: Path | None
) -> str:
    """What is wrong with the file of a model at `path` (None: its root is not known here), as a sentence or nothing.
    `digest` gives its SHA-256."""
    if path is None:
        known = ", ".join(sorted(folders)) or "none"
        return f"its root {place.root!r} is not among those known here ({known})"
    try:
        size = path.stat().st_size
        if size != place.size:
            return f"it has {size:,} bytes and not {place.size:,}"
        found = digest(path)
    except OSError as error:
        return f"it can't be read ({error.strerror})"
    return "" if found == place.sha256 else f"its SHA-256 is {found} and not {place.sha256}"


def check(catalog: Path, data: Path, models: Callable[[list[CatalogedFile]], list[VerifyProblem]]) -> Checked:
    """Everything. `models` looks at the models' files. Raises sqlite3.Error when the catalog can't be read."""
    counts: dict[str, int] = {}

    def seen(what: str) -> None:
        counts[what] = counts.get(what, 0) + 1

    with read_only(catalog) as connection:
        problems = [*database_problems(connection)]
        problems += picture_problems(connection, data, seen)
        problems += output_problems(connection, data, seen)
        problems += history_problems(DataDir.of(catalog).history, seen)
        lying = places(connection)
    counts["model"] = len(lying)
    problems += models(lying)
    return Checked(counts=counts, problems=tuple(problems))


def _missing(path: Path) -> str:
    try:
        return "" if path.stat().st_size else "it is empty"
    except OSError as error:
        return f"it can't be read ({error.strerror})"


def _wrong(path: Path, sha256: str) -> str:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"it can't be read ({error.strerror})"
    return "" if found == sha256 else "its bytes are not those that were written"
