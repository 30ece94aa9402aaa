"""Rebuilding: a new catalog made of the history alone, and two catalogs compared row for row.

Synchronous, with connections of its own, for a worker thread: the live catalog is only read.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec

from agents.catalog.history import TABLES, Column, columns_from
from agents.catalog.index_words import functions
from agents.catalog.position import KEY, PASSED, Position
from agents.storage.queries import sections
from schemas.models import Change

CACHE_KIB = 256 * 1024
"""While a catalog is made: its rows come in the order of time, and their keys are random."""
SHOWN = 20
"""Rows of a table that are named where they differ."""


class Differences(msgspec.Struct, frozen=True, kw_only=True):
    """One table of two catalogs: the rows in each, how many are in one only or differ, and the first of their keys."""

    table: str
    live: int
    rebuilt: int
    missing: int = 0
    extra: int = 0
    different: int = 0
    keys: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Is every row the same?"""
        return not (self.missing or self.extra or self.different)


class Rebuilt:
    """A catalog under way, made by doing again what is in the history."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._columns = {table: columns_in(connection, table) for table in TABLES}

    def replay(self, changes: Iterable[Change], *, mixed: bool = False) -> None:
        """One transaction of the history. Raises sqlite3.Error when it does not fit what was before it, and ValueError
        for a table that is none. A history may be `mixed` of two catalogs', from before they had names: ValueError
        for a row that another catalog's has the key of, too."""
        with self._connection:
            self._connection.execute("BEGIN")
            for (op, table, names), rows in groupby(map(self._row, changes), key=lambda one: one[0]):
                values = [row for _, row in rows]
                if mixed and op == "put" and "created_at" in names:
                    self._refuse_others(table, values)
                self._connection.executemany(self._statement(op, table, names), values)

    def _row(self, change: Change) -> tuple[tuple[str, str, tuple[str, ...]], dict[str, Any]]:
        """What a change does to which columns of a table, and its row. Rows of one kind go together."""
        if change.table not in self._columns:
            raise ValueError(f"the history has a table {change.table!r}, which this version does not know")
        row: dict[str, Any] = msgspec.json.decode(change.row)
        return (change.op, change.table, tuple(row)), row

    def _refuse_others(self, table: str, rows: list[dict[str, Any]]) -> None:
        """A row keeps the time when it was made, and a pending one its path, for as long as it is there; a model's
        pictures are counted up. Where that is not so, a second catalog began, and what refers to its keys would refer
        to the first one's rows."""
        keys = [column.name for column in self._columns[table] if column.is_key]
        numbered = "numbered" if table == "models" else "0"
        path = "path" if table == "pending_import" else "NULL"
        where = " AND ".join(f"{name} = :{name}" for name in keys)
        found = f"SELECT created_at, {numbered}, {path} FROM {table} WHERE {where}"
        for row in rows:
            for created_at, count, of in self._connection.execute(found, row):
                is_same = created_at == float(row["created_at"]) and of in (None, row.get("path"))
                if not is_same or count > int(row.get("numbered", 0)):
                    raise ValueError("it is of another catalog than what is before it")

    @cache  # noqa: B019 (it lives as long as the few statements there are)
    def _statement(self, op: str, table: str, given: tuple[str, ...]) -> str:
        columns = self._columns[table]
        keys = [column.name for column in columns if column.is_key]
        if op == "drop":
            return f"DELETE FROM {table} WHERE {' AND '.join(f'{name} = :{name}' for name in keys)}"
        names = [column.name for column in columns if column.name in given]
        update = ", ".join(f"{name} = excluded.{name}" for name in names if name not in keys)
        return (
            f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join(f':{name}' for name in names)})"
            f" ON CONFLICT ({', '.join(keys)}) DO {f'UPDATE SET {update}' if update else 'NOTHING'}"
        )

    def settle(self, position: Position | None, passed: Mapping[int, str], cursors: Mapping[str, int]) -> None:
        """Note where in its history the catalog is now, if anywhere, the ids of the transactions before that, and up to
        which sequences of the streams it knows the facts."""
        rows = [(f"cursor.{stream}", str(seq)) for stream, seq in cursors.items()]
        if position is not None:
            rows.append((KEY, msgspec.json.encode(position).decode()))
            rows += [(f"{PASSED}{number}", id) for number, id in passed.items()]
        with self._connection:
            self._connection.execute("BEGIN")
            self._connection.execute("DELETE FROM db_meta WHERE key = ? OR key GLOB 'cursor.*'", (KEY,))
            self._connection.executemany("INSERT INTO db_meta (key, value) VALUES (?, ?)", rows)

    def make_searchable(self) -> None:
        """Write the search anew, for every model and every picture of the gallery."""
        queries = sections("agents.catalog", "queries.sql", "name")
        for name, function in functions().items():
            self._connection.create_function(name, 1, function, deterministic=True)
        with self._connection:
            self._connection.execute("BEGIN")
            self._connection.execute("CREATE TEMP TABLE touched AS SELECT sha256 FROM models")
            self._connection.execute(
                "CREATE TEMP TABLE changes AS SELECT 'put' AS op, 'outputs' AS tbl,"
                " json_object('job', job, 'n', n) AS content FROM outputs"
            )
            for name in ("number_searched", "search", "number_searched_outputs", "search_outputs", "search_every_job"):
                self._connection.execute(queries[name])


