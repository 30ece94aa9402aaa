"""Imports as jobs on a real bus: taken over once, however often asked and killed, and told of while they run."""

import functools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from agents.catalog.database import Database
from agents.catalog.legacy.importer import Run
from agents.migrator.imports import serve_imports
from bus.client import Bus
from bus.clock import Clock
from bus.queues import enqueue
from bus.subjects import ASK_IMPORT, IMPORT
from schemas.imports import AskImport, Import, ImportState
from tests.catalog.legacy_making import make, model, odd, sha
from tests.conftest import running


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    async with Database.open(tmp_path / "catalog.db", clock=Clock()) as db:
        yield db


def serving(bus: Bus, db: Database, data: Path) -> functools.partial[Any]:
    return functools.partial(serve_imports, bus, db, data, {}, anyio.lowlevel.checkpoint)


async def ended(bus: Bus, id: str) -> ImportState:
    """An import as soon as it is over."""
    with anyio.fail_after(20):
        while True:
            state = await bus.ask(ASK_IMPORT, AskImport(id=id), ImportState)
            if state.state in ("done", "failed"):
                return state
            await anyio.sleep(0.02)


async def put(bus: Bus, database: Path, number: int = 1, **job: Any) -> str:
    id = f"{number:032x}"
    await enqueue(bus, IMPORT, Import(id=id, database=str(database), **job), id=id)
    return id


async def test_a_job_imports_a_catalog_and_its_report_can_be_asked_for(bus: Bus, db: Database, tmp_path: Path):
    source = make(tmp_path / "legacy.db", [model(1, "/old/a", sha(1)), model(2, "/old/b")])
    async with running(serving(bus, db, tmp_path)):
        unknown = await bus.ask(ASK_IMPORT, AskImport(id="f" * 32), ImportState)
        assert unknown.state == "unknown"
        state = await ended(bus, await put(bus, source))
    assert (state.state, state.source) == ("done", str(source))
    assert (state.report.tables["models"].inserted, state.report.tables["pending_import"].inserted) == (1, 1)


async def test_a_job_that_can_not_be_done_fails_in_a_sentence_once_and_holds_up_no_other(
    bus: Bus, db: Database, tmp_path: Path
):
    async with running(serving(bus, db, tmp_path)):
        first = await put(bus, tmp_path / "gone.db")
        second = await put(bus, make(tmp_path / "legacy.db"), 2)
        assert (await ended(bus, second)).state == "done"
        state = await ended(bus, first)
    assert state.state == "failed" and "There is no file" in state.report.error
    assert (await bus.js.stream_info("IMPORT")).state.messages == 0


async def test_a_job_that_nobody_can_read_is_over_as_failed(bus: Bus, db: Database, tmp_path: Path):
    id = f"{1:032x}"
    async with running(serving(bus, db, tmp_path)):
        await bus.publish_raw(IMPORT(id=id), b"{}")
        state = await ended(bus, id)
    assert state.state == "failed" and "not a Import" in state.report.error


async def test_an_import_that_was_stopped_goes_on_when_the_migrator_is_back(
    bus: Bus, db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pictures = tmp_path / "pictures"
    source = odd(tmp_path / "legacy.db", pictures)
    reached, take = anyio.Event(), Run._take

    async def stand_still(self: Run, batch: Any) -> None:
        await take(self, batch)
        reached.set()
        await anyio.sleep_forever()

    with monkeypatch.context() as slow:
        slow.setattr(Run, "_take", stand_still)
        async with running(serving(bus, db, tmp_path)):
            id = await put(bus, source, images=str(pictures))
            with anyio.fail_after(20):
                await reached.wait()
            state = await bus.ask(ASK_IMPORT, AskImport(id=id), ImportState)
            assert state.state == "running" and state.report.tables["tags"].inserted > 0
    async with running(serving(bus, db, tmp_path)):
        state = await ended(bus, id)
    assert state.state == "done" and sum(tally.skipped for tally in state.report.tables.values()) < 10
    assert not list((tmp_path / "work").iterdir())


async def test_a_full_disk_is_waited_for(bus: Bus, db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    take, calls = Run._tags, 0

    async def full_at_first(self: Run) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError(28, "No space left on device")
        await take(self)

    monkeypatch.setattr(Run, "_tags", full_at_first)
    monkeypatch.setattr("agents.migrator.imports.RETRY_SECONDS", 0.05)
    async with running(serving(bus, db, tmp_path)):
        state = await ended(bus, await put(bus, make(tmp_path / "legacy.db", [model(1, "/old/a")])))
    assert state.state == "done" and calls == 2
