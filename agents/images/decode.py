"""Pictures from outside, decoded as if every one were an attack.

The size a file declares is checked before anything is decoded. Each format's reader is called by itself, never
`Image.open`: that one warns about large pictures through Python's warning filters, which belong to the whole process.
"""

import io
from pathlib import Path

from PIL import Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from bus.errors import UserError

MAX_BYTES = 64 * 2**20
MAX_PIXELS = 64_000_000
MAX_SIDE = 16_384
MAX_PROFILE_BYTES = 64 * 2**10

ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadPicture(UserError):
    """This is no picture that can be used."""


class UnknownFormat(BadPicture):
    """The file is not a PNG, JPEG, WebP, GIF or AVIF picture; convert it to one of these."""


class PictureTooLarge(BadPicture):
    """The picture is larger than allowed; make it smaller."""


class Broken(BadPicture):
    """The file is damaged or cut off: it can't be decoded."""


def picture(
    source: bytes | Path,
    *,
    enough: tuple[int, int] | None = None,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
    max_side: int = MAX_SIDE,
) -> Image.Image:
    """The first frame of a PNG, JPEG, WebP, GIF or AVIF file: RGB, or RGBA when it has alpha, turned the way its EXIF
    orientation asks for, 8 bits a channel, without metadata but for an ICC profile of at most 64 KiB.

    `enough` (width, height in px) lets a JPEG be decoded at 1/2, 1/4 or 1/8 of its size as long as no side gets
    smaller than that. Limits are bytes of the file, declared pixels, and px a side. Raises UnknownFormat,
    PictureTooLarge or Broken (all BadPicture), and OSError when the file can't be read.
    """
    data = source if isinstance(source, bytes) else _bytes(source, max_bytes)
    if len(data) > max_bytes:
        raise PictureTooLarge(f"the file has {len(data):,} bytes; at most {max_bytes:,} are allowed")
    with opened(data) as image:
        width, height = image.size
        if width < 1 or height < 1:
            raise Broken("the picture has no pixels")
        if width * height > max_pixels or max(width, height) > max_side:
            raise PictureTooLarge(
                f"the picture is {width}×{height}; at most {max_pixels:,} pixels and {max_side:,} a side are allowed"
            )
        try:
            if enough and isinstance(image, JpegImageFile):
                image.draft(image.mode, enough[::-1] if _orientation(image) >= 5 else enough)
            image.load()
            return _plain(image)
        except Exception as error:  # decoders meet hostile bytes with every kind of exception
            raise Broken(f"the picture can't be decoded: {error}") from error


def upright_size(data: bytes) -> tuple[int, int]:
    """Width and height in px that a picture declares, turned as `picture` turns it. Raises UnknownFormat,
    PictureTooLarge or Broken."""
    with opened(data) as image:
        width, height = image.size
        return (height, width) if _orientation(image) >= 5 else (width, height)


def _bytes(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        return file.read(limit + 1)


def opened(data: bytes) -> ImageFile:
    """A file's header, read by the one reader its first bytes call for. Raises UnknownFormat, PictureTooLarge or
    Broken."""
    reader: type[ImageFile]
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        reader = PngImageFile
    elif data.startswith(b"\xff\xd8\xff"):
        reader = JpegImageFile
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        reader = WebPImageFile
    elif data.startswith((b"GIF87a", b"GIF89a")):
        reader = GifImageFile
    elif data[4:12] in (b"ftypavif", b"ftypavis"):
        reader = AvifImageFile
    else:
        raise UnknownFormat
    try:
        return reader(io.BytesIO(data))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureTooLarge(f"the picture is larger than allowed: {error}") from error
    except Exception as error:
        raise Broken(f"the picture can't be decoded: {error}") from error


def _plain(image: Image.Image) -> Image.Image:
    """The loaded picture as RGB or RGBA, upright; its profile stays while its numbers still mean the same colours."""
    profile = image.info.get("icc_profile")
    turn = TURNS.get(_orientation(image))
    mode = "RGBA" if image.has_transparency_data else "RGB"
    keeps_colours = image.mode in ("RGB", "RGBA", "P")
    if image.mode == "I" or image.mode.startswith("I;16"):
        # convert() would clip what is over 255 instead of scaling it
        mode, image = "RGB", image.point(lambda value: value / 256).convert("L")
    plain = image.convert(mode) if image.mode != mode else image.copy()
    if turn is not None:
        plain = plain.transpose(turn)
    plain.info.clear()
    if keeps_colours and isinstance(profile, bytes) and 0 < len(profile) <= MAX_PROFILE_BYTES:
        plain.info["icc_profile"] = profile
    return plain


def _orientation(image: Image.Image) -> int:
    """1 (upright) to 8; damaged EXIF is no reason to refuse a picture that decodes."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:
        return 1
