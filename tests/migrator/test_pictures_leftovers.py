"""Originals of pending records that nothing needs any more are removed, and none that somebody is about to need."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import pytest

from agents.catalog.database import Database
from agents.catalog.descriptions import pending_originals
from agents.migrator.pictures import ModelPictures
from bus.client import Bus
from tests.catalog.conftest import clock
from tests.catalog.sql import execute

FILE = "5-0.png"


@pytest.mark.parametrize("commits", [True, False])
async def test_an_original_that_an_import_is_giving_its_name_just_now_is_left(bus: Bus, tmp_path: Path, commits: bool):
    original = tmp_path / "images" / "pending" / FILE
    original.parent.mkdir(parents=True)
    original.write_bytes(b"new")
    async with Database.open(tmp_path / "catalog.db", clock=clock) as db, anyio.create_task_group() as tasks:
        images = ModelPictures(bus, db, tmp_path)
        async with db.atomic() as sql:
            if commits:
                await execute(
                    db,
                    "INSERT INTO pending_import VALUES"
                    " (5, 5, '/old/x', NULL, NULL, 'x', '', NULL, '{}', 'import', 'waiting', NULL, 1.0)",
                )
                await sql.rows("add_pending_image", pending_id=5, n=0, file=FILE, source="a" * 64)
            tasks.start_soon(images.forget, [f"images/pending/{FILE}"])
            with anyio.move_on_after(0.5):  # it has every chance to go wrong
                while original.exists():
                    await anyio.lowlevel.checkpoint()
    assert original.exists() == commits


def test_originals_that_a_sweep_takes_while_they_are_listed_are_none(tmp_path: Path):
    folder = tmp_path / "images" / "pending"
    folder.mkdir(parents=True)
    assert pending_originals(tmp_path / "none") == []
    for _ in range(20):
        for n in range(100):
            (folder / f"{n}-0.png").write_bytes(b"old")

        def take() -> None:
            for file in folder.iterdir():
                file.unlink()

        with ThreadPoolExecutor(1) as thread:
            taking = thread.submit(take)
            while not taking.done():
                pending_originals(tmp_path)
            taking.result()
    assert pending_originals(tmp_path) == []
