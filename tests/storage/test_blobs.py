import hashlib
import os
import time
from collections.abc import Collection
from pathlib import Path

import pytest

from agents.storage import atomic, blobs
from agents.storage.blobs import put
from agents.storage.blobs import sweep as sweep_blobs
from agents.storage.trash import TrashBatch, listed


def sweep(data: Path, used: Collection[str], *, before: float) -> int:
    return sweep_blobs(data, used, before=before, trash=TrashBatch(data, time.time()))


def test_bytes_are_kept_under_their_own_digest(tmp_path: Path) -> None:
    key = put(tmp_path, b"a fox")
    assert key == hashlib.sha256(b"a fox").hexdigest()
    assert (tmp_path / "blobs" / key).read_bytes() == b"a fox"
    assert [path.name for path in (tmp_path / "blobs").iterdir()] == [key]


def test_bytes_put_twice_are_one_blob(tmp_path: Path) -> None:
    assert put(tmp_path, b"a fox") == put(tmp_path, b"a fox")
    assert len(list((tmp_path / "blobs").iterdir())) == 1


def test_a_blob_that_is_not_used_is_swept_and_one_that_is_stays(tmp_path: Path) -> None:
    used, unused = put(tmp_path, b"used"), put(tmp_path, b"unused")
    assert sweep(tmp_path, {used}, before=time.time() + 60) == 1
    assert (tmp_path / "blobs" / used).read_bytes() == b"used"
    assert not (tmp_path / "blobs" / unused).exists()
    [trashed] = listed(tmp_path)
    assert trashed.file == f"blobs/{unused}" and trashed.bytes == len(b"unused")


def test_a_blob_put_since_is_kept_although_nothing_uses_it(tmp_path: Path) -> None:
    key = put(tmp_path, b"a fox")
    assert sweep(tmp_path, (), before=(tmp_path / "blobs" / key).stat().st_ctime) == 0
    assert (tmp_path / "blobs" / key).is_file()


def test_putting_bytes_again_makes_their_blob_young_again(tmp_path: Path) -> None:
    blob = tmp_path / "blobs" / put(tmp_path, b"a fox")
    os.utime(blob, (1, 1))
    before = blob.stat()
    put(tmp_path, b"a fox")
    assert blob.stat().st_mtime > before.st_mtime
    assert blob.stat().st_ctime >= before.st_ctime


def test_old_times_that_a_copy_of_the_directory_kept_make_no_blob_old(tmp_path: Path) -> None:
    blob = tmp_path / "blobs" / put(tmp_path, b"a fox")
    os.utime(blob, (1, 1))
    assert sweep(tmp_path, (), before=time.time() - 60) == 0
    assert blob.is_file()


def test_files_with_other_names_are_left_alone(tmp_path: Path) -> None:
    put(tmp_path, b"a fox")
    (tmp_path / "blobs" / "notes.txt").write_bytes(b"theirs")
    assert sweep(tmp_path, (), before=time.time() + 60) == 1
    assert [path.name for path in (tmp_path / "blobs").iterdir()] == ["notes.txt"]


def test_a_directory_without_blobs_has_none_to_sweep(tmp_path: Path) -> None:
    assert sweep(tmp_path, (), before=time.time() + 60) == 0


def test_a_blob_that_is_swept_the_moment_it_was_found_is_put_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def place_then_sweep(final: Path, content: bytes) -> bool:
        is_new = atomic.place(final, content)
        if not is_new:
            assert sweep(tmp_path, (), before=time.time() + 60) == 1
        return is_new

    key = put(tmp_path, b"a fox")
    monkeypatch.setattr(blobs, "place", place_then_sweep)
    assert put(tmp_path, b"a fox") == key
    assert (tmp_path / "blobs" / key).read_bytes() == b"a fox"


def test_a_disk_that_takes_nothing_is_said(tmp_path: Path) -> None:
    (tmp_path / "blobs").write_bytes(b"a file where the folder goes")
    with pytest.raises(OSError, match="blobs"):
        put(tmp_path, b"a fox")
