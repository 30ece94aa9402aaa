"""SQLite: a connection that lives in a thread of its own, its queries by name, transactions within transactions."""

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import anyio

from bus.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

BUSY_TIMEOUT_MS = 5000


class Sql:
    """One connection, for the thread that opened it. Whatever it does may raise sqlite3.Error."""

    def __init__(self, connection: sqlite3.Connection, queries: Mapping[str, str]) -> None:
        self.connection, self.queries = connection, queries
        self._depth = 0

    def execute(self, statement: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[Any]:
        """Run one statement; all its rows (none for one that returns nothing)."""
        return self.connection.execute(statement, values).fetchall()

    def rows(self, query: str, /, **values: Any) -> list[Any]:
        """Run one query; all its rows. Values go in by name, lists as JSON text."""
        return self.execute(self.queries[query], values)

    def many(self, query: str, values: Iterable[Mapping[str, Any]]) -> None:
        """Run one writing query once per mapping, in order."""
        self.connection.executemany(self.queries[query], values)

    def begin(self) -> None:
        """Begin a transaction, or one within another: that can be undone by itself."""
        self.execute("SAVEPOINT nested" if self._depth else "BEGIN IMMEDIATE")
        self._depth += 1

    def commit(self) -> None:
        """End what was begun last; the outermost is on disk then."""
        self.execute("RELEASE nested" if self._depth > 1 else "COMMIT")
        self._depth -= 1

    def undo(self) -> None:
        """End what was begun last as if it had never begun."""
        self._depth -= 1
        if self._depth and self.connection.in_transaction:  # (a full disk has ended all of them)
            self.execute("ROLLBACK TO nested")
            self.execute("RELEASE nested")
        else:
            self.connection.rollback()

    @contextmanager
    def atomic(self) -> Iterator[None]:
        """All of it, or nothing when the block raises; may be nested."""
        self.begin()
        try:
            yield
            self.commit()
        except BaseException:
            self.undo()
            raise

    def write_ahead(self) -> bool:
        """Have each transaction on disk when it ends, through a write-ahead log; False where the file system can't hold
        one."""
        self.execute("PRAGMA synchronous = FULL")
        self.execute("PRAGMA foreign_keys = ON")
        return self.execute("PRAGMA journal_mode = WAL") == [("wal",)]

    def migrate(self, scripts: Mapping[int, str], applied: int, record: Callable[[int], str]) -> None:
        """Apply every script of a version after `applied`, each in one transaction with the SQL that records it."""
        for version, script in scripts.items():
            if version > applied:
                try:
                    self.connection.executescript(f"BEGIN IMMEDIATE;\n{script};\n{record(version)};\nCOMMIT;")
                except sqlite3.Error:
                    self.connection.rollback()
                    raise


@contextmanager
def opened(file: str | Path, queries: Mapping[str, str], *, uri: bool = False) -> Iterator[Sql]:
    """A connection to a file, made if need be. Raises sqlite3.Error."""
    with closing(sqlite3.connect(file, uri=uri, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        yield Sql(connection, queries)


class Threaded(Generic[T]):
    """Something that belongs to one thread: all that is done with it is done there, in turn. Made by `in_thread`."""

    def __init__(self, pool: ThreadPoolExecutor, held: T) -> None:
        self._pool, self.held = pool, held

    async def do(self, work: Callable[[T], R]) -> R:
        """Run work on it in its thread. What was begun is ended there, cancelled or not."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, self.held)


@asynccontextmanager
async def in_thread(make: Callable[[], AbstractContextManager[T]], name: str) -> AsyncIterator[Threaded[T]]:
    """Make something in a thread called `name`, which ends with it. Raises what `make` raises."""
    loop, stack = asyncio.get_running_loop(), ExitStack()
    with ThreadPoolExecutor(1, thread_name_prefix=name) as pool:
        with anyio.CancelScope(shield=True):
            held = await loop.run_in_executor(pool, lambda: stack.enter_context(make()))
        try:
            yield Threaded(pool, held)
        finally:
            with anyio.CancelScope(shield=True):
                await loop.run_in_executor(pool, stack.close)


@contextmanager
def owned(file: Path) -> Iterator[None]:
    """Be the only one who writes a file of the data directory, for as long as the body runs: agents that run each by
    itself don't own the directory. Raises UserError."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(file.with_name(f"{file.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UserError(
            f"{file} can't be used ({error.strerror}): free it, or choose another --data directory"
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"{file} is in use by another darkroom, maybe on another bus: name its bus with --nats, stop it, or "
                "choose another directory with --data"
            ) from error
        yield
    finally:
        os.close(handle)
