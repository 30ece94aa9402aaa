"""The three WebP tiers of every picture: one table, and what it costs to make them.

`high` is the picture shrunk to at most 2,000,000 pixels; `medium` and `low` are 66 % and 33 % of high's sides. Sizes
are rounded down, as in 3000×2000 → 1732×1154, 1143×761, 571×380, in whole numbers so that no float decides.
"""

import io
from math import isqrt
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image

TierName = Literal["high", "medium", "low"]
Pixels = npt.NDArray[np.uint8]

HIGH_PIXELS = 2_000_000
WEBP_LONGEST_SIDE = 16_383
METHOD = 4


class Tier(msgspec.Struct, frozen=True):
    """A tier's name, its sides as a percentage of high's, and its WebP quality (0 to 100)."""

    name: TierName
    percent: int
    quality: int


TIERS: tuple[Tier, ...] = (Tier("high", 100, 80), Tier("medium", 66, 60), Tier("low", 33, 45))


def tier_sizes(width: int, height: int) -> dict[TierName, tuple[int, int]]:
    """(width, height) in pixels of each tier of a picture of that size; no side under 1 or over 16,383.

    Raises ValueError for a picture without pixels.
    """
    if width < 1 or height < 1:
        raise ValueError(f"a picture of {width}×{height} has no pixels")
    if width * height > HIGH_PIXELS:
        width, height = isqrt(width * HIGH_PIXELS // height), isqrt(height * HIGH_PIXELS // width)
    longest = max(width, height)
    if longest > WEBP_LONGEST_SIDE:
        width, height = (side * WEBP_LONGEST_SIDE // longest for side in (width, height))
    return {tier.name: (max(1, width * tier.percent // 100), max(1, height * tier.percent // 100)) for tier in TIERS}


def webp_tiers(
    picture: Image.Image | Pixels, *, exif: bytes = b"", of: tuple[int, int] | None = None
) -> dict[TierName, bytes]:
    """The WebP files of the three tiers of `picture`: an RGB or RGBA image, or uint8 H×W×3 or H×W×4, sRGB; where it was
    decoded smaller than it is, `of` is its own width and height.

    `exif` goes into every tier, and so does an ICC profile in the image's `info`. Alpha is kept. Raises ValueError for
    any other dtype, shape or mode.

    Each tier is resized (Lanczos) from the one before and encoded by libwebp's method 4. The figures behind that, from
    `python -m tests.bench.bench_tiers`: three photograph-like 4000×3000 pictures, CPU time for one of them on one core,
    bytes of the three files together, SSIM to a Lanczos resize of the full picture:

        resized from       method  resize  encode    bytes  SSIM high  medium     low
        full                    6  310 ms  300 ms  127,333     0.9504  0.9355  0.9220
        full                    4  312 ms  206 ms  129,051     0.9506  0.9351  0.9206
        full, gap 2             4  244 ms  200 ms  129,048     0.9506  0.9351  0.9212
        high                    4  150 ms  204 ms  128,967     0.9506  0.9349  0.9215
        previous (chosen)       4  148 ms  201 ms  129,004     0.9506  0.9349  0.9212
        previous                6  142 ms  302 ms  127,179     0.9504  0.9355  0.9223
        previous                2  142 ms   84 ms  140,410     0.9479  0.9342  0.9209
        previous, gap 1.1       4   87 ms  201 ms  127,129     0.9492  0.9346  0.9207

    Method 6 buys 1.4 % of bytes for half as much time again; method 2 costs 9 % more bytes and some likeness. Shrinking
    by a box filter first (gap 1.1) is faster still but softens the tier people look at. A camera's JPEG decoded at half
    size (`decode.picture(enough=...)`) and resized takes 104 ms where decoding it all takes 190 ms, for 0.0005 of SSIM.
    """
    image = picture if isinstance(picture, Image.Image) else as_image(picture)
    if image.mode not in ("RGB", "RGBA"):
        raise ValueError(f"tiers are made of RGB or RGBA pictures, not {image.mode}")
    profile: bytes = image.info.get("icc_profile") or b""
    sizes = tier_sizes(*(of or image.size))
    files: dict[TierName, bytes] = {}
    for tier in TIERS:
        if image.size != sizes[tier.name]:
            image = image.resize(sizes[tier.name], Image.Resampling.LANCZOS)
        files[tier.name] = webp(image, quality=tier.quality, exif=exif, icc_profile=profile)
    return files


def webp(image: Image.Image, *, quality: int, exif: bytes = b"", icc_profile: bytes = b"") -> bytes:
    """A lossy WebP file. Raises ValueError when a side is over 16,383 px, which the format can't hold."""
    if max(image.size) > WEBP_LONGEST_SIDE:
        raise ValueError(
            f"WebP holds at most {WEBP_LONGEST_SIDE} px a side; this picture is {image.width}×{image.height}"
        )
    file = io.BytesIO()
    image.save(file, "WEBP", quality=quality, method=METHOD, exif=exif, icc_profile=icc_profile)
    return file.getvalue()


def as_image(pixels: Pixels) -> Image.Image:
    """The image of uint8 H×W×3 or H×W×4 pixels. Raises ValueError for anything else."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (3, 4) or 0 in pixels.shape:
        raise ValueError(f"pixels are uint8 H×W×3 or H×W×4, not {pixels.dtype} {pixels.shape}")
    return Image.fromarray(np.ascontiguousarray(pixels))
