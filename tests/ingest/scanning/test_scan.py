import os
from pathlib import Path

import pytest

from agents.ingest.scanning.scan import scan
from tests.ingest.making import put


def test_a_scan_finds_models_in_every_folder_and_nothing_else(tmp_path: Path) -> None:
    for name in ("a.safetensors", "x/y/z/b.CKPT", "notes.txt", "c.safetensors.part", ".hidden/d.ckpt", ".e.ckpt"):
        put(tmp_path / name, b"1")
    put(tmp_path / "f.safetensors.download" / "f.safetensors", b"1")
    found = scan("models", str(tmp_path))
    assert found.state == "present" and found.problems == ()
    assert sorted(found.candidates) == ["a.safetensors", "x/y/z/b.CKPT"]
    assert found.candidates["a.safetensors"].stat.size == 1


def test_names_of_any_bytes_are_found(tmp_path: Path) -> None:
    for name in (b"\xff.ckpt", b"a\nb.ckpt", b"100%.ckpt", b"\xfe/c.ckpt"):
        put(tmp_path / os.fsdecode(name), b"1")
    assert sorted(scan("models", str(tmp_path)).candidates) == ["%FE/c.ckpt", "%FF.ckpt", "100%25.ckpt", "a\nb.ckpt"]


def test_what_a_control_file_lies_beside_is_told(tmp_path: Path) -> None:
    for name in ("a/x.safetensors", "a/x.safetensors.aria2", "a/y.safetensors", "a/z.ckpt.part"):
        put(tmp_path / name, b"1")
    assert scan("models", str(tmp_path)).controlled == {"a/x.safetensors"}


def test_linked_folders_are_not_entered_and_loops_end(tmp_path: Path) -> None:
    root = tmp_path / "root"
    put(root / "a" / "x.ckpt", b"1")
    (root / "a" / "again").symlink_to(root)
    put(tmp_path / "elsewhere" / "y.ckpt", b"1")
    (root / "big").symlink_to(tmp_path / "elsewhere")
    (root / "dead.ckpt").symlink_to("nothing")
    found = scan("models", str(root))
    assert list(found.candidates) == ["a/x.ckpt"]
    assert [problem.rel for problem in found.problems] == ["big"] and "root" in found.problems[0].error


def test_a_linked_file_has_the_stat_of_what_it_leads_to(tmp_path: Path) -> None:
    put(tmp_path / "blobs" / "abc", b"1234")
    (tmp_path / "x.ckpt").symlink_to("blobs/abc")
    assert scan("models", str(tmp_path)).candidates["x.ckpt"].stat.size == 4


def test_a_file_linked_from_out_of_the_root_is_not_taken_for_one_that_is_known_elsewhere(tmp_path: Path) -> None:
    known = put(tmp_path / "models" / "a.ckpt", b"1234")
    (tmp_path / "loras").mkdir()
    link = tmp_path / "loras" / "b.ckpt"
    link.symlink_to(known)
    assert scan("loras", str(tmp_path / "loras")).candidates["b.ckpt"].stat.ino == link.lstat().st_ino


def test_hard_links_are_two_paths_of_one_inode(tmp_path: Path) -> None:
    put(tmp_path / "a.ckpt", b"1")
    (tmp_path / "b.ckpt").hardlink_to(tmp_path / "a.ckpt")
    found = scan("models", str(tmp_path)).candidates
    assert found["a.ckpt"].stat == found["b.ckpt"].stat and found["a.ckpt"].links == 2


def test_a_root_that_is_away_is_gone_and_an_empty_one_is_empty(tmp_path: Path) -> None:
    assert scan("models", str(tmp_path / "nowhere")).state == "gone"
    assert scan("models", str(put(tmp_path / "file", b""))).state == "gone"
    (tmp_path / "empty").mkdir()
    empty = scan("models", str(tmp_path / "empty"))
    assert empty.state == "present" and empty.candidates == {} and empty.devices == {tmp_path.stat().st_dev}


def test_a_folder_that_can_not_be_read_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "open" / "a.ckpt", b"1")
    put(tmp_path / "shut" / "b.ckpt", b"1")
    real = os.scandir

    def guarded(path: bytes) -> object:
        if path.endswith(b"/shut"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", guarded)  # root may read everything, so the refusal is played
    found = scan("models", str(tmp_path))
    assert list(found.candidates) == ["open/a.ckpt"] and found.unread == ("shut",)
    assert "permissions" in found.problems[0].error


def test_a_folder_that_vanishes_during_the_walk_is_simply_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    real = os.scandir

    def racing(path: bytes) -> object:
        if path.endswith(b"/a"):
            (tmp_path / "a").rmdir()
        return real(path)

    monkeypatch.setattr(os, "scandir", racing)
    found = scan("models", str(tmp_path))
    assert found.state == "present" and found.unread == () and found.problems == ()


def test_a_pipe_by_a_models_name_is_a_candidate_for_the_gate_to_refuse(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.ckpt")
    assert list(scan("models", str(tmp_path)).candidates) == ["a.ckpt"]
