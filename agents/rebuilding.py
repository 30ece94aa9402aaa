"""`darkroom rebuild`: a new catalog made of the CATALOG stream alone, compared row for row with the live one."""

import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import anyio
import msgspec
import nats.errors
from anyio import to_thread
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from agents.catalog import history
from agents.catalog.database import Database
from agents.catalog.rebuild import Differences, Rebuilt, compare, read_only, rebuilt
from bus.client import Bus
from bus.errors import DarkroomError, UserError
from bus.subjects import CATALOG_CHANGED
from schemas.models import Changed

STREAM = "CATALOG"
TRIES = 50
_FETCHED = 200


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
    began = time.monotonic()
    with ExitStack() as stack:
        snapshot, up_to, unsent = await _snapshot(bus, live, stack)
        try:
            async with Database.open(output, now=time.time):
                pass  # it has the tables now
            count = await _replayed(bus, live.parent / "history", output, up_to, unsent)
        except (OSError, ValueError, sqlite3.Error) as error:
            raise UserError(f"the history can't be replayed into {output}: {error}") from error
        tables = await to_thread.run_sync(_compared, snapshot, output) if snapshot else []
    took = round(time.monotonic() - began, 3)
    return Rebuild(path=str(output), transactions=count, seconds=took, tables=tuple(tables))


async def _snapshot(bus: Bus, live: Path, stack: ExitStack) -> tuple[sqlite3.Connection | None, int, list[Changed]]:
    """The live catalog at a moment when the stream stood still: what it holds is what the stream tells up to that
    sequence, and what was not published yet."""
    if not await to_thread.run_sync(live.exists):
        return None, await _last_seq(bus), []
    for _ in range(TRIES):
        before = await _last_seq(bus)
        with ExitStack() as attempt:
            connection = attempt.enter_context(read_only(live))
            rows = connection.execute("SELECT kind, payload, msg_id FROM outbox ORDER BY id").fetchall()
            if await _last_seq(bus) == before:
                stack.push(attempt.pop_all())
                return connection, before, await _unsent(bus, before, rows)
    raise UserError("the catalog changes all the time: try again when less is going on")


async def _unsent(bus: Bus, last: int, rows: list[tuple[str, str, str]]) -> list[Changed]:
    """Of the outbox, what is not in the stream: what comes behind its last message."""
    stored = ""
    if last:
        stored = str(((await bus.js.get_msg(STREAM, last)).headers or {}).get("Nats-Msg-Id", ""))
    ids = [msg_id for _, _, msg_id in rows]
    behind = rows[ids.index(stored) + 1 :] if stored in ids else rows
    return [msgspec.json.decode(payload, type=Changed) for kind, payload, _ in behind if kind == "catalog.changed"]


async def _last_seq(bus: Bus) -> int:
    return int((await bus.js.stream_info(STREAM)).state.last_seq)


async def _replayed(bus: Bus, folder: Path, output: Path, up_to: int, unsent: list[Changed]) -> int:
    count = 0
    with rebuilt(output) as new:
        async for fact in _facts(bus, up_to):
            await to_thread.run_sync(_replay, new, fact, folder)
            count += 1
        for fact in unsent:
            await to_thread.run_sync(_replay, new, fact, folder)
            count += 1
        await to_thread.run_sync(new.make_searchable)
    return count


def _replay(new: Rebuilt, fact: Changed, folder: Path) -> None:
    new.replay(history.changes_of(fact, folder))


async def _facts(bus: Bus, up_to: int) -> AsyncIterator[Changed]:
    """Every transaction that the stream tells, in order, up to a sequence. Raises DarkroomError when one is missing."""
    if not up_to:
        return
    subject = CATALOG_CHANGED.filter()
    wanted = sum((await bus.waiting(STREAM, subject)).values())
    config = ConsumerConfig(
        deliver_policy=DeliverPolicy.ALL, ack_policy=AckPolicy.NONE, inactive_threshold=30.0, mem_storage=True
    )
    puller = await bus.js.pull_subscribe(subject, stream=STREAM, config=config)
    read = at = 0
    try:
        while read < wanted and at < up_to:
            for message in await puller.fetch(min(_FETCHED, wanted - read), timeout=10):
                read, at = read + 1, message.metadata.sequence.stream
                if at > up_to:
                    return
                yield CATALOG_CHANGED.decode(message.data)
    except (nats.errors.Error, TimeoutError) as error:
        raise DarkroomError(f"the CATALOG stream could not be read to its end: {error}") from error
    finally:
        with anyio.CancelScope(shield=True):
            await puller.unsubscribe()


def _compared(live: sqlite3.Connection, output: Path) -> list[Differences]:
    with read_only(output) as other:
        return compare(live, other)
