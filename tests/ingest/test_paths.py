import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.ingest import paths
from agents.ingest.errors import BadPath, OutsideRoot

NAMES = (
    b"a\nb",
    b">",
    b"$JS.API.STREAM.DELETE.S",
    b"x" * 255,
    b"\xff\xfe",
    b"100%",
    b"%41",
    "é".encode(),
    b"\xed\xb0\x80",
)


@given(st.binary(min_size=1))
def test_any_bytes_survive_the_way_to_text_and_back(raw: bytes) -> None:
    text = paths.encode(raw)
    text.encode("utf-8")
    assert paths.decode(text) == raw


@given(st.binary(min_size=1), st.binary(min_size=1))
def test_two_paths_never_have_the_same_text(one: bytes, other: bytes) -> None:
    assert (paths.encode(one) == paths.encode(other)) == (one == other)


def test_plain_text_stays_readable() -> None:
    assert paths.encode("модель/ein Bär.ckpt".encode()) == "модель/ein Bär.ckpt"
    assert paths.encode(b"50%\xff") == "50%25%FF"


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_any_name_is_found_again(tmp_path: Path, name: bytes) -> None:
    real = os.fsencode(tmp_path) + b"/" + name
    os.close(os.open(real, os.O_CREAT | os.O_WRONLY))
    assert paths.resolve(str(tmp_path), paths.encode(name)) == os.path.realpath(real)


@pytest.mark.parametrize(
    "rel", ["", "/etc/passwd", "..", "a/../b", "a//b", "./a", "a/", "%2E%2E", "a%00", "%ff", "%", "\ud800"]
)
def test_what_could_leave_the_root_is_no_path(tmp_path: Path, rel: str) -> None:
    with pytest.raises(BadPath):
        paths.resolve(str(tmp_path), rel)


def test_a_null_byte_is_no_path(tmp_path: Path) -> None:
    with pytest.raises(BadPath):
        paths.join(str(tmp_path), "a\0b")


def test_a_link_out_of_the_root_is_refused_and_one_within_is_followed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "real").write_bytes(b"")
    (root / "in").symlink_to("real")
    (root / "out").symlink_to(tmp_path)
    (tmp_path / "root2").mkdir()
    (root / "near").symlink_to(tmp_path / "root2")
    assert paths.resolve(str(root), "in") == os.fsencode(root / "real")
    for rel in ("out", "out/x", "near"):
        with pytest.raises(OutsideRoot):
            paths.resolve(str(root), rel)


def test_a_root_that_is_the_whole_disk_has_an_inside() -> None:
    assert paths.resolve("/", "etc/hostname").startswith(b"/etc")


def test_case_and_composition_do_not_matter_in_comparisons() -> None:
    assert paths.comparison_key("Ä/MODEL.ckpt") == paths.comparison_key("a\u0308/model.CKPT")
    assert paths.comparison_key("a") != paths.comparison_key("b")


def test_keys_and_job_ids_are_tokens_and_tell_their_nouns_apart(tmp_path: Path) -> None:
    stat = paths.stat_of(tmp_path.stat())
    keys = {paths.file_key("models", 1, 23), paths.file_key("models", 12, 3), paths.file_key("loras", 1, 23)}
    ids = {paths.hash_id(key, "a", stat) for key in keys} | {paths.hash_id(next(iter(keys)), "b", stat)}
    assert len(keys) == 3 and len(ids) == 4
    assert all(len(token) == 32 and int(token, 16) >= 0 for token in keys | ids)
