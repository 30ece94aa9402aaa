import errno
from pathlib import Path

import numpy as np
import pytest

from agents.storage.pixels import BadPixels, read_pixels


def test_pixels_are_read_back(tmp_path: Path) -> None:
    pixels = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    np.save(tmp_path / "p.npy", pixels)
    assert np.array_equal(read_pixels(tmp_path / "p.npy", width=4, height=5), pixels)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 5, 3), np.uint8),
        np.zeros((5, 4, 3), np.float32),
        np.zeros((5, 4), np.uint8),
        np.zeros((5, 4, 3), np.uint8, order="F"),
        np.array([{"a": 1}], dtype=object),
    ],
)
def test_pixels_of_another_kind_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "p.npy", array)
    with pytest.raises(BadPixels):
        read_pixels(tmp_path / "p.npy", width=4, height=5)


def test_a_header_that_promises_more_than_the_file_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    with (tmp_path / "p.npy").open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (1_000_000, 1_000_000, 3)}
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(BadPixels, match="cut off"):
        read_pixels(tmp_path / "p.npy", width=1_000_000, height=1_000_000)


@pytest.mark.parametrize("data", [b"", b"no numpy", b"\x93NUMPY\x01\x00\xff\xff", b"\x93NUMPY\x02\x00" + bytes(200)])
def test_a_file_that_is_no_npy_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "p.npy").write_bytes(data)
    with pytest.raises(BadPixels):
        read_pixels(tmp_path / "p.npy", width=4, height=5)


def test_missing_pixels_are_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        read_pixels(tmp_path / "p.npy", width=4, height=5)
    assert caught.value.errno == errno.ENOENT
