"""A legacy catalog: SQLite, schema version 2, read without touching a byte of it.

The file is copied together with its write-ahead log or rollback journal, and only the copy is opened: SQLite makes or
changes files next to a database in WAL mode even for a reader, and a copy stays as it is while a program goes on
writing the original. (The -shm next to it is not copied: SQLite makes it anew from the log.)
"""

import contextlib
import re
import shutil
import sqlite3
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from agents.catalog.errors import LegacyUnusable
from bus.clock import Clock

VERSION = 2
VALUE_BYTES = 1 << 20
"""A longer text of one column is read as NULL, and reported as too large."""

QUIET_SECONDS = 0.05
"""A file written less than this before it was copied may have been written meanwhile: its times are that coarse."""

COPY_TRIES = 60
"""Copies tried, QUIET_SECONDS apart, before a catalog counts as being written all the time."""

REQUIRED = {
    "models": {"id", "path", "type", "hash_hex"},
    "tags": {"id", "name"},
    "model_tags": {"model_id", "tag_id"},
    "schema_version": {"version"},
}
OPTIONAL = {"models": ("name", "size_bytes", "created_at", "meta_json", "extra_json"), "tags": ("color", "created_at")}


ODD = 1 << 62
"""Numbers from here on stand for rows whose id is no number (or one as large): such a row comes after all others, and
`odd_id` is what its id is, in words."""


class RawTag(NamedTuple):
    """A row of `tags`; texts are bytes, as nothing proves that they are UTF-8."""

    id: int
    name: Any
    color: Any
    created_at: Any
    odd_id: str = ""


class RawModel(NamedTuple):
    """A row of `models`; texts are bytes. `too_large` counts texts over VALUE_BYTES, which are None here."""

    id: int
    path: Any
    name: Any
    type: Any
    size_bytes: Any
    hash_hex: Any
    created_at: Any
    meta_json: Any
    extra_json: Any
    too_large: int
    odd_id: str = ""


Link = tuple[Any, Any]
"""A row of `model_tags`: the model's id and the tag's, or what stands there instead."""

_PLAIN = f"typeof({{0}}) = 'integer' AND {{0}} < {ODD}"
_DIGITS = re.compile(rb"\s*[+-]?\d{1,18}(\.0*)?\s*")


