"""The watcher's table and the catalog find each other again after one of them was lost or restored."""

import functools
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from agents import hasher
from agents.client import jobs, scans
from agents.diffusion.tiny_checkpoint import write_tiny_checkpoint
from agents.migrator import agent as migrator
from agents.watcher import agent as watcher
from bus.client import Bus
from bus.subjects import ASK_COMPARE, ASK_FILES, FILE_HASHED, TICK_AGENT
from schemas.asks import Compare, Compared
from schemas.files import FileList, Known, ListedFile, ListFiles
from schemas.settings import HasherSettings, WatcherSettings
from schemas.ticks import AgentTick
from tests.catalog.facts import CHECKPOINT, at_path, key, sha, stat
from tests.conftest import running

ALIVE = AgentTick(name="watcher", instance="new", state="ready", pid=1, host="here", rss=0, lag=0.0)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data" / "models").mkdir(parents=True)
    return tmp_path / "data"


def agents(bus: Bus, data: Path):
    roots = {"models": str(data / "models")}
    return (
        functools.partial(watcher.run, bus, data, roots, WatcherSettings(stable=0.2, scan_interval=0.5)),
        functools.partial(hasher.run, bus, roots, HasherSettings()),
        functools.partial(migrator.run, bus, data / "catalog.db", roots),
    )


async def until(bus: Bus, names: set[str]) -> None:
    """The usable models in the catalog are these."""
    with anyio.fail_after(20):
        while {model.name for model in await jobs.models(bus) if not model.missing} != names:
            await bus.flush()


@pytest.mark.parametrize("watcher_first", [True, False])
async def test_a_catalog_restored_from_a_backup_is_mended_without_hashing(bus: Bus, data: Path, watcher_first: bool):
    backup = data.parent / "backup.db"
    for name in ("first", "second"):
        write_tiny_checkpoint(data / "models" / f"{name}.safetensors", seed=len(name))
    async with running(*agents(bus, data)):
        await until(bus, {"first", "second"})
    shutil.copy(data / "catalog.db", backup)
    async with running(*agents(bus, data)):
        write_tiny_checkpoint(data / "models" / "third.safetensors", seed=7)
        (data / "models" / "first.safetensors").unlink()
        await until(bus, {"second", "third"})
        with anyio.fail_after(20):  # a hash is believed, and told, once a second look found the file unchanged
            while (await ask_known(bus)) != {"second", "third"}:
                await bus.flush()
    hashed = await bus.waiting("FILES", FILE_HASHED.filter())
    for file in data.glob("catalog.db*"):
        file.unlink()
    shutil.copy(backup, data / "catalog.db")
    watching, hashing, cataloguing = agents(bus, data)
    async with running(*((watching, hashing, cataloguing) if watcher_first else (cataloguing, hashing, watching))):
        await bus.tick(TICK_AGENT, ALIVE, name="watcher", instance="new")
        await until(bus, {"second", "third"})
        assert await bus.waiting("FILES", FILE_HASHED.filter()) == hashed


async def test_differences_are_mended_when_somebody_asks(bus: Bus, data: Path):
    write_tiny_checkpoint(data / "models" / "first.safetensors", seed=1)
    async with running(*agents(bus, data)):
        await until(bus, {"first"})
        with anyio.fail_after(20):
            while await ask_known(bus) != {"first"}:
                await bus.flush()
        assert await scans.compare(bus) == 0
        with closing(sqlite3.connect(data / "catalog.db")) as other:  # as if an older copy had been put in its place
            other.execute("UPDATE paths SET present = 0")
            other.commit()
        await until(bus, set())
        assert await scans.compare(bus) == 1
        await until(bus, {"first"})


async def ask_known(bus: Bus) -> set[str]:
    page = await bus.ask(ASK_FILES, ListFiles(), FileList, root="models")
    return {Path(one.path.rel).stem for one in page.files if one.known}


async def test_a_watcher_that_lists_what_no_row_can_hold_does_not_end_the_migrator(bus: Bus, data: Path):
    listed = anyio.Event()

    async def lie(ask: ListFiles) -> FileList:
        listed.set()
        of = stat("x")
        known = Known(sha256=sha("x"), identity=CHECKPOINT)
        file = ListedFile(path=at_path("../outside.safetensors"), key=key(of), stat=of, known=known)
        return FileList(files=(file,), more=False, at=1.0)

    lying = functools.partial(bus.answer, ASK_FILES, lie)
    async with running(lying, functools.partial(migrator.run, bus, data / "catalog.db", {"models": str(data)})):
        with anyio.fail_after(20):
            await listed.wait()
            while (await bus.ask(ASK_COMPARE, Compare(again=False), Compared)).done < 1:
                await bus.flush()
        assert await jobs.models(bus) == ()
