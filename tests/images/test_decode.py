import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from agents.images.decode import BadPicture, Broken, PictureTooLarge, UnknownFormat, picture
from tests.images.photos import photo

FORMATS = ["PNG", "JPEG", "WEBP", "GIF", "AVIF"]


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_decodes_to_its_pixels(form: str) -> None:
    source = Image.fromarray(photo(1, 64, 48))
    decoded = picture(encoded(source, form))
    assert decoded.mode == "RGB"
    assert decoded.size == (64, 48)
    assert np.abs(np.asarray(decoded, int) - np.asarray(source, int)).mean() < 30


def test_a_picture_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.new("RGB", (3, 2)), "PNG"))
    assert picture(path).size == (3, 2)
    with pytest.raises(FileNotFoundError):
        picture(tmp_path / "none.png")


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(PictureTooLarge, match="13300×13300"):
        picture(png_claiming(13_300, 13_300))


def test_a_bomb_is_refused_without_a_warning_whatever_the_filters_are() -> None:
    for action in ("error", "ignore"):
        with warnings.catch_warnings():
            warnings.simplefilter(action)
            with pytest.raises(PictureTooLarge):
                picture(png_claiming(10_000, 9_500))


def test_a_huge_webp_is_refused_by_its_header() -> None:
    small = encoded(Image.new("RGB", (16, 16)), "WEBP", lossless=True)
    assert small[12:16] == b"VP8L" and small[20] == 0x2F  # then width and height less one, 14 bits each
    huge = small[:21] + (int.from_bytes(small[21:25], "little") | (2**28 - 1)).to_bytes(4, "little") + small[25:]
    with pytest.raises(PictureTooLarge):
        picture(huge)


def test_limits_are_the_callers() -> None:
    data = encoded(Image.new("RGB", (20, 10)), "PNG")
    assert picture(data, max_pixels=200).size == (20, 10)
    for limits in ({"max_pixels": 199}, {"max_side": 19}, {"max_bytes": 10}):
        with pytest.raises(PictureTooLarge):
            picture(data, **limits)


@pytest.mark.parametrize(("orientation", "corner"), list(zip(range(1, 9), ["tl", "tr", "br", "bl"] * 2, strict=True)))
@pytest.mark.parametrize("form", ["JPEG", "WEBP", "PNG"])
def test_exif_rotation_is_not_lost(form: str, orientation: int, corner: str) -> None:
    stored = Image.new("RGB", (32, 16))
    stored.paste((255, 255, 255), (0, 0, 8, 8))
    turned = picture(encoded(stored, form, exif=oriented(orientation)))
    assert turned.size == ((16, 32) if orientation >= 5 else (32, 16))
    x = 4 if corner[1] == "l" else turned.width - 5
    y = 4 if corner[0] == "t" else turned.height - 5
    assert turned.getpixel((x, y))[0] > 200


def test_a_turned_picture_is_not_turned_again_when_it_is_saved() -> None:
    turned = picture(encoded(Image.new("RGB", (32, 16)), "JPEG", exif=oriented(6)))
    assert picture(encoded(turned, "JPEG")).size == (16, 32)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow warns; no harm is done
def test_broken_exif_costs_nothing_but_the_orientation() -> None:
    data = encoded(Image.new("RGB", (8, 4)), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert picture(data).size == (8, 4)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_alpha_is_kept(mode: str) -> None:
    source = Image.new("RGBA", (8, 8), (255, 0, 0, 128)).convert(mode)
    decoded = picture(encoded(source, "PNG" if mode != "PA" else "WEBP"))
    assert decoded.mode == "RGBA"
    assert decoded.getpixel((0, 0))[3] == 128


def test_a_transparent_palette_colour_is_alpha() -> None:
    source = Image.new("P", (4, 4), 0)
    for form in ("PNG", "GIF"):
        assert picture(encoded(source, form, transparency=0)).getpixel((0, 0))[3] == 0


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "I;16"])
def test_other_pixel_formats_become_rgb(mode: str) -> None:
    decoded = picture(encoded(Image.new(mode, (4, 4)), "JPEG" if mode == "CMYK" else "PNG"))
    assert decoded.mode == "RGB"


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    source = Image.fromarray(np.array([[0, 256, 32_768, 65_535]], np.uint16))
    assert [pixel[0] for pixel in np.asarray(picture(encoded(source, "PNG")))[0]] == [0, 1, 128, 255]


def test_only_the_first_frame_of_an_animation_is_read() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for form in ("GIF", "WEBP", "PNG", "AVIF"):
        decoded = picture(encoded(frames[0], form, save_all=True, append_images=frames[1:]))
        red, _, blue = decoded.getpixel((4, 4))[:3]
        assert red > 200
        assert blue < 50


def test_a_jpeg_is_decoded_no_larger_than_needed_and_never_smaller() -> None:
    data = encoded(Image.fromarray(photo(1, 800, 600)), "JPEG", exif=oriented(6))
    assert picture(data, enough=(200, 390)).size == (300, 400)
    assert picture(data).size == (600, 800)


def test_a_profile_is_kept_and_other_metadata_is_not() -> None:
    text = PngInfo()
    text.add_text("Comment", "private")
    kept = picture(encoded(Image.new("RGB", (4, 4)), "PNG", icc_profile=b"p" * 99, pnginfo=text, exif=oriented(3)))
    assert kept.info == {"icc_profile": b"p" * 99}
    assert picture(encoded(Image.new("RGB", (4, 4)), "PNG", icc_profile=b"p" * 70_000)).info == {}


@pytest.mark.parametrize("data", [b"", b"GIF89", b"%!PS-Adobe", b"BM" + bytes(60), b"<svg/>", b"II*\0" + bytes(99)])
def test_what_is_no_allowed_picture_is_named_as_such(data: bytes) -> None:
    with pytest.raises(UnknownFormat, match="PNG, JPEG, WebP"):
        picture(data)


@pytest.mark.parametrize("form", FORMATS)
def test_a_picture_cut_off_anywhere_is_broken_and_nothing_else(form: str) -> None:
    data = encoded(Image.fromarray(photo(1, 64, 48)), form)
    for end in {*range(0, len(data), max(1, len(data) // 60)), 30, len(data) // 2}:
        try:
            picture(data[:end])
        except BadPicture as error:
            assert str(error)
    with pytest.raises(Broken):
        picture(data[: len(data) // 2])


@pytest.mark.parametrize("form", FORMATS)
def test_damaged_bytes_raise_nothing_but_what_is_documented(form: str) -> None:
    data = encoded(Image.fromarray(photo(1, 64, 48)), form)
    random = np.random.default_rng(7)
    for _ in range(150):
        damaged = bytearray(data)
        for at in random.integers(8, min(len(data), 400), 3):
            damaged[at] = random.integers(256)
        try:
            assert picture(bytes(damaged), max_pixels=1_000_000).mode in ("RGB", "RGBA")
        except BadPicture:
            continue