class Legacy:
    """An open copy of a legacy catalog. Synchronous; one thread at a time. `fingerprint` distinguishes one state of the
    original from another. Methods raise LegacyUnusable when the file turns out to be damaged."""

    def __init__(self, connection: sqlite3.Connection, source: Path, fingerprint: str) -> None:
        self._connection, self._source, self.fingerprint = connection, source, fingerprint
        self._columns = {table: self._columns_of(table) for table in OPTIONAL}
        self._odd: dict[str, dict[tuple[bytes, Any], int]] | None = None
        self._odd_links: list[Link] | None = None

    def tags(self, after: int | None, limit: int) -> list[RawTag]:
        """The next tags by id."""
        wanted = ", ".join(self._capped("tags", name) for name in RawTag._fields[1:-1])
        return [RawTag(*row) for row in self._page("tags", wanted, after, limit)]

    def models(self, after: int | None, limit: int) -> list[RawModel]:
        """The next models by id."""
        texts = RawModel._fields[1:-2]
        wanted = ", ".join(self._capped("models", name) for name in texts)
        large = " + ".join(
            f"(coalesce(length(CAST({name} AS BLOB)), 0) > {VALUE_BYTES})"
            for name in texts
            if name in self._columns["models"]
        )
        return [RawModel(*row) for row in self._page("models", f"{wanted}, {large}", after, limit)]

    def _page(self, table: str, wanted: str, after: int | None, limit: int) -> list[tuple[Any, ...]]:
        """The next rows by id: the id, what is wanted, and the id in words where it is none."""
        plain, rows = _PLAIN.format("id"), list[tuple[Any, ...]]()
        if after is None or after < ODD:
            query = f"SELECT id, {wanted} FROM {table} WHERE {plain} AND (:after IS NULL OR id > :after)"
            found = self._rows(f"{query} ORDER BY id LIMIT :limit", after=after, limit=limit)
            rows += [(*row, "") for row in found]
        if len(rows) == limit:
            return rows
        done = 0 if after is None or after < ODD else after - ODD + 1
        query = f"SELECT typeof(id), id, {wanted} FROM {table} WHERE NOT ({plain}) ORDER BY typeof(id), id"
        odd = self._rows(f"{query} LIMIT :limit OFFSET :done", limit=limit - len(rows), done=done)
        return rows + [(ODD + done + n, *row[2:], _shown_value(*row[:2])) for n, row in enumerate(odd)]

    def _odd_ids(self, table: str) -> dict[tuple[bytes, Any], int]:
        """What stands for the ids of a table that are no numbers, by their types and values."""
        if self._odd is None:
            query = "SELECT typeof(id), id FROM {} WHERE NOT ({}) ORDER BY typeof(id), id"
            self._odd = {}
            for name in OPTIONAL:
                rows = self._rows(query.format(name, _PLAIN.format("id")))
                self._odd[name] = {(type, id): ODD + n for n, (type, id) in enumerate(rows) if id is not None}
        return self._odd[table]

    def links(self, after: int | None, last: int) -> list[Link]:
        """The links of every model id after one and up to another, whether there is such a model or not."""
        plain = self._rows(
            f"SELECT model_id, tag_id FROM model_tags WHERE {_PLAIN.format('model_id')} AND typeof(tag_id) = 'integer'"
            " AND (:after IS NULL OR model_id > :after) AND model_id <= :last ORDER BY model_id, tag_id",
            after=after,
            last=last,
        )
        return plain + [link for link in self._links_oddly_written() if _is_between(link[0], after, last)]

    def stray_links(self, after: int | None) -> list[Link]:
        """The links that belong to no model up to the last one."""
        plain = self._rows(
            f"SELECT model_id, tag_id FROM model_tags WHERE {_PLAIN.format('model_id')} AND typeof(tag_id) = 'integer'"
            " AND (:after IS NULL OR model_id > :after) ORDER BY model_id, tag_id",
            after=after,
        )
        return plain + [link for link in self._links_oddly_written() if not _is_between(link[0], None, after)]

    def _links_oddly_written(self) -> list[Link]:
        """Links with an id that is no number: by the numbers that they mean, where they mean any."""
        if self._odd_links is None:
            rows = self._rows(
                "SELECT typeof(model_id), model_id, typeof(tag_id), tag_id FROM model_tags"
                f" WHERE NOT ({_PLAIN.format('model_id')}) OR typeof(tag_id) <> 'integer'"
                " ORDER BY typeof(model_id), model_id, typeof(tag_id), tag_id"
            )
            models, tags = self._odd_ids("models"), self._odd_ids("tags")
            self._odd_links = [
                (models.get((one, model), number(model)), tags.get((two, tag), number(tag)))
                for one, model, two, tag in rows
            ]
        return self._odd_links

    def largest_tag(self, below: int) -> int:
        """The largest id of a tag below a number, 0 if there is none."""
        [(id,)] = self._rows("SELECT coalesce(max(id), 0) FROM tags WHERE id < :below", below=below)
        return int(id)

    def check(self) -> None:
        """Is it a catalog that can be taken over? Raises LegacyUnusable."""
        for table, required in REQUIRED.items():
            if missing := required - self._columns_of(table):
                what = f"table {table}" if len(missing) == len(required) else f"column {min(missing)} of table {table}"
                raise LegacyUnusable(f"{self._source} is a database, but no legacy catalog: it has no {what}.")
        for table in OPTIONAL:
            query = "SELECT name FROM pragma_table_info(:table) WHERE pk > 0 AND upper(type) = 'INTEGER'"
            if self._rows(query, table=table) != [(b"id",)]:
                raise LegacyUnusable(f"{self._source} is no legacy catalog: the id of its {table} is no primary key.")
        self._check_version()

    def _check_version(self) -> None:
        versions = self._rows("SELECT typeof(version), version FROM schema_version LIMIT 1000")
        known = [meant for _, version in versions if isinstance(meant := number(version), int)]
        newest = max(known, default=0)
        if newest == VERSION:
            return
        found = str(newest) if known else ", ".join(_shown_value(*row) for row in versions) or "none"
        advice = (
            "a newer program wrote it"
            if newest > VERSION
            else "open it once with the last version of the program that made it, which updates it"
        )
        raise LegacyUnusable(f"{self._source} has schema version {found}, not {VERSION}: {advice}.")

    def _columns_of(self, table: str) -> set[str]:
        rows = self._rows(
            "SELECT columns.name FROM sqlite_schema AS tables JOIN pragma_table_info(tables.name) AS columns"
            " WHERE tables.type = 'table' AND tables.name = :table AND tables.sql NOT LIKE 'CREATE VIRTUAL%'",
            table=table,
        )
        return {shown(name) for (name,) in rows}

    def _capped(self, table: str, name: str) -> str:
        if name not in self._columns[table]:
            return "NULL"
        return f"CASE WHEN length(CAST({name} AS BLOB)) <= {VALUE_BYTES} THEN {name} END"

    def _rows(self, query: str, **values: Any) -> list[Any]:
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise LegacyUnusable(
                f"{self._source} can't be read ({error}): it is no SQLite database, an encrypted one, or damaged."
            ) from error


