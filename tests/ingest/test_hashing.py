import hashlib
import os
import sys
import threading
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from agents.ingest.errors import ChangedWhileHashing, Gone, HashCancelled, MissingAlgorithm, Unreadable
from agents.ingest.hashing import BUFFER_BYTES, SMALL_BYTES, Progress, hash_file
from agents.ingest.paths import stat_of
from tests.ingest.making import model, put

SIZES = (0, 1, SMALL_BYTES, SMALL_BYTES + 1, 3 * BUFFER_BYTES, 9 * BUFFER_BYTES + 7)


def content(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


@pytest.mark.parametrize("size", SIZES)
def test_every_digest_is_that_of_the_bytes(tmp_path: Path, size: int) -> None:
    data = content(size)
    path = put(tmp_path / "a.ckpt", data)
    found = hash_file(str(path), expected=stat_of(path.stat()), algorithms=("sha256", "crc32", "autov3"))
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
    with pytest.raises(MissingAlgorithm, match="install"):
        hash_file(str(path), expected=stat, algorithms=("blake3",))


@pytest.mark.parametrize("numbers", [3, 3 << 20])
def test_autov3_is_of_what_follows_the_header(tmp_path: Path, numbers: int) -> None:
    one = put(tmp_path / "a.safetensors", model({"x": (numbers,)}))
    other = put(tmp_path / "b.safetensors", model({"x": (numbers,)}, {"title": "other"}))
    found = [hash_file(str(path), expected=stat_of(path.stat()), algorithms=("autov3",)) for path in (one, other)]
    assert found[0].autov3 == found[1].autov3 == hashlib.sha256(b"\1" * numbers * 2).hexdigest()[:12]
    assert found[0].sha256 != found[1].sha256


def test_only_what_is_asked_for_is_told(tmp_path: Path) -> None:
    path = put(tmp_path / "a.ckpt", b"1")
    found = hash_file(str(path), expected=stat_of(path.stat()))
    assert (found.blake3, found.crc32, found.autov3) == ("", "", "")


def test_a_small_file_starts_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "a.ckpt", content(SMALL_BYTES))
    monkeypatch.delattr(threading, "Thread")
    hash_file(str(path), expected=stat_of(path.stat()))


def test_a_file_that_changed_since_it_settled_is_not_hashed(tmp_path: Path) -> None:
    path = put(tmp_path / "a.ckpt", b"1")
    expected = stat_of(path.stat())
    put(path, b"22")
    with pytest.raises(ChangedWhileHashing):
        hash_file(str(path), expected=expected)


@pytest.mark.parametrize("change", ["grow", "shrink", "overwrite", "touch"])
def test_a_change_while_it_is_read_is_noticed(tmp_path: Path, change: str) -> None:
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
        hash_file(str(path), expected=stat_of(stat), cancelled=meddle)


def test_hashing_can_be_cancelled_between_buffers_and_leaves_no_thread(tmp_path: Path) -> None:
    path = put(tmp_path / "a.ckpt", content(32 * BUFFER_BYTES))
    asked: list[int] = []

    def third() -> bool:
        asked.append(1)
        return len(asked) == 3

    with pytest.raises(HashCancelled):
        hash_file(str(path), expected=stat_of(path.stat()), cancelled=third)
    assert len(asked) == 3
    assert not [thread for thread in threading.enumerate() if thread.name == "read-ahead"]


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
        hash_file(str(path), expected=stat_of(path.stat()), cancelled=fail)
    assert not [thread for thread in threading.enumerate() if thread.name == "read-ahead"]


def test_what_is_gone_or_can_not_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "a.ckpt", content(4 * BUFFER_BYTES))
    stat = stat_of(path.stat())
    with pytest.raises(Gone):
        hash_file(str(tmp_path / "b.ckpt"), expected=stat)

    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(Unreadable, match="Input/output error"):
        hash_file(str(path), expected=stat)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.ckpt")
    with pytest.raises(ChangedWhileHashing):
        hash_file(str(tmp_path / "a.ckpt"), expected=stat_of((tmp_path / "a.ckpt").stat()))
