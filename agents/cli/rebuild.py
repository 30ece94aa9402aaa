"""`darkroom rebuild` and `new-history`: a catalog made of its history alone, compared with the live one or put in its
place; a history begun anew."""

import sqlite3
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import anyio
import msgspec
import typer
from anyio import to_thread

from agents.catalog.database import Database
from agents.catalog.errors import CatalogUnusable
from agents.catalog.position import HistoryStream, Point, judge, standing_of
from agents.catalog.rebuild import Differences, compare, read_only
from agents.cli import console
from agents.cli.service import stored_bus
from agents.migrator.relay import CatalogOutbox
from agents.migrator.replay import BrokenHistory, put_in_place, replay, set_aside, stream_of
from agents.storage.database import owned
from agents.storage.layout import DataDir
from bus.client import Bus
from bus.errors import UserError
from bus.relay import relay
from bus.wakeup import Wakeup
from schemas.models import Changed
from schemas.settings import Settings

TRIES = 50
NOTHING = Point(id="")
"""The end of a history that has none."""


class Rebuild(msgspec.Struct, frozen=True, kw_only=True):
    """A catalog made anew: where it is, how many transactions made it, and how it differs from the live one (no tables
    when there is none)."""

    path: str
    transactions: int
    seconds: float
    tables: tuple[Differences, ...] = ()

    @property
    def same(self) -> bool:
        """Is it the live one, row for row?"""
        return all(table.same for table in self.tables)


async def rebuild_into(bus: Bus, live: Path, output: Path) -> Rebuild:
    """Make the catalog anew in `output`, and compare it with the one at `live` if that is there. Raises UserError."""
    if await to_thread.run_sync(output.exists):
        raise UserError(f"{output} is there already: move it away, or name another file with --output")
    with ExitStack() as stack:
        snapshot, end, unsent = await _snapshot(bus, live, stack)
        try:
            done = await replay(bus, DataDir.of(live).history, output, end, unsent)
        except (BrokenHistory, OSError) as error:
            raise UserError(f"the history can't be replayed into {output}: {error}") from error
        tables = await to_thread.run_sync(_compared, snapshot, output) if snapshot else []
    return Rebuild(path=str(output), transactions=done.transactions, seconds=done.seconds, tables=tuple(tables))


async def _snapshot(bus: Bus, live: Path, stack: ExitStack) -> tuple[sqlite3.Connection | None, Point, list[Changed]]:
    """The live catalog at a moment when the stream stood still: what it holds is what the stream has up to its end,
    and what was not published yet."""
    if not await to_thread.run_sync(live.exists):
        return None, (await stream_of(bus)).end or NOTHING, []
    for _ in range(TRIES):
        before = await stream_of(bus)
        with ExitStack() as attempt:
            connection = attempt.enter_context(read_only(live))
            query = "SELECT payload FROM outbox WHERE kind = 'catalog.changed' ORDER BY id"
            unsent = [msgspec.json.decode(payload, type=Changed) for (payload,) in connection.execute(query).fetchall()]
            if await stream_of(bus) == before:
                stack.push(attempt.pop_all())
                return connection, *_line(before.end, unsent)
    raise UserError("the catalog changes all the time: try again when less is going on")


def _line(end: Point | None, unsent: list[Changed]) -> tuple[Point, list[Changed]]:
    """The history to replay, and what of the outbox comes after the stream's end: some of it may be stored already. A
    history that was begun and not published yet is in the outbox alone."""
    if unsent and (not end or end.history != unsent[-1].history):
        return msgspec.structs.replace(NOTHING, history=unsent[-1].history), unsent
    ids = [fact.id for fact in unsent]
    stored = end.id if end else ""
    return end or NOTHING, unsent[ids.index(stored) + 1 :] if stored in ids else unsent


def _compared(live: sqlite3.Connection, output: Path) -> list[Differences]:
    with read_only(output) as other:
        return compare(live, other)


