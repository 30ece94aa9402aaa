"""The catalog's file: its rules, its migrations, and what a kill leaves of a transaction."""

import contextlib
import json
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import anyio
import msgspec
import pytest

from agents.catalog import database
from agents.catalog.asks.tags import put_tag
from agents.catalog.database import Database
from agents.catalog.errors import CatalogTooNew, CatalogUnusable
from agents.catalog.facts import apply
from agents.catalog.jobs import add_jobs, list_jobs
from agents.catalog.outbox import outgoing
from agents.catalog.resolve import list_models
from agents.storage.queries import migrations, sections
from schemas.catalog import PutTag
from schemas.jobs import JobView, ListJobs
from schemas.models import Changed
from tests.catalog.conftest import FixedClock, Tell, clock
from tests.catalog.facts import CHECKPOINT, hashed, removed, sha, stat
from tests.catalog.sql import execute

CODE = Path(database.__file__).parent


async def pragma(db: Database, name: str) -> object:
    [(value,)] = await execute(db, f"PRAGMA {name}")
    return value


async def test_the_writing_connection_keeps_its_promises(db: Database):
    wanted = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 5000}
    assert {name: await pragma(db, name) for name in wanted} == wanted


async def test_the_reading_connection_cannot_write(db: Database):
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        await db.committed.rows("add_message", message_id="m", applied_at=1.0)


async def test_every_query_is_valid_and_used_and_every_name_used_exists(db: Database):
    ingest = CODE.parent / "ingest"  # it has queries of its own
    files = (file for file in CODE.parent.rglob("*.py") if not file.is_relative_to(ingest))
    code = "\n".join(file.read_text() for file in files)
    used = set(re.findall(r'\.(?:rows|many)\(\s*"(\w+)"', code))
    queries = sections("agents.catalog", "queries.sql", "name")
    assert used == set(queries)
    for query in queries.values():
        await execute(db, f"EXPLAIN {query}", dict.fromkeys(re.findall(r":(\w+)", query)))


async def test_lookups_of_a_large_catalog_scan_no_table(db: Database):
    for name in ("places", "places_of_models", "entries", "models_named", "applied_messages"):
        query = sections("agents.catalog", "queries.sql", "name")[name]
        values = dict.fromkeys(re.findall(r":(\w+)", query), "[]")
        plan = await execute(db, f"EXPLAIN QUERY PLAN {query}", values)
        scans = [row[3] for row in plan if re.match(r"SCAN (?:models|paths|inbox|outbox)\b", row[3])]
        assert not scans, (name, scans)


@pytest.mark.parametrize(
    ("statement", "rule"),
    [
        ("UPDATE models SET sha256 = upper(sha256)", "CHECK"),
        ("UPDATE models SET sha256 = substr(sha256, 2)", "CHECK"),
        ("UPDATE models SET name = ''", "CHECK"),
        ("UPDATE models SET size = -1", "CHECK"),
        ("UPDATE models SET identity = '{'", "CHECK|malformed"),
        ("UPDATE models SET identity = '{}'", "NOT NULL"),
        ("UPDATE models SET size = 'large'", "cannot store TEXT"),
        ("DELETE FROM models", "FOREIGN KEY"),
        ("UPDATE paths SET sha256 = '0'", "FOREIGN KEY"),
        ("UPDATE paths SET root = '../etc'", "CHECK"),
        ("UPDATE paths SET rel = '/etc/passwd'", "CHECK"),
        ("UPDATE paths SET rel = 'a/../../b'", "CHECK"),
        ("UPDATE paths SET rel = '..'", "CHECK"),
        ("UPDATE paths SET rel = 'a//b'", "CHECK"),
        ("UPDATE paths SET rel = 'a' || char(0)", "CHECK"),
        ("UPDATE paths SET present = 2", "CHECK"),
        ("INSERT INTO paths SELECT * FROM paths", "UNIQUE"),
        ("INSERT INTO inbox VALUES ('', 1.0)", "CHECK"),
        ("INSERT INTO outbox (kind, tokens, payload, msg_id) VALUES ('k', '[]', '{}', 'm')", "CHECK"),
        ("INSERT INTO outbox (kind, tokens, payload, msg_id) VALUES ('k', '{}', '{', 'm')", "CHECK"),
    ],
)
async def test_the_schema_refuses_what_no_row_may_be(db: Database, tell: Tell, statement: str, rule: str):
    await tell(hashed("a.safetensors", "dream"))
    with pytest.raises(sqlite3.Error, match=rule):
        await execute(db, statement)


async def test_a_path_out_of_its_root_is_refused_with_everything_that_came_with_it(db: Database):
    facts = [("m1", hashed("a.safetensors", "dream")), ("m2", hashed("../../etc/x.safetensors", "evil"))]
    with pytest.raises(sqlite3.IntegrityError):
        await apply(db, facts, now=1.0)
    assert await list_models(db, missing=True) == ()
    assert await apply(db, facts[:1], now=1.0) == 1


