"""Matching: which of the files that lie there a pending record is of, and why none is."""

import json
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import NamedTuple

from agents.catalog.database import Statements
from agents.catalog.names import file_name, fold, stem
from schemas.files import FilePath

NO_FILE = "No file in the folders has its name."
OTHER_SIZE = "Its size is of no file of its name."
MANY_OF_ITS_SIZE = "Several files could be its own; keep one of them."
MANY_OF_ITS_NAME = "It has no size, and several files have its name; keep one of them."
UNHASHED = "Its file is there, and is being hashed."
RIVALS = "Other records could be of the same file; promote one of them by its id."


class Wanted(NamedTuple):
    """What a record holds about its file: where it lay below a root, if it did, its folded name, and its bytes."""

    place: FilePath | None
    folded: str
    size: int | None


class MatchedFile(NamedTuple):
    """A file that lies there; its SHA-256 is None until it is hashed."""

    path: FilePath
    size: int
    sha256: str | None


class Match(NamedTuple):
    """The one content that a record is of, as far as anything shows; else why there is none."""

    sha256: str | None
    why_not: str


class Files:
    """The files that some records could be of."""

    def __init__(self, found: Iterable[MatchedFile]) -> None:
        self._at = {one.path: one for one in found}
        self._called: dict[str, list[MatchedFile]] = {}
        for one in self._at.values():
            self._called.setdefault(fold(file_name(one.path.rel)), []).append(one)

    def match(self, record: Wanted) -> Match:
        """The file at the record's place; where none is, the only one of its name and size, or, where it has no size,
        of its name. Copies of one content are one. Pure."""
        if record.place in self._at:
            return _sole([self._at[record.place]], "")
        called = self._called.get(record.folded, [])
        if record.size is None:
            return _sole(called, MANY_OF_ITS_NAME) if called else Match(None, NO_FILE)
        fitting = [one for one in called if one.size == record.size]
        if not fitting:
            return Match(None, OTHER_SIZE if called else NO_FILE)
        return _sole(fitting, MANY_OF_ITS_SIZE)


def _sole(files: list[MatchedFile], many: str) -> Match:
    contents = {one.sha256 or one.path for one in files}
    if len(contents) > 1:
        return Match(None, many)
    sha256 = files[0].sha256
    return Match(sha256, UNHASHED if sha256 is None else "")


async def files_for(sql: Statements, records: Iterable[Wanted]) -> Files:
    """The files that lie at the records' places, or are called as they are. Raises sqlite3.Error."""
    stems = set()
    for record in records:
        stems.add(PurePosixPath(record.folded).stem)
        stems.update([fold(stem(record.place.rel))] if record.place else [])
    rows = await sql.rows("files_called", folded=json.dumps([*stems]))
    return Files(
        MatchedFile(FilePath(root=root, rel=rel), int(size), sha256 and str(sha256)) for root, rel, size, sha256 in rows
    )
