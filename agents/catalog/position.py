"""Position: which history a catalog's file belongs to and how far it has come, compared with what a bus has of it.

Every transaction that changes content has a number in its history, and names the one before it. So a file and a stream
can be compared without replaying either: the file is at the stream's end, or before it, or ahead of it, or it
belongs elsewhere.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Literal

import msgspec

from agents.catalog.errors import CatalogTooNew, CatalogUnusable
from agents.storage.queries import sections
from schemas.models import Changed

KEY = "position"
"""Of the position in the table db_meta."""
PASSED, REMEMBERED = "passed.", 1000
"""Of the last so many transactions in the table db_meta, by number: their ids. They distinguish a stream that lost its
end from one in which another copy of the catalog went on."""


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """Where a catalog is: its history (32 hex digits), the number of its last transaction (0: none yet) and that one's
    id. `lineage` are the histories whose content it went on with, newest first; an empty one is a history from before
    histories had names. `begun` is when the first of them began with nothing (seconds since 1970; 0: not known)."""

    history: str
    number: int = 0
    last: str = ""
    lineage: tuple[str, ...] = ()
    begun: float = 0.0


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One transaction as the outbox or the stream names it."""

    id: str
    history: str = ""
    number: int = 0
    after: str = ""
    lineage: tuple[str, ...] = ()


def point_of(fact: Changed) -> Point:
    """What names a transaction, without its rows."""
    return Point(id=fact.id, history=fact.history, number=fact.number, after=fact.after, lineage=fact.lineage)


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """A catalog's file as it was left: its position (None for one from before there were positions), the transactions
    that it has still to publish, and how many messages it put into its outbox ever, and are still there. `is_mixed`:
    the file may be another than the one whose log a kill left. `passed` are the ids of its last transactions by number,
    as far as it remembers them."""

    position: Position | None
    unsent: tuple[Point, ...] = ()
    queued: int = 0
    waiting: int = 0
    is_mixed: bool = False
    passed: dict[int, str] = {}


class HistoryStream(msgspec.Struct, frozen=True, kw_only=True):
    """What the bus has: the first and the last transaction (None: none), and the sequence of the last message of any
    kind. `tail` is the id of the last transaction without a name after the end: an older Darkroom went on with the
    catalog (empty: none did). `lineage` are the histories that the last one's went on with, and `ids` those of its
    transactions that are asked for: both are known when the whole stream was read (`is_read`)."""

    first: Point | None = None
    end: Point | None = None
    last_seq: int = 0
    tail: str = ""
    is_read: bool = False
    lineage: tuple[str, ...] = ()
    ids: frozenset[str] = frozenset()

    @property
    def last(self) -> str:
        """The id of the last transaction, of whatever history; empty when there is none."""
        return self.tail or (self.end.id if self.end else "")


Verdict = Literal["current", "begin", "go on", "rebuild", "refuse", "read"]


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done with a catalog's file before it is used, and why in half a sentence.

    current: nothing. begin: there is neither file nor history. go on: the file knows more than the bus, so a history
    begins that holds all of it. rebuild: the bus knows more. refuse: its user has to choose. read: the stream has to
    be read to its end first.
    """

    verdict: Verdict
    why: str = ""


def judge(file: Standing | None, stream: HistoryStream) -> Judgement:
    """Compare a file with the stream; see Judgement. Pure."""
    end = stream.end
    if file is None:
        return Judgement(verdict="rebuild" if end else "begin", why="there was no catalog")
    if file.position is None:
        return _judge_unnamed(file, stream)
    sent = file.unsent[0].after if file.unsent else file.position.last
    if end is None:
        if not sent:
            return Judgement(verdict="current")
        return Judgement(verdict="go on", why="the bus has nothing of its history")
    if stream.tail:
        if sent == stream.tail:
            return Judgement(verdict="current")
        return Judgement(verdict="rebuild", why="an older Darkroom went on with its history")
    if end.id in {file.position.last, sent} or end.id in {point.id for point in file.unsent}:
        if stream.first and stream.first.history == end.history and stream.first.number > 1:
            return Judgement(verdict="go on", why="the bus has lost the beginning of its history")
        if file.is_mixed and not file.unsent:
            return Judgement(verdict="rebuild", why="the catalog was replaced under the log of the one before")
        return Judgement(verdict="current")
    if not (sent or file.unsent):
        return Judgement(verdict="rebuild", why="the catalog was empty")
    if not stream.is_read:
        return Judgement(verdict="read")
    return _judge_apart(file, file.position, sent, end, stream)


def _judge_apart(file: Standing, at: Position, sent: str, end: Point, stream: HistoryStream) -> Judgement:
    """The stream's end is not where the file is, and the whole stream was read."""
    lineage = {end.history, *stream.lineage}
    if not sent:  # nothing of it was ever published here, nor did it begin where the stream ends
        return Judgement(verdict="refuse", why="it belongs to another history")
    if sent in stream.ids:
        if at.history not in lineage:
            return Judgement(verdict="refuse", why="a new history was begun since it was made")
        if all(point.id in stream.ids for point in file.unsent):
            return Judgement(verdict="rebuild", why="the catalog was older than its history")
        return Judgement(verdict="refuse", why="it was changed elsewhere since it and the history were the same")
    number = file.unsent[0].number - 1 if file.unsent else at.number
    if end.history == at.history and file.passed.get(end.number, end.id) != end.id:
        return Judgement(verdict="refuse", why="it was changed elsewhere since it and the history were the same")
    if (end.history == at.history and end.number < number) or end.history in at.lineage:
        return Judgement(verdict="go on", why="the bus has lost the end of its history")
    if end.history == at.history or at.history in lineage:
        return Judgement(verdict="refuse", why="it was changed elsewhere since it and the history were the same")
    return Judgement(verdict="refuse", why="it belongs to another history")


