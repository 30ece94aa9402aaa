import os
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.storage import paths
from agents.storage.errors import BadPath, OutsideRoot
from schemas.files import Stat

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


TIMES = (
    *(-(2**70), -(2**63) - 1, -(2**63), -1, 0, 2**63 - 1, 2**63, 9_300_000_000 * 10**9, 2**64 - 1, 2**64, 2**70),
    *(99_999_999_999 * 10**9 + 1, 99_999_999_999 * 10**9 + 2),
)
"""Nanoseconds from or before 1970, in years from far before it to far behind 2262."""


class Result:
    """What os.stat would give for a file of this time."""

    st_dev, st_ino, st_size = 2**64 - 1, 2**64 - 2, 2**62

    def __init__(self, time: int) -> None:
        self.st_mtime_ns = self.st_ctime_ns = time


@pytest.mark.parametrize("time", TIMES)
def test_every_time_of_a_file_fits_into_64_bits_with_a_sign(time: int) -> None:
    stat = paths.stat_of(Result(time))  # type: ignore[arg-type]
    assert -(2**63) <= stat.mtime_ns < 2**63 and (stat.mtime_ns - time) % 2**64 == 0
    assert stat.mtime_ns == time or not -(2**63) <= time < 2**63, "most times are themselves"
    assert msgspec.json.decode(msgspec.json.encode(stat), type=Stat) == stat


@given(st.integers(-(2**90), 2**90), st.integers(-(2**63), 2**63))
def test_two_times_less_than_292_years_apart_are_told_apart(time: int, difference: int) -> None:
    one, other = paths.stat_of(Result(time)), paths.stat_of(Result(time + difference))  # type: ignore[arg-type]
    assert (one == other) == (difference == 0)


def test_a_file_of_a_far_time_is_the_same_at_every_look() -> None:
    with tempfile.NamedTemporaryFile(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as file:
        for seconds in (-3_000_000_000, 9_300_000_000, 99_999_999_999):
            os.utime(file.name, ns=(0, seconds * 10**9 + 7))
            assert paths.stat_of(Path(file.name).stat()) == paths.stat_of(os.fstat(file.fileno()))
