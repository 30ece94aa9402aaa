"""Replay: a catalog made of its history on the bus, and the migrator's look at its file before it opens it.

The stream CATALOG holds the transactions of one history after another. The last one that was begun is the catalog's;
those before it were abandoned by a command, or went on in it.
"""

import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import msgspec
import nats.errors
import structlog
from anyio import to_thread
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError

from agents.catalog import history
from agents.catalog.database import Database
from agents.catalog.errors import CatalogApart, CatalogUnusable
from agents.catalog.position import (
    REMEMBERED,
    HistoryStream,
    Judgement,
    Point,
    Position,
    Standing,
    judge,
    point_of,
    standing_of,
)
from agents.catalog.rebuild import Rebuilt, compare, read_only, rebuilt
from agents.storage.atomic import sync_folder
from agents.storage.layout import DataDir
from agents.storage.trash import TrashBatch
from bus.client import Bus
from bus.errors import DarkroomError, Retry, Undecodable
from bus.subjects import CATALOG_CHANGED
from schemas.models import Changed

log = structlog.get_logger()

STREAM = "CATALOG"
UNDER_WAY = "catalog.rebuilding.db"
"""The new catalog next to the old one, until it is whole."""
UNFORGOTTEN = 128
"""Messages at the stream's end among which those are that a relay stored and could not forget any more."""
_FETCHED = 200
_LOGS = ("", "-wal", "-shm")
_UNFIT = (
    ValueError,
    OverflowError,
    EOFError,
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
)
"""What a transaction raises that can't come after those before it; another error of SQLite's is the disk's."""
_TRY_AGAIN = "make room on its disk, see that its folder can be written, and try again."


class BrokenHistory(DarkroomError):
    """The history can't be replayed: the message gives the place where it breaks."""


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """A catalog made of a history: of how many transactions, and in what time."""

    transactions: int
    seconds: float


class Opening(msgspec.Struct, frozen=True, kw_only=True):
    """How a catalog's file is to be opened: whether a history begins, and after which transaction on the bus."""

    begin: bool
    after: str


async def prepare(bus: Bus, path: Path, now: float) -> Opening:
    """Compare the catalog's file with its history, and make one of that where it is missing, damaged or older.

    The file that was there goes to the trash. Raises CatalogApart when its user has to choose, CatalogUnusable for a
    file that can't be opened or is something else, and DarkroomError when the bus does not answer.
    """
    stream, damage = await stream_of(bus), ""
    try:
        file = await to_thread.run_sync(standing_of, path)
    except sqlite3.DatabaseError as error:
        file, damage = None, str(error)
        if stream.end is None:
            raise CatalogApart(
                f"The catalog {path} is damaged ({error}), and the bus has no history to make one of. Restore a "
                "backup, or begin with an empty one: `darkroom new-history --empty`."
            ) from error
    if stream.end and path.is_symlink() and not path.exists():
        raise CatalogUnusable(
            f"The catalog {path} is a link to {path.readlink()}, which is not there: mount its disk, or remove the "
            "link, and the catalog is made of its history."
        )
    verdict = judge(file, stream)
    if verdict.verdict == "read":
        stream = await read_stream(bus, stream, file)
        verdict = judge(file, stream)
    if file and verdict.verdict == "rebuild" and await _is_all_there_is(bus, path, file, stream):
        verdict = Judgement(verdict="go on", why="it has no place in the history on the bus")
    if damage:
        verdict = Judgement(verdict="rebuild", why=f"the catalog was damaged ({damage})")
    end = stream.end
    if verdict.verdict == "refuse":
        raise CatalogApart(apart(path, verdict.why))
    if verdict.verdict == "rebuild" and end:
        log.warning("the catalog is made of its history", why=verdict.why)
        done = await put_in_place(bus, path, end, now)
        log.warning("the catalog was made of its history", transactions=done.transactions, seconds=done.seconds)
    elif verdict.verdict == "go on":
        log.warning("a new history begins with all that the catalog holds", why=verdict.why)
    return Opening(begin=verdict.verdict == "go on", after=stream.last)


async def _is_all_there_is(bus: Bus, path: Path, file: Standing, stream: HistoryStream) -> bool:
    """Is a file what the stream made, though it has no place there? One from before positions can be what the last
    messages made, as many as it ever published: it began with nothing when the catalog before it was lost. And an older
    Darkroom may have gone on with one that has a position. Raises DarkroomError."""
    if not (file.queued and stream.end and (stream.tail if file.position else not stream.end.history)):
        return False
    (work := DataDir.of(path).work).mkdir(exist_ok=True)
    with TemporaryDirectory(dir=work, prefix="judging-") as folder:
        ours, made = DataDir(Path(folder)).catalog, Path(folder, "made.db")
        waiting = await to_thread.run_sync(_copied, path, ours)
        last_ones = range(max(1, stream.last_seq + 1 - UNFORGOTTEN), stream.last_seq + 1)
        stored = {await message_id(bus, seq) for seq in last_ones} & waiting.keys()
        unsent = [fact for id, fact in waiting.items() if fact and id not in stored]
        before = 0 if stream.tail else stream.last_seq - (file.queued - len(waiting) + len(stored))
        async with Database.open(ours, clock=bus.clock):
            pass  # it has the tables of this version now
        try:
            await replay(bus, DataDir.of(path).history, made, stream.end, unsent, before)
        except (BrokenHistory, OSError):
            return False
        return await to_thread.run_sync(_are_same, ours, made)


