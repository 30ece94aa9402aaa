"""Headers: what a model file says of itself, read without loading a weight and without trusting a byte.

A header of up to 1 MiB is decoded here; a larger one (16 MiB at most) in a child process with limits, so that it
holds up no event loop and takes no memory that matters. Bad content becomes an Identity with a problem; only the
disk raises.
"""

import os
import subprocess
import sys
from pathlib import Path

import msgspec

from agents.ingest import gguf
from agents.ingest.errors import BadHeader, Unfinished
from agents.ingest.identity import identify_table
from agents.ingest.tensors import read_length, read_table
from schemas.files import Identity

CHILD_OVER_BYTES = 1 << 20
"""Headers longer than this are decoded in a child."""

CHILD_SECONDS = 20.0
CHILD_MEMORY_BYTES = 384 << 20
"""Address space; what is resident stays well below."""

_OPEN_SAFELY = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_PICKLE = (
    "This is a pickle, which can run code when it is loaded: it is listed, but never loaded. "
    "Convert it to .safetensors, or download that version of it."
)
_TOO_MUCH = (
    "This file's header takes more time or memory to read than any model's; it is not opened. Download it again."
)


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What a safetensors header came to: the length the file must have, and what is in it. With `bad`, only that."""

    file_size: int = 0
    identity: Identity = Identity()
    bad: str = ""
    unfinished: bool = False


def identify(path: str | bytes) -> Identity:
    """What the file at a real path is, by its extension and header. Raises OSError."""
    fd = os.open(path, _OPEN_SAFELY)
    try:
        return identify_fd(fd, os.fsencode(path))
    finally:
        os.close(fd)


def identify_fd(fd: int, name: bytes) -> Identity:
    """What an open file is; of `name` only the extension counts. Raises OSError."""
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
        return Identity(problem="The file is not as long as its header says; copy or download it again.")
    return reading.identity


def expected_size(fd: int) -> int:
    """The length in bytes that an open safetensors file must have. Raises BadHeader, Unfinished or OSError."""
    if read_length(fd) > CHILD_OVER_BYTES:
        return read(fd).file_size
    return read_table(fd).file_size


def read(fd: int) -> Reading:
    """What an open safetensors file's header says. Raises BadHeader, Unfinished or OSError."""
    length = read_length(fd)
    if length <= CHILD_OVER_BYTES:
        return _read_here(fd)
    if os.fstat(fd).st_size < length:
        raise Unfinished(f"The file ends within its header of {length:,} bytes; copy or download it again.")
    reading = _read_in_child(fd)
    if reading.bad:
        raise (Unfinished if reading.unfinished else BadHeader)(reading.bad)
    return reading


def _read_here(fd: int) -> Reading:
    table = read_table(fd)
    return Reading(file_size=table.file_size, identity=identify_table(table))


def _read_in_child(fd: int) -> Reading:
    """The reading of a child that gets the open file and nothing else, and may fail in any way it likes."""
    here = str(Path(__file__).resolve().parents[2])
    program = f"import sys; sys.path.insert(0, {here!r}); from agents.ingest.headers import main; main()"
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", program],
            stdin=fd,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=CHILD_SECONDS,
            check=True,
        )
        return msgspec.json.decode(done.stdout, type=Reading)
    except (subprocess.SubprocessError, msgspec.MsgspecError):
        return Reading(bad=_TOO_MUCH)


def main() -> None:
    """The child: reads the header of the file that is its standard input, and writes a Reading to its output."""
    import gc
    import resource

    gc.disable()  # nothing is thrown away here, and looking for it takes half the time
    for limit, value in (
        (resource.RLIMIT_AS, CHILD_MEMORY_BYTES),
        (resource.RLIMIT_CPU, int(CHILD_SECONDS)),
        (resource.RLIMIT_CORE, 0),
    ):
        try:
            resource.setrlimit(limit, (value, value))
        except (ValueError, OSError):
            continue  # not on this system; the time limit of the parent holds
    try:
        reading = _read_here(0)
    except BadHeader as error:
        reading = Reading(bad=str(error), unfinished=isinstance(error, Unfinished))
    except MemoryError:
        reading = Reading(bad=_TOO_MUCH)
    os.write(1, msgspec.json.encode(reading))