async def rebuild(
    settings: Settings,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The new file (default: DATA/catalog.rebuilt.db).")
    ] = None,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Put it in the live one's place, which goes to the trash; nothing may run."),
    ] = False,
    as_json: bool = False,
) -> int:
    """Make the catalog anew of its history and compare it with the live one; the status is 1 when they differ. With
    `replace`, put it in the live one's place. Raises UserError."""
    if replace and output:
        raise UserError("--replace puts the new catalog in the live one's place: it takes no --output")
    live = DataDir(Path(settings.data_dir)).catalog
    if replace:
        return await _replace(settings, live, as_json)
    target = output or live.with_name("catalog.rebuilt.db")
    async with stored_bus(settings) as bus:
        try:
            found = await rebuild_into(bus, live, target)
        except sqlite3.Error as error:
            unreadable = f"{live} can't be read as a catalog ({error})"
            raise UserError(
                f"{unreadable}: `darkroom rebuild --replace` puts one of the history in its place"
            ) from error
    if as_json:
        console.json(found)
    else:
        _print(found, live)
    return 0 if found.same else 1


def _print(found: Rebuild, live: Path) -> None:
    for table in found.tables:
        if not table.same:
            console.line(
                f"{table.table}: {console.counted(table.missing, 'row')} missing in the new one, {table.extra:,} only "
                f"there, {table.different:,} different: {', '.join(table.keys)}"
            )
    rows = sum(table.live for table in found.tables)
    verdict = (
        f"{console.counted(rows, 'row')} compared, {'all the same' if found.same else 'not the same'}"
        if found.tables
        else f"there is no {live} to compare it with: stop Darkroom and rename it to that to use it"
    )
    made = f"made of {console.counted(found.transactions, 'transaction')} in {found.seconds:.1f} s"
    console.line(f"{found.path}: {made}; {verdict}")


async def _replace(settings: Settings, live: Path, as_json: bool) -> int:
    async with stored_bus(settings) as bus:
        with owned(live):
            stream = await stream_of(bus)
            if stream.end is None:
                raise UserError("the bus has no history to make a catalog of: restore a backup of its files")
            await to_thread.run_sync(_refuse_to_lose, live, stream)
            done = await put_in_place(bus, live, stream.end, bus.clock.now())
    if as_json:
        console.json({"path": str(live), **msgspec.to_builtins(done)})
    else:
        made = f"made of {done.transactions:,} transactions in {done.seconds:.1f} s"
        console.line(f"{live}: {made}; the file that was there is in the trash")
    return 0


def _refuse_to_lose(live: Path, stream: HistoryStream) -> None:
    """Raises UserError where the live catalog only has to publish its last changes to be equal to its history."""
    try:
        file = standing_of(live)
    except (sqlite3.DatabaseError, CatalogUnusable):
        return  # it is replaced because it can't be used
    if file and file.unsent and file.unsent[-1].id != stream.last and judge(file, stream).verdict == "current":
        raise UserError(
            f"{live} has changes that were not published yet, and its history does not have them: start Darkroom once, "
            "which publishes them, or move the file away"
        )


async def _until_published(db: Database) -> None:
    while True:
        if not (await db.standing()).unsent:
            return
        await anyio.sleep(0.05)


async def new_history(
    settings: Settings,
    empty: Annotated[
        bool, typer.Option("--empty", help="With an empty catalog; the one there goes to the trash.")
    ] = False,
) -> None:
    """Begin a new history with what the catalog holds, or with nothing, and publish its beginning. Raises UserError."""
    live = DataDir(Path(settings.data_dir)).catalog
    async with stored_bus(settings) as bus:
        with owned(live):
            if empty:
                await to_thread.run_sync(set_aside, live, bus.clock.now())
            elif not await to_thread.run_sync(live.is_file):
                raise UserError(f"{live} is not there: restore it, or begin with nothing (--empty)")
            after = (await stream_of(bus)).last
            opened = Database.open(live, clock=bus.clock, begin=True, after=after)
            async with opened as db, anyio.create_task_group() as tasks:
                tasks.start_soon(relay, bus, CatalogOutbox(bus, db), Wakeup())
                await _until_published(db)
                tasks.cancel_scope.cancel()
    console.line(f"{live}: a new history begins{'' if empty else ' with all that it holds'}")
