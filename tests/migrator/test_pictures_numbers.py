"""A picture's number whose files belong to another catalog's picture, of a backup say, is given up for the next one."""

import functools
import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from agents import encoder
from agents.catalog.asks.pictures import add_picture
from agents.catalog.database import Database
from agents.catalog.facts import apply
from agents.migrator import agent as migrator
from agents.storage import blobs
from bus.client import Bus
from schemas.catalog import AddPicture
from schemas.settings import EncoderSettings
from tests.catalog.conftest import clock
from tests.catalog.facts import hashed, sha
from tests.catalog.legacy_making import png
from tests.conftest import running


async def with_pictures(path: Path, *seeds: int) -> None:
    """A catalog with one model, to which these pictures are added."""
    async with Database.open(path, clock=clock) as db:
        await apply(db, [("m", hashed("a.safetensors", "dream"))], now=1.0)
        for seed in seeds:
            blob = blobs.put(path.parent, png(seed))
            await add_picture(db, AddPicture(sha256=sha("dream"), blob=blob))


async def encoded(bus: Bus, path: Path, count: int) -> list[tuple[int, int, str, str]]:
    """What the catalog says of its pictures, when all are encoded, or refused."""
    async with running(
        functools.partial(migrator.run, bus, path), functools.partial(encoder.run, bus, path.parent, EncoderSettings())
    ):
        with anyio.fail_after(20), closing(sqlite3.connect(path)) as db:
            while True:
                rows = db.execute("SELECT seq, number, state, source FROM images ORDER BY seq").fetchall()
                if len(rows) == count and all(state != "waiting" for _, _, state, _ in rows):
                    return rows
                await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("others", [1, 2])
async def test_a_catalog_that_was_lost_gets_its_pictures_again_beside_those_of_the_old_one(
    bus: Bus, tmp_path: Path, others: int
):
    path = tmp_path / "catalog.db"
    await with_pictures(path, *range(others))
    await encoded(bus, path, others)
    for file in tmp_path.glob("catalog.db*"):
        file.unlink()
    await bus.js.purge_stream("CATALOG")  # and with it what it could be made of again
    before = {file.name: file.read_bytes() for file in (tmp_path / "images").iterdir()}
    await with_pictures(path, 7, 8)
    rows = await encoded(bus, path, 2)
    sources = [hashlib.sha256(png(seed)).hexdigest() for seed in (7, 8)]
    assert [(seq, state, source) for seq, _, state, source in rows] == [
        (0, "ready", sources[0]),
        (1, "ready", sources[1]),
    ]
    numbers = {number for _, number, _, _ in rows}
    assert len(numbers) == 2 and min(numbers) >= others
    files = {file.name: file.read_bytes() for file in (tmp_path / "images").iterdir()}
    assert before.items() <= files.items() and len(files) == len(before) + 6