def _judge_unnamed(file: Standing, stream: HistoryStream) -> Judgement:
    """A file from before positions. The messages that it ever put into its outbox are counted: those that it need not
    publish any more are in the stream, if it is the one that belongs to this file."""
    if stream.end is None:
        return Judgement(verdict="go on", why="it has no place in a history yet")
    if stream.end.history:
        if not stream.is_read:
            return Judgement(verdict="read")
        if "" in stream.lineage:
            return Judgement(verdict="rebuild", why="the catalog was older than its history")
        return Judgement(verdict="refuse", why="it belongs to another history")
    if stream.last_seq > file.queued:
        return Judgement(verdict="rebuild", why="the catalog was older than its history")
    if stream.last_seq >= file.queued - file.waiting:
        return Judgement(verdict="go on", why="it has no place in a history yet")
    return Judgement(verdict="refuse", why="the history on the bus is shorter than it should be")


def standing_of(path: Path) -> Standing | None:
    """How a catalog's file was left; None when there is none, or an empty one. Nothing in it is changed.

    Raises sqlite3.DatabaseError for a file that is damaged, CatalogTooNew for one of a newer version, CatalogUnusable
    for one that can't be opened or is a database of something else.
    """
    if not path.exists() or not (path.stat().st_size or _log_size(path)):
        return None
    is_mixed = _is_mixed(path)
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None)) as file:
            found = _standing(file, path)
            return msgspec.structs.replace(found, is_mixed=is_mixed) if found else None
    except sqlite3.OperationalError as error:
        raise CatalogUnusable(
            f"The catalog {path} can't be opened ({error}): make it and its folder readable and writable, and see that "
            "no other program holds it."
        ) from error


def _standing(file: sqlite3.Connection, path: Path) -> Standing | None:
    tables = {name for (name,) in file.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    if not tables:
        return None
    if "migrations" not in tables:
        raise CatalogUnusable(f"{path} is a database, but no catalog of Darkroom's: move it away and start again.")
    [(applied,)] = file.execute("SELECT coalesce(max(version), 0) FROM migrations").fetchall()
    refuse_newer(path, int(applied))
    if _log_size(path) and (found := file.execute("PRAGMA integrity_check(1)").fetchone()) != ("ok",):
        # A log that a kill left next to a file which was put in its place meanwhile mixes both.
        raise sqlite3.DatabaseError(f"it is damaged: {found[0]}")
    [found] = file.execute(sections("agents.catalog", "queries.sql", "name")["standing"]).fetchall()
    return standing(*found)


def standing(position: str | None, unsent: str, queued: int | None, waiting: int, passed: str) -> Standing:
    """The row that the query `standing` finds."""
    points = msgspec.json.decode(unsent, type=tuple[Point, ...])
    return Standing(
        position=msgspec.json.decode(position, type=Position) if position else None,
        unsent=tuple(point for point in points if point.history),
        queued=queued or 0,
        waiting=waiting,
        passed=msgspec.json.decode(passed, type=dict[int, str]),
    )


def refuse_newer(path: Path, applied: int) -> None:
    """Raises CatalogTooNew for a catalog whose last migration is not known here."""
    newest = max(map(int, sections("agents.catalog", "schema.sql", "version")))
    if applied > newest:
        raise CatalogTooNew(
            f"The catalog {path} has version {applied}, and this Darkroom knows up to {newest}: update it, or restore "
            "a backup made before the catalog was updated."
        )


def _log(path: Path) -> Path:
    """A catalog's log, which lies where the file is that a link leads to."""
    real = path.resolve()
    return real.with_name(f"{real.name}-wal")


def _log_size(path: Path) -> int:
    log = _log(path)
    return log.stat().st_size if log.exists() else 0


def _is_mixed(path: Path) -> bool:
    """Did the file come after its log? SQLite changes it only to take over what is in the log, and goes on in the log;
    it would take over the rest on top of whatever file lies there, and most of that would fit."""
    return _log_size(path) > 0 and path.stat().st_ctime_ns > _log(path).stat().st_mtime_ns
