"""Fingerprints: a few blocks of a file, to doubt a rename by. An inode can be given to another file of the same size
and date; reading half a megabyte decides, where hashing would read gigabytes. It is no identity and never leaves the
watcher.
"""

import os
from collections.abc import Iterable, Mapping
from hashlib import blake2b

from agents.ingest.scanning.reconcile import Change, Linked, Touched, WasMoved, doubted
from agents.ingest.settling.observe import GONE, opened
from agents.storage.errors import IngestError
from agents.storage.paths import resolve, stat_of
from schemas.files import Stat

BLOCK_BYTES = 64 << 10
BLOCKS = 8


def fingerprint(fd: int, size: int) -> str:
    """32 hex digits over the length and eight blocks spread evenly over an open file. Raises OSError."""
    digest = blake2b(str(size).encode(), digest_size=16)
    last = max(0, size - BLOCK_BYTES)
    for offset in sorted({last * part // (BLOCKS - 1) for part in range(BLOCKS)}):
        digest.update(os.pread(fd, BLOCK_BYTES, offset))
    return digest.hexdigest()


def fingerprint_at(folder: str | bytes, rel: str, expected: Stat) -> str | None:
    """The fingerprint of a path below a folder; empty when it can't be read, None when the version `expected` of the
    file is not there any more."""
    try:
        with opened(resolve(folder, rel)) as fd:
            if stat_of(os.fstat(fd)) != expected:
                return None
            return fingerprint(fd, expected.size)
    except IngestError:
        return None
    except OSError as error:
        return None if error.errno in GONE else ""


def verified(changes: Iterable[Change], folders: Mapping[str, str], *, sure: bool) -> list[Change] | None:
    """The changes, with every one that takes a content for known put to the test where its change time differs.

    `folders` is by root. A content that differs, or can't be read, is judged anew. None when a file went on changing
    after it was scanned, unless that is `sure`: only another scan can find out what became of it.
    """
    checked: list[Change] = []
    for change in changes:
        match change:
            case WasMoved(row=row, path=path, candidate=candidate) | Linked(source=row, path=path, candidate=candidate):
                pass
            case Touched(row=row, candidate=candidate):
                path = row.path
            case _:
                checked.append(change)
                continue
        if row.stat.ctime_ns == candidate.stat.ctime_ns:
            checked.append(change)
            continue
        mark = fingerprint_at(folders[path.root], path.rel, candidate.stat)
        if mark is None and not sure:
            return None
        checked += [change] if mark and mark == row.fingerprint else doubted(change)
    return checked