@contextlib.contextmanager
def opened(source: Path, folder: Path, clock: Clock) -> Iterator[Legacy]:
    """A copy of the legacy catalog `source`, made in the new folder `folder` and removed with it at the end.

    Raises LegacyUnusable when there is no such file, when it is written all the time, or when it is no legacy catalog
    of version 2, and OSError when the copy can't be written.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        copy = folder / "legacy.db"
        mark = _copy_quiet(source, copy, clock)
        # The copy may need what the original must not get: its journal rolled back, its log's index made.
        with contextlib.closing(sqlite3.connect(copy, check_same_thread=False)) as connection:
            connection.text_factory = bytes
            for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "query_only = ON"):
                connection.execute(f"PRAGMA {pragma}")
            legacy = Legacy(connection, source, mark)
            legacy.check()
            yield legacy
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _copy_quiet(source: Path, copy: Path, clock: Clock) -> str:
    """Copy a database and what belongs to it, when nobody writes them. Returns what distinguishes this state."""
    for _ in range(COPY_TRIES):
        before = _state(source)
        newest = max(times[1] for times in before.values())
        if 0 <= clock.now() - newest / 1e9 < QUIET_SECONDS:
            time.sleep(QUIET_SECONDS)
            continue
        for suffix in ("", *SIDE_FILES):
            target = copy.with_name(copy.name + suffix)
            target.unlink(missing_ok=True)
            if suffix in before:
                _copy(source.with_name(source.name + suffix), target)
        if _state(source) == before:
            return repr(sorted(before.items()))
    raise LegacyUnusable(f"{source} is being written all the time: close the program that uses it, then try again.")


SIDE_FILES = ("-wal", "-journal")


def _state(source: Path) -> dict[str, tuple[int, int, int]]:
    """Size, time of change and inode of a database (key '') and of its side files, as far as they exist."""
    found = {}
    for suffix in ("", *SIDE_FILES):
        try:
            state = source.with_name(source.name + suffix).stat()
        except FileNotFoundError as error:
            if not suffix:
                raise LegacyUnusable(f"There is no file {source}: name the legacy catalog's database.") from error
            continue
        except (OSError, ValueError) as error:
            raise LegacyUnusable(f"{source} can't be read ({error}).") from error
        if not stat.S_ISREG(state.st_mode):
            raise LegacyUnusable(f"{source}{suffix} is no file: name the legacy catalog's database.")
        found[suffix] = (state.st_size, state.st_mtime_ns, state.st_ino)
    return found


def _copy(source: Path, target: Path) -> None:
    try:
        file = source.open("rb")
    except OSError as error:
        raise LegacyUnusable(f"{source} can't be read ({error.strerror}): make it readable.") from error
    with file, target.open("wb") as copied:
        shutil.copyfileobj(file, copied, 1 << 20)


def shown(value: Any) -> str:
    """A value of any type, for people."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def _shown_value(type: bytes, value: Any) -> str:
    """A value with its type, for people."""
    return "NULL" if value is None else f"{shown(value)} ({type.decode()})"


def number(value: Any) -> Any:
    """The whole number that a value means; the value itself where it means none."""
    if isinstance(value, bytes) and _DIGITS.fullmatch(value):
        return int(value.partition(b".")[0])
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53 else value


def _is_between(model: Any, after: int | None, last: int | None) -> bool:
    return isinstance(model, int) and last is not None and (after is None or model > after) and model <= last
