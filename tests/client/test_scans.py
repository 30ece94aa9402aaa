"""A scan that is followed: it waits for what is on the way, names what waits, and always ends."""

import functools
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from agents.client import scans
from bus.client import Bus
from bus.errors import UserError
from bus.subjects import ASK_COMPARE, ASK_ROOT
from schemas.asks import Compare, Compared
from schemas.files import FilePath, RootState, ScanRoot, WaitingFile
from schemas.settings import Settings, WatcherSettings
from schemas.ticks import HashTick
from tests.conftest import QUICK, running
from tests.ingest.dropping import QUICK_WATCH, Drop, dropping
from tests.ingest.making import model, put


@pytest.fixture
async def drop(bus: Bus, tmp_path: Path) -> AsyncIterator[Drop]:
    async with dropping(bus, tmp_path) as drop:
        yield drop


async def scanned(drop: Drop, seconds: float = 20) -> RootState:
    settings = Settings(roots=drop.roots, watcher=QUICK_WATCH, bus=QUICK)
    with anyio.fail_after(seconds):
        (state,) = await scans.look(drop.bus, settings)
    return state


async def test_a_scan_ends_while_files_change_without_end_and_names_them(drop: Drop) -> None:
    async def change(paths: list[Path]) -> None:
        while True:
            for path in paths:
                os.utime(path)
            await anyio.sleep(0.01)

    async with drop.agents(), anyio.create_task_group() as tasks:
        tasks.start_soon(change, [drop.put(f"{number}.safetensors", model(fill=number)) for number in range(3)])
        drop.put("quiet.safetensors", model(fill=9))
        state = await scanned(drop)
        tasks.cancel_scope.cancel()
    assert (state.files, state.unhashed) == (4, 0)
    assert [file.path.rel for file in state.waits] == ["0.safetensors", "1.safetensors", "2.safetensors"]


async def test_a_scan_without_a_hasher_ends_and_says_that_files_are_not_hashed(
    drop: Drop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scans, "_HASHING_SECONDS", -1.5)  # half a second, with the lease
    async with running(drop.watching()):
        drop.put("a.safetensors")
        state = await scanned(drop)
    assert state.unhashed == 1 and "1 file is still to be hashed: is a hasher at work?" in state.problems


async def test_a_writer_that_never_closes_is_named_with_since_when_it_waits(drop: Drop) -> None:
    began = time.time()
    async with drop.agents():
        with (drop.folder / "open.safetensors").open("wb", buffering=0) as file:
            file.write(model()[:100])
            state = await scanned(drop)
    ((waiting),) = state.waits
    assert waiting.path.rel == "open.safetensors" and waiting.why == "a program has it open for writing"
    assert began - 1 < waiting.since < time.time() and str(time.localtime().tm_year) in scans.line(waiting)


async def test_files_that_are_let_in_while_those_that_wait_are_named_are_followed_too(bus: Bus) -> None:
    """(Played over the bus: a file waits for its turn, gets it with the last question, and is hashed then.)"""
    states = iter([(0, 1), (0, 1), (0, 1)])
    admitted = False

    async def root(ask: ScanRoot) -> RootState:
        nonlocal admitted
        admitted = admitted or ask.limit > 1  # those that wait are to be named
        waiting, unhashed = next(states, (0, 0)) if admitted else (1, 0)
        return RootState(root="models", look=1, looks=1, files=1, waiting=waiting, refused=0, unhashed=unhashed)

    async with running(functools.partial(bus.answer, ASK_ROOT, root)):
        settings = Settings(roots={"models": "/"}, bus=QUICK, watcher=WatcherSettings(stable=0.01))
        with anyio.fail_after(20):
            (state,) = await scans.look(bus, settings)
    assert admitted and (state.unhashed, state.waiting, state.problems) == (0, 0, ())


@pytest.mark.parametrize("died", ["watcher", "migrator"])
async def test_who_was_started_anew_and_counts_from_the_beginning_is_asked_again(bus: Bus, died: str) -> None:
    """(Played over the bus: the one that was asked first is gone when its answer is acted on.)"""
    begun = 7

    async def root(ask: ScanRoot) -> RootState:
        nonlocal begun
        here = 7 if ask.look and begun == 7 else 1
        begun = 0 if begun == 7 else begun + ask.look
        counts: dict[str, Any] = {"files": 0, "waiting": 0, "refused": 0, "unhashed": 0}
        return RootState(root="models", look=here, looks=begun, **counts)

    async def compare(ask: Compare) -> Compared:
        nonlocal begun
        number = 7 if begun == 7 else 1
        begun = 0 if begun == 7 else begun + ask.again
        return Compared(number=number, done=begun, mended=0)

    asked = (
        functools.partial(bus.answer, ASK_ROOT, root)
        if died == "watcher"
        else functools.partial(bus.answer, ASK_COMPARE, compare)
    )
    async with running(asked):
        with anyio.fail_after(10):
            if died == "watcher":
                await scans.look(bus, Settings(roots={"models": "/"}, bus=QUICK))
            else:
                assert await scans.compare(bus) == 0


def test_what_goes_round_in_circles_is_no_progress() -> None:
    seen = scans._Seen()
    assert seen.progress(0, False, 1, []) and seen.progress(5, False, 2, []) and not seen.progress(5, False, 2, [])
    assert seen.progress(5, True, 2, []), "now it is known what there is to do"
    assert not seen.progress(6, True, 9, []) and not seen.progress(5, True, 10, [])
    assert seen.progress(4, True, 10, [])
    ticks = [tick(10), tick(20)]
    assert seen.progress(4, True, 10, ticks) and not seen.progress(4, True, 10, ticks)
    assert seen.progress(4, True, 10, [tick(21)])


def tick(done: int) -> HashTick:
    return HashTick(id="0" * 32, rel="a", done=done, total=100, rate=1, eta=1.0)


async def test_the_files_that_wait_come_in_pages_over_all_roots(bus: Bus, tmp_path: Path) -> None:
    roots = {name: str(tmp_path / name) for name in ("a", "b", "c")}
    for name in "ac":
        for number in range(3):
            put(tmp_path / name / f"{number}.safetensors.part", b"")
            put(tmp_path / name / f"{number}.safetensors", model())
    watched = {name: roots[name] for name in "ac"}
    drop = Drop(tmp_path / "a", tmp_path / "data", bus, QUICK_WATCH, watched)
    async with running(drop.watching()):
        whole = await scans.waiting(bus, roots)
        assert (len(whole.files), whole.waiting, whole.next, whole.unknown) == (6, 6, "", ("b",))
        for limit in range(1, 7):
            found: list[WaitingFile] = []
            after = ""
            while True:
                page = await scans.waiting(bus, watched, after=after, limit=limit)
                assert page.waiting == 6 and 0 < len(page.files) <= limit
                found += page.files
                if not (after := page.next):
                    break
            assert [file.path for file in found] == [file.path for file in whole.files]
    assert whole.files[0].path == FilePath(root="a", rel="0.safetensors")


async def test_a_root_that_nobody_watches_is_an_error(bus: Bus) -> None:
    with pytest.raises(UserError, match="no watcher answers for root models"):
        await scans.look(bus, Settings(roots={"models": "/"}))
