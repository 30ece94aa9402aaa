"""The watcher's table: what it saw, what it knows by hash, and an outbox of what it has still to publish.

Plain blocking functions for one thread, the only writer. A state and the facts of it are written in one
transaction, so a kill between commit and publish loses nothing: the facts are still in the outbox, with the same
message ids. SQL lives in `queries.sql`, by name.
"""

import json
import sqlite3
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec

from agents.ingest.errors import WrongSchema
from agents.ingest.scanning.reconcile import (
    Appeared,
    Change,
    Linked,
    Lost,
    Returned,
    Row,
    Touched,
    WasChanged,
    WasMoved,
)
from agents.ingest.scanning.scan import Candidate
from agents.ingest.settling.attempts import Attempts
from agents.storage import database
from agents.storage.database import Sql, Threaded, in_thread
from agents.storage.paths import file_key, hash_id, signed64
from agents.storage.queries import sections
from bus.clock import Clock
from bus.errors import UserError
from schemas import files
from schemas.files import FilePath, Identity, Known, Stat

CLOCK_GRAIN = 2.0
"""Seconds after which a file system's clock has certainly moved on: a hash is cached when the stat is still the
same."""

ALL = -1
"""As a limit: none."""

Message = files.Settled | files.Moved | files.Removed | files.Refused | files.Hash | files.Described
Kind = Literal["settled", "moved", "removed", "refused", "hash", "described"]
_TYPES: dict[Kind, type[Message]] = {
    "settled": files.Settled,
    "moved": files.Moved,
    "removed": files.Removed,
    "refused": files.Refused,
    "hash": files.Hash,
    "described": files.Described,
}
_BIG = 1 << 64
_CLOCK = Clock()


class Unsent(msgspec.Struct, frozen=True, kw_only=True):
    """Something to publish, in the order of `id`; `message_id` is the same however often it is tried."""

    id: int
    kind: Kind
    message_id: str
    message: Message


class HashedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A hashed file, and what was published of its sidecars last: as they were by `mark`, of the content
    `described`."""

    path: FilePath
    key: str
    sha256: str
    described: str
    mark: str


@contextmanager
def opened(path: Path, clock: Clock = _CLOCK) -> Iterator["Store"]:
    """The table in a file, made or migrated if need be. Raises WrongSchema or sqlite3.Error. To be used by the opening
    thread only."""
    with database.opened(path, sections("agents.ingest", "queries.sql", "name")) as sql:
        sql.write_ahead()
        schema = {
            int(version): script for version, script in sections("agents.ingest", "schema.sql", "version").items()
        }
        [(version,)] = sql.execute("PRAGMA user_version")
        if version > max(schema):
            raise WrongSchema
        sql.migrate(schema, version, lambda made: f"PRAGMA user_version = {made}")
        with sql.atomic():
            if not sql.rows("instance"):
                sql.rows("put_instance", instance=clock.new_id())
        sql.connection.row_factory = sqlite3.Row
        yield Store(sql, clock)


Table = Threaded["Store"]


@asynccontextmanager
async def open_table(path: Path, clock: Clock = _CLOCK) -> AsyncIterator[Table]:
    """The table in a file, in a thread of its own: the only writer. Raises UserError."""
    async with AsyncExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            table = await stack.enter_async_context(in_thread(partial(opened, path, clock), "files"))
        except (OSError, sqlite3.Error, WrongSchema) as error:
            raise UserError(f"{path} can't be used ({error}): free it, or choose another --data directory") from error
        yield table


class Store:
    """Every method is one transaction; within `atomic`, all of them together are one. `attempts` is what was let in
    lately: it limits how often a file is. `written` are the ids of the rows that the gate decided on, or an event
    brought, since a scan began: they are newer than what it saw."""

    def __init__(self, sql: Sql, clock: Clock) -> None:
        self.sql, self.clock = sql, clock
        self.attempts = Attempts(clock.steady)
        self.atomic, self._run = sql.atomic, sql.rows
        self.instance = str(sql.rows("instance")[0]["instance"])
        self.written: set[int] = set()

    def begin_scan(self) -> None:
        """Whatever is written from now on, the scan may not have seen."""
        self.written.clear()

    def rows(self) -> list[Row]:
        """Every path ever seen and not pruned, gone ones too, by root and rel."""
        return [_row(found) for found in self._run("rows")]

    def waiting(self) -> list[Row]:
        """The paths that the gate has still to judge."""
        return [_row(found) for found in self._run("waiting")]

    def waiting_since(self, root: str, *, after: str, limit: int) -> list[tuple[int, FilePath, float]]:
        """Ids and paths of what waits below a root, by rel, after one; and when it last changed, here or on disk."""
        found = self._run("waiting_since", root=root, after=after, limit=limit)
        return [(one["id"], FilePath(root=root, rel=one["rel"]), one["changed_at"]) for one in found]

    def row_at(self, path: FilePath) -> Row | None:
        """What is remembered of one path."""
        for found in self._run("row_at", root=path.root, rel=path.rel):
            return _row(found)
        return None

    def has_inode(self, stat: Stat) -> bool:
        """Whether any path, gone or not, is remembered with this device and inode."""
        return bool(self._run("has_inode", dev=_columns(stat)["dev"], ino=_columns(stat)["ino"]))

    def unhashed(self) -> list[Row]:
        """Settled files whose hash has not come (yet)."""
        return [_row(found) for found in self._run("unhashed")]

    def counts(self, root: str) -> dict[str, int]:
        """Of the files below a root: how many there are, are waiting, were refused, and have no hash yet."""
        (found,) = self._run("counts", root=root)
        return {name: int(found[name]) for name in ("files", "waiting", "refused", "unhashed")}

    def refusals(self, root: str, *, limit: int) -> list[str]:
        """What was refused below a root and why, by rel."""
        return [f"{found['rel']}: {found['error']}" for found in self._run("refusals", root=root, limit=limit)]

    def listing(self, root: str, *, after: str, limit: int) -> list[tuple[Row, Known | None]]:
        """The files that are there below a root, by rel, after one; and what is known of those that are settled."""
        return [
            (
                _row(found),
                Known(sha256=found["sha256"], identity=msgspec.json.decode(found["identity"], type=Identity))
                if found["sha256"]
                else None,
            )
            for found in self._run("listing", root=root, after=after, limit=limit)
        ]

    def known(self, stat: Stat) -> Known | None:
        """What was hashed of this very version of a file, once it is certain that no write hid in the clock's grain."""
        for found in self._run("known", **_columns(stat)):
            return Known(sha256=found["sha256"], identity=msgspec.json.decode(found["identity"], type=Identity))
        return None

    def apply(self, changes: Iterable[Change], *, roots: Iterable[str], looked_at: float, now: float) -> None:
        """Writes what a scan of `roots`, begun at `looked_at` (wall clock), changed, and the facts of that."""
        changes = sorted(changes, key=lambda change: not isinstance(change, Lost))  # a place is left before it is taken
        with self.atomic():
            for change in changes:
                if isinstance(change, WasMoved):
                    self._run("lift", id=change.row.id)
            for change in changes:
                self._apply(change, now)
            for root in roots:
                self._run("confirm", root=root, settled_before=looked_at - CLOCK_GRAIN)

    def settle(
        self, row: Row, stat: Stat, proof: Literal["complete", "stable"], *, fingerprint: str, now: float
    ) -> bool:
        """The gate let a file in. False, and nothing is done, when the row has changed since it was read."""
        with self.atomic():
            if not self._is_current(row):
                return False
            key = file_key(row.path.root, stat.dev, stat.ino)
            settled = self._update(
                row, now, key=key, stat=stat, state="settled", published=True, fingerprint=fingerprint
            )
            if self._publish_settled(settled, proof, now) is None:
                self._request_hash(settled)
        return True

    def refuse(self, row: Row, stat: Stat | None, *, reason: str, error: str, now: float) -> bool:
        """The gate keeps a file out, for now. False, and nothing is done, when the row has changed since it was
        read."""
        with self.atomic():
            if not self._is_current(row):
                return False
            self._forget_description(row.path)
            stat = stat or row.stat
            key = file_key(row.path.root, stat.dev, stat.ino)
            refused = self._update(
                row, now, key=key, stat=stat, state="refused", published=True, reason=reason, error=error
            )
            self._publish(
                refused,
                "refused",
                files.Refused(key=refused.key, path=refused.path, reason=reason, error=error, at=now),
            )
        return True

    def judge_again(self, row: Row, *, now: float) -> None:
        """Puts a path back before the gate: its hashing failed because it changed, for example."""
        with self.atomic():
            if self._is_current(row) and not row.gone:
                self._update(row, now, state="waiting")

    def remember(self, stat: Stat, sha256: str, identity: Identity, *, hashed_at: float) -> None:
        """Keeps a hash; `known` gives it once a later scan has seen the same Stat."""
        text = msgspec.json.encode(identity).decode()
        with self.atomic():
            self._run("remember", **_columns(stat), sha256=sha256, identity=text, hashed_at=hashed_at)

    def with_sidecars(self, root: str, rels: Iterable[str]) -> list[HashedModel]:
        """Of the hashed files below a root, those of these rels, and those that were described before."""
        return [
            HashedModel(
                path=FilePath(root=root, rel=found["rel"]),
                key=found["key"],
                sha256=found["sha256"],
                described=found["described"] or "",
                mark=found["mark"],
            )
            for found in self._run("with_sidecars", root=root, rels=json.dumps([*rels]))
        ]

    def has_described(self) -> bool:
        """Whether any model was described by its sidecars."""
        return bool(self._run("has_described"))

    def describe(self, fact: files.Described, mark: str) -> None:
        """Publishes what the sidecars of a model hold, and remembers that."""
        with self.atomic():
            path = fact.path
            self._run("describe", root=path.root, rel=path.rel, sha256=fact.sha256, mark=mark)
            message_id = f"{self.instance}-described-{self.clock.new_id()}"
            payload = msgspec.json.encode(fact).decode()
            self._run("add_outgoing", kind="described", message_id=message_id, payload=payload)

    def unsent(self, limit: int = 1000) -> list[Unsent]:
        """What has still to be published, oldest first."""
        return [
            Unsent(
                id=found["id"],
                kind=found["kind"],
                message_id=found["message_id"],
                message=msgspec.json.decode(found["payload"], type=_TYPES[found["kind"]]),
            )
            for found in self._run("unsent", limit=limit)
        ]

    def sent(self, ids: Iterable[int]) -> None:
        """Forgets what the server has acknowledged."""
        with self.atomic():
            for id in ids:
                self._run("sent", id=id)

    def prune(self, *, before: float) -> None:
        """Forgets paths gone (not unmounted), and hashes of no path, since before that time."""
        with self.atomic():
            self._run("prune_paths", before=before)
            self._run("prune_described")
            self._run("prune_hashes", before=before)

    def _apply(self, change: Change, now: float) -> None:
        match change:
            case Appeared(path=path, candidate=candidate, row=row):
                self._appear(path, candidate, row, now)
            case WasChanged(row=row, candidate=candidate):
                self._update(row, now, **_fresh(candidate), state="waiting", gone=False, unmounted=False)
            case Touched(row=row, candidate=candidate):
                self._carry(row.stat, candidate.stat, now)
                touched = self._update(row, now, stat=candidate.stat, links=candidate.links)
                if row.state == "settled" and self.known(touched.stat) is None:
                    self._request_again(touched, now)  # the job under way is for the old Stat, and will find it changed
            case Lost(row=row, unmounted=unmounted):
                lost = self._update(row, now, published=False, gone=True, unmounted=unmounted)
                if not unmounted:
                    self._forget_description(row.path)
                if row.published or row.unmounted:
                    removed = files.Removed(key=lost.key, path=lost.path, at=now, unmounted=unmounted)
                    self._publish(lost, "removed", removed)
            case WasMoved(row=row, path=path, candidate=candidate):
                self._move(row, path, candidate, now)
            case Linked(source=source, path=path, candidate=candidate, row=row):
                self._carry(source.stat, candidate.stat, now)
                linked = self._appear(path, candidate, row, now)
                self._settle_again(linked, candidate, source.fingerprint, now)
            case Returned(row=row, candidate=candidate):
                self._carry(row.stat, candidate.stat, now)
                self._settle_again(row, candidate, row.fingerprint, now)

    def _appear(self, path: FilePath, candidate: Candidate, row: Row | None, now: float) -> Row:
        """A row for a path to be judged, the remembered one if there is one."""
        if row is not None:
            return self._update(row, now, **_fresh(candidate), state="waiting", gone=False, unmounted=False)
        key = file_key(path.root, candidate.stat.dev, candidate.stat.ino)
        columns = {"root": path.root, "rel": path.rel, "key": key, "links": candidate.links, "now": now}
        self._run("clear", root=path.root, rel=path.rel)
        return _row(self._run("insert", **columns, **_columns(candidate.stat))[0])

    def _move(self, row: Row, path: FilePath, candidate: Candidate, now: float) -> None:
        """One changed path; who can't know the content any more is asked to hash it."""
        self._carry(row.stat, candidate.stat, now)
        self._run("clear", root=path.root, rel=path.rel)
        self._forget_description(row.path)
        old = row.path
        self._run("move_description", old_root=old.root, old_rel=old.rel, root=path.root, rel=path.rel)
        moved = self._update(row, now, path=path, stat=candidate.stat, links=candidate.links)
        known = self.known(moved.stat)
        fact = files.Moved(key=moved.key, old=old, path=path, stat=moved.stat, at=now, known=known)
        self._publish(moved, "moved", fact)
        if known is None:
            self._request_again(moved, now)

    def _settle_again(self, row: Row, candidate: Candidate, fingerprint: str, now: float) -> None:
        """A path whose content was settled before."""
        settled = self._update(
            row,
            now,
            key=file_key(row.path.root, candidate.stat.dev, candidate.stat.ino),
            stat=candidate.stat,
            links=candidate.links,
            state="settled",
            published=True,
            gone=False,
            unmounted=False,
            fingerprint=fingerprint,
        )
        if self._publish_settled(settled, "complete", now) is None:
            self._request_again(settled, now)

    def _publish_settled(self, row: Row, proof: Literal["complete", "stable"], now: float) -> Known | None:
        """Gives what is known of it."""
        known = self.known(row.stat)
        fact = files.Settled(key=row.key, path=row.path, stat=row.stat, proof=proof, at=now, known=known)
        self._publish(row, "settled", fact)
        return known

    def _forget_description(self, path: FilePath) -> None:
        """No model is at a path any more: one that comes back is described again."""
        self._run("forget_description", root=path.root, rel=path.rel)

    def _request_hash(self, row: Row) -> None:
        self._publish(row, "hash", job_for(row))

    def _request_again(self, row: Row, now: float) -> None:
        """Has a settled file hashed that did not come before the gate; that is where it goes when it was hashed too
        often lately."""
        clock = self.attempts.clock()
        if self.attempts.ready_at(row.path, row.key, clock) > clock:
            self._update(row, now, state="waiting")
            return
        self.attempts.note(row.path, row.key, row.stat)
        self._request_hash(row)

    def _publish(self, row: Row, kind: Kind, message: Message) -> None:
        """Into the outbox; the message id is that of the row's version."""
        message_id = f"{self.instance}-{row.id}-{row.version}-{kind}"
        self._run("add_outgoing", kind=kind, message_id=message_id, payload=msgspec.json.encode(message).decode())

    def _carry(self, old: Stat, new: Stat, now: float) -> None:
        """The hash of a version of a file holds for another one with the same content."""
        before = {f"old_{name}": value for name, value in _columns(old).items()}
        self._run("carry", **before, **_columns(new), settled_before=now - CLOCK_GRAIN)

    def _is_current(self, row: Row) -> bool:
        found = self._run("row", id=row.id)
        return bool(found) and found[0]["version"] == row.version

    def _update(self, row: Row, now: float, *, reason: str = "", error: str = "", **changes: Any) -> Row:
        """The row with some fields replaced and its version one higher."""
        new = msgspec.structs.replace(row, **changes)
        columns = msgspec.structs.asdict(new)
        path, stat = columns.pop("path"), columns.pop("stat")
        del columns["version"]
        columns |= {"root": path.root, "rel": path.rel, "reason": reason, "error": error, "now": now}
        return _row(self._run("update", **columns, **_columns(stat))[0])


