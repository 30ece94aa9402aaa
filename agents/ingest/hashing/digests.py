"""Hashing: the SHA-256 of a file that must not change meanwhile, as fast as one core can.

How the bytes come from the page cache to the core is in `reading`. Measured on two cores of 2.6 GHz with SHA
instructions, a warm file, against hashing as many bytes from the core's own cache (1.68 GiB/s; medians of 5 to 10
rounds on a quiet machine):

    one file, read ahead on the other core      0.97
    one file, read by the thread that hashes    0.88 to 0.90
    two files at once, as it is done here       1.76: 1.83 times one file, 1.97 times one on a single core
    two files at once, each with a read-ahead   1.69
    two threads that hash from their caches     1.99

Where two such "cores" are one core's threads, the copy of one slows the hash of the other: on such a machine 0.93 and
1.68 times were seen. Hashing straight from a mapping would spare the copy, and a file that shrinks would kill the
process. Advice to the kernel (sequential, will need) and huge pages gained nothing.
"""

import errno
import hashlib
import os
import stat
import time
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Literal, Protocol, cast

import msgspec

from agents.headers.errors import BadHeader
from agents.headers.safetensors import LENGTH_BYTES, read_length
from agents.ingest.errors import ChangedWhileHashing, Gone, HashCancelled, MissingAlgorithm, Unreadable
from agents.ingest.hashing.reading import Cores, read
from agents.storage.paths import stat_of
from schemas.files import Stat

Algorithm = Literal["sha256", "autov3", "blake3", "crc32"]

TICK_SECONDS = 0.25
"""Between two calls for progress, at least."""

_GONE = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ESTALE))


class Digests(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for, in hex; the rest is empty. `autov2` and `autov3` are the short names other tools know."""

    sha256: str
    autov2: str
    autov3: str = ""
    blake3: str = ""
    crc32: str = ""
    seconds: float


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes done and in all, bytes per second, seconds to go."""

    done: int
    total: int
    rate: float
    eta: float


class Sum(Protocol):
    """A digest under way."""

    def update(self, data: memoryview, /) -> object: ...
    def hexdigest(self) -> str: ...


def hash_file(
    path: str | bytes,
    *,
    expected: Stat,
    on_progress: Callable[[Progress], None] | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    algorithms: Collection[Algorithm] = (),
    cores: Cores | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Digests:
    """Hashes a file whose Stat must be `expected` before and after; to be run in a thread of its own. Who hashes
    several files at once passes the same `cores` with each.

    Both callbacks are called in the caller's thread, between two buffers. Raises ChangedWhileHashing, Gone,
    Unreadable, MissingAlgorithm or HashCancelled. A progress callback that raises ends the hashing with what it raised.
    """
    started = clock()
    texts = sums_of(
        path,
        lambda fd: _hashes(fd, algorithms),
        expected=expected,
        on_progress=on_progress,
        cancelled=cancelled,
        cores=cores or Cores(),
        clock=clock,
    )
    return Digests(
        sha256=texts["sha256"],
        autov2=texts["sha256"][:10],
        autov3=texts.get("autov3", "")[:12],
        blake3=texts.get("blake3", ""),
        crc32=texts.get("crc32", ""),
        seconds=clock() - started,
    )


def sums_of(
    path: str | bytes,
    make: Callable[[int], dict[str, Sum]],
    *,
    expected: Stat,
    on_progress: Callable[[Progress], None] | None,
    cancelled: Callable[[], bool],
    cores: Cores,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, str]:
    """The same for the sums that `make` gives for the open file, in hex under their names."""
    started = clock()
    with _opened(path) as fd:
        _check(fd, expected, path)
        sums = make(fd)
        meter = _Meter(expected.size, started, on_progress, clock)
        with closing(read(fd, expected.size, cores)) as chunks:
            for chunk in chunks:
                for digest in sums.values():
                    digest.update(chunk)
                meter.add(len(chunk))
                if cancelled():
                    raise HashCancelled
        _check(fd, expected, path)
    return {name: value.hexdigest() for name, value in sums.items()}


@contextmanager
def named() -> Iterator[None]:
    """Whatever goes wrong with a file in here gets its own name. Raises Gone or Unreadable instead of OSError."""
    try:
        yield
    except OSError as error:
        if error.errno in _GONE:
            raise Gone from error
        raise Unreadable(f"The file can't be read ({error.strerror}); check its permissions and the disk.") from error


@contextmanager
def _opened(path: str | bytes) -> Iterator[int]:
    """A descriptor for reading."""
    with named():
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            yield fd
        finally:
            os.close(fd)


def _check(fd: int, expected: Stat, path: str | bytes) -> None:
    """Raises ChangedWhileHashing unless the open file is, byte for byte of its Stat, the one that was settled; Gone
    when it is not even there any more."""
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or stat_of(found) != expected:
        raise ChangedWhileHashing if os.path.lexists(path) else Gone


def _hashes(fd: int, algorithms: Collection[Algorithm]) -> dict[str, Sum]:
    """What to feed; SHA-256 is always among it, since it is the identity."""
    sums: dict[str, Sum] = {"sha256": hashlib.sha256(usedforsecurity=False)}
    if "autov3" in algorithms:
        with suppress(BadHeader):  # only safetensors have one
            sums["autov3"] = _AfterHeader(LENGTH_BYTES + read_length(fd))
    if "crc32" in algorithms:
        sums["crc32"] = _Crc32()
    if "blake3" in algorithms:
        sums["blake3"] = new_blake3()
    return sums


def why_not(algorithm: Algorithm) -> str:
    """Why one can't be computed here, in a sentence; empty when it can."""
    try:
        if algorithm == "blake3":
            new_blake3()
    except MissingAlgorithm as error:
        return str(error)
    return ""


def new_blake3() -> Sum:
    """BLAKE3 from its package, which is not a dependency. Raises MissingAlgorithm when it is not installed."""
    try:
        from blake3 import blake3
    except ImportError as error:
        raise MissingAlgorithm("BLAKE3 needs the package blake3: install it where files are hashed.") from error
    return cast(Sum, blake3())


class _AfterHeader:
    """SHA-256 of what follows a safetensors header (AutoV3): the same for a file whose metadata was edited."""

    def __init__(self, skip: int) -> None:
        self.skip = skip
        self.sum = hashlib.sha256(usedforsecurity=False)

    def update(self, data: memoryview, /) -> None:
        skipped = min(self.skip, len(data))
        self.skip -= skipped
        self.sum.update(data[skipped:])

    def hexdigest(self) -> str:
        return self.sum.hexdigest()


class _Crc32:
    """CRC-32 as zip has it, in 8 upper-case hex digits."""

    def __init__(self) -> None:
        self.value = 0

    def update(self, data: memoryview, /) -> None:
        self.value = zlib.crc32(data, self.value)

    def hexdigest(self) -> str:
        return f"{self.value:08X}"


class _Meter:
    """Calls for progress, never more often than every TICK_SECONDS."""

    def __init__(
        self, total: int, started: float, on_progress: Callable[[Progress], None] | None, clock: Callable[[], float]
    ) -> None:
        self.total, self.started, self.on_progress, self.clock = total, started, on_progress, clock
        self.done = 0
        self.next = started + TICK_SECONDS

    def add(self, count: int) -> None:
        self.done += count
        if self.on_progress is None or (now := self.clock()) < self.next:
            return
        self.next = now + TICK_SECONDS
        rate = self.done / (now - self.started)
        self.on_progress(Progress(done=self.done, total=self.total, rate=rate, eta=(self.total - self.done) / rate))
