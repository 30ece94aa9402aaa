"""A catalog made anew of its history is the same, row for row; where the live one was tampered with is named."""

import functools
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest

from agents.catalog.database import Database
from agents.catalog.descriptions import add_picture, add_tags, put_layer
from agents.catalog.facts import apply
from agents.catalog.outputs import add_outputs
from agents.cli.rebuild import rebuild_into
from agents.migrator import agent as migrator
from bus.client import Bus
from bus.errors import UserError
from bus.subjects import CATALOG_CHANGED
from schemas.images import Encoded, Picture
from tests.catalog.conftest import FixedClock
from tests.catalog.facts import hashed, moved, removed, sha, stat
from tests.catalog.pending import add_pending
from tests.catalog.sql import execute
from tests.conftest import running

clock = FixedClock(1763712345.678901234)


async def lived(path: Path) -> None:
    """A catalog that has seen everything, in transactions small and large."""
    async with Database.open(path, clock=clock) as db:
        many = [(f"m{n}", hashed(f"{n}.safetensors", f"content {n}", 10.1 + n / 7)) for n in range(700)]
        await apply(db, many, now=clock.now())
        await add_pending(db, 7, "/old/x.safetensors", rel="x.safetensors", tags=("a",), images=(b"one", b"two"))
        await add_pending(db, 8, "/old/y.safetensors", rel="y.safetensors")
        await apply(db, [("x", hashed("x.safetensors", "x"))], now=clock.now())
        of = stat("content 5")
        await apply(db, [("mv", moved("5.safetensors", "%25 %FF ü.safetensors", of))], now=clock.now())
        await apply(db, [("rm", removed("6.safetensors", stat("content 6")))], now=clock.now())
        async with db.atomic() as sql:
            await put_layer(sql, sha("x"), "user", {"title": 'Ünï "quoted"', "extra": {"a": [1.5, None, True]}})
            await add_tags(sql, sha("content 1"), ("red", "green"), "t", 3.3)
            await add_picture(sql, sha("content 1"), sha("picture"), "blobs/" + sha("picture"), "upload", 0.1 + 0.2)
        async with db.atomic() as sql:
            await execute(db, "DELETE FROM tags WHERE name = 'green'")
            await execute(db, "DELETE FROM pending_import WHERE id = 8")
            assert sql is not None
        picture = Picture(index=0, seed=1, width=8, height=8, file="f.webp", bytes=9, sha256=sha("p"), tiers={})
        async with db.atomic() as sql:
            fact = Encoded(id="a" * 32, pictures=(picture,), seconds=0.1, at=5.0)
            await add_outputs(sql, fact, sha("x"), ["a red fox, steps 4"])


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    await lived(tmp_path / "catalog.db")
    return tmp_path / "catalog.db"


def published(bus: Bus, path: Path) -> Any:
    return running(functools.partial(migrator.run, bus, path))


async def all_published(path: Path) -> None:
    with anyio.fail_after(30):
        while rows(path, "SELECT count(*) FROM outbox") != [(0,)]:
            await anyio.lowlevel.checkpoint()


def rows(path: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute(query).fetchall()


async def test_a_catalog_made_of_its_history_is_the_same_row_for_row(bus: Bus, path: Path):
    async with published(bus, path):
        await all_published(path)
        found = await rebuild_into(bus, path, path.with_name("new.db"))
    assert found.same, found.tables
    counts = {table.table: table.live for table in found.tables}
    assert counts["models"] == 701 and counts["pending_import"] == 1 and counts["outputs"] == 1
    assert counts == {table.table: table.rebuilt for table in found.tables}
    assert (path.parent / "history").is_dir(), "the transaction of 700 rows is in a file"


async def test_what_was_not_published_yet_counts_too(bus: Bus, path: Path):
    found = await rebuild_into(bus, path, path.with_name("new.db"))
    assert found.same and found.transactions == len(rows(path, "SELECT 1 FROM outbox WHERE kind = 'catalog.changed'"))
    last = rows(path, "SELECT payload, msg_id FROM outbox WHERE kind = 'catalog.changed' ORDER BY id")[0]
    await bus.publish_raw(CATALOG_CHANGED(), last[0].encode(), msg_id=last[1])  # stored, and not forgotten yet
    assert (await rebuild_into(bus, path, path.with_name("newer.db"))).same


async def test_a_row_that_was_tampered_with_is_named(bus: Bus, path: Path):
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE models SET name = 'other' WHERE sha256 = ?", (sha("content 3"),))
        db.execute("DELETE FROM model_tags")
        db.execute("INSERT INTO tags VALUES (99, 'smuggled', '', 1.0)")
        db.commit()
    found = await rebuild_into(bus, path, path.with_name("new.db"))
    found_in = {table.table: (table.missing, table.extra, table.different, table.keys) for table in found.tables}
    assert found_in["models"] == (0, 0, 1, (sha("content 3"),))
    assert found_in["model_tags"][:3] == (0, 2, 0) and found_in["tags"] == (1, 0, 0, ("99",))
    assert not found.same


async def test_a_rebuilt_catalog_is_one_that_a_migrator_takes_up_and_can_be_searched(bus: Bus, path: Path):
    async with published(bus, path):
        await all_published(path)
    new = path.with_name("new.db")
    path.rename(path.with_name("lost.db"))
    found = await rebuild_into(bus, path, new)
    assert found.tables == () and found.transactions > 3
    assert rows(new, "SELECT count(*) FROM search WHERE search MATCH 'quoted'") == [(1,)]
    assert rows(new, "SELECT count(*) FROM search_outputs WHERE search_outputs MATCH 'fox'") == [(1,)]
    new.rename(path)
    async with published(bus, path):
        assert (await rebuild_into(bus, path, path.with_name("again.db"))).same


async def test_a_catalog_from_before_the_history_tells_all_it_has_first(bus: Bus, tmp_path: Path):
    path = tmp_path / "catalog.db"
    async with Database.open(path, clock=clock) as db:
        await apply(db, [("m1", hashed("a.safetensors", "dream"))], now=1.0)
    with closing(sqlite3.connect(path)) as db_then:  # as version 1 left it: rows, and nothing published of them
        db_then.execute("DELETE FROM outbox")
        db_then.execute("DELETE FROM db_meta")
        db_then.commit()
    async with Database.open(path, clock=clock):
        pass
    assert (await rebuild_into(bus, path, tmp_path / "new.db")).same


async def test_a_history_with_a_hole_and_a_name_that_is_taken_are_told_in_a_sentence(bus: Bus, path: Path):
    [file] = (path.parent / "history").iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match="damaged"):
        await rebuild_into(bus, path, path.with_name("new.db"))
    with pytest.raises(UserError, match="there already"):
        await rebuild_into(bus, path, path)
