import hashlib
import os
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from agents.ingest.errors import ChangedWhileHashing, Gone, HashCancelled, MissingAlgorithm, Unreadable
from agents.ingest.hashing.digests import Progress, hash_file, why_not
from agents.ingest.hashing.reading import BUFFER_BYTES, SMALL_BYTES, Cores
from agents.storage.paths import stat_of
from tests.ingest.making import model, put

SIZES = (0, 1, SMALL_BYTES, SMALL_BYTES + 1, 3 * BUFFER_BYTES, 9 * BUFFER_BYTES + 7)


def content(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def reading_ahead() -> bool:
    """Whether a thread is, for any file."""
    return any(thread.name == "read-ahead" for thread in threading.enumerate())


@pytest.mark.parametrize("size", SIZES)
def test_every_digest_is_that_of_the_bytes(tmp_path: Path, size: int) -> None:
    data = content(size)
    path = put(tmp_path / "a.ckpt", data)
    found = hash_file(str(path), expected=stat_of(path.stat()), algorithms=("crc32", "autov3"))
    assert found.sha256 == hashlib.sha256(data).hexdigest() and found.autov2 == found.sha256[:10]
    assert found.crc32 == f"{zlib.crc32(data):08X}" and found.autov3 == ""


def test_blake3_is_that_of_its_package_or_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Reversed:
        def __init__(self) -> None:
            self.seen = b""

        def update(self, data: memoryview) -> None:
            self.seen += bytes(data)

        def hexdigest(self) -> str:
            return self.seen[::-1].hex()

    path = put(tmp_path / "a.ckpt", b"\1\2\3")
    stat = stat_of(path.stat())
    monkeypatch.setitem(sys.modules, "blake3", SimpleNamespace(blake3=Reversed))
    assert hash_file(str(path), expected=stat, algorithms=("blake3",)).blake3 == "030201"
    monkeypatch.setitem(sys.modules, "blake3", None)
    assert "install" in why_not("blake3") and why_not("crc32") == ""
    with pytest.raises(MissingAlgorithm, match="install"):
        hash_file(str(path), expected=stat, algorithms=("blake3",))


@pytest.mark.parametrize("numbers", [3, 3 << 20])
def test_autov3_is_of_what_follows_the_header(tmp_path: Path, numbers: int) -> None:
    one = put(tmp_path / "a.safetensors", model({"x": (numbers,)}))
    other = put(tmp_path / "b.safetensors", model({"x": (numbers,)}, {"title": "other"}))
    found = [hash_file(str(path), expected=stat_of(path.stat()), algorithms=("autov3",)) for path in (one, other)]
    assert found[0].autov3 == found[1].autov3 == hashlib.sha256(b"\1" * numbers * 2).hexdigest()[:12]
    assert found[0].sha256 != found[1].sha256


def test_autov3_is_there_behind_a_header_of_20_mib(tmp_path: Path) -> None:
    path = put(tmp_path / "a.safetensors", model({"x": (3,)}, {"log": "x" * (20 << 20)}))
    found = hash_file(str(path), expected=stat_of(path.stat()), algorithms=("autov3",))
    assert found.autov3 == hashlib.sha256(b"\1" * 6).hexdigest()[:12]


def test_only_what_is_asked_for_is_told(tmp_path: Path) -> None:
    path = put(tmp_path / "a.ckpt", b"1")
    found = hash_file(str(path), expected=stat_of(path.stat()))
    assert (found.blake3, found.crc32, found.autov3) == ("", "", "")


def test_a_file_is_read_ahead_only_while_a_core_is_spare(tmp_path: Path) -> None:
    data = content(120 * BUFFER_BYTES)
    path = put(tmp_path / "a.ckpt", data)
    cores, seen = Cores(2), []
    other: ExitStack = ExitStack()

    def others_come_and_go() -> bool:
        seen.append(reading_ahead())
        if len(seen) == 40:
            other.enter_context(cores.one())
        if len(seen) == 80:
            other.close()
        return False

    found = hash_file(str(path), expected=stat_of(path.stat()), cancelled=others_come_and_go, cores=cores)
    assert found.sha256 == hashlib.sha256(data).hexdigest()
    assert all(seen[:40]) and not any(seen[45:80]) and all(seen[82:110])
    assert cores.busy == 0


def test_on_one_core_no_thread_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "a.ckpt", content(9 * BUFFER_BYTES))
    monkeypatch.delattr(threading, "Thread")
    assert hash_file(str(path), expected=stat_of(path.stat()), cores=Cores(1)).sha256


