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
PixelArray = npt.NDArray[np.uint8]

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
    picture: Image.Image | PixelArray, *, exif: bytes = b"", of: tuple[int, int] | None = None
) -> dict[TierName, bytes]:
    """The WebP files of the three tiers of `picture`: an RGB or RGBA image, or uint8 H×W×3 or H×W×4, sRGB; where it was
    decoded smaller than it is, `of` is its own width and height.

    `exif` goes into every tier, and so does an ICC profile in the image's `info`. Alpha is kept. Raises ValueError for
    any other dtype, shape or mode.

    Each tier is resized (Lanczos) from the one before and encoded by libwebp's method 4. The figures for that, from
    `python -m tests.bench.bench_tiers --grid 2`: two photograph-like 4000×3000 pictures, CPU time for one of them (the
    least of three), bytes of the three files together, SSIM to a Lanczos resize of the full picture:

        resized from       method  resize  encode    bytes  SSIM high  medium     low
        full                    6  325 ms  310 ms  126,696     0.9504  0.9357  0.9225
        full                    4  314 ms  206 ms  128,649     0.9509  0.9352  0.9213
        full, gap 2             4  244 ms  199 ms  128,588     0.9509  0.9352  0.9215
        high                    4  148 ms  200 ms  128,488     0.9509  0.9349  0.9226
        previous                6  139 ms  297 ms  126,466     0.9504  0.9356  0.9230
        previous (chosen)       4  145 ms  207 ms  128,541     0.9509  0.9349  0.9220
        previous                3  139 ms  202 ms  128,057     0.9507  0.9348  0.9216
        previous                2  139 ms   84 ms  139,877     0.9482  0.9344  0.9215
        previous, bicubic       4   98 ms  199 ms  124,714     0.9491  0.9343  0.9203
        previous, gap 1.1       4   84 ms  198 ms  126,836     0.9494  0.9348  0.9214

    and with the decoding of the picture as a JPEG of quality 90 in the time for resizing, whole or at half size:

        whole, previous         4  186 ms  198 ms  127,917     0.9503  0.9353  0.9217
        half (chosen)           4  100 ms  201 ms  126,396     0.9495  0.9341  0.9219
        half, bicubic           4   82 ms  204 ms  125,161     0.9487  0.9342  0.9201

    Method 6 buys 1.6 % of bytes for half as much time again. Method 2 would save 123 ms of 352 but costs some likeness
    and 9 % more bytes, for as long as the files are kept. Method 3 is no faster. Bicubic and a box filter first (gap
    1.1) soften the tier people look at more than reading a JPEG at half size (`decode.picture(enough=...)`) does, and
    save less. One picture's tiers are not encoded side by side, as whole pictures already keep the cores busy.
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


def as_image(pixels: PixelArray) -> Image.Image:
    """The image of uint8 H×W×3 or H×W×4 pixels. Raises ValueError for anything else."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (3, 4) or 0 in pixels.shape:
        raise ValueError(f"pixels are uint8 H×W×3 or H×W×4, not {pixels.dtype} {pixels.shape}")
    return Image.fromarray(np.ascontiguousarray(pixels))
