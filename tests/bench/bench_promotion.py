"""10,000 pending records whose files are dropped in a burst: each is promoted, once, while the catalog stays at hand.

Watcher and hasher are a process of their own (`darkroom run`), and so is the writer of the files; the migrator runs in
this process, so that its event loop can be watched. Budgets: its lag p99 under 10 ms, and asks (which model is this?)
answered within 50 ms p99 while it works.
"""

import asyncio
import functools
import json
import sys
import time
from pathlib import Path

import anyio

from agents.catalog.asks.pending import list_pending
from agents.catalog.database import Database
from agents.migrator import agent as migrator
from bus.client import Bus, connect
from bus.clock import Clock
from bus.server import local_server
from bus.subjects import ASK_RESOLVE, MODEL_PROMOTED
from schemas.catalog import ResolveModel, ResolveReply
from schemas.settings import BusSettings
from tests.bench.bench_arrival import agents
from tests.bench.figures import Figure, loop_lag, p50, p99
from tests.catalog.sql import execute_many
from tests.conftest import running

RECORDS = 10_000
STORE = 1024**3
PATIENCE = 300.0
_ASK_EVERY = 0.02

WRITER = """
import sys
from pathlib import Path
from tests.ingest.making import model
folder, count = Path(sys.argv[1]), int(sys.argv[2])
folder.mkdir()
for n in range(count):
    (folder / f"{n}.safetensors").write_bytes(model(metadata={"n": str(n)}))
"""


async def figures(folder: Path) -> list[Figure]:
    """Records first, then the burst."""
    data = folder / "data"
    (data / "models").mkdir(parents=True)
    await pending(data / "catalog.db", RECORDS)
    settings = BusSettings(store_bytes=STORE)
    with local_server(folder / "nats", port=0, store_bytes=STORE) as server:
        async with connect(server.url, settings, name="bench") as bus:
            cataloguing = functools.partial(migrator.run, bus, data / "catalog.db", {"models": str(data / "models")})
            async with running(cataloguing):
                with agents(server.url, data, "watcher", "hasher"):
                    return await burst(bus, data)


async def pending(catalog: Path, count: int) -> None:
    """So many records, as an import leaves them, each of a file that will come."""
    names = [f"{n}.safetensors" for n in range(count)]
    async with Database.open(catalog, clock=Clock()) as db, db.atomic():
        await execute_many(
            db,
            "INSERT INTO tags (id, name, color, created_at) VALUES (?, ?, '', 1.0)",
            [(n, f"t{n}") for n in range(1, 9)],
        )
        await execute_many(
            db,
            "INSERT INTO pending_import"
            " (id, legacy_id, path, root, rel, folded, name, size, details, origin, state, sha256, created_at)"
            " VALUES (?, ?, ?, 'models', ?, ?, ?, NULL, ?, 'import', 'waiting', NULL, 1.0)",
            [
                (n, n, f"/old/{name}", f"in/{name}", name, name, json.dumps({"type": "lora"}))
                for n, name in enumerate(names, 1)
            ],
        )
        await execute_many(
            db, "INSERT INTO pending_model_tags VALUES (?, ?)", [(n + 1, n % 8 + 1) for n in range(count)]
        )


async def burst(bus: Bus, data: Path) -> list[Figure]:
    """Drop every file, and watch the loop and the answers until every record is promoted."""
    began = time.perf_counter()
    done = asyncio.ensure_future(all_promoted(bus))
    answering = asyncio.ensure_future(answers(bus, done))
    lagging = asyncio.ensure_future(loop_lag(done))
    command = [sys.executable, "-c", WRITER, str(data / "models" / "in"), str(RECORDS)]
    async with await anyio.open_process(command, stdout=None, stderr=None):
        with anyio.fail_after(PATIENCE):
            promoted = await done
    took = time.perf_counter() - began
    late, waits = await lagging, await answering
    async with Database.open(data / "catalog.db", clock=Clock()) as db:
        left = len(await list_pending(db, after=0, limit=RECORDS))
    assert (promoted, left) == (RECORDS, 0), f"{promoted} promoted, {left} left"
    aside = f"{RECORDS:,} records promoted, each once, in {took:.1f} s from the first byte: {RECORDS / took:,.0f}/s"
    ms = 1e3
    return [
        Figure(what="promotion: loop lag p99", value=p99(late) * ms, unit="ms", at_most=10.0, aside=aside),
        Figure(
            what="promotion: an ask answered, p99",
            value=p99(waits) * ms,
            unit="ms",
            at_most=50.0,
            aside=f"p50 {p50(waits) * ms:.1f} ms, {len(waits)} asks",
        ),
    ]


async def all_promoted(bus: Bus) -> int:
    """How many facts say that a record was promoted, once nothing more is to come; each model's is its own."""
    while True:
        told = await bus.waiting("CATALOG", MODEL_PROMOTED.filter())
        if len(told) >= RECORDS:
            return sum(told.values())
        await asyncio.sleep(0.5)


async def answers(bus: Bus, until: "asyncio.Future[int]") -> list[float]:
    """How long an ask takes, again and again."""
    waits = []
    while not until.done():
        began = time.perf_counter()
        await bus.ask(ASK_RESOLVE, ResolveModel(name="0"), ResolveReply, timeout=10)
        waits.append(time.perf_counter() - began)
        await asyncio.sleep(_ASK_EVERY)
    return waits
