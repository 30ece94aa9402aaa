import asyncio
import hashlib
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from agents.images import outputs
from agents.images.infotext import read
from agents.images.outputs import BadName, PixelsGone, encode_pictures
from agents.storage import atomic
from agents.storage.pixels import BadPixels
from schemas.images import Encode, Pixels
from tests.images.photos import photo

ID = "0123456789abcdef" * 2
DAY = "2026-01-02"


def job(data: Path, count: int = 1, **changes: object) -> Encode:
    """An encode job whose pixels, 80×60, are on disk."""
    (data / "work").mkdir(parents=True, exist_ok=True)
    pixels = []
    for index in range(count):
        np.save(data / "work" / f"{ID}-{index}.npy", photo(index, 80, 60))
        text = f"a fox {index}"
        pixels.append(Pixels(index=index, file=f"{ID}-{index}.npy", seed=7 + index, width=80, height=60, infotext=text))
    plain = Encode(id=ID, day=DAY, format="webp", quality=90, lossless=False, pixels=tuple(pixels))
    return msgspec.structs.replace(plain, **changes)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_picture_and_its_tiers_are_written_with_infotext(tmp_path: Path) -> None:
    (picture,) = encode_pictures(job(tmp_path), tmp_path)
    assert picture.file == f"outputs/{DAY}/{ID}-0.webp"
    assert picture.tiers == {tier: f"outputs/{DAY}/{ID}-0_{tier}.webp" for tier in ("high", "medium", "low")}
    for name, size in zip(
        [picture.file, *picture.tiers.values()], [(80, 60), (80, 60), (52, 39), (26, 19)], strict=True
    ):
        with Image.open(tmp_path / name) as image:
            assert image.format == "WEBP"
            assert image.size == size
            assert read(image) == "a fox 0"
    full = (tmp_path / picture.file).read_bytes()
    assert (picture.bytes, picture.sha256) == (len(full), hashlib.sha256(full).hexdigest())
    assert (picture.seed, picture.width, picture.height) == (7, 80, 60)
    assert (tmp_path / "work" / f"{ID}-0.npy").exists()


@pytest.mark.parametrize(
    ("changes", "suffix", "exact"),
    [
        ({"format": "png"}, "png", True),
        ({"lossless": True}, "webp", True),
        ({"format": "jpeg"}, "jpg", False),
        ({"format": "webp"}, "webp", False),
    ],
)
def test_the_full_picture_has_the_format_asked_for(
    tmp_path: Path, changes: dict[str, object], suffix: str, exact: bool
) -> None:
    (picture,) = encode_pictures(job(tmp_path, **changes), tmp_path)
    assert picture.file.endswith(f"-0.{suffix}")
    with Image.open(tmp_path / picture.file) as image:
        assert read(image) == "a fox 0"
        difference = np.abs(np.asarray(image.convert("RGB"), int) - photo(0, 80, 60))
    assert difference.mean() < 12
    assert (difference.max() == 0) == exact


def test_a_second_run_returns_the_same_and_writes_nothing(tmp_path: Path) -> None:
    asked = job(tmp_path, 2)
    first = encode_pictures(asked, tmp_path)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "outputs").rglob("*.webp")}
    assert encode_pictures(asked, tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "outputs").rglob("*") if path.is_file()} == written


def test_a_finished_job_needs_no_pixels(tmp_path: Path) -> None:
    asked = job(tmp_path, 2)
    first = encode_pictures(asked, tmp_path)
    for path in (tmp_path / "work").iterdir():
        path.unlink()
    assert encode_pictures(asked, tmp_path) == first


def test_an_unfinished_job_without_pixels_is_an_error(tmp_path: Path) -> None:
    asked = job(tmp_path)
    (picture,) = encode_pictures(asked, tmp_path)
    (tmp_path / picture.tiers["low"]).unlink()
    (tmp_path / "work" / f"{ID}-0.npy").unlink()
    with pytest.raises(PixelsGone, match="_low"):
        encode_pictures(asked, tmp_path)


KILLED = """
import os, signal, sys
from pathlib import Path
import msgspec
from agents.images import outputs
from agents.storage import atomic
from schemas.images import Encode
calls, real, last = 0, atomic.os.fsync, int(sys.argv[2])
def fsync(handle):
    global calls
    calls += 1
    if calls == last:
        os.kill(os.getpid(), signal.SIGKILL)
    real(handle)
atomic.os.fsync = fsync
outputs.encode_pictures(msgspec.json.decode(sys.stdin.buffer.read(), type=Encode), Path(sys.argv[1]))
"""


