"""Growing files: one that grows is hashed as it grows, so that little is left to do when it is complete.

What is read while somebody writes is never believed by itself. SHA-256 and BLAKE3 are fed the same bytes; when the file
has settled, one pass of BLAKE3 over it, read ahead on another core and three times as quick as one of SHA-256, proves
that what was hashed is what is there. Where it does not (the writer went back, or wrote something else) the file is
hashed as any other. So nothing here has to be exact about what a writer does: a mistake costs time, never the digest.

Each call reads what has come since the last one: between two calls there is no thread and no open file. Of several
hashers that see a root each follows, and the one that gets the job has it easier.

Measured with a file of 4 GiB that is written at 400 MB/s, on two busy cores, from its last byte to evt.model.ready:

    appended to          1.2 s instead of 3.1 s    CPU 4.9 s instead of 3.2 s
    brought by cp        2.6 s instead of 3.0 s    CPU 4.8 s
    header patched       3.0 s instead of 2.7 s    CPU 6.8 s
    middle overwritten   3.3 s instead of 2.8 s    CPU 8.2 s
"""

import hashlib
import os
import stat
import threading
import time
from collections.abc import Callable
from contextlib import closing

import structlog

from agents.ingest.errors import HashCancelled
from agents.ingest.hashing.digests import Digests, Progress, new_blake3, sums_of
from agents.ingest.hashing.reading import BUFFER_BYTES, Cores, plainly
from agents.ingest.scanning.mounts import is_remote
from agents.ingest.settling.observe import has_holes, opened
from agents.storage.errors import IngestError
from schemas.files import Stat

log = structlog.get_logger()

LEAST_BYTES = 64 << 20
"""Length at which following begins: shorter files are hashed in a few hundredths of a second."""

FORGET_SECONDS = 10.0
"""A file that has not grown for so long makes room for another."""


class Followed:
    """What was hashed of one file: its first `offset` bytes, as they were when they were read."""

    def __init__(self, key: str, at: float) -> None:
        self.key, self.at, self.offset = key, at, 0
        self.sha256, self.blake3 = hashlib.sha256(usedforsecurity=False), new_blake3()
        self.head = b""
        """Its beginning: where a writer who goes back has most often been, so it is compared before anything else."""

    def read_on(self, fd: int, size: int, until: Callable[[], bool]) -> None:
        """Hash what follows, to `size` or until `until` is true. Raises OSError, or ChangedWhileHashing for an early
        end."""
        buffer = memoryview(bytearray(BUFFER_BYTES))
        with closing(plainly(fd, self.offset, size, buffer, until)) as chunks:
            for chunk in chunks:
                self.sha256.update(chunk)
                self.blake3.update(chunk)
                self.head = self.head or bytes(chunk)
                self.offset += len(chunk)


class GrowingHash:
    """At most one file, the first that grew; it is read only while `busy` is false. Needs BLAKE3."""

    def __init__(self, busy: Callable[[], bool], clock: Callable[[], float] = time.monotonic) -> None:
        self.busy, self.clock = busy, clock
        self._lock = threading.Lock()
        self._followed: Followed | None = None

    def grown(self, key: str, path: bytes) -> None:
        """In a thread. The file `key`, at this real path, has become longer."""
        with self._lock:
            one = self._followed
            if one is not None and one.key != key and self.clock() - one.at < FORGET_SECONDS:
                return
            self._followed = None
            try:
                with opened(path) as fd:
                    size = _size(fd)
                    if one is None or one.key != key or size < one.offset:
                        if has_holes(fd, size) or is_remote(path):
                            return
                        one = Followed(key, self.clock())
                    one.at = self.clock()
                    one.read_on(fd, size, self.busy)
            except (OSError, IngestError) as error:
                log.debug("a file is not followed any more", error=str(error))
                return
            self._followed = one

    def take(self, key: str) -> Followed | None:
        """What was hashed of this file, if it was followed; that is for the caller to end."""
        with self._lock:
            one = self._followed
            if one is None or one.key != key:
                return None
            self._followed = None
            return one


def proven(
    one: Followed,
    path: bytes,
    *,
    expected: Stat,
    on_progress: Callable[[Progress], None],
    cancelled: Callable[[], bool],
    cores: Cores,
    clock: Callable[[], float] = time.monotonic,
) -> Digests | None:
    """The digests of a settled file whose Stat must be `expected` before and after the proof; None where nothing is
    proven, or so much of it is missing that an ordinary pass is quicker. Raises as `hash_file`."""
    started = clock()
    if not expected.size // 2 <= one.offset <= expected.size:
        return None
    try:
        with opened(path) as fd:
            if os.pread(fd, len(one.head), 0) != one.head:
                return None
            one.read_on(fd, expected.size, cancelled)
    except (OSError, IngestError) as error:
        log.debug("a file was followed for nothing", error=str(error))
        return None
    if cancelled():
        raise HashCancelled
    caught_up = clock() - started
    sums = sums_of(
        path,
        lambda fd: {"blake3": new_blake3()},
        expected=expected,
        on_progress=on_progress,
        cancelled=cancelled,
        cores=cores,
    )
    same, took = sums["blake3"] == one.blake3.hexdigest(), clock() - started
    log.debug("a file was followed", proven=same, catching_up=round(caught_up, 3), seconds=round(took, 3))
    if not same:
        return None
    sha256 = one.sha256.hexdigest()
    return Digests(sha256=sha256, autov2=sha256[:10], blake3=sums["blake3"], seconds=took)


def _size(fd: int) -> int:
    """How long a file is; 0 for what is none."""
    found = os.fstat(fd)
    return found.st_size if stat.S_ISREG(found.st_mode) else 0
