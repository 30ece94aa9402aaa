"""Pictures: from the generator's pixels to the encoder's files."""

from typing import Literal

import msgspec

ImageFormat = Literal["webp", "png", "jpeg"]


class Pixels(msgspec.Struct, frozen=True, kw_only=True):
    """Raw pixels waiting in `data/work/<file>`: a .npy of uint8, H×W×3, sRGB.

    `infotext` empty means the encoder writes it from the job's plan (sixteen copies of a long prompt would not fit)."""

    index: int
    file: str
    seed: int
    width: int
    height: int
    infotext: str = ""


class Encode(msgspec.Struct, frozen=True, kw_only=True):
    """A job for the encoder: all pictures of one generation job. `day` (YYYY-MM-DD, UTC) names the output folder."""

    id: str
    day: str
    format: ImageFormat
    quality: int
    lossless: bool
    pixels: tuple[Pixels, ...]


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """One finished picture. Paths are relative to the data directory, '/' between parts; `bytes` is the full file's."""

    index: int
    seed: int
    width: int
    height: int
    file: str
    bytes: int
    sha256: str
    tiers: dict[str, str]


class Encoded(msgspec.Struct, frozen=True, kw_only=True):
    """The pictures of a job are on disk under their final names."""

    id: str
    pictures: tuple[Picture, ...]
    seconds: float
    at: float
