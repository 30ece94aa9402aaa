"""The watcher and the hasher on a real bus and real files: each file once, never early, whatever is done to it."""

import os
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import anyio.lowlevel
import msgspec
import pytest

from agents.storage.paths import stat_of
from bus.client import Bus
from bus.subjects import ASK_ROOT
from schemas.files import Described, Hashed, Moved, Refused, Removed, RootState, ScanRoot, Settled
from tests.conftest import running
from tests.ingest.dropping import Drop, dropping, sha256
from tests.ingest.making import model, put


@pytest.fixture
async def drop(bus: Bus, tmp_path: Path) -> AsyncIterator[Drop]:
    async with dropping(bus, tmp_path) as drop:
        yield drop


async def settled_once(drop: Drop, rel: str, content: bytes) -> None:
    """It was admitted once and hashed once, as what it is; nothing else was said of it."""
    hashed = await drop.until(Hashed, rel)
    await drop.later()
    assert hashed.sha256 == sha256(content)
    assert drop.about(rel) == ["Settled", "Hashed"]


async def test_a_file_written_slowly_settles_once_and_only_when_its_writer_has_closed_it(drop: Drop) -> None:
    content = model()
    async with drop.agents():
        with (drop.folder / "slow.safetensors").open("wb", buffering=0) as file:
            file.write(content[:100])
            await drop.later()
            file.write(content[100:])
            await drop.later()
            assert drop.about("slow.safetensors") == []
        await settled_once(drop, "slow.safetensors", content)


async def test_a_download_that_is_renamed_at_its_end_is_one_arrival(drop: Drop) -> None:
    content = model()
    async with drop.agents():
        download = drop.folder / "new.safetensors.crdownload"
        with download.open("wb", buffering=0) as file:
            file.write(content[:50])
            await drop.later()
            file.write(content[50:])
        await drop.later()
        download.rename(drop.folder / "new.safetensors")
        await settled_once(drop, "new.safetensors", content)
        assert drop.about("new.safetensors.crdownload") == []


async def test_a_preallocated_file_is_waited_for_while_its_control_file_is_there(drop: Drop) -> None:
    content = model()
    async with drop.agents():
        path = drop.folder / "aria.safetensors"
        control = drop.folder / "aria.safetensors.aria2"
        control.write_bytes(b"state")
        with path.open("wb", buffering=0) as file:
            os.posix_fallocate(file.fileno(), 0, len(content))
        await drop.later()
        for half in (slice(0, 200), slice(200, None)):  # it opens and closes for each piece
            with path.open("r+b", buffering=0) as file:
                file.seek(half.start)
                file.write(content[half])
            await drop.later()
        assert drop.about("aria.safetensors") == []
        control.unlink()
        await settled_once(drop, "aria.safetensors", content)


async def test_a_writer_that_patches_the_header_at_last_is_waited_for(drop: Drop) -> None:
    content = model()
    async with drop.agents():
        with (drop.folder / "patched.safetensors").open("wb", buffering=0) as file:
            file.write(model(fill=9)[: len(content)])
            await drop.later()
            file.seek(0)
            file.write(content)
            await drop.later()
            assert drop.about("patched.safetensors") == []
        await settled_once(drop, "patched.safetensors", content)


async def test_a_writer_that_closes_and_comes_back_makes_a_second_arrival(drop: Drop) -> None:
    first, second = model(), model(fill=7)
    async with drop.agents():
        path = drop.folder / "twice.safetensors"
        path.write_bytes(first)
        assert (await drop.until(Hashed, "twice.safetensors")).sha256 == sha256(first)
        with path.open("r+b", buffering=0) as file:
            file.write(second)
            await drop.later()
        assert (await drop.until(Hashed, "twice.safetensors", 2)).sha256 == sha256(second)
        await drop.later()
        assert drop.about("twice.safetensors") == ["Settled", "Hashed"] * 2


async def test_a_truncated_download_that_is_resumed_after_its_refusal_settles(drop: Drop) -> None:
    content = model()
    async with drop.agents():
        path = drop.folder / "resumed.safetensors"
        path.write_bytes(content[:-3])
        assert (await drop.until(Refused, "resumed.safetensors")).reason == "truncated"
        with path.open("ab") as file:
            file.write(content[-3:])
        assert (await drop.until(Hashed, "resumed.safetensors")).sha256 == sha256(content)
        await drop.later()
        assert drop.about("resumed.safetensors") == ["Refused", "Settled", "Hashed"]


