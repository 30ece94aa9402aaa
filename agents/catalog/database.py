"""The catalog's file: one connection that writes (and checkpoints), one that only reads.

Two connections and no more, because SQLite up to 3.51.2 can corrupt a WAL that two connections reset: the reader is
opened read-only and never checkpoints. Readers see what is committed, never the inside of a transaction.
"""

import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

import anyio
import anyio.to_thread
import msgspec

from agents.catalog import history
from agents.catalog.errors import CatalogUnusable
from agents.catalog.index_words import SEARCH_VERSION, functions
from agents.catalog.position import KEY, PASSED, REMEMBERED, Position, Standing, refuse_newer, standing
from agents.storage.database import Sql, Threaded, in_thread, opened
from agents.storage.layout import DataDir
from agents.storage.queries import migrations, sections
from bus.clock import Clock
from schemas.models import Changed

CACHE_KIB = 64 * 1024
"""Of the writing connection: contents are random numbers, so that a large transaction changes pages all over the file,
and each that does not fit is written and read again."""

CHECKPOINT_PAGES = 16384
"""Pages of 4 KiB in the write-ahead log before they are moved into the file: many of them change again meanwhile."""

PIECE = 4096
"""Changes that are fetched from the database at once."""

_SEARCH = "search_version"

Row = tuple[Any, ...]


class Statements:
    """The named queries of queries.sql on one connection. Values go in by name, lists as JSON text."""

    def __init__(self, connection: Threaded[Sql], clock: Clock) -> None:
        self._connection = connection
        self.new_id = clock.new_id

    async def rows(self, name: str, /, **values: Any) -> list[Row]:
        """Run one query; all its rows (none for one that returns nothing). Raises sqlite3.Error."""
        return await self._connection.do(lambda sql: sql.rows(name, **values))

    async def many(self, name: str, values: Iterable[Mapping[str, Any]]) -> None:
        """Run one writing query once per mapping, in order. Raises sqlite3.Error."""
        await self._connection.do(lambda sql: sql.many(name, values))