def test_killed_at_any_flush_and_run_again_the_files_are_the_same(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    expected = encode_pictures(job(whole), whole)
    finished = False
    for flush in range(1, 20):
        data = tmp_path / str(flush)
        asked = job(data)
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(data), str(flush)],
            input=msgspec.json.encode(asked),
            cwd=Path(__file__).parents[2],
            check=False,
        )
        if done.returncode == 0:
            finished = True
            break
        assert done.returncode == -9
        assert encode_pictures(asked, data) == expected
        atomic.sweep(data / "outputs" / DAY, before=time.time() + 1)
        assert tree(data / "outputs") == tree(whole / "outputs")
    assert finished
    assert flush == 8  # four files, the folders that are made, and the names in the last


@pytest.mark.parametrize("bad", ["../" * 10 + "etc", "", "0" * 31, "0" * 33, "A" * 32, "0" * 32 + "\n", "٠" * 32])
def test_an_id_that_could_leave_the_folder_is_refused(tmp_path: Path, bad: str) -> None:
    with pytest.raises(BadName, match="id"):
        encode_pictures(job(tmp_path, id=bad), tmp_path)


@pytest.mark.parametrize("bad", ["..", "2026-13-01", "2026-1-1", "2026-01-01/..", "20260101", "", "2026-01-01\n"])
def test_a_day_that_is_none_is_refused(tmp_path: Path, bad: str) -> None:
    with pytest.raises(BadName, match="day"):
        encode_pictures(job(tmp_path, day=bad), tmp_path)


@pytest.mark.parametrize("bad", ["../catalog.npy", "/etc/passwd", "a/b.npy", ".npy", "a.webp", "a.npy\n", "a\0.npy"])
def test_a_pixel_file_that_could_lie_elsewhere_is_refused(tmp_path: Path, bad: str) -> None:
    asked = job(tmp_path)
    changed = msgspec.structs.replace(asked, pixels=(msgspec.structs.replace(asked.pixels[0], file=bad),))
    with pytest.raises(BadName, match="pixel file"):
        encode_pictures(changed, tmp_path)


def test_two_pictures_can_not_take_one_name(tmp_path: Path) -> None:
    asked = job(tmp_path)
    with pytest.raises(BadName, match="same index"):
        encode_pictures(msgspec.structs.replace(asked, pixels=asked.pixels * 2), tmp_path)
    negative = msgspec.structs.replace(asked.pixels[0], index=-1)
    with pytest.raises(BadName, match="counts from 0"):
        encode_pictures(msgspec.structs.replace(asked, pixels=(negative,)), tmp_path)


def test_pixels_of_another_size_than_the_job_has_are_refused(tmp_path: Path) -> None:
    asked = job(tmp_path)
    wider = msgspec.structs.replace(asked.pixels[0], width=88)
    with pytest.raises(BadPixels):
        encode_pictures(msgspec.structs.replace(asked, pixels=(wider,)), tmp_path)
    assert not (tmp_path / "outputs").exists()


async def worst_lag(asked: Encode, data: Path) -> float:
    """How late the loop wakes while the pictures are encoded in a thread: the 99th percentile, in seconds."""
    work = asyncio.create_task(asyncio.to_thread(encode_pictures, asked, data))
    lags = []
    while not work.done():
        start = time.perf_counter()
        await asyncio.sleep(0.001)
        lags.append(time.perf_counter() - start - 0.001)
    await work
    return sorted(lags)[int(len(lags) * 0.99)]


@pytest.mark.alone
@pytest.mark.parametrize("form", ["webp", "png", "jpeg"])
async def test_the_event_loop_stays_free_while_a_large_picture_is_encoded(
    tmp_path: Path, form: outputs.ImageFormat
) -> None:
    large = np.tile(photo(1, 512, 512), (4, 4, 1))
    for attempt in range(5):  # a busy machine delays any loop at times, a held interpreter delays it every time
        data = tmp_path / str(attempt)
        asked = job(data, format=form)
        np.save(data / "work" / f"{ID}-0.npy", large)
        pixels = msgspec.structs.replace(asked.pixels[0], width=2048, height=2048)
        lag = await worst_lag(msgspec.structs.replace(asked, pixels=(pixels,)), data)
        if lag < 0.010:
            return
    pytest.fail(f"the loop was {lag * 1e3:.0f} ms late")
