"""A large legacy catalog taken over: seconds to the last commit, how late the loop wakes and how soon the catalog
answers meanwhile; and, beside it, how long the bus takes for what the import has to say.

Run: python -m tests.bench import. Budgets: 100,000 models, 20,000 tags and 300,000 links in 15 s, loop lag p99 10 ms,
asks p99 50 ms, all on two cores that do nothing else. A time is no ratio, so beside it stands what tells of the
machine: the seconds of processor that it took, the same rows in a bare table, the lag of a loop that does nothing.
"""

import asyncio
import contextlib
import json
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import anyio

from agents.catalog.database import Database
from agents.catalog.facts import apply
from agents.catalog.legacy.importer import import_legacy
from agents.catalog.outbox import outgoing
from agents.catalog.resolve import list_models, resolve
from agents.migrator.relay import CatalogOutbox
from agents.migrator.replay import prepare, stream_of
from bus.client import connect
from bus.clock import Clock
from bus.relay import relay
from bus.server import local_server
from bus.wakeup import Wakeup
from schemas.imports import Import, ImportReport
from tests.bench.figures import Figure, loop_lag, milliseconds, p99, seconds
from tests.catalog.facts import hashed
from tests.catalog.legacy_making import large
from tests.conftest import QUICK

MODELS, TAGS, LINKS = 100_000, 20_000, 300_000


async def figures(folder: Path) -> list[Figure]:
    """One import, with asks all the while; then the outbox on its way to a real server."""
    source = large(folder / "legacy.db", models=MODELS, tags=TAGS, links=LINKS)
    plain = seconds(lambda: bare(source, folder / "bare.db"))
    data = folder / "data"
    data.mkdir()
    wakeup = Wakeup()
    idle = await loop_lag(asyncio.ensure_future(asyncio.sleep(2)))
    async with Database.open(data / "catalog.db", clock=Clock(), changed=wakeup.set) as db:
        await apply(db, [("m", hashed("dream.safetensors", "dream"))], now=time.time())
        cpu = time.process_time()
        took, again, late, asks = await imported(db, source, data)
        cpu = time.process_time() - cpu
        drained, messages = await drain(db, wakeup, folder)
    made, transactions = await made_again(data / "catalog.db", folder)
    return [
        Figure(
            what=f"{MODELS:,} models, {TAGS:,} tags, {LINKS:,} links to the last commit",
            value=took,
            unit="s",
            at_most=15.0,
            aside=f"plain {plain:.1f} s; once more {again:.1f} s; both {cpu:.1f} s of processor",
        ),
        Figure(
            what="loop lag p99 meanwhile",
            value=p99(late) * 1e3,
            unit="ms",
            at_most=10.0,
            aside=f"{milliseconds(late)}, idle {milliseconds(idle)}",
        ),
        Figure(what="asks p99 meanwhile", value=p99(asks) * 1e3, unit="ms", at_most=50.0, aside=milliseconds(asks)),
        Figure(what=f"outbox drained, {messages} messages", value=drained, unit="s"),
        Figure(what=f"lost, and made again of its history, {transactions} transactions", value=made, unit="s"),
    ]


async def imported(db: Database, source: Path, data: Path) -> tuple[float, float, list[float], list[float]]:
    """Seconds of an import and of a second one; lags and answers, in seconds, during the first."""
    asks: list[float] = []

    async def take(id: str) -> ImportReport:
        return await import_legacy(db, Import(id=id, database=str(source)), data, {"lora": "/old/lora"})

    async def ask() -> None:
        while True:
            began = time.perf_counter()
            await resolve(db, "dream.safetensors")
            await list_models(db, missing=True, limit=20)
            asks.append(time.perf_counter() - began)
            await asyncio.sleep(0.01)

    began = time.perf_counter()
    asking, importing = asyncio.ensure_future(ask()), asyncio.ensure_future(take("1" * 32))
    late = await loop_lag(importing)
    took = time.perf_counter() - began
    asking.cancel()
    report = importing.result()
    inserted = sum(tally.inserted for tally in report.tables.values())
    if inserted != sum(tally.seen for tally in report.tables.values()) or report.reasons:
        raise RuntimeError(f"not everything was imported: {report}")
    began = time.perf_counter()
    report = await take("2" * 32)
    if any(tally.inserted for tally in report.tables.values()):
        raise RuntimeError(f"imported twice: {report}")
    return took, time.perf_counter() - began, late, asks


async def drain(db: Database, wakeup: Wakeup, folder: Path) -> tuple[float, int]:
    """Seconds until a server holds all that the catalog has to say, and how many messages that is."""
    messages = len(await outgoing(db, limit=1_000_000))
    with local_server(folder / "nats", port=0, store_bytes=1024**3) as server:
        async with connect(server.url, QUICK, name="bench") as bus, anyio.create_task_group() as tasks:
            began = time.perf_counter()
            tasks.start_soon(relay, bus, CatalogOutbox(bus, db), wakeup)
            while await outgoing(db, limit=1):  # noqa: ASYNC110 (nothing tells when an outbox is empty)
                await asyncio.sleep(0.005)
            took = time.perf_counter() - began
            tasks.cancel_scope.cancel()
    return took, messages


async def made_again(path: Path, folder: Path) -> tuple[float, int]:
    """Seconds that a start takes longer when the catalog's file was lost, and of how many transactions it is made."""
    before = counted(path)
    for file in path.parent.glob("catalog.db*"):
        file.unlink()
    with local_server(folder / "nats", port=0, store_bytes=1024**3) as server:
        async with connect(server.url, QUICK, name="bench") as bus:
            began = time.perf_counter()
            await prepare(bus, path, time.time())
            took = time.perf_counter() - began
            end = (await stream_of(bus)).end
    if counted(path) != before:
        raise RuntimeError(f"{counted(path)} rows are back, and there were {before}")
    return took, end.number if end else 0


def counted(path: Path) -> int:
    """Models and pending records."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        [(count,)] = db.execute("SELECT (SELECT count(*) FROM models) + (SELECT count(*) FROM pending_import)")
        return int(count)


def bare(source: Path, path: Path) -> None:
    """The plain way: every row, as JSON, into one table, a transaction of as many rows as an import's batches have."""
    with contextlib.closing(sqlite3.connect(path)) as db, contextlib.closing(sqlite3.connect(source)) as legacy:
        db.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE t (key PRIMARY KEY, row)")
        insert: Callable[..., object] = db.executemany
        for table in ("tags", "models", "model_tags"):
            cursor = legacy.execute(f"SELECT * FROM {table}")
            n = 0
            while rows := cursor.fetchmany(4000):
                insert(
                    "INSERT INTO t VALUES (?, ?)", ((f"{table} {n + k}", json.dumps(row)) for k, row in enumerate(rows))
                )
                db.commit()
                n += len(rows)
