"""Observing: one careful look at one file, for the gate. The only part of the gate that touches the disk.

It opens regular files inside the root only, never waits for anybody, and leaves no trace.
"""

import ctypes
import errno
import functools
import os
import signal
import stat
import struct
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from msgspec import structs

from agents.headers.errors import BadHeader
from agents.headers.safetensors import LENGTH_BYTES, read_length
from agents.ingest.scanning.names import control_names
from agents.ingest.settling import gate
from agents.ingest.settling.lengths import length_of
from agents.storage.errors import OutsideRoot
from agents.storage.paths import encode, join, resolve, stat_of
from schemas.files import Stat

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None  # type: ignore[assignment]

GONE = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ENOTCONN))
_PIECE_BYTES, _BLOCK_BYTES = 1 << 20, 16 << 10
"""What downloaders fetch at a time, at least, and what of it arrives at once: a piece is complete when its end is."""

_AT_EMPTY_PATH, _STATX_BTIME = 0x1000, 0x800
"""Of the call statx, which Python does not have yet: https://man7.org/linux/man-pages/man2/statx.2.html."""

_OPEN_SAFELY = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY | os.O_NOFOLLOW


def observe(
    root: str | bytes,
    rel: str,
    now: float,
    *,
    remote: bool = False,
    previous: gate.Observation | None = None,
    stale_control: float = float("inf"),
    wall: Callable[[], float] = time.time,
) -> gate.Observation:
    """What a file is like at `now` (monotonic seconds), below the folder `root`. Never raises for what it finds.

    `remote` means that others may write the file unseen (see `mounts.is_remote`): a lease proves nothing then. With
    `previous`, what the file gave is not read again for the very Stat it was read for. Blank pieces are looked for when
    the control file was not written for `stale_control` seconds, by the `wall` clock.
    """
    try:
        named, path = join(root, rel), resolve(root, rel)
        seen = stat.S_IFMT(os.lstat(path).st_mode)
        if seen != stat.S_IFREG:
            return gate.Observation(at=now, nature="special", stat=stat_of(os.lstat(path)), error=_no_file(seen))
        return _look(named, path, now, remote, previous, stale_control, wall)
    except OutsideRoot as error:
        return gate.Observation(at=now, nature="outside", stat=_link_stat(root, rel), error=str(error))
    except OSError as error:
        if error.errno in GONE:
            return gate.Observation(at=now, nature="gone")
        sentence = f"The file can't be read ({error.strerror}); check its permissions and the disk."
        return gate.Observation(at=now, nature="unreadable", stat=_link_stat(root, rel), error=sentence)


def _look(
    named: bytes,
    path: bytes,
    now: float,
    remote: bool,
    previous: gate.Observation | None,
    stale_control: float,
    wall: Callable[[], float],
) -> gate.Observation:
    """The observation of the regular file `path`, which is called `named`: that may be a link to it.

    The lease is probed last and over the final stat, so that it speaks for both; once before, since nothing else
    matters while somebody writes.
    """
    control, control_age = _control_file({path, named}, wall)
    seen = gate.Observation(at=now, nature="file", lease="held", control=control, control_age=control_age)
    try:
        with opened(path) as fd:
            before = stat_of(os.fstat(fd))
            if not remote and lease(fd) == "held":
                return structs.replace(seen, stat=before)
            known = previous if previous is not None and previous.stat == before else None
            seen = structs.replace(seen, stat=before, **_content(fd, named, before.size, known))
            if control_age is not None and control_age >= stale_control and gate.is_full_length(seen):
                blank = known.blank if known else None
                seen = structs.replace(seen, blank=has_blanks(fd, named, before.size) if blank is None else blank)
            held = "unknown" if remote else lease(fd)
            after, born = os.fstat(fd), born_at(fd)
    except BlockingIOError:  # somebody keeps others out by a lease of his own
        return structs.replace(seen, stat=stat_of(os.lstat(path)))
    if before != stat_of(after):
        return structs.replace(seen, stat=stat_of(after), lease="held", header="none", expected=None, error="")
    return structs.replace(seen, lease=held, age=_age(after, wall), born=born)