@contextmanager
def rebuilt(path: Path) -> Iterator[Rebuilt]:
    """A catalog in a file that holds the tables and nothing else yet. Raises sqlite3.Error."""
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = OFF")  # until it is whole
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        yield Rebuilt(connection)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


@contextmanager
def read_only(path: Path) -> Iterator[sqlite3.Connection]:
    """A catalog's file as it is at this moment, and stays for as long as the body runs. Raises sqlite3.Error."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)) as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM migrations").fetchone()
        yield connection


def columns_in(connection: sqlite3.Connection, table: str) -> list[Column]:
    """The columns of a table that hold something of their own."""
    return columns_from(table, connection.execute(f"PRAGMA table_xinfo({table})").fetchall())


def compare(live: sqlite3.Connection, other: sqlite3.Connection) -> list[Differences]:
    """Every table of content, row for row. Raises sqlite3.Error."""
    return [_compare(table, live, other) for table in TABLES]


def _compare(table: str, live: sqlite3.Connection, other: sqlite3.Connection) -> Differences:
    columns = columns_in(live, table)
    keys = [n for n, column in enumerate(columns) if column.is_key]
    listed = ", ".join(column.name for column in columns)
    ours, theirs = _rows(live, table, listed, keys), _rows(other, table, listed, keys)
    left = right = missing = extra = different = 0
    named: list[str] = []
    key: tuple[Any, ...] | None
    one, two = next(ours, None), next(theirs, None)
    while one is not None or two is not None:
        if two is None or (one is not None and one[0] < two[0]):
            assert one is not None
            missing, left, key, one = missing + 1, left + 1, one[0], next(ours, None)
        elif one is None or two[0] < one[0]:
            extra, right, key, two = extra + 1, right + 1, two[0], next(theirs, None)
        else:
            left, right, key = left + 1, right + 1, one[0] if one[1] != two[1] else None
            different += key is not None
            one, two = next(ours, None), next(theirs, None)
        if key is not None and len(named) < SHOWN:
            named.append(" ".join(map(str, key)))
    return Differences(
        table=table, live=left, rebuilt=right, missing=missing, extra=extra, different=different, keys=tuple(named)
    )


def _rows(
    connection: sqlite3.Connection, table: str, listed: str, keys: list[int]
) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...]]]:
    """The rows of a table as (key, row), in the order of their keys."""
    order = ", ".join(str(n + 1) for n in keys)
    for row in connection.execute(f"SELECT {listed} FROM {table} ORDER BY {order}"):
        yield tuple(row[n] for n in keys), tuple(row)
