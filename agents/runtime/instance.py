"""Finding the running service of a data directory: a lock that `darkroom up` holds, and a note of its addresses."""

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from agents.storage.layout import DataDir
from bus.errors import UserError


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """Where a running service is. `http_url` is empty while no bridge runs."""

    pid: int
    nats_url: str
    http_url: str = ""


@contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Own the data directory for as long as the body runs. Raises UserError when it is owned or can't be written."""
    data = DataDir(data_dir)
    try:
        for folder in (data_dir, data.work, data.outputs):
            folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(data.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UserError(
            f"the data directory {data_dir} can't be written ({error.strerror}): make it writable, or choose another "
            "with --data or DARKROOM_DATA_DIR"
        ) from error
    try:
        try:
            _lock(handle)
        except OSError as error:
            other = _note(data_dir)
            where = f" (process {other.pid}, {other.http_url or other.nats_url})" if other else ""
            raise UserError(
                f"the data directory {data_dir} is in use by another darkroom{where}: use that one, stop it, or choose "
                "another directory with --data"
            ) from error
        data.note.unlink(missing_ok=True)
        yield
    finally:
        os.close(handle)


def _lock(handle: int) -> None:
    """Take the lock. `find` holds it for a moment to see whether it is free: that is waited for. Raises OSError."""
    for _ in range(10):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            threading.Event().wait(0.02)
        else:
            return
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def announce(data_dir: Path, running: Running) -> None:
    """Leave the note; only for the owner of the lock."""
    note = DataDir(data_dir).note
    temporary = note.with_name(f".{note.name}.{os.getpid()}")
    temporary.write_bytes(msgspec.json.encode(running))
    temporary.replace(note)


def find(data_dir: Path) -> Running | None:
    """The service that owns the data directory now, or None. A note without an owner is an old one."""
    try:
        handle = os.open(DataDir(data_dir).lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _note(data_dir)
    finally:
        os.close(handle)
    return None


def _note(data_dir: Path) -> Running | None:
    try:
        return msgspec.json.decode(DataDir(data_dir).note.read_bytes(), type=Running)
    except (OSError, msgspec.DecodeError):
        return None
