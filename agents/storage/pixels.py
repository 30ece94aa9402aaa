"""Pixels: what a generator left in `data/work` for the encoder, a .npy file that is read as if it were an attack."""

import math
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bus.errors import DarkroomError

_NPY_HEADER_BYTES = 4096


class BadPixels(DarkroomError):
    """The pixels of a job are not those of the job."""


def read_pixels(path: Path, *, width: int, height: int) -> npt.NDArray[np.uint8]:
    """The uint8 H×W×3 pixels in a .npy file of exactly `width`×`height` px.

    Pickles are never read, and the header has to agree with the file's size before memory is taken for it. Raises
    BadPixels, or FileNotFoundError when there is no such file.
    """
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            if version != (1, 0):
                raise ValueError(f"version {version} of the format is not read")
            shape, by_column, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=_NPY_HEADER_BYTES)
        except (ValueError, SyntaxError) as error:
            raise BadPixels(f"{path.name} is no .npy file of pixels: {error}") from error
        if dtype != np.dtype(np.uint8) or shape != (height, width, 3) or by_column:
            raise BadPixels(f"{path.name} holds {dtype} {shape}, not uint8 {(height, width, 3)}")
        if os.fstat(file.fileno()).st_size - file.tell() != math.prod(shape):
            raise BadPixels(f"{path.name} is cut off or has more than its pixels")
        return np.frombuffer(file.read(), np.uint8).reshape(shape)
