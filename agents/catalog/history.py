"""History: every change of the catalog's content, row by row, gathered by the database itself while a transaction runs.

Triggers that live in the writing connection note each row that is put or dropped in a table of content. When the
transaction ends, the notes become one fact, evt.catalog.changed, in the outbox: whatever wrote the rows, nothing is
left out, and a new catalog made of these facts alone is the same, row for row.
"""

import gzip
import hashlib
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from agents.storage.atomic import place
from agents.storage.database import Sql
from schemas.models import Change, Changed

TABLES = (
    "models",
    "paths",
    "descriptions",
    "digests",
    "tags",
    "model_tags",
    "images",
    "sidecars",
    "refused_tags",
    "refused_pictures",
    "tag_names",
    "pending_import",
    "pending_model_tags",
    "pending_images",
    "outputs",
    "jobs",
)
"""Tables of content, those first that others refer to."""

INLINE_BYTES = 48 * 1024
"""Up to here the rows are in the fact itself; more are in a file next to the catalog, which the fact names."""

_NOTE_SELECTED = "INSERT INTO temp.changes (op, tbl, content)"
_NOTE = "INSERT INTO changes (op, tbl, content) VALUES"  # a temporary trigger finds it without its schema's name


def begin(sql: Sql) -> None:
    """Make the notes' table and the triggers, for as long as this connection is open."""
    sql.execute("PRAGMA temp_store = MEMORY")
    sql.connection.executescript(
        "CREATE TEMP TABLE changes (n INTEGER PRIMARY KEY, op TEXT NOT NULL, tbl TEXT NOT NULL, content TEXT NOT NULL);"
        "CREATE TEMP TABLE touched (sha256 TEXT PRIMARY KEY) WITHOUT ROWID;"
    )
    for table in TABLES:
        columns = columns_of(sql, table)
        keys = [column for column in columns if column.is_key]
        new, old = _object("NEW", columns), _object("OLD", keys)
        differs = " OR ".join(f"OLD.{column.name} IS NOT NEW.{column.name}" for column in columns)
        sql.connection.executescript(
            f"CREATE TEMP TRIGGER note_insert_{table} AFTER INSERT ON main.{table} BEGIN"
            f" {_NOTE} ('put', '{table}', {new}); END;"
            f"CREATE TEMP TRIGGER note_update_{table} AFTER UPDATE ON main.{table} WHEN {differs} BEGIN"
            f" {_NOTE} ('put', '{table}', {new}); END;"
            f"CREATE TEMP TRIGGER note_delete_{table} AFTER DELETE ON main.{table} BEGIN"
            f" {_NOTE} ('drop', '{table}', {old}); END;"
        )


def note_everything(sql: Sql) -> None:
    """Note every row there is: for a catalog that has rows from before it had a history."""
    for table in TABLES:
        content = _object(table, columns_of(sql, table))
        sql.execute(f"{_NOTE_SELECTED} SELECT 'put', '{table}', {content} FROM {table}")


class Column(msgspec.Struct, frozen=True):
    """A column that holds something of its own; `is_key`: it is part of what names its row."""

    name: str
    type: str
    is_key: bool


def columns_of(sql: Sql, table: str) -> list[Column]:
    """The columns of a table, in order, but for generated ones."""
    return columns_from(table, sql.execute(f"PRAGMA table_xinfo({table})"))


def columns_from(table: str, rows: Iterable[Any]) -> list[Column]:
    """`columns_of` for the rows of PRAGMA table_xinfo. What names a row of `paths` is its path: what else numbers its
    rows is of one file only."""
    found = [(name, type, bool(key)) for _, name, type, _, _, key, hidden in rows if not hidden]
    keys = {"root", "rel"} if table == "paths" else {name for name, _, is_key in found if is_key}
    return [Column(name, type, name in keys) for name, type, _ in found]


def _object(row: str, columns: list[Column]) -> str:
    """SQL for the row as JSON. Reals are text with all their digits: as numbers they would lose the last two."""
    values = (
        f"'{column.name}', "
        + (f"printf('%!.17g', {row}.{column.name})" if column.type == "REAL" else f"{row}.{column.name}")
        for column in columns
    )
    return f"json_object({', '.join(values)})"


def changed(id: str, pieces: list[str], folder: Path, at: float) -> Changed:
    """One transaction's changes, each piece some of them in JSON, as a fact; many are put into a file in `folder`, by
    their own SHA-256. Raises OSError when that can't be written."""
    if sum(map(len, pieces)) <= INLINE_BYTES:
        changes = msgspec.json.decode(f"[{','.join(pieces)}]", type=tuple[Change, ...])
        inline = Changed(id=id, changes=changes, at=at)
        if len(msgspec.json.encode(inline)) <= INLINE_BYTES:
            return inline
    file = io.BytesIO()
    with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=3, mtime=0) as packed:
        for n, piece in enumerate(pieces):
            packed.write(b"," if n else b"[")
            packed.write(piece.encode())
        packed.write(b"]")
    data = file.getvalue()
    key = hashlib.sha256(data).hexdigest()
    place(folder / f"{key}.json.gz", data)
    return Changed(id=id, file=key, at=at)


def changes_of(fact: Changed, folder: Path) -> list[Change]:
    """The rows in a fact. Raises OSError when its file is gone, ValueError when it is not what it was."""
    if not fact.file:
        return list(fact.changes)
    data = (folder / f"{fact.file}.json.gz").read_bytes()
    if hashlib.sha256(data).hexdigest() != fact.file:
        raise ValueError(f"the history's file {fact.file}.json.gz is damaged")
    return msgspec.json.decode(gzip.decompress(data), type=list[Change])
