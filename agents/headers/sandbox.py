"""Headers of model files, read without loading a weight and without trusting a byte.

A header of up to 1 MiB is decoded here; a larger one (100 MB at most, as for the format's own library) in a child
process with limits, so that it holds up no event loop and takes no memory that matters. Bad content becomes an Identity
with a problem; only the disk raises, and a machine too busy to look.
"""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from errno import EIO
from pathlib import Path

import msgspec

from agents.headers import gguf
from agents.headers.classify import identify_header
from agents.headers.compact import UNREADABLY_LARGE
from agents.headers.errors import BadHeader, HeaderUnread, Unfinished
from agents.headers.safetensors import HEADER_LIMIT, read_header, read_length
from schemas.files import Identity

CHILD_OVER_BYTES = 1 << 20
"""Headers longer than this are decoded in a child."""

CHILD_SECONDS = 2
"""Seconds of processor time for a header of 16 MiB; most take 0.7 (a core of 2020 or so). A longer one is given as much
for each 16 MiB."""

CHILD_WALL_SECONDS = 20.0
"""Seconds on the wall, after which a busy machine is given time to recover: that is no verdict on the file."""

CHILD_MEMORY_BYTES = 160 << 20
"""Address space, of which the child of a header of 16 MiB has 105 MiB in memory. That of a longer one is given its
length more: it is in memory as a whole for a moment, before its long texts are left out."""

_OPEN_SAFELY = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_PICKLE = (
    "This is a pickle, which can run code when it is loaded: it is listed, but never loaded. "
    "Convert it to .safetensors, or download that version of it."
)
_ENDED_BY_OTHERS = frozenset((-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP))
"""Exit statuses of a child that the user or a system short of memory ended; its own time limit is another signal."""

_one_child = threading.Lock()
"""Several large headers at once are decoded one after the other: each child takes memory."""


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What a safetensors header came to: the length the file must have, and what is in it. With `bad` or `errno` (the
    disk's), only that."""

    file_size: int = 0
    identity: Identity = Identity()
    bad: str = ""
    unfinished: bool = False
    errno: int = 0


def identify(path: str | bytes, name: bytes = b"") -> Identity:
    """What the file at a real path is, by its header and the extension of its `name` (that of a link to it, or its
    own). Raises OSError or HeaderUnread."""
    fd = os.open(path, _OPEN_SAFELY)
    try:
        return identify_fd(fd, name or os.fsencode(path))
    finally:
        os.close(fd)


def identify_fd(fd: int, name: bytes) -> Identity:
    """What an open file is; of `name` only the extension counts. Raises OSError or HeaderUnread."""
    lower = name.lower()
    if lower.endswith(b".gguf"):
        return gguf.identify(fd)
    if not lower.endswith(b".safetensors"):
        return Identity(unsafe=True, problem=_PICKLE)
    try:
        reading = read(fd)
    except BadHeader as error:
        return Identity(problem=str(error))
    if os.fstat(fd).st_size != reading.file_size:
        return Identity(problem="The file is not as long as its header states; copy or download it again.")
    return reading.identity


def expected_size(fd: int) -> int:
    """The length in bytes that an open safetensors file must have. Raises BadHeader, Unfinished, HeaderUnread or
    OSError."""
    if read_length(fd) > CHILD_OVER_BYTES:
        return read(fd, length_only=True).file_size
    return read_header(fd, strict=False).file_size


def read(fd: int, *, length_only: bool = False) -> Reading:
    """What is in an open safetensors file's header. Raises BadHeader, Unfinished, HeaderUnread or OSError."""
    length = read_length(fd)
    if length <= CHILD_OVER_BYTES:
        return _read_here(fd, length_only)
    if os.fstat(fd).st_size < length:
        raise Unfinished(f"The file ends within its header of {length:,} bytes; copy or download it again.")
    reading = _read_in_child(fd, length, length_only)
    if reading.bad:
        raise (Unfinished if reading.unfinished else BadHeader)(reading.bad)
    return reading


def _read_here(fd: int, length_only: bool) -> Reading:
    header = read_header(fd, strict=not length_only)
    if length_only:
        return Reading(file_size=header.file_size)
    return Reading(file_size=header.file_size, identity=identify_header(header))


def _read_in_child(fd: int, length: int, length_only: bool) -> Reading:
    """The reading of a child that gets the open file and nothing else, and may fail in any way it likes.

    The child's answer is a verdict on the file, and so is that it fails; that it is ended, or has no time to run, is
    none. Raises HeaderUnread or OSError.
    """
    here = str(Path(__file__).resolve().parents[2])
    call = f"main({length_only}, {length})"
    program = f"import sys; sys.path.insert(0, {here!r}); from agents.headers.sandbox import main; {call}"
    with _one_child:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-c", program],
                stdin=fd,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=CHILD_WALL_SECONDS,
            )
        except (subprocess.TimeoutExpired, OSError) as error:
            raise HeaderUnread from error
    if done.returncode in _ENDED_BY_OTHERS:
        raise HeaderUnread
    if done.returncode:
        return Reading(bad=UNREADABLY_LARGE)
    reading = msgspec.json.decode(done.stdout, type=Reading)
    if reading.errno:
        raise OSError(reading.errno, os.strerror(reading.errno))
    return reading


def main(length_only: bool, length: int = 0) -> None:
    """The child: reads the header (so many bytes of JSON) of the file that is its standard input, and writes a Reading
    to its output."""
    import gc

    gc.disable()  # nothing is thrown away here, and looking for it takes half the time
    _limit(length)
    try:
        reading = _read_here(0, length_only)
    except BadHeader as error:
        reading = Reading(bad=str(error), unfinished=isinstance(error, Unfinished))
    except OSError as error:
        reading = Reading(errno=error.errno or EIO)
    except MemoryError:
        reading = Reading(bad=UNREADABLY_LARGE)
    os.write(1, msgspec.json.encode(reading))


def _limit(length: int) -> None:
    """Set the child's limits, and have it be the first to go where memory is short."""
    import resource

    is_large = length > HEADER_LIMIT
    seconds = CHILD_SECONDS * (1 + length // HEADER_LIMIT) if is_large else CHILD_SECONDS
    memory = CHILD_MEMORY_BYTES + (length if is_large else 0)
    for limit, soft, hard in (
        (resource.RLIMIT_AS, memory, memory),
        (resource.RLIMIT_CPU, seconds, seconds + 1),  # at the hard one, it would be killed like by others
        (resource.RLIMIT_CORE, 0, 0),
    ):
        try:
            resource.setrlimit(limit, (soft, hard))
        except (ValueError, OSError):
            continue  # not on this system; the parent's limit holds
    with suppress(OSError):  # only Linux has it
        Path("/proc/self/oom_score_adj").write_text("1000")