def _content(fd: int, named: bytes, size: int, known: gate.Observation | None) -> dict[str, Any]:
    """What the content shows; of its length what is `known` already."""
    length = length_of(fd, named, size) if known is None or known.header == "none" else known
    fields = {"header": length.header, "expected": length.expected, "error": length.error}
    return {**fields, "holes": has_holes(fd, size)}


@contextmanager
def opened(path: bytes) -> Iterator[int]:
    """A descriptor for reading a real path; never waits (FIFOs, leases) and follows no link at its end. Raises
    OSError."""
    fd = os.open(path, _OPEN_SAFELY)
    try:
        yield fd
    finally:
        os.close(fd)


def lease(fd: int) -> gate.Lease:
    """Whether any process has the file open for writing, by a read lease that is given back at once.

    A writer who comes in the microseconds between waits for its end. The kernel then sends the holder a signal:
    SIGURG is asked for, which is ignored by nature, where SIGIO, the usual one, would end the process; no handler is
    touched, so it works in any thread.
    """
    if fcntl is None or not hasattr(fcntl, "F_SETLEASE"):
        return "unknown"
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return "held" if error.errno == errno.EAGAIN else "unknown"
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return "free"


def has_holes(fd: int, size: int) -> bool | None:
    """Whether some bytes were never written (sparse or preallocated); None where the file system does not know."""
    if size == 0:
        return False
    try:
        return os.lseek(fd, 0, os.SEEK_HOLE) < size
    except (OSError, AttributeError):
        return None


def born_at(fd: int) -> int | None:
    """When the open file was made, in nanoseconds since 1970; None where the system does not know. What is deleted and
    made anew may get the same inode number, but not the same time."""
    call, found = _statx(), ctypes.create_string_buffer(256)
    if call is None or call(fd, b"", _AT_EMPTY_PATH, _STATX_BTIME, found) != 0:
        return None
    (mask,) = struct.unpack_from("=I", found, 0)
    seconds, nanoseconds = struct.unpack_from("=qI", found, 80)
    return int(seconds) * 10**9 + int(nanoseconds) if mask & _STATX_BTIME else None


@functools.cache
def _statx() -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), "statx", None) if sys.platform == "linux" else None


def has_blanks(fd: int, named: bytes, size: int) -> bool:
    """Whether some piece of a file ends with nothing but zeros: so does one whose space was reserved by writing zeros,
    or was copied with its holes filled in, and that did not arrive. (A file may have such zeros of its own; less than a
    block proves nothing of one that is a single piece.)"""
    begin = 0
    if named.lower().endswith(b".safetensors"):
        with suppress(BadHeader):
            begin = LENGTH_BYTES + read_length(fd)
    for end in (*range(_PIECE_BYTES, size, _PIECE_BYTES), size):
        start = max(begin, end - _BLOCK_BYTES, (end - 1) // _PIECE_BYTES * _PIECE_BYTES)
        is_block = end - start == _BLOCK_BYTES or size > _PIECE_BYTES
        if start < end and is_block and not any(os.pread(fd, end - start, start)):
            return True
    return False


def _control_file(paths: Collection[bytes], wall: Callable[[], float]) -> tuple[str, float | None]:
    """The name of the control file of one of the paths that was written last, and how many seconds ago."""
    found: list[tuple[float, str]] = []
    for path in paths:
        folder, _, name = path.rpartition(b"/")
        for control in control_names(name):
            try:
                age = _age(os.lstat(folder + b"/" + control), wall)
            except OSError:
                continue
            found.append((float("-inf") if age is None else age, encode(control)))
    if not found:
        return "", None
    age, control_name = min(found)
    return control_name, age if age >= 0 else None


def _age(result: os.stat_result, wall: Callable[[], float]) -> float | None:
    """Seconds since a file was written. A date in the future is no such thing: the time of its last change counts then,
    unless that is in the future too."""
    now = wall()
    return next((now - at for at in (result.st_mtime, result.st_ctime) if at <= now), None)


def _link_stat(root: str | bytes, rel: str) -> Stat | None:
    """The stat of the path itself, symlink or not, as far as it can be had."""
    try:
        return stat_of(os.lstat(join(root, rel)))
    except OSError:
        return None


def _no_file(kind: int) -> str:
    names = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFLNK: "a link that leads nowhere",
    }
    return f"This is {names.get(kind, 'something')}, not a file; put the model itself here."