def test_a_small_file_takes_no_core_from_a_large_one(tmp_path: Path) -> None:
    path = put(tmp_path / "a.ckpt", content(SMALL_BYTES))
    cores, seen = Cores(2), []
    hash_file(str(path), expected=stat_of(path.stat()), cancelled=lambda: bool(seen.append(cores.busy)), cores=cores)
    assert set(seen) == {0}


def test_many_files_at_once_are_each_hashed_right(tmp_path: Path) -> None:
    contents = [content((7 + number) * BUFFER_BYTES + number)[number:] for number in range(24)]
    paths = [put(tmp_path / f"{number}.ckpt", data) for number, data in enumerate(contents)]
    cores = Cores(3)

    def hashed(path: Path) -> str:
        return hash_file(str(path), expected=stat_of(path.stat()), cores=cores).sha256

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(hashed, paths)) == [hashlib.sha256(data).hexdigest() for data in contents]
    assert cores.busy == 0 and not reading_ahead()


def test_a_small_file_starts_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "a.ckpt", content(SMALL_BYTES))
    monkeypatch.delattr(threading, "Thread")
    found = hash_file(str(path), expected=stat_of(path.stat()))
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_that_changed_since_it_settled_is_not_hashed(tmp_path: Path) -> None:
    path = put(tmp_path / "a.ckpt", b"1")
    expected = stat_of(path.stat())
    put(path, b"22")
    with pytest.raises(ChangedWhileHashing):
        hash_file(str(path), expected=expected)


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("change", ["grow", "shrink", "overwrite", "touch"])
def test_a_change_while_it_is_read_is_noticed(tmp_path: Path, change: str, cores: int) -> None:
    path = put(tmp_path / "a.ckpt", content(16 * BUFFER_BYTES))
    stat = path.stat()

    def meddle() -> bool:
        with path.open("r+b") as file:
            match change:
                case "grow":
                    file.seek(0, os.SEEK_END)
                    file.write(b"more")
                case "shrink":
                    file.truncate(BUFFER_BYTES)
                case "overwrite":
                    file.write(b"other")
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        return False

    with pytest.raises(ChangedWhileHashing):
        hash_file(str(path), expected=stat_of(stat), cancelled=meddle, cores=Cores(cores))


@pytest.mark.parametrize("cores", [1, 2])
def test_hashing_can_be_cancelled_between_buffers_and_leaves_no_thread(tmp_path: Path, cores: int) -> None:
    path = put(tmp_path / "a.ckpt", content(32 * BUFFER_BYTES))
    asked: list[int] = []

    def third() -> bool:
        asked.append(1)
        return len(asked) == 3

    with pytest.raises(HashCancelled):
        hash_file(str(path), expected=stat_of(path.stat()), cancelled=third, cores=Cores(cores))
    assert len(asked) == 3
    assert not reading_ahead()


def test_progress_comes_at_most_four_times_a_second(tmp_path: Path) -> None:
    path = put(tmp_path / "a.ckpt", content(20 * BUFFER_BYTES))
    ticks = iter(range(1000))
    seen: list[Progress] = []
    hash_file(str(path), expected=stat_of(path.stat()), on_progress=seen.append, clock=lambda: next(ticks) * 0.1)
    assert 5 <= len(seen) <= 8
    assert all(tick.total == 20 * BUFFER_BYTES and tick.rate > 0 and tick.eta >= 0 for tick in seen)
    assert [tick.done for tick in seen] == sorted({tick.done for tick in seen})


def test_a_callback_that_raises_ends_the_reading_too(tmp_path: Path) -> None:
    path = put(tmp_path / "a.ckpt", content(32 * BUFFER_BYTES))

    def fail() -> bool:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        hash_file(str(path), expected=stat_of(path.stat()), cancelled=fail, cores=Cores(2))
    assert not reading_ahead()


def test_what_is_gone_or_can_not_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "a.ckpt", content(4 * BUFFER_BYTES))
    stat = stat_of(path.stat())
    with pytest.raises(Gone):
        hash_file(str(tmp_path / "b.ckpt"), expected=stat)

    def deleted() -> bool:
        path.unlink(missing_ok=True)
        return False

    with pytest.raises(Gone):
        hash_file(str(path), expected=stat, cancelled=deleted)

    path = put(tmp_path / "a.ckpt", content(4 * BUFFER_BYTES))
    stat = stat_of(path.stat())

    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(Unreadable, match="Input/output error"):
        hash_file(str(path), expected=stat)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.ckpt")
    with pytest.raises(ChangedWhileHashing):
        hash_file(str(tmp_path / "a.ckpt"), expected=stat_of((tmp_path / "a.ckpt").stat()))
