"""Blobs: bytes kept in `data/blobs` under their own SHA-256, until nothing refers to them any more."""

import contextlib
import hashlib
import os
from collections.abc import Collection
from pathlib import Path

from agents.storage.atomic import place
from agents.storage.layout import BLOBS, DataDir
from agents.storage.trash import TrashBatch


def put(data: Path, content: bytes) -> str:
    """Keep bytes, durably; returns their key, the SHA-256 in hex. What is there already is as good as new. Raises
    OSError."""
    key = hashlib.sha256(content).hexdigest()
    blob = DataDir(data).blobs / key
    while not place(blob, content):
        with contextlib.suppress(FileNotFoundError):  # swept just now
            os.utime(blob)
            break
    return key


def sweep(data: Path, used: Collection[str], *, before: float, trash: TrashBatch, since: float = 0.0) -> int:
    """Move the blobs last put between those times (seconds since 1970) that are not `used` (by key) to the trash; how
    many.

    The time is ctime: a data directory copied back with old times gets the same time as one that was written."""
    moved = 0
    with contextlib.suppress(FileNotFoundError), os.scandir(DataDir(data).blobs) as entries:
        for entry in entries:
            if len(entry.name) == 64 and entry.name not in used:
                with contextlib.suppress(FileNotFoundError):
                    if since <= entry.stat(follow_symlinks=False).st_ctime < before:
                        moved += trash.move(f"{BLOBS}/{entry.name}")
    return moved