def _copied(path: Path, to: Path) -> dict[str, Changed | None]:
    """Copy a catalog. Returns what it has still to publish, by the ids of the messages: a transaction, or something
    else."""
    with read_only(path) as file, closing(sqlite3.connect(to)) as copy:
        file.backup(copy)
        rows = file.execute("SELECT msg_id, kind, payload FROM outbox ORDER BY id").fetchall()
    return {id: CATALOG_CHANGED.decode(text.encode()) if kind == "catalog.changed" else None for id, kind, text in rows}


def _are_same(one: Path, other: Path) -> bool:
    with read_only(one) as first, read_only(other) as second:
        return all(table.same for table in compare(first, second))


async def message_id(bus: Bus, seq: int) -> str:
    """The id of one message in the stream; empty when it has none, or is gone."""
    try:
        message = await bus.js.get_msg(STREAM, seq)
    except NotFoundError:
        return ""
    return str((message.headers or {}).get("Nats-Msg-Id", ""))


def apart(path: Path, why: str) -> str:
    """What a user reads about a catalog that does not belong to the history on the bus."""
    return (
        f"The catalog {path} does not go with the history on the bus: {why}. `darkroom rebuild --replace` puts one "
        "made of that history in its place (this file goes to the trash); `darkroom new-history` begins a new history "
        "with what this file holds."
    )


async def stream_of(bus: Bus) -> HistoryStream:
    """What the bus has, by its ends. What a stranger put there is none of it. Raises Retry."""
    seq = int((await bus.js.stream_info(STREAM)).state.last_seq)
    with suppress(Undecodable):
        first, last = await bus.after(CATALOG_CHANGED, 0), await bus.last(CATALOG_CHANGED)
        if first is None or last is None:
            return HistoryStream(last_seq=seq)
        if last.payload.history:  # of a stream that began before histories had names, the first is of none
            return HistoryStream(first=point_of(first.payload), end=point_of(last.payload), last_seq=seq)
    points = [point_of(fact) async for facts in transactions(bus) for fact in facts]
    named = [point for point in points if point.history] or points
    if not named:
        return HistoryStream(last_seq=seq)
    tail = "" if named[-1] == points[-1] else points[-1].id
    return HistoryStream(first=named[0], end=named[-1], last_seq=seq, tail=tail)


async def read_stream(bus: Bus, stream: HistoryStream, file: Standing | None) -> HistoryStream:
    """The same, read to its end for what a file has to be compared with. Raises DarkroomError."""
    asked = {point.id for point in file.unsent} if file else set[str]()
    if file and file.position:
        asked |= {file.position.last, file.unsent[0].after if file.unsent else ""}
    found, lineage = set[str](), tuple[str, ...]()
    async for facts in transactions(bus):
        for fact in facts:
            found |= {fact.id} & asked
            if stream.end and fact.history == stream.end.history and fact.number == 1:
                lineage = fact.lineage
    return msgspec.structs.replace(stream, is_read=True, lineage=lineage, ids=frozenset(found))


async def transactions(bus: Bus, after: int = 0) -> AsyncIterator[list[Changed]]:
    """Every transaction that the stream holds after a sequence, in order, some at a time. Raises Retry."""
    last = await bus.raw(STREAM, CATALOG_CHANGED.filter())
    if last is None:
        return
    config = ConsumerConfig(
        deliver_policy=DeliverPolicy.ALL, ack_policy=AckPolicy.NONE, inactive_threshold=600.0, mem_storage=True
    )
    puller = await bus.js.pull_subscribe(CATALOG_CHANGED.filter(), stream=STREAM, config=config)
    at, left = 0, sum((await bus.waiting(STREAM, CATALOG_CHANGED.filter())).values())
    try:
        while at < last.seq:
            messages = await puller.fetch(max(1, min(_FETCHED, left)), timeout=10)
            left -= len(messages)
            at = messages[-1].metadata.sequence.stream
            later = [one for one in messages if one.metadata.sequence.stream > after]
            yield [fact for one in later if (fact := _decoded(one))]
    except (nats.errors.Error, TimeoutError) as error:  # the bus went away: nothing is wrong with what it has
        raise Retry(f"the stream {STREAM} could not be read to its end: {error}") from error
    finally:
        with anyio.CancelScope(shield=True):
            await puller.unsubscribe()


def _decoded(message: Msg) -> Changed | None:
    try:
        return CATALOG_CHANGED.decode(message.data)
    except Undecodable as error:
        log.warning("no transaction of a catalog", seq=message.metadata.sequence.stream, error=str(error))
        return None


