"""The watcher's memory: disks that go and come back, restarts, kills, roots in roots, and events that fail."""

import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from agents.ingest import store
from agents.ingest.scanning import events
from agents.ingest.scanning.events import Events
from agents.ingest.scanning.reconcile import Row
from agents.ingest.settling import gate, waiting
from agents.ingest.store import Store
from agents.watcher import agent as watcher
from bus.client import Bus
from bus.errors import UserError
from bus.server import LocalServer
from schemas.files import Hashed, Moved, Removed, Settled
from schemas.settings import WatcherSettings
from tests.conftest import running
from tests.ingest.dropping import QUICK_WATCH, Drop, dropping, sha256
from tests.ingest.making import model, put


@pytest.fixture
async def drop(bus: Bus, tmp_path: Path) -> AsyncIterator[Drop]:
    async with dropping(bus, tmp_path) as drop:
        yield drop


@pytest.fixture
def quick_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system whose clock has no grain: a hash is trusted at the next scan."""
    monkeypatch.setattr(store, "CLOCK_GRAIN", 0.0)


async def test_a_root_that_is_unmounted_and_comes_back_costs_no_hash(
    drop: Drop, tmp_path: Path, quick_clock: None
) -> None:
    async with drop.agents():
        for number in range(3):
            drop.put(f"{number}.safetensors", model(fill=number))
            await drop.until(Hashed, f"{number}.safetensors")
        await drop.later()
        drop.folder.rename(tmp_path / "away")
        for number in range(3):
            assert (await drop.until(Removed, f"{number}.safetensors")).unmounted
        (tmp_path / "away").rename(drop.folder)
        for number in range(3):
            known = (await drop.until(Settled, f"{number}.safetensors", 2)).known
            assert known is not None and known.sha256 == sha256(model(fill=number))
        drop.put("new.safetensors")  # it is watched again
        await drop.until(Hashed, "new.safetensors")
        assert len(drop.of(Hashed, "0.safetensors")) == 1


@asynccontextmanager
async def judged_while_away(bus: Bus, base: Path) -> AsyncIterator[tuple[watcher.Watcher, Row]]:
    """A watcher that has a file waiting below `base`/models, which went `away` before it was judged; no scan comes by
    itself."""
    folder, settings = base / "models", WatcherSettings(stable=60.0, scan_interval=3600.0)
    put(folder / "a.ckpt", b"pickle")
    async with store.open_table(base / "files.sqlite3") as rows:
        watching = watcher.Watcher(bus, rows, {"models": str(folder)}, settings, base)
        await watching.scan()
        await watching.list_waiting()
        [one] = watching.state.files.values()
        folder.rename(base / "away")
        await watching.judge([one.row])
        yield watching, one.row


async def test_a_waiting_file_that_is_back_before_a_scan_missed_it_is_judged_soon(bus: Bus, tmp_path: Path) -> None:
    async with judged_while_away(bus, tmp_path) as (watching, row):
        (tmp_path / "away").rename(tmp_path / "models")
        await watching.scan()
        assert watching.state.files[row.id].due <= time.monotonic() + gate.LOOK_AGAIN


async def test_a_waiting_file_that_no_scan_sees_either_is_left_to_the_next_one(bus: Bus, tmp_path: Path) -> None:
    async with judged_while_away(bus, tmp_path) as (watching, row):
        watching.see(waiting.Scanning())
        watching.see(waiting.Scanned([], changes=0, left=0))
        assert watching.state.files[row.id].due > time.monotonic() + 3000


async def test_a_file_left_to_the_scan_does_not_keep_the_scan_from_it(bus: Bus, tmp_path: Path) -> None:
    """A known file is renamed over one that waits: nothing is written of that, so no scan has to mind it."""
    folder = tmp_path / "models"
    known, waits = put(folder / "a.safetensors", model()), put(folder / "b.safetensors", b"waits")
    async with store.open_table(tmp_path / "files.sqlite3") as rows:
        watching = watcher.Watcher(bus, rows, {"models": str(folder)}, WatcherSettings(), tmp_path)
        await watching.scan()
        await watching.list_waiting()
        await watching.judge([one.row for one in watching.state.files.values() if one.row.path.rel == "a.safetensors"])
        await rows.do(Store.begin_scan)
        known.rename(waits)
        await watching.judge([one.row for one in watching.state.files.values()])
        assert rows.held.written == set()
        await watching.scan()
        assert watching.state.left == 0
        found = await rows.do(lambda db: [row for row in db.rows() if not row.gone])
        assert [(row.path.rel, row.state) for row in found] == [("b.safetensors", "settled")]


async def test_a_file_that_came_after_a_scan_went_by_is_not_gone(bus: Bus, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    async with store.open_table(tmp_path / "files.sqlite3") as rows:
        watching = watcher.Watcher(bus, rows, {"models": str(folder)}, WatcherSettings(), tmp_path)
        scans = watching.scanner.scan()
        put(folder / "a.ckpt", b"pickle")
        watching.see(waiting.Noticed("models", Events(rels=frozenset({"a.ckpt"}))))
        await watching.admit()
        changes, left = await rows.do(lambda db: watching._apply(scans, time.time(), True, db)) or (0, 0)
        assert [row.gone for row in await rows.do(Store.rows)] == [False]
        assert (changes, left) == (0, 1)


async def test_a_root_that_is_not_there_at_start_is_taken_up_when_it_comes(drop: Drop) -> None:
    drop.folder.rmdir()
    async with drop.agents():
        drop.folder.mkdir()
        (drop.folder / "a.safetensors").write_bytes(model())
        assert (await drop.until(Hashed, "a.safetensors")).sha256 == sha256(model())


async def test_a_restart_says_nothing_twice_and_tells_what_changed_meanwhile(drop: Drop) -> None:
    async with running(drop.hashing()):
        async with running(drop.watching()):
            paths = {name: drop.put(f"{name}.safetensors", model(fill=n)) for n, name in enumerate("abcd")}
            for name in paths:
                await drop.until(Hashed, f"{name}.safetensors")
        paths["b"].rename(drop.folder / "moved.safetensors")
        paths["c"].unlink()
        drop.put("d.safetensors", model(fill=9))
        drop.put("new.safetensors", model(fill=8))
        drop.facts.clear()
        async with running(drop.watching()):
            assert (await drop.until(Moved, "moved.safetensors")).old.rel == "b.safetensors"
            assert not (await drop.until(Removed, "c.safetensors")).unmounted
            assert (await drop.until(Hashed, "d.safetensors")).sha256 == sha256(model(fill=9))
            assert (await drop.until(Hashed, "new.safetensors")).sha256 == sha256(model(fill=8))
            await drop.later()
        assert drop.about("a.safetensors") == []
        assert drop.about("new.safetensors") == ["Settled", "Hashed"]


async def test_a_file_whose_hash_never_came_is_asked_for_again_at_the_next_start(drop: Drop) -> None:
    async with running(drop.watching()):
        drop.put("a.safetensors")
        await drop.until(Settled, "a.safetensors")
    await drop.bus.js.purge_stream("HASH")
    async with drop.agents():
        await drop.until(Hashed, "a.safetensors")
    assert drop.about("a.safetensors") == ["Settled", "Hashed"]


async def test_a_file_that_was_away_over_a_restart_while_its_hash_was_young_is_hashed_again(
    drop: Drop, tmp_path: Path
) -> None:
    """Nobody is told its hash, which may be of another version; so it has to be asked for."""
    async with drop.agents():
        drop.put("a.safetensors")
        await drop.until(Hashed, "a.safetensors")
        drop.folder.rename(tmp_path / "away")
        await drop.until(Removed, "a.safetensors")
    (tmp_path / "away").rename(drop.folder)
    async with drop.agents():
        settled = await drop.until(Settled, "a.safetensors", 2)
        found = settled.known or await drop.until(Hashed, "a.safetensors", 2)  # known, where a restart takes that long
    assert found.sha256 == sha256(model())


async def test_a_hash_that_came_while_no_watcher_ran_is_not_asked_for_again(drop: Drop) -> None:
    async with running(drop.watching()):
        drop.put("a.safetensors")
        await drop.until(Settled, "a.safetensors")
    async with running(drop.hashing()):
        await drop.until(Hashed, "a.safetensors")
    async with drop.agents():
        await drop.later()
    assert drop.about("a.safetensors") == ["Settled", "Hashed"]


async def test_a_watcher_killed_between_commit_and_publish_loses_nothing(drop: Drop, nats_server: LocalServer) -> None:
    """Its outbox is held back by a server that does not answer: the kill finds everything written, nothing said."""
    program = (
        "import asyncio, sys; from pathlib import Path; from bus.client import connect\n"
        "from agents.watcher import agent as watcher\n"
        "from tests.conftest import QUICK; from tests.ingest.dropping import QUICK_WATCH\n"
        "async def main():\n"
        "    async with connect(sys.argv[1], QUICK, name='watcher') as bus:\n"
        "        await watcher.run(bus, Path(sys.argv[2]), {'models': sys.argv[3]}, QUICK_WATCH)\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", program, nats_server.url, str(drop.data), str(drop.folder)]
    process = await anyio.open_process(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    drop.put("first.safetensors", model(fill=99))
    await drop.until(Settled, "first.safetensors")
    nats_server.process.send_signal(signal.SIGSTOP)
    try:
        for number in range(20):
            drop.put(f"{number}.safetensors", model(fill=number))
        await anyio.to_thread.run_sync(await_outbox, drop.data, 40)
        process.kill()
    finally:
        nats_server.process.send_signal(signal.SIGCONT)
    await process.aclose()
    async with drop.agents():
        for number in range(20):
            await drop.until(Hashed, f"{number}.safetensors")
        await drop.later()
    assert all(len(drop.of(Settled, f"{number}.safetensors")) == 1 for number in range(20))


def await_outbox(data: Path, length: int) -> None:
    """Until the watcher has so much to say."""
    with closing(sqlite3.connect(data / "files.sqlite3")) as connection:
        deadline = time.monotonic() + 10
        while connection.execute("SELECT count(*) FROM outbox").fetchone()[0] < length:
            assert time.monotonic() < deadline


async def test_of_a_root_within_a_root_each_file_is_counted_once(bus: Bus, tmp_path: Path) -> None:
    inner = tmp_path / "models" / "loras"
    roots = {"all": str(tmp_path / "models"), "loras": str(inner)}
    async with dropping(bus, tmp_path, roots=roots) as drop:
        inner.mkdir()
        async with drop.agents():
            drop.put("loras/a.safetensors")
            assert (await drop.until(Hashed, "a.safetensors")).path.root == "loras"
            drop.put("b.safetensors", model(fill=2))
            assert (await drop.until(Hashed, "b.safetensors")).path.root == "all"
            await drop.later()
            assert drop.about("loras/a.safetensors") == []


async def test_two_roots_that_are_the_same_folder_are_refused(bus: Bus, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    roots = {"one": str(tmp_path), "two": str(tmp_path / "link")}
    with pytest.raises(UserError, match="same folder"):
        await watcher.run(bus, tmp_path, roots, QUICK_WATCH)


async def test_a_root_that_is_a_link_is_watched_like_the_folder_it_leads_to(bus: Bus, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "models")
    settings = msgspec.structs.replace(QUICK_WATCH, scan_interval=600.0)
    async with dropping(bus, tmp_path, settings, {"models": str(tmp_path / "link")}) as drop, drop.agents():
        with (drop.folder / "a.safetensors").open("wb", buffering=0) as file:
            file.write(model()[:100])
            await drop.later()
            file.write(model()[100:])
        assert (await drop.until(Hashed, "a.safetensors")).sha256 == sha256(model())


async def test_a_root_that_is_no_longer_configured_is_told_as_unmounted(drop: Drop, tmp_path: Path) -> None:
    async with running(drop.hashing()):
        async with running(drop.watching()):
            drop.put("a.safetensors")
            await drop.until(Hashed, "a.safetensors")
        (tmp_path / "other").mkdir()
        drop.roots = {"other": str(tmp_path / "other")}
        async with running(drop.watching()):
            assert (await drop.until(Removed, "a.safetensors")).unmounted


async def test_polling_needs_no_events(bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "watch", None)  # whoever calls it fails
    settings = msgspec.structs.replace(QUICK_WATCH, mode="polling", scan_interval=600.0)
    async with dropping(bus, tmp_path, settings) as drop, drop.agents():
        with (drop.folder / "slow.safetensors").open("wb", buffering=0) as file:
            file.write(model()[:100])
            await drop.later()
            file.write(model()[100:])
        await drop.until(Hashed, "slow.safetensors")
        assert drop.about("slow.safetensors") == ["Settled", "Hashed"]


@pytest.mark.parametrize("begun", [False, True], ids=["at the start", "in between"])
async def test_events_that_fail_are_replaced_by_scans(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    """An exhausted limit does not let them begin, a name that is not UTF-8 ends them."""

    def fails(*_: Any, **__: Any) -> Any:
        if begun:
            yield set()
        raise OSError("OS file watch limit reached.")

    monkeypatch.setattr(events, "watch", fails)
    monkeypatch.setattr(events, "WATCH_AGAIN", 0.2)
    settings = msgspec.structs.replace(QUICK_WATCH, scan_interval=600.0)
    async with dropping(bus, tmp_path, settings) as drop, drop.agents():
        (drop.folder / "a.safetensors").write_bytes(model())
        assert (await drop.until(Hashed, "a.safetensors")).sha256 == sha256(model())


async def test_a_table_that_cannot_be_used_is_a_clear_error(bus: Bus, tmp_path: Path) -> None:
    (tmp_path / "files.sqlite3").mkdir()
    with pytest.raises(UserError, match=r"files\.sqlite3 can't be used"):
        await watcher.run(bus, tmp_path, {"models": str(tmp_path)}, QUICK_WATCH)


async def test_a_burst_of_files_and_folders_is_settled_and_hashed_each_once(drop: Drop, tmp_path: Path) -> None:
    await burst(drop, tmp_path, 2_000, seconds=60)


@pytest.mark.slow
async def test_a_burst_of_twenty_thousand(drop: Drop, tmp_path: Path) -> None:
    await burst(drop, tmp_path, 20_000, seconds=150)


async def burst(drop: Drop, tmp_path: Path, count: int, seconds: float) -> None:
    """Half of them are written into the folder, half are moved into it with the folders they are in."""

    def write(folder: Path, numbers: range) -> None:
        for number in numbers:
            at = folder / f"{number % 20}"
            at.mkdir(parents=True, exist_ok=True)
            (at / f"{number}.safetensors").write_bytes(model()[:-4] + number.to_bytes(4, "big"))

    await anyio.to_thread.run_sync(write, tmp_path / "side", range(count // 2, count))
    async with drop.agents():
        await anyio.to_thread.run_sync(write, drop.folder, range(count // 2))
        for folder in (tmp_path / "side").iterdir():
            folder.rename(drop.folder / f"moved-{folder.name}")
        with anyio.fail_after(seconds):
            while len(drop.facts) < 2 * count:
                await drop.news.wait()
        await drop.later()
    assert len({fact.path.rel for fact in drop.of(Hashed)}) == len(drop.of(Hashed)) == count + 1
    assert len(drop.of(Settled)) == count + 1
    assert all(fact.sha256 == on_disk(drop, fact.path.rel) for fact in drop.of(Hashed)[::97])
    drop.facts.clear()
    with anyio.fail_after(max(1.0, count / 5_000)):
        async with running(drop.watching()):
            pass
    assert drop.facts == []


def on_disk(drop: Drop, rel: str) -> str:
    return sha256((drop.folder / rel).read_bytes())
