"""From a generation job's raw pixels to its finished files.

Synchronous, for a worker thread: Pillow lets go of the interpreter while it encodes. The pixels stay where they are;
whoever writes the job's result removes them.
"""

import hashlib
import io
import re
from datetime import date
from pathlib import Path

from PIL import Image

from agents.images import infotext
from agents.images.tiers import TIERS, as_image, webp, webp_tiers
from agents.storage import atomic
from agents.storage.layout import OUTPUTS, DataDir
from agents.storage.pixels import read_pixels
from bus.errors import DarkroomError
from schemas.images import Encode, ImageFormat, Picture, Pixels

SUFFIXES: dict[ImageFormat, str] = {"webp": "webp", "png": "png", "jpeg": "jpg"}

_ID = re.compile(r"[0-9a-f]{32}")
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_PIXEL_FILE = re.compile(r"[A-Za-z0-9_-]{1,128}\.npy")


class BadName(DarkroomError):
    """A name in an encode job could lead out of its folder."""


class PixelsGone(DarkroomError):
    """The pixels of a job were removed before all of its files were written."""


def encode_pictures(job: Encode, data_dir: Path) -> tuple[Picture, ...]:
    """Write every picture of `job` and return what was written.

    Reads `work/<file>` and writes `outputs/<day>/<id>-<n>.<webp|png|jpg>` and `<id>-<n>_high|medium|low.webp`, all with
    infotext. A file that is there already is kept, so a run after a crash completes what is missing and reports the
    same, and a run over a finished job needs no pixels. Raises BadName, BadPixels, PixelsGone, ValueError (a
    side over 16,383 px in WebP) and OSError (a full disk), each leaving complete files only.
    """
    _check_names(job)
    return tuple(_encode_one(job, pixels, data_dir) for pixels in job.pixels)


def picture_files(job: Encode, index: int) -> tuple[str, dict[str, str]]:
    """Where picture `index` of `job` goes: the full file and one file per tier, relative to the data directory."""
    stem = f"{OUTPUTS}/{job.day}/{job.id}-{index}"
    return f"{stem}.{SUFFIXES[job.format]}", {tier.name: f"{stem}_{tier.name}.webp" for tier in TIERS}


def _encode_one(job: Encode, pixels: Pixels, data_dir: Path) -> Picture:
    full, tiers = picture_files(job, pixels.index)
    missing = [name for name in (full, *tiers.values()) if not (data_dir / name).is_file()]
    if missing:
        try:
            array = read_pixels(DataDir(data_dir).work / pixels.file, width=pixels.width, height=pixels.height)
        except FileNotFoundError as error:
            raise PixelsGone(
                f"there is no {pixels.file} in {DataDir(data_dir).work}, and {missing[0]} was never written; "
                "generator and encoder need the same data directory"
            ) from error
        image, files = as_image(array), dict[Path, bytes]()
        if full in missing:
            files[data_dir / full] = full_size(image, job, pixels.infotext)
        if any(name in missing for name in tiers.values()):
            made = webp_tiers(image, exif=infotext.exif(pixels.infotext))
            files |= {data_dir / tiers[tier]: data for tier, data in made.items()}
        atomic.place_all(files)
    with (data_dir / full).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
    return Picture(
        index=pixels.index,
        seed=pixels.seed,
        width=pixels.width,
        height=pixels.height,
        file=full,
        bytes=size,
        sha256=digest,
        tiers=tiers,
    )


def full_size(image: Image.Image, job: Encode, text: str) -> bytes:
    """The bytes of the full-size file in the job's format.

    Lossless WebP and PNG are set for speed: on 1024×1024 of photograph-like pixels, WebP effort 20 takes 173 ms for
    1.20 MB (effort 80: 584 ms, 1.20 MB), PNG level 3 takes 111 ms for 1.75 MB (level 6: 300 ms, 1.70 MB). JPEG is
    written without Huffman optimisation, which would hold the interpreter for the whole picture (32 ms at 2048×2048).
    """
    if job.format == "webp" and not job.lossless:
        return webp(image, quality=job.quality, exif=infotext.exif(text))
    file = io.BytesIO()
    if job.format == "webp":
        image.save(file, "WEBP", lossless=True, quality=20, method=4, exif=infotext.exif(text))
    elif job.format == "png":
        image.save(file, "PNG", compress_level=3, pnginfo=infotext.png_info(text))
    else:
        image.save(file, "JPEG", quality=job.quality, exif=infotext.exif(text))
    return file.getvalue()


def _check_names(job: Encode) -> None:
    """Raise BadName unless every path made of the job's fields stays in its folder and no two are the same."""
    if not _ID.fullmatch(job.id):
        raise BadName(f"a job's id is 32 hex digits, not {job.id!r}")
    try:
        date.fromisoformat(job.day if _DAY.fullmatch(job.day) else "")
    except ValueError as error:
        raise BadName(f"a job's day is YYYY-MM-DD, not {job.day!r}") from error
    for pixels in job.pixels:
        if not _PIXEL_FILE.fullmatch(pixels.file):
            raise BadName(f"a pixel file is a plain name that ends in .npy, not {pixels.file!r}")
        if pixels.index < 0:
            raise BadName(f"a picture's index counts from 0, not {pixels.index}")
    if len({pixels.index for pixels in job.pixels}) != len(job.pixels):
        raise BadName("two pictures of the job have the same index")