async def test_a_rename_is_told_as_such_and_costs_no_hash(drop: Drop) -> None:
    async with drop.agents():
        path = drop.put("a.safetensors")
        await drop.until(Hashed, "a.safetensors")
        (drop.folder / "deep").mkdir()
        path.rename(drop.folder / "deep" / "b.safetensors")
        moved = await drop.until(Moved, "deep/b.safetensors")
        await drop.later()
        assert moved.old.rel == "a.safetensors"
        assert drop.about("deep/b.safetensors") == ["Moved"] + ["Hashed"] * (moved.known is None)
        assert drop.about("a.safetensors") == ["Settled", "Hashed"]


async def test_content_replaced_in_place_is_a_new_arrival(drop: Drop) -> None:
    async with drop.agents():
        drop.put("a.safetensors")
        await drop.until(Hashed, "a.safetensors")
        drop.put("a.safetensors", model(fill=3))
        assert (await drop.until(Hashed, "a.safetensors", 2)).sha256 == sha256(model(fill=3))
        await drop.later()
        kinds = drop.about("a.safetensors")
        assert [kind for kind in kinds if kind != "Removed"] == ["Settled", "Hashed"] * 2


async def test_a_deleted_file_is_removed(drop: Drop) -> None:
    async with drop.agents():
        path = drop.put("a.safetensors")
        await drop.until(Hashed, "a.safetensors")
        path.unlink()
        assert not (await drop.until(Removed, "a.safetensors")).unmounted
        await drop.later()
        assert drop.about("a.safetensors") == ["Settled", "Hashed", "Removed"]


async def test_folders_made_and_folders_moved_in_are_found_with_all_that_is_in_them(drop: Drop, tmp_path: Path) -> None:
    async with drop.agents():
        deep = drop.folder / "x" / "y" / "z"
        deep.mkdir(parents=True)
        (deep / "a.safetensors").write_bytes(model(fill=1))
        other = tmp_path / "other"
        (other / "in").mkdir(parents=True)
        for number in range(3):
            (other / "in" / f"{number}.safetensors").write_bytes(model(fill=number))
        other.rename(drop.folder / "other")
        await settled_once(drop, "x/y/z/a.safetensors", model(fill=1))
        for number in range(3):
            await settled_once(drop, f"other/in/{number}.safetensors", model(fill=number))
        (deep / "b.safetensors").write_bytes(model(fill=5))  # it is watched by now
        (drop.folder / "other" / "in" / "b.safetensors").write_bytes(model(fill=6))
        await settled_once(drop, "x/y/z/b.safetensors", model(fill=5))
        await settled_once(drop, "other/in/b.safetensors", model(fill=6))
        found = {fact.path.rel for fact in drop.of(Hashed) if not fact.path.rel.startswith("marker")}
        assert len(found) == 6


