"""Reading: the bytes of a file, each once and in order, in buffers that stay in the caches.

Copying out of the page cache costs a fifth of what hashing does. So while a core has nothing to do, a thread
reads ahead on it; when every core hashes a file of its own, that thread would only take time from another file, and
each file is read by the thread that hashes it. Files begin and end meanwhile: the reading changes over in the middle of
a file. A mapping would spare the copy, but a file that shrinks would kill the process.
"""

import os
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from queue import SimpleQueue

from agents.ingest.errors import ChangedWhileHashing

BUFFER_BYTES = 1 << 20
BUFFERS = 2
"""Of the size of one core's second-level cache. Smaller ones are handed over, and the kernel is called, too often:
against these, 2 × 192 KiB read ahead are 5 % slower and 2 × 512 KiB 1 %, and one of 192 KiB read plainly 3 %."""

SMALL_BYTES = 1 << 20
"""Up to here a thread costs more than it gains."""

Chunks = Generator[memoryview, None, int]
"""Parts of a file, each only good until the next one is asked for; at the end, how far the file was read."""


def usable_cores() -> int:
    """How many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Cores:
    """The cores of this process, and how many of them hash a file; shared by all who do."""

    def __init__(self, count: int | None = None) -> None:
        self.count = usable_cores() if count is None else count
        self.busy = 0
        self._lock = threading.Lock()

    @contextmanager
    def one(self) -> Iterator[None]:
        """A file is hashed in here."""
        with self._lock:
            self.busy += 1
        try:
            yield
        finally:
            with self._lock:
                self.busy -= 1

    def spare(self) -> bool:
        """Whether one has nothing to do. A core serves the read-ahead of several files."""
        return self.busy < self.count


def read(fd: int, size: int, cores: Cores) -> Chunks:
    """All of a file of `size` bytes. Raises OSError, or ChangedWhileHashing when it ends early."""
    offset = 0
    if size <= SMALL_BYTES:
        return (yield from plainly(fd, 0, size, memoryview(bytearray(size)), _not_cancelled))
    buffers = [memoryview(bytearray(BUFFER_BYTES)) for _ in range(BUFFERS)]
    with cores.one():
        while offset < size:
            if cores.spare():
                offset = yield from _ahead(fd, offset, size, buffers, cores.spare)
            else:
                offset = yield from plainly(fd, offset, size, buffers[0], cores.spare)
    return offset


def _not_cancelled() -> bool:
    return False


def _part(fd: int, offset: int, size: int, buffer: memoryview) -> memoryview:
    """What fits into the buffer, or what there is of it at once: at least a byte."""
    count = os.preadv(fd, [buffer], offset)
    if count == 0:
        raise ChangedWhileHashing
    return buffer[: min(count, size - offset)]


def plainly(fd: int, offset: int, size: int, buffer: memoryview, until: Callable[[], bool]) -> Chunks:
    """In the caller's thread, from `offset` to the end or until `until` is true. Raises as `read`."""
    while offset < size and not until():
        part = _part(fd, offset, size, buffer)
        offset += len(part)
        yield part
    return offset


def _ahead(fd: int, offset: int, size: int, buffers: list[memoryview], spare: Callable[[], bool]) -> Chunks:
    """A thread fills the buffers in turn while a core is spare; it is gone when this ends, however it ends."""
    free: SimpleQueue[memoryview | None] = SimpleQueue()
    full: SimpleQueue[tuple[memoryview, memoryview] | Exception | None] = SimpleQueue()
    for buffer in buffers:
        free.put(buffer)

    def fill() -> None:
        at = offset
        try:
            while at < size and spare() and (buffer := free.get()) is not None:
                part = _part(fd, at, size, buffer)
                at += len(part)
                full.put((buffer, part))
            full.put(None)
        except Exception as error:
            full.put(error)

    reader = threading.Thread(target=fill, name="read-ahead", daemon=True)
    reader.start()
    try:
        while (item := full.get()) is not None:
            if isinstance(item, Exception):
                raise item
            buffer, part = item
            offset += len(part)
            yield part
            free.put(buffer)
    finally:
        free.put(None)
        reader.join()
    return offset
