"""Trash: what a sweep takes away lies in `data/trash/<time>/` under its old name, until it is old, emptied or restored.

Synchronous, for a worker thread. A file is moved within the data directory, so that taking it away costs nothing and
loses nothing; only `empty` removes bytes.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from agents.storage.layout import DataDir
from bus.errors import UserError

_TIME = "%Y%m%dT%H%M%SZ"
_BATCH = re.compile(r"([0-9]{8}T[0-9]{6}Z)(?:-[0-9]+)?")


class NotInTrash(UserError):
    """No file of the trash has this name."""


class Trashed(msgspec.Struct, frozen=True, kw_only=True):
    """One file of the trash. `name` is `<batch>/<file>`, where `file` is the path it had below the data directory; `at`
    is when it was moved here (seconds since 1970)."""

    name: str
    file: str
    bytes: int
    at: float


class TrashBatch:
    """What one sweep moves to the trash of `data`, into a folder made with its first file. `now` is seconds since
    1970."""

    def __init__(self, data: Path, now: float) -> None:
        self.data, self._now = data, now
        self._folder: Path | None = None
        self.moved = 0

    def move(self, file: str) -> bool:
        """Move a file (its path below the data directory) to the trash; False when it is not there. Raises OSError."""
        source = self.data / file
        if not os.path.lexists(source):
            return False
        target = self._made() / file
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.move(source, target)  # a rename, except where the folder lies on another disk
        except FileNotFoundError:
            return False
        self.moved += 1
        return True

    def _made(self) -> Path:
        if self._folder is None:
            name = datetime.fromtimestamp(self._now, UTC).strftime(_TIME)
            trash = DataDir(self.data).trash
            trash.mkdir(exist_ok=True)
            for number in range(1, 10_000):
                folder = trash / (name if number == 1 else f"{name}-{number}")
                with contextlib.suppress(FileExistsError):
                    folder.mkdir()
                    self._folder = folder
                    break
            else:
                raise FileExistsError(f"the trash has thousands of folders named {name}")
        return self._folder


def listed(data: Path) -> list[Trashed]:
    """Every file of the trash, oldest first. Raises OSError."""
    found = []
    for folder, at in _batches(data):
        for path in sorted(folder.rglob("*")):
            if path.is_symlink() or path.is_file():
                file = path.relative_to(folder).as_posix()
                size = path.lstat().st_size
                found.append(Trashed(name=f"{folder.name}/{file}", file=file, bytes=size, at=at))
    return sorted(found, key=lambda one: (one.at, one.name))


def restore(data: Path, names: Iterable[str], to: Path | None = None) -> list[Path]:
    """Move files back to where they were, or into the folder `to` under their last name. `names` are those of files, or
    of whole batches. Returns where they are now.

    Nothing that is there is replaced: raises UserError for a name that is taken, NotInTrash, or OSError.
    """
    there, restored = listed(data), []
    chosen: list[Trashed] = []
    for name in names:
        found = [one for one in there if one.name == name.rstrip("/") or one.name.startswith(f"{name.rstrip('/')}/")]
        if not found:
            raise NotInTrash(f"there is no {name!r} in the trash of {data}: `darkroom trash` lists what is there")
        chosen += [one for one in found if one not in chosen]
    for one in chosen:
        target = to / Path(one.file).name if to else data / one.file
        if os.path.lexists(target):
            raise UserError(f"{target} is there already: move it away, or restore into another folder with --to")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(DataDir(data).trash / one.name, target)
        restored.append(target)
    _forget_empty_folders(data)
    return restored


def empty(data: Path, *, before: float | None = None) -> tuple[int, int]:
    """Remove what was moved to the trash before a time (seconds since 1970), or everything. How many files and bytes
    that were. Raises OSError."""
    gone = [one for one in listed(data) if before is None or one.at < before]
    for one in gone:
        (DataDir(data).trash / one.name).unlink(missing_ok=True)
    _forget_empty_folders(data)
    return len(gone), sum(one.bytes for one in gone)


def _batches(data: Path) -> Iterator[tuple[Path, float]]:
    with contextlib.suppress(FileNotFoundError):
        for folder in sorted(DataDir(data).trash.iterdir()):
            if (match := _BATCH.fullmatch(folder.name)) and folder.is_dir() and not folder.is_symlink():
                with contextlib.suppress(ValueError):  # digits that are no time
                    yield folder, datetime.strptime(match[1], _TIME).replace(tzinfo=UTC).timestamp()


def _forget_empty_folders(data: Path) -> None:
    for batch, _ in _batches(data):
        for folder in sorted((path for path in batch.rglob("*") if path.is_dir()), reverse=True):
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()
        with contextlib.suppress(OSError):
            batch.rmdir()