async def test_opening_again_migrates_nothing_and_keeps_everything(tmp_path: Path):
    path = tmp_path / "catalog.db"
    for at in (1.0, 2.0):
        async with Database.open(path, clock=FixedClock(at)) as db:
            await apply(db, [("m1", hashed("a.safetensors", "dream"))], now=1.0)
            assert len(await list_models(db)) == 1
    with contextlib.closing(sqlite3.connect(path)) as plain:
        assert plain.execute("SELECT version, applied_at FROM migrations").fetchall() == [
            (n, 1.0) for n in (1, 2, 3, 4)
        ]


@pytest.mark.parametrize("version", [1, 2, 3])
async def test_a_catalog_of_an_older_version_keeps_its_rows_and_gets_the_new_tables(tmp_path: Path, version: int):
    path, scripts = tmp_path / "catalog.db", sections("agents.catalog", "schema.sql", "version")
    with contextlib.closing(sqlite3.connect(path)) as old, old:
        for number in range(1, version + 1):
            old.executescript(scripts[str(number)])
            old.execute("INSERT INTO migrations VALUES (?, 1.0)", [number])
        values = [sha("dream"), msgspec.json.encode(CHECKPOINT).decode()]
        old.execute(
            "INSERT INTO models (sha256, name, folded, size, identity, created_at) VALUES (?, 'a', 'a', 1, ?, 2.0)",
            values,
        )
    async with Database.open(path, clock=clock) as db:
        assert [model.sha256 for model in await list_models(db, missing=True)] == [sha("dream")]
        async with db.atomic() as sql:
            await add_jobs(sql, [(1.0, JobView(id="0" * 32, status="failed"))])
        assert [job.id for job in (await list_jobs(db, ListJobs(), {})).jobs] == ["0" * 32]
        payload = msgspec.json.decode((await outgoing(db))[0].payload, type=Changed)
        assert [change.table for change in payload.changes] == ["models"], "its history begins with what it holds"


async def test_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "catalog.db"
    async with Database.open(path, clock=clock):
        pass
    broken = "CREATE TABLE fresh (id INTEGER PRIMARY KEY) STRICT; CREATE TABLE models (again TEXT) STRICT;"
    known = migrations("agents.catalog")
    monkeypatch.setattr(database, "migrations", lambda package: {**known, 99: broken})
    with pytest.raises(CatalogUnusable, match="already exists"):
        async with Database.open(path, clock=clock):
            pass
    with contextlib.closing(sqlite3.connect(path)) as plain:
        assert plain.execute("SELECT max(version) FROM migrations").fetchone() == (4,)
        assert plain.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'fresh'").fetchone() == (0,)


async def test_a_catalog_of_a_newer_darkroom_is_refused(tmp_path: Path):
    path = tmp_path / "catalog.db"
    async with Database.open(path, clock=clock):
        pass
    with contextlib.closing(sqlite3.connect(path)) as plain, plain:
        plain.execute("INSERT INTO migrations VALUES (99, 1.0)")
    with pytest.raises(CatalogTooNew, match=r"version 99.*update it"):
        async with Database.open(path, clock=clock):
            pass


async def test_a_file_that_is_no_catalog_is_refused_and_left_alone(tmp_path: Path):
    text, foreign = tmp_path / "text.db", tmp_path / "foreign.db"
    text.write_text("not a database at all, and longer than a header\n" * 20)
    with contextlib.closing(sqlite3.connect(foreign)) as plain, plain:
        plain.execute("CREATE TABLE models (id INTEGER)")
    for path, words in (
        (text, "not a database"),
        (foreign, "no catalog"),
        (tmp_path / "no" / "where.db", "can't be used"),
    ):
        before = path.read_bytes() if path.exists() else None
        with pytest.raises(CatalogUnusable, match=words):
            async with Database.open(path, clock=clock):
                pass
        assert (path.read_bytes() if path.exists() else None) == before


async def test_a_block_that_raises_or_is_cancelled_leaves_nothing(db: Database):
    with pytest.raises(RuntimeError):
        async with db.atomic() as sql:
            await sql.rows("add_message", message_id="raised", applied_at=1.0)
            raise RuntimeError
    with anyio.CancelScope() as scope:
        async with db.atomic() as sql:
            await sql.rows("add_message", message_id="cancelled", applied_at=1.0)
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    async with db.atomic() as sql:
        await sql.rows("add_message", message_id="whole", applied_at=1.0)
    ids = json.dumps(["raised", "cancelled", "whole"])
    assert await db.committed.rows("applied_messages", ids=ids) == [("whole",)]


