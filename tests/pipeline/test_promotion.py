"""Promotion with real processes, killed at every commit and every file they write: it ends as if nothing had been."""

import hashlib
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest

from agents.catalog.database import Database
from agents.catalog.history import TABLES
from agents.storage.atomic import sweep
from bus.client import Bus, connect
from bus.server import LocalServer, local_server
from bus.subjects import FILE_HASHED
from tests.catalog.conftest import FixedClock
from tests.catalog.facts import hashed
from tests.catalog.pending import add_pending
from tests.conftest import QUICK
from tests.effort import sample
from tests.migrator.test_pictures import picture

MOMENTS = {"before a commit", "after a commit", "before a file", "after a file"}
RECORDS = 3
PICTURES = 2

# Migrator and encoder in one process, which kills itself at the n-th of these moments: before and after each commit,
# before and after each file gets its name. It prints a line for each moment that it lives to see.
PROGRAM = """
import functools, itertools, os, signal, sys
from pathlib import Path
import anyio
from agents import encoder
from agents.migrator import agent as migrator
from agents.storage import atomic
from agents.storage.database import Sql
from bus.client import connect
from schemas.settings import BusSettings, EncoderSettings
from tests.catalog.conftest import FixedClock

url, data, last = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
moments = itertools.count(1)

def moment(what):
    if next(moments) == last:
        os.kill(os.getpid(), signal.SIGKILL)
    print(what, flush=True)

execute, link = Sql.execute, os.link

def noted(self, sql, *args):
    if sql != "COMMIT":
        return execute(self, sql, *args)
    moment("before a commit")
    rows = execute(self, sql, *args)
    moment("after a commit")
    return rows

def linked(source, target, *args, **kwargs):
    moment("before a file")
    link(source, target, *args, **kwargs)
    moment("after a file")

Sql.execute = noted
atomic.os.link = linked

async def main():
    settings = BusSettings(ack_wait=2.0, heartbeat=0.5, retry_delay=0.05, store_bytes=2**28)
    clock = FixedClock(1763712345.25)
    async with connect(url, settings, name="killed", clock=clock) as bus, anyio.create_task_group() as tasks:
        await tasks.start(functools.partial(migrator.run, bus, data / "catalog.db"))
        await tasks.start(functools.partial(encoder.run, bus, data, EncoderSettings(parallel=1)))
        print("ready", flush=True)

anyio.run(main)
"""


def content(n: int) -> str:
    return f"content {n}"


async def made_ready(bus: Bus, data: Path) -> None:
    """Records with pictures in the catalog, and the facts that their files are hashed, waiting in the stream."""
    data.mkdir()
    async with Database.open(data / "catalog.db", clock=FixedClock(1.0)) as db:
        for n in range(RECORDS):
            images = tuple(picture(f"#{n}{m}{m}", (40 + 10 * m, 30)) for m in range(PICTURES))
            await add_pending(
                db, n + 1, f"/old/{n}", rel=f"{n}.safetensors", tags=("a", f"t{n}"), images=images, data=data
            )
    for n in range(RECORDS):
        fact = hashed(f"{n}.safetensors", content(n))
        await bus.publish(FILE_HASHED, fact, key=fact.key)


def run(server: LocalServer, data: Path, kill_at: int) -> list[str]:
    """Run until it has killed itself, or, should that moment never come, until every record is promoted and every
    picture is there; everything that it lived to say."""
    command = [sys.executable, "-W", "error", "-c", PROGRAM, server.url, str(data), str(kill_at)]
    said: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                said.append(line.strip())
                if "ready" in said and is_done(data):
                    break
        finally:
            process.kill()
    assert process.returncode == -9, said
    return said


def is_done(data: Path) -> bool:
    with closing(sqlite3.connect(data / "catalog.db")) as db:
        [(left,)] = db.execute(
            "SELECT (SELECT count(*) FROM pending_import) + (SELECT count(*) FROM images WHERE state <> 'ready')"
            " + (SELECT 6 - count(*) FROM images) + (SELECT count(*) FROM outbox)"
        )
    return bool(left == 0)


def content_hash(data: Path) -> str:
    """All rows of content, and the names and bytes of every picture."""
    digest = hashlib.sha256()
    with closing(sqlite3.connect(data / "catalog.db")) as db:
        for table in TABLES:
            rows: list[Any] = sorted(map(repr, db.execute(f"SELECT * FROM {table}")))
            digest.update(repr((table, rows)).encode())
    sweep(data / "images", before=time.time() + 1)  # what the encoder does with half-written files, an hour later
    for file in sorted((data / "images").rglob("*")):
        if file.is_file():
            digest.update(file.relative_to(data).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()


class World:
    """A bus and a data directory of its own for every run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0

    def run(self, kill_at: int) -> tuple[str, list[str]]:
        """Killed at a moment (0: never), then run to the end. The content's hash, and what was said before the kill."""
        self.count += 1
        folder = self.folder / str(self.count)
        with local_server(folder / "nats", port=0, store_bytes=2**28) as server:
            anyio.run(self._prepare, server, folder / "data")
            said = run(server, folder / "data", kill_at)
            if kill_at:
                run(server, folder / "data", 0)
            return content_hash(folder / "data"), said

    async def _prepare(self, server: LocalServer, data: Path) -> None:
        async with connect(server.url, QUICK, name="test") as bus:
            await made_ready(bus, data)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    yield World(tmp_path)


@pytest.mark.timeout(1800)
def test_a_kill_at_any_moment_changes_nothing_in_the_end(world: World):
    wanted, said = world.run(0)
    moments = [line for line in said if line in MOMENTS]
    assert set(moments) == MOMENTS
    for kill_at in sample(range(1, len(moments)), 6):
        found, _ = world.run(kill_at)
        assert found == wanted, f"killed at moment {kill_at}, {moments[kill_at - 1]}"


def test_without_a_kill_every_picture_is_there_and_no_original_is_left(world: World):
    world.run(0)
    images = world.folder / "1" / "data" / "images"
    assert len([*images.glob("*.webp")]) == RECORDS * PICTURES * 3
    assert [*(images / "pending").iterdir()] == []