def job_for(row: Row) -> files.Hash:
    """What a hasher is to do for a settled file: the same however often it is asked for."""
    job = hash_id(row.key, row.path.rel, row.stat, row=row.version)
    return files.Hash(id=job, key=row.key, path=row.path, stat=row.stat)


def _fresh(candidate: Candidate) -> dict[str, Any]:
    """The fields of a row whose content nobody knows. Its key stays the one that was published last, so that the end
    of that can be published too; the next verdict gives it a new one."""
    return {"stat": candidate.stat, "links": candidate.links, "fingerprint": ""}


def _columns(stat: Stat) -> dict[str, int]:
    """A Stat for SQLite, whose integers have a sign: device and inode numbers have none elsewhere."""
    return {name: signed64(value) for name, value in msgspec.structs.asdict(stat).items()}


def _row(found: sqlite3.Row) -> Row:
    return Row(
        id=found["id"],
        path=FilePath(root=found["root"], rel=found["rel"]),
        key=found["key"],
        stat=Stat(
            dev=found["dev"] % _BIG,
            ino=found["ino"] % _BIG,
            size=found["size"],
            mtime_ns=found["mtime_ns"],
            ctime_ns=found["ctime_ns"],
        ),
        links=found["links"],
        state=found["state"],
        published=bool(found["told"]),
        gone=bool(found["gone"]),
        unmounted=bool(found["unmounted"]),
        fingerprint=found["fingerprint"],
        version=found["version"],
    )