async def test_a_transaction_within_another_is_part_of_it_and_is_undone_by_itself(db: Database):
    published: list[str] = []
    db._changed = lambda: published.append("once")
    async with db.atomic() as outer:
        await put_tag(db, PutTag(name="outer"))
        with pytest.raises(RuntimeError):
            async with db.atomic() as inner:
                await inner.rows("add_message", message_id="inner", applied_at=1.0)
                raise RuntimeError
        await outer.rows("add_message", message_id="outer", applied_at=1.0)
        assert await db.committed.rows("applied_messages", ids='["outer"]') == [] and published == []
    assert await db.committed.rows("applied_messages", ids='["inner", "outer"]') == [("outer",)]
    assert published == ["once"], "one transaction is one fact"
    with pytest.raises(RuntimeError):
        async with db.atomic():
            await db.put_meta("colour", "red")
            raise RuntimeError
    assert await db.meta("colour") is None


async def test_what_the_catalog_remembers_of_itself_is_kept(db: Database):
    assert await db.meta("colour") is None
    await db.put_meta("colour", "red")
    await db.put_meta("colour", "blue")
    assert await db.meta("colour") == "blue"


async def test_readers_see_nothing_of_a_transaction_before_its_end(db: Database):
    async with db.atomic() as sql:
        await sql.rows("add_message", message_id="m", applied_at=1.0)
        assert await db.committed.rows("applied_messages", ids='["m"]') == []
    assert await db.committed.rows("applied_messages", ids='["m"]') == [("m",)]


async def test_transactions_of_many_tasks_queue_up(db: Database):
    async with anyio.create_task_group() as tasks:
        for n in range(50):
            tasks.start_soon(lambda n=n: apply(db, [(f"m{n}", hashed(f"{n}.safetensors", f"{n}"))], now=1.0))
    assert len(await list_models(db)) == 50


HALF_WAY = """
import anyio, sys
from pathlib import Path
from agents.catalog.asks.tags import put_tag
from agents.catalog.database import Database
from agents.catalog.facts import apply
from bus.clock import Clock
from tests.catalog.facts import hashed

async def main():
    async with Database.open(Path(sys.argv[1]), clock=Clock()) as db:
        await apply(db, [("m1", hashed("a.safetensors", "whole"))], now=1.0)
        async with db.atomic() as sql:
            await sql.many("add_message", [{"message_id": f"half {n}", "applied_at": 1.0} for n in range(50_000)])
            print("half way", flush=True)
            await anyio.sleep_forever()

anyio.run(main)
"""

WITHOUT_END = """
import anyio, itertools, sys
from pathlib import Path
from agents.catalog.asks.tags import put_tag
from agents.catalog.database import Database
from agents.catalog.facts import apply
from bus.clock import Clock
from tests.catalog.facts import hashed

async def main():
    async with Database.open(Path(sys.argv[1]), clock=Clock()) as db:
        for n in itertools.count(int(sys.argv[2])):
            await apply(db, [(f"m{n}.{k}", hashed(f"{n}-{k}.safetensors", f"{n} {k}")) for k in range(3)], now=1.0)
            print(n, flush=True)

anyio.run(main)
"""


@contextlib.contextmanager
def child(program: str, *arguments: object) -> Iterator[tuple["subprocess.Popen[str]", IO[str]]]:
    """A real process that runs a program and is killed in the end, if it was not before."""
    command = [sys.executable, "-W", "error", "-c", program, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout
        finally:
            process.send_signal(signal.SIGKILL)


async def test_a_kill_in_mid_transaction_leaves_nothing_of_it(tmp_path: Path):
    path = tmp_path / "catalog.db"
    with child(HALF_WAY, path) as (_, stdout):
        assert stdout.readline() == "half way\n"
    async with Database.open(path, clock=clock) as db:
        assert [model.name for model in await list_models(db)] == ["a"]
        assert await db.committed.rows("applied_messages", ids='["m1", "half 0"]') == [("m1",)]


async def test_kills_at_any_moment_keep_what_was_committed_whole(tmp_path: Path):
    path = tmp_path / "catalog.db"
    begin = 0
    for lines in (1, 3, 17, 40):
        with child(WITHOUT_END, path, begin) as (process, stdout):
            for _ in range(lines):
                last = int(stdout.readline())
            process.send_signal(signal.SIGKILL)
            last = max([last, *(int(line) for line in stdout if line.endswith("\n"))])
        with contextlib.closing(sqlite3.connect(path)) as plain:
            assert plain.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert plain.execute("PRAGMA foreign_key_check").fetchall() == []
            counts = [
                plain.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
                for table in ("inbox", "paths", "outbox WHERE kind = 'model.ready'")
            ]
        assert len(set(counts)) == 1 and counts[0] in (3 * (last + 1), 3 * (last + 2)), (counts, last)
        begin = counts[0] // 3


async def test_a_model_once_known_is_never_deleted(db: Database, tell: Tell):
    await tell(hashed("a.safetensors", "dream"), removed("a.safetensors", stat("dream")))
    assert [model.sha256 for model in await list_models(db, missing=True)] == [sha("dream")]
