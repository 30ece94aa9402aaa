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


class EncodePicture(msgspec.Struct, frozen=True, kw_only=True):
    """A job for the encoder: three tiers of a picture of a model, `data/images/<sha256>_<number>_<tier>.webp`.

    `original` is the path below the data directory of the picture to read: `blobs/<its SHA-256>` or
    `images/pending/<file>`; `source` is the SHA-256 (64 hex digits) that its bytes must have.
    """

    id: str
    sha256: str
    number: int
    original: str
    source: str


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
    """The pictures of a job are on disk under their final names. `model` is the SHA-256 of the model that they are
    pictures of (`index` is their number there), and empty for generated ones."""

    id: str
    model: str = ""
    pictures: tuple[Picture, ...]
    seconds: float
    at: float


class PictureRefused(msgspec.Struct, frozen=True, kw_only=True):
    """A picture of a model that can't be encoded: it is damaged, too large, of no known format, or gone; or, `taken`,
    other pictures lie under the names that its number makes, so that it needs another one."""

    id: str
    sha256: str
    number: int
    error: str
    at: float
    taken: bool = False