async def put_in_place(bus: Bus, path: Path, end: Point, now: float) -> Replayed:
    """Make the catalog of the history that ends in `end`, and put it where the file at `path` is, which goes to the
    trash. Raises CatalogApart when the history can't be replayed, CatalogUnusable when the new file can't be written,
    Retry when the bus goes away: the file is left as it is."""
    new = path.with_name(UNDER_WAY)
    try:
        await to_thread.run_sync(_remove, new)
        done = await _replayed(bus, path, new, end)
        await to_thread.run_sync(_swap, new, path, now)
    except OSError as error:
        raise CatalogUnusable(f"{new} can't be put in the place of {path} ({error}): {_TRY_AGAIN}") from error
    finally:
        with anyio.CancelScope(shield=True), suppress(OSError):  # on a full disk, what is half done is in the way
            await to_thread.run_sync(_remove, new)
    return done


async def _replayed(bus: Bus, path: Path, new: Path, end: Point) -> Replayed:
    try:
        return await replay(bus, DataDir.of(path).history, new, end)
    except (BrokenHistory, OSError) as error:
        raise CatalogApart(
            f"The catalog {path} is to be made of its history, which can't be replayed: {error}. Restore what is "
            "missing (the stream CATALOG, `history/` in the data directory) from a backup and try again with `darkroom "
            "rebuild --replace`; or begin a new history: with what a catalog's file holds, `darkroom new-history`, or "
            "with nothing, `darkroom new-history --empty`."
        ) from error


async def replay(
    bus: Bus, folder: Path, output: Path, end: Point, unsent: Iterable[Changed] = (), after: int = 0
) -> Replayed:
    """Make a catalog in `output` of the history that ends in `end`, as far as it is past the sequence `after`, and
    then of what was not published yet; `folder` has its large transactions. Raises BrokenHistory when it does not fit
    together, CatalogUnusable when `output` can't be written, OSError, Retry."""
    began, count = bus.clock.steady(), 0
    try:
        async with Database.open(output, clock=bus.clock):
            pass  # it has the tables now
        with rebuilt(output) as new:
            line = _Line(new, folder, end)
            async for facts in transactions(bus, after):
                count += await to_thread.run_sync(line.follow, facts)
            if end.history and line.at.number != end.number:
                raise BrokenHistory(f"transaction {line.at.number + 1} of {end.number} is missing")
            count += await to_thread.run_sync(line.follow, [*unsent])
            await to_thread.run_sync(line.finish)
    except sqlite3.Error as error:
        raise CatalogUnusable(f"{output} can't be written ({error}): {_TRY_AGAIN}") from error
    return Replayed(transactions=count, seconds=round(bus.clock.steady() - began, 3))


class _Line:
    """One history on its way into a new catalog, with what an older Darkroom, which names none, added after its
    end."""

    def __init__(self, new: Rebuilt, folder: Path, end: Point) -> None:
        self._new, self._folder, self._end = new, folder, end
        self.at = Position(history=end.history)
        self._has_place = bool(end.history)
        self._cursors: dict[str, int] = {}
        self._passed: deque[tuple[int, str]] = deque(maxlen=REMEMBERED)

    def follow(self, facts: list[Changed]) -> int:
        """Do what these transactions did, leaving out those of other histories. How many there were."""
        count = 0
        for fact in facts:
            is_tail = not fact.history and self._end.history and self.at.number == self._end.number
            if fact.history != self.at.history and not is_tail:
                continue
            count += 1
            if fact.history and fact.number != self.at.number + 1:
                raise BrokenHistory(f"transaction {self.at.number + 1} is missing before {fact.number}")
            try:
                self._new.replay(history.changes_of(fact, self._folder), mixed=not fact.history)
            except _UNFIT as error:
                raise BrokenHistory(f"transaction {fact.number or fact.id} can't be replayed ({error})") from error
            self._cursors = fact.cursors or self._cursors
            if is_tail:
                self._has_place = False
                continue
            self.at = msgspec.structs.replace(self.at, number=fact.number, last=fact.id)
            self._passed.append((fact.number, fact.id))
            if fact.number == 1:
                self.at = msgspec.structs.replace(self.at, lineage=fact.lineage, begun=fact.begun)
        return count

    def finish(self) -> None:
        """Make it searchable, and note where it is. After a history's end, or in one without a name, there
        is no place to note."""
        self._new.make_searchable()
        self._new.settle(self.at if self._has_place else None, dict(self._passed), self._cursors)


def _swap(new: Path, path: Path, now: float) -> None:
    set_aside(path, now)
    new.replace(path)
    sync_folder(path.parent)


def set_aside(path: Path, now: float) -> None:
    """Move a catalog's file, with its logs, to the trash; `now` is seconds since 1970. Raises OSError."""
    trash = TrashBatch(path.parent, now)
    for suffix in _LOGS:
        trash.move(f"{path.name}{suffix}")


def _remove(new: Path) -> None:
    for suffix in _LOGS:
        new.with_name(f"{new.name}{suffix}").unlink(missing_ok=True)