class Database:
    """An open catalog. Its writer belongs to one thread; transactions queue for it."""

    def __init__(
        self,
        writer: Threaded[Sql],
        reader: Threaded[Sql],
        path: Path,
        clock: Clock,
        changed: Callable[[], None],
    ) -> None:
        self._writer = writer
        self.path, self.clock, self._changed = path, clock, changed
        self._folder = DataDir.of(path).history
        self._statements = Statements(writer, clock)
        self._lock = anyio.Lock()
        self._owner: int | None = None
        self.committed = Statements(reader, clock)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        path: Path,
        *,
        clock: Clock,
        changed: Callable[[], None] = lambda: None,
        begin: bool = False,
        after: str = "",
    ) -> AsyncIterator[Self]:
        """Open the catalog at `path`, made or migrated as needed; `clock` is read for what is written down, and
        `changed` is called when a transaction that changed its content is committed.

        With `begin`, after a migration, and where it has none yet, a history begins that holds every row there is;
        `after` is the id of the transaction on the bus that it comes after, if there is one.

        Raises CatalogTooNew for a catalog of a newer version, CatalogUnusable for anything else that is no usable
        catalog.
        """
        async with AsyncExitStack() as stack:
            try:
                queries = sections("agents.catalog", "queries.sql", "name")
                writer = await stack.enter_async_context(in_thread(partial(opened, path, queries), "catalog"))
                applied = await writer.do(partial(_prepare, path=path, now=clock.now()))
                only = partial(opened, f"{path.absolute().as_uri()}?mode=ro", queries, uri=True)
                reader = await stack.enter_async_context(in_thread(only, "catalog-reader"))
                for connection in (writer, reader):
                    await connection.do(_add_functions)
                db = cls(writer, reader, path, clock, changed)
                is_older = 0 < applied < max(migrations("agents.catalog"))
                await db._settle_history(new=not applied, begin=begin or is_older, after=after)
                await db._renew_search()
            except (sqlite3.Error, OSError) as error:
                raise CatalogUnusable(
                    f"The catalog {path} can't be used ({error}). Make its folder writable and see that the disk is "
                    "not full. In place of a damaged file, `darkroom rebuild --replace` puts one made of its history."
                ) from error
            yield db

    def atomic(self) -> AbstractAsyncContextManager[Statements]:
        """One writing transaction: committed (and on disk) when the block ends, undone when it raises or is cancelled.
        What it changed is searched for anew, and put into the outbox. Within another one of the same task it is part of
        that: undone by itself, committed with it.

        Raises sqlite3.OperationalError when another process holds the file for more than five seconds, or
        sqlite3.OperationalError or OSError when the disk is full.
        """
        return self._transaction()

    @asynccontextmanager
    async def _transaction(self, *, begins: bool = False) -> AsyncIterator[Statements]:
        """`atomic`; the first of a history is published even where it changes nothing."""
        if self._owner == (task := anyio.get_current_task().id):
            async with self._step():
                yield self._statements
            return
        async with self._lock:
            self._owner = task
            try:
                async with self._step():
                    yield self._statements
                    with anyio.CancelScope(shield=True):
                        noted = await self._note_changes(begins)
            finally:
                self._owner = None
        if noted:
            self._changed()

    @asynccontextmanager
    async def _step(self) -> AsyncIterator[None]:
        """A transaction, or a part of one. A statement that was handed to the thread runs to its end, cancelled or not:
        what follows waits for it, so only the ends need a shield."""
        with anyio.CancelScope(shield=True):
            await self._writer.do(Sql.begin)
        try:
            yield
            with anyio.CancelScope(shield=True):
                await self._writer.do(Sql.commit)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._writer.do(Sql.undo)
            raise

    async def _note_changes(self, begins: bool) -> bool:
        """The end of a transaction: make the search fit, and put what changed, if anything, into the outbox as one
        fact, with its place in the history."""
        sql, pieces, of_outputs = self._statements, list[str](), 0.0
        [(piece, last, outputs)] = await sql.rows("changes", after=0, limit=PIECE)
        while piece is not None:
            pieces.append(piece)
            of_outputs += outputs
            [(piece, last, outputs)] = await sql.rows("changes", after=last, limit=PIECE)
        if not (pieces or begins):
            return False
        id, facts = self.clock.new_id(), list[Changed]()

        async def write() -> None:
            facts.append(await anyio.to_thread.run_sync(history.changed, id, pieces, self._folder, self.clock.now()))

        try:
            async with anyio.create_task_group() as tasks:  # side by side, each for the most part in its own thread
                tasks.start_soon(write)
                await self._make_search_fit(of_outputs > 0)
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        fact = await self._placed(facts[0])
        payload = msgspec.json.encode(fact).decode()
        await sql.rows("add_outgoing", kind="catalog.changed", tokens="{}", payload=payload, msg_id=id)
        await sql.rows("forget_changes")
        return True

    async def _make_search_fit(self, of_outputs: bool) -> None:
        sql = self._statements
        await sql.rows("touch_models")
        await sql.rows("unsearch")
        await sql.rows("number_searched")
        await sql.rows("search")
        await sql.rows("forget_touched")
        if of_outputs:
            await sql.rows("unsearch_outputs")
            await sql.rows("number_searched_outputs")
            await sql.rows("search_outputs")

    async def _placed(self, fact: Changed) -> Changed:
        """The next transaction of the history, which is there now."""
        sql = self._statements
        [(stored,)] = await sql.rows("meta", key=KEY)
        at = msgspec.json.decode(stored, type=Position)
        reached = msgspec.structs.replace(at, number=at.number + 1, last=fact.id)
        await sql.rows("put_meta", key=KEY, value=msgspec.json.encode(reached).decode())
        await sql.rows("put_meta", key=f"{PASSED}{reached.number}", value=fact.id)
        await sql.rows("forget_passed", key=f"{PASSED}{reached.number - REMEMBERED}")
        return msgspec.structs.replace(
            fact,
            history=at.history,
            number=reached.number,
            after=at.last,
            lineage=() if at.number else at.lineage,
            begun=0.0 if at.number else at.begun,
            cursors={stream: int(seq) for stream, seq in await sql.rows("cursors")},
        )

    async def _settle_history(self, *, new: bool, begin: bool, after: str) -> None:
        if new:
            at = Position(history=self.clock.new_id(), last=after, begun=self.clock.now())
            await self.put_meta(KEY, msgspec.json.encode(at).decode())
        if begin or await self.meta(KEY) is None:
            await self.begin_history(after)

    async def begin_history(self, after: str) -> None:
        """Begin a history that holds every row there is, and goes on with the one before (in a new file there is none);
        `after` is the id of the last transaction on the bus, of whatever history. Raises sqlite3.Error."""
        stored = await self.meta(KEY)
        before = msgspec.json.decode(stored, type=Position) if stored else Position(history="")
        lineage = (before.history, *before.lineage) if before.number or before.lineage or not stored else ()
        at = Position(history=self.clock.new_id(), last=after, lineage=lineage, begun=before.begun)
        async with self._transaction(begins=True) as sql:
            await sql.rows("forget_unsent")
            await sql.rows("forget_passed", key=f"{PASSED}*")
            await self._writer.do(history.note_everything)
            await sql.rows("put_meta", key=KEY, value=msgspec.json.encode(at).decode())

    async def standing(self) -> Standing:
        """Where the catalog is in its history, and what of that is still to be published. Raises sqlite3.Error."""
        [found] = await self.committed.rows("standing")
        return standing(*found)

    async def begun(self) -> float:
        """When the catalog began with nothing (seconds since 1970; 0 when that is not known). Raises sqlite3.Error."""
        position = (await self.standing()).position
        return position.begun if position else 0.0

    async def _renew_search(self) -> None:
        """Make the index of words anew where a version made it that spelled them in another way."""
        if await self.meta(_SEARCH) == SEARCH_VERSION:
            return
        async with self.atomic() as sql:
            await self._writer.do(_empty_search)
            await sql.rows("touch_every_model")
            await self._make_search_fit(False)
            await sql.rows("search_every_output")
            await sql.rows("search_every_job")
            await sql.rows("put_meta", key=_SEARCH, value=SEARCH_VERSION)

    async def meta(self, key: str) -> str | None:
        """What the catalog remembers about itself under this name. Raises sqlite3.Error."""
        return next((value for (value,) in await self.committed.rows("meta", key=key)), None)

    async def put_meta(self, key: str, value: str) -> None:
        """Remember something about the catalog itself. Raises sqlite3.Error."""
        async with self.atomic() as sql:
            await sql.rows("put_meta", key=key, value=value)