async def test_links_are_paths_of_their_own_but_lead_out_of_the_root_never(drop: Drop, tmp_path: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(model(fill=9))
    async with drop.agents():
        path = drop.put("a.safetensors")
        await drop.until(Hashed, "a.safetensors")
        (drop.folder / "hard.safetensors").hardlink_to(path)
        (drop.folder / "soft.safetensors").symlink_to(path)
        (drop.folder / "out.safetensors").symlink_to(outside)
        (drop.folder / "nowhere.safetensors").symlink_to(tmp_path / "nowhere")
        for rel in ("hard.safetensors", "soft.safetensors"):
            fact = await drop.until(Settled, rel)
            if fact.known is None:
                assert (await drop.until(Hashed, rel)).sha256 == sha256(model())
        assert (await drop.until(Refused, "out.safetensors")).reason == "outside"
        await drop.later()
        assert drop.about("nowhere.safetensors") == []
        assert drop.about("out.safetensors") == ["Refused"]
        assert "Removed" not in drop.about("a.safetensors")


NAMES = (
    b"new\nline.safetensors",
    b"100%.safetensors",
    b"%41.safetensors",
    b"models.>.safetensors",
    b"$JS.API.STREAM.DELETE.FILES.safetensors",
    b"star * and space.safetensors",
    "Größe-模型.safetensors".encode(),
    b"..safetensors.safetensors",
    b"x" * 243 + b".safetensors",
    b"not \xff utf-8 \xfe.safetensors",
)


async def test_what_lies_beside_a_link_is_told_when_its_file_comes(drop: Drop) -> None:
    drop.settings = msgspec.structs.replace(drop.settings, scan_interval=60)
    words = put(drop.folder / "x" / "words.json", b'{"description": "words"}')
    drop.put("other.safetensors")
    for name in ("link.json", "other.json"):
        (drop.folder / name).symlink_to(words)
    (drop.folder / "link.safetensors").symlink_to("y/late.safetensors")
    (drop.folder / "y").mkdir()
    async with drop.agents():
        await drop.until(Described, "other.safetensors")
        drop.put("y/late.safetensors", model(fill=8))
        assert (await drop.until(Described, "link.safetensors", seconds=10)).details.description == "words"
        words.write_bytes(b'{"description": "others"}')
        for rel in ("link.safetensors", "other.safetensors"):
            assert (await drop.until(Described, rel, 2, seconds=10)).details.description == "others"


async def test_any_name_that_a_disk_can_hold_is_settled_hashed_and_moved(drop: Drop) -> None:
    async with drop.agents():
        for number, name in enumerate(NAMES):
            (drop.folder / os.fsdecode(name)).write_bytes(model(fill=number))
        for number, name in enumerate(NAMES):
            if not name.startswith(b"."):
                assert (await drop.until(Hashed, name)).sha256 == sha256(model(fill=number))
        (drop.folder / os.fsdecode(NAMES[-1])).rename(drop.folder / os.fsdecode(b"100%\xff.safetensors"))
        assert (await drop.until(Moved, b"100%\xff.safetensors")).old.rel == "not %FF utf-8 %FE.safetensors"
        await drop.later()
        for name in NAMES:
            assert drop.about(name) == ([] if name.startswith(b".") else ["Settled", "Hashed"])


async def test_a_file_that_is_written_under_a_name_that_is_not_utf8_is_waited_for(drop: Drop) -> None:
    async with drop.agents():
        name = b"\xff%\xfe.safetensors"
        with (drop.folder / os.fsdecode(name)).open("wb", buffering=0) as file:
            for begin in range(0, 300, 100):
                file.write(model()[begin : begin + 100])
                await drop.later()
            file.write(model()[300:])
            assert drop.about(name) == []
        assert (await drop.until(Hashed, name)).sha256 == sha256(model())


async def test_what_is_no_model_gets_its_verdict_and_the_watcher_lives_on(drop: Drop) -> None:
    folder = drop.folder
    async with drop.agents():
        os.mkfifo(folder / "pipe.safetensors")
        (folder / "folder.safetensors").mkdir()
        (folder / "empty.safetensors").touch()
        (folder / "long.safetensors").write_bytes(model() + b"surplus")
        (folder / "short.safetensors").write_bytes(model()[:-1])
        (folder / "header.safetensors").write_bytes(model()[:40])
        (folder / "foreign.safetensors").write_bytes(b"<html>404 not found</html>" * 10)
        (folder / "readme.txt").write_bytes(b"no model")
        reasons = {
            "pipe": "special",
            "empty": "empty",
            "long": "oversized",
            "short": "truncated",
            "header": "truncated",
        }
        for name, reason in reasons.items():
            assert (await drop.until(Refused, f"{name}.safetensors")).reason == reason
        assert (await drop.until(Hashed, "foreign.safetensors")).identity.problem
        await drop.later()
        assert all(drop.about(f"{name}.safetensors") == ["Refused"] for name in reasons)
        assert drop.about("folder.safetensors") == drop.about("readme.txt") == []


FAR = (
    *(9_300_000_000, 99_999_999_999, 18_446_744_073, 9_223_372_036),  # 2264, 5138; what 64 bits hold, and half of it
    *(-1, -2_177_452_800, -9_000_000_000, 4_102_444_800),  # 1969, 1901, 1684; 2100
)
"""Seconds from 1970 on, or before it."""


@pytest.fixture
async def far_drop(bus: Bus) -> AsyncIterator[Drop]:
    """A drop folder on a file system that keeps any time, where there is one."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as base:
        async with dropping(bus, Path(base)) as drop:
            yield drop


async def test_a_file_of_any_time_is_hashed_once_and_known_after_a_restart(far_drop: Drop) -> None:
    drop = far_drop
    async with drop.agents():
        for number, seconds in enumerate(FAR):
            path = put(drop.folder / f"{number}.tmp", model(fill=number))
            os.utime(path, ns=(0, seconds * 10**9 + 123_456_789))
            path.rename(drop.folder / f"{number}.safetensors")
        for number in range(len(FAR)):
            await drop.until(Hashed, f"{number}.safetensors")
        await drop.later()
    async with drop.agents():
        await drop.later()
    for number in range(len(FAR)):
        assert drop.about(f"{number}.safetensors") == ["Settled", "Hashed"], FAR[number]


async def test_a_change_from_one_far_time_to_another_is_noticed(far_drop: Drop) -> None:
    drop = far_drop
    async with drop.agents():
        path = drop.put("a.safetensors")
        await drop.until(Hashed, "a.safetensors")
        for seconds in (99_999_999_999, 99_999_999_998):
            os.utime(path, ns=(0, seconds * 10**9))
            await drop.later()
        with anyio.fail_after(20):
            while drop.of(Hashed, "a.safetensors")[-1].stat != stat_of(path.stat()):
                await drop.news.wait()
    hashed = drop.of(Hashed, "a.safetensors")
    assert len({fact.stat for fact in hashed}) >= 2 and {fact.sha256 for fact in hashed} == {sha256(model())}


async def test_a_file_that_never_rests_is_hashed_rarely_and_named_and_hashed_when_it_rests(drop: Drop) -> None:
    async with drop.agents():
        path = drop.put("restless.safetensors")
        await drop.until(Hashed, "restless.safetensors")
        changes = 0
        with anyio.fail_after(20):
            while not (await waits(drop)).get("restless.safetensors", "").endswith("has to come to rest"):
                changes += 1
                os.utime(path, ns=(0, changes))
        last = stat_of(path.stat())
        with anyio.fail_after(20):
            while drop.of(Hashed, "restless.safetensors")[-1].stat != last:
                await drop.news.wait()
    assert changes > 3 and len(drop.of(Settled, "restless.safetensors")) <= 4


async def test_a_file_complete_beside_an_old_control_file_is_hashed_and_one_that_is_not_is_named(drop: Drop) -> None:
    then = time.time() - 30 * 24 * 3600
    async with drop.agents():
        for name, content in (("whole", model()), ("part", model()[:-8])):
            control = put(drop.folder / f"{name}.safetensors.aria2", b"state")
            os.utime(control, (then, then))
            drop.put(f"{name}.safetensors", content)
        await drop.until(Hashed, "whole.safetensors")
        await drop.later()
        assert drop.about("whole.safetensors") == ["Settled", "Hashed"] and drop.about("part.safetensors") == []
        (why,) = (await waits(drop)).values()
        assert why.startswith("part.safetensors.aria2 marks it as still under way, but was not written for 30 days")


async def test_what_waits_comes_in_pages_and_is_counted(drop: Drop) -> None:
    async with running(drop.watching()):
        for number in range(5):
            put(drop.folder / f"{number}.safetensors.part", b"")
            put(drop.folder / f"{number}.safetensors", model())
        ask = ScanRoot(after="1.safetensors", limit=2)
        with anyio.fail_after(20):
            while (state := await drop.bus.ask(ASK_ROOT, ask, RootState, root="models")).waiting < 5:
                pass  # the watcher goes on meanwhile
        assert [file.path.rel for file in state.waits] == ["2.safetensors", "3.safetensors"]
        assert all(abs(file.since - time.time()) < 20 for file in state.waits)


async def waits(drop: Drop) -> dict[str, str]:
    """Why each file that waits does."""
    state = await drop.bus.ask(ASK_ROOT, ScanRoot(), RootState, root="models")
    return {file.path.rel: file.why for file in state.waits}
