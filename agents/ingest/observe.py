"""Observing: one careful look at one file, for the gate. The only part of the gate that touches the disk.

It opens regular files inside the root only, never waits for anybody, and leaves nothing behind.
"""

import errno
import os
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from agents.ingest import gate
from agents.ingest.errors import OutsideRoot
from agents.ingest.lengths import Length, length_of
from agents.ingest.names import control_names
from agents.ingest.paths import encode, join, resolve, stat_of
from schemas.files import Stat

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None  # type: ignore[assignment]

GONE = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ENOTCONN))
_OPEN_SAFELY = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY | os.O_NOFOLLOW


def observe(
    root: str | bytes, rel: str, now: float, *, remote: bool = False, previous: gate.Observation | None = None
) -> gate.Observation:
    """What a file is like at `now` (monotonic seconds), below the folder `root`. Never raises for what it finds.

    `remote` says that others may write the file unseen (see `mounts.is_remote`): a lease proves nothing then. With
    `previous`, a length that the file gave is not read again for the very Stat it was read for.
    """
    try:
        named, path = join(root, rel), resolve(root, rel)
        seen = stat.S_IFMT(os.lstat(path).st_mode)
        if seen != stat.S_IFREG:
            return gate.Observation(at=now, nature="special", stat=stat_of(os.lstat(path)), error=_no_file(seen))
        return _look(named, path, now, remote, previous)
    except OutsideRoot as error:
        return gate.Observation(at=now, nature="outside", stat=_link_stat(root, rel), error=str(error))
    except OSError as error:
        if error.errno in GONE:
            return gate.Observation(at=now, nature="gone")
        sentence = f"The file can't be read ({error.strerror}); check its permissions and the disk."
        return gate.Observation(at=now, nature="unreadable", stat=_link_stat(root, rel), error=sentence)


def _look(named: bytes, path: bytes, now: float, remote: bool, previous: gate.Observation | None) -> gate.Observation:
    """The observation of the regular file `path`, which is called `named`: that may be a link to it.

    The lease is probed last and over the final stat, so that it speaks for both; once before, since nothing else
    matters while somebody writes.
    """
    control = _control_file(path) or (_control_file(named) if named != path else "")
    try:
        with opened(path) as fd:
            if not remote and lease(fd) == "held":
                return gate.Observation(
                    at=now, nature="file", stat=stat_of(os.fstat(fd)), lease="held", control=control
                )
            before = stat_of(os.fstat(fd))
            if previous is not None and previous.stat == before and previous.header != "none":
                said = Length(header=previous.header, expected=previous.expected, error=previous.error)
            else:
                said = length_of(fd, named, before.size)
            holes = has_holes(fd, before.size)
            held = "unknown" if remote else lease(fd)
            after = stat_of(os.fstat(fd))
    except BlockingIOError:  # somebody keeps others out by a lease of his own
        return gate.Observation(at=now, nature="file", stat=stat_of(os.lstat(path)), lease="held", control=control)
    if before != after:
        held, said = "held", Length()
    return gate.Observation(
        at=now,
        nature="file",
        stat=after,
        lease=held,
        holes=holes,
        header=said.header,
        expected=said.expected,
        error=said.error,
        control=control,
    )


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
    """Whether some of the bytes were never written (sparse or preallocated); None where the file system can't tell."""
    if size == 0:
        return False
    try:
        return os.lseek(fd, 0, os.SEEK_HOLE) < size
    except (OSError, AttributeError):
        return None


def _control_file(path: bytes) -> str:
    """The name of a control file beside the path, if there is one."""
    folder, _, name = path.rpartition(b"/")
    for control in control_names(name):
        try:
            os.lstat(folder + b"/" + control)
        except OSError:
            continue
        return encode(control)
    return ""


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