def _prepare(sql: Sql, *, path: Path, now: float) -> int:
    """The version of the catalog in this file, 0 for an empty one, before it was migrated; then the connection's
    settings, the migrations and the history's triggers. Nothing is written before it is known what the file is. Refuses
    a file system that can't hold a WAL."""
    applied = _recognise(sql, path)
    sql.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    sql.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    if not sql.write_ahead():
        raise CatalogUnusable(f"The file system of {path} can't hold a write-ahead log: put data_dir on a local disk.")
    sql.migrate(migrations("agents.catalog"), applied, partial(_record, now=now))
    history.begin(sql)
    return applied


def _record(version: int, now: float) -> str:
    return f"INSERT INTO migrations (version, applied_at) VALUES ({version}, {now!r})"


def _recognise(sql: Sql, path: Path) -> int:
    tables = {name for (name,) in sql.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    if not tables:
        return 0
    if "migrations" not in tables:
        raise CatalogUnusable(f"{path} is a database, but no catalog of Darkroom's: move it away and start again.")
    [(applied,)] = sql.execute("SELECT coalesce(max(version), 0) FROM migrations")
    refuse_newer(path, int(applied))
    return int(applied)


def _add_functions(sql: Sql) -> None:
    for name, function in functions().items():
        sql.connection.create_function(name, 1, function, deterministic=True)


def _empty_search(sql: Sql) -> None:
    """To take the rows out one by one would take as long again."""
    for table in ("search", "search_outputs", "search_jobs"):
        [(made,)] = sql.execute("SELECT sql FROM sqlite_schema WHERE name = ?", [table])
        sql.execute(f"DROP TABLE {table}")
        sql.execute(made)
