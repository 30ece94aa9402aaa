"""`darkroom rebuild`: a new catalog made of its history alone, compared row for row with the live one."""

import sqlite3
from contextlib import ExitStack
from pathlib import Path

import msgspec
from anyio import to_thread

from agents.catalog.position import Point
from agents.catalog.rebuild import Differences, compare, read_only
from agents.migrator.replay import BrokenHistory, replay, stream_of
from bus.client import Bus
from bus.errors import UserError
from schemas.models import Changed

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


async def rebuild(bus: Bus, live: Path, output: Path) -> Rebuild:
    """Make the catalog anew in `output`, and compare it with the one at `live` if that is there. Raises UserError."""
    if await to_thread.run_sync(output.exists):
        raise UserError(f"{output} is there already: move it away, or name another file with --output")
    with ExitStack() as stack:
        snapshot, end, unsent = await _snapshot(bus, live, stack)
        try:
            done = await replay(bus, live.parent / "history", output, end, unsent)
        except (BrokenHistory, OSError) as error:
            raise UserError(f"the history can't be replayed into {output}: {error}") from error
        tables = await to_thread.run_sync(_compared, snapshot, output) if snapshot else []
    return Rebuild(path=str(output), transactions=done.transactions, seconds=done.seconds, tables=tuple(tables))


async def _snapshot(bus: Bus, live: Path, stack: ExitStack) -> tuple[sqlite3.Connection | None, Point, list[Changed]]:
    """The live catalog at a moment when the stream stood still: what it holds is what the stream tells up to its end,
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
