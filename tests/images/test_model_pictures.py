"""Pictures of models, from an original's bytes on disk to the three tiers on disk, and what is swept afterwards."""

import hashlib
import io
import os
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from agents.images.decode import BadPicture, Broken, PictureTooLarge, UnknownFormat
from agents.images.model_pictures import (
    KEEP_BLOBS,
    KEEP_LOOSE,
    BadJob,
    NameTaken,
    NotTheOriginal,
    encode_picture,
    picture_names,
    remove_picture,
    tidy,
)
from agents.images.tiers import TIERS, tier_sizes
from agents.storage import blobs
from agents.storage.trash import listed
from bus.errors import UserError
from schemas.images import EncodePicture
from tests.images.photos import photo, ssim

MODEL = "ab" * 32
FORMATS = ["PNG", "JPEG", "WEBP", "GIF", "AVIF"]


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def plain(size: tuple[int, int] = (300, 200), colour: str = "red") -> bytes:
    return encoded(Image.new("RGB", size, colour))


def job(data: Path, content: bytes, number: int = 0) -> EncodePicture:
    """The job for an original that is among the blobs."""
    source = blobs.put(data, content)
    return EncodePicture(id="e" * 32, sha256=MODEL, number=number, original=f"blobs/{source}", source=source)


def tiers(data: Path, content: bytes) -> Iterator[Image.Image]:
    """The three tiers of one picture, decoded, high first."""
    names = encode_picture(job(data, content), data).tiers
    for tier in TIERS:
        with Image.open(data / names[tier.name]) as image:
            assert image.format == "WEBP"
            image.load()
            yield image


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def written(data: Path) -> dict[str, tuple[int, int]]:
    """Which files lie among the pictures, and when each was written."""
    return {entry.name: (entry.stat().st_ino, entry.stat().st_mtime_ns) for entry in (data / "images").iterdir()}


def is_near(image: Image.Image, at: tuple[int, int], colour: tuple[int, ...]) -> bool:
    found = image.convert("RGB").getpixel(at)
    return all(abs(one - other) < 40 for one, other in zip(found, colour, strict=True))


def test_an_original_becomes_three_tiers_and_what_is_reported_of_them_is_so(tmp_path: Path) -> None:
    report = encode_picture(job(tmp_path, plain((3000, 2000)), number=7), tmp_path)
    assert report.tiers == {tier: f"images/{MODEL}_7_{tier}.webp" for tier in ("high", "medium", "low")}
    files = [(tmp_path / name).read_bytes() for name in report.tiers.values()]
    sizes = {tier: Image.open(io.BytesIO(file)).size for tier, file in zip(report.tiers, files, strict=True)}
    assert sizes == {"high": (1732, 1154), "medium": (1143, 761), "low": (571, 380)}
    assert (report.index, report.file, report.width, report.height) == (7, report.tiers["high"], 1732, 1154)
    assert (report.bytes, report.sha256) == (sum(map(len, files)), hashlib.sha256(files[0]).hexdigest())


def test_a_pending_original_is_read_where_it_waits(tmp_path: Path) -> None:
    pending = tmp_path / "images" / "pending" / "7-0.png"
    pending.parent.mkdir(parents=True)
    pending.write_bytes(plain())
    asked = job(tmp_path, plain())
    waiting = msgspec.structs.replace(asked, original="images/pending/7-0.png")
    assert encode_picture(waiting, tmp_path).tiers == picture_names(MODEL, 0)
    assert pending.is_file()


def test_the_same_bytes_give_the_same_files_anywhere_and_any_time(tmp_path: Path) -> None:
    content = encoded(Image.fromarray(photo(1, 640, 480)), "JPEG", quality=90)
    here, there = tmp_path / "here", tmp_path / "there"
    report = encode_picture(job(here, content), here)
    assert encode_picture(job(there, content), there) == report
    assert tree(here) == tree(there)


def test_a_second_run_touches_no_file_and_completes_what_a_kill_left_out(tmp_path: Path) -> None:
    asked = job(tmp_path, plain())
    report = encode_picture(asked, tmp_path)
    before = written(tmp_path)
    assert encode_picture(asked, tmp_path) == report
    assert written(tmp_path) == before
    whole = tree(tmp_path)
    (tmp_path / report.tiers["medium"]).unlink()
    assert encode_picture(asked, tmp_path) == report
    assert tree(tmp_path) == whole


def test_another_picture_never_takes_the_place_of_one(tmp_path: Path) -> None:
    report = encode_picture(job(tmp_path, plain(colour="red")), tmp_path)
    before = tree(tmp_path / "images")
    with pytest.raises(NameTaken, match="is another picture"):
        encode_picture(job(tmp_path, plain(colour="blue")), tmp_path)
    assert tree(tmp_path / "images") == before
    assert set(before) == {Path(name).name for name in report.tiers.values()}


def test_an_original_that_is_gone_or_changed_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    asked = job(tmp_path, plain())
    (tmp_path / asked.original).write_bytes(plain(colour="blue"))
    with pytest.raises(NotTheOriginal, match="other bytes"):
        encode_picture(asked, tmp_path)
    (tmp_path / asked.original).unlink()
    with pytest.raises(NotTheOriginal, match="gone"):
        encode_picture(asked, tmp_path)
    assert not (tmp_path / "images").exists()


@pytest.mark.parametrize(
    "changes",
    [
        *({"original": name} for name in ("/etc/passwd", "images/pending/../../catalog.db", "images/pending/.hidden")),
        *({"original": name} for name in ("", "catalog.db", "blobs/../catalog.db", "blobs/" + "g" * 64)),
        *(
            {"original": name}
            for name in ("images/pending/a/b.png", "images/pending/a.png\n", "images/pending/a\0.png")
        ),
        *({"sha256": name} for name in ("", "../" + "a" * 61, "A" * 64, "a" * 64 + "\n")),
        {"number": -1},
    ],
)
def test_names_that_could_lead_out_of_their_folders_are_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    asked = msgspec.structs.replace(job(tmp_path, plain()), **changes)
    with pytest.raises(BadJob):
        encode_picture(asked, tmp_path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_not_lost_where_a_camera_picture_is_decoded_at_half_size(
    tmp_path: Path, orientation: int
) -> None:
    stored = Image.new("RGB", (4001, 2800), "blue")  # halves of which have other tiers
    stored.paste((255, 0, 0), (0, 0, 2000, 1400))
    exif = Image.Exif()
    exif[0x0112] = orientation
    corner = ["tl", "tr", "br", "bl"][(orientation - 1) % 4]
    size = (4001, 2800) if orientation < 5 else (2800, 4001)
    for image, expected in zip(
        tiers(tmp_path, encoded(stored, "JPEG", exif=exif)), tier_sizes(*size).values(), strict=True
    ):
        assert image.size == expected
        x = 3 if corner[1] == "l" else image.width - 4
        y = 3 if corner[0] == "t" else image.height - 4
        assert is_near(image, (x, y), (255, 0, 0))
        assert is_near(image, (image.width - 1 - x, image.height - 1 - y), (0, 0, 255))
        assert not image.getexif()


def test_a_camera_picture_looks_like_one_made_by_the_original_method_at_its_size(tmp_path: Path) -> None:
    camera = encoded(Image.fromarray(np.tile(photo(1, 1300, 900), (3, 3, 1))), "JPEG", quality=90)
    full = Image.open(io.BytesIO(camera))
    ours, theirs = 0, 0
    for tier, image in zip(TIERS, tiers(tmp_path, camera), strict=True):
        target = full.resize(tier_sizes(*full.size)[tier.name], Image.Resampling.LANCZOS)
        original = encoded(target, "WEBP", quality=tier.quality, method=6)
        assert ssim(image, target) > ssim(Image.open(io.BytesIO(original)), target) - 0.005
        ours += (tmp_path / picture_names(MODEL, 0)[tier.name]).stat().st_size
        theirs += len(original)
    assert ours <= 1.1 * theirs


def test_alpha_is_kept_in_every_tier(tmp_path: Path) -> None:
    source = Image.new("RGBA", (300, 200), (200, 30, 30, 0))
    source.paste((0, 200, 0, 255), (0, 0, 150, 200))
    for image in tiers(tmp_path, encoded(source)):
        assert image.mode == "RGBA"
        assert image.getpixel((0, 0))[3] == 255
        assert image.getpixel((image.width - 1, 0))[3] == 0


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_pictures_of_one_and_two_pixels_have_tiers_of_at_least_one(
    tmp_path: Path, size: tuple[int, int], form: str
) -> None:
    found = [image.size for image in tiers(tmp_path, encoded(Image.new("RGB", size, "red"), form))]
    assert found == list(tier_sizes(*size).values())


@pytest.mark.parametrize("size", [(16_384, 1), (1, 16_384), (16_384, 3_900), (16_383, 122), (99, 16_384)])
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_picture_longer_than_webp_holds_is_shrunk_to_what_it_holds(
    tmp_path: Path, size: tuple[int, int], form: str
) -> None:
    found = [image.size for image in tiers(tmp_path, encoded(Image.new("RGB", size, "red"), form))]
    assert found == list(tier_sizes(*size).values())
    assert max(found[0]) <= 16_383


def test_a_cmyk_jpeg_keeps_its_colour(tmp_path: Path) -> None:
    red = Image.new("CMYK", (64, 64), (0, 255, 255, 0))
    for image in tiers(tmp_path, encoded(red, "JPEG", quality=95)):
        assert image.mode == "RGB"
        assert is_near(image, (5, 5), (255, 0, 0))


def test_sixteen_bits_a_channel_are_scaled_to_eight(tmp_path: Path) -> None:
    half = Image.fromarray(np.full((40, 40), 32_768, np.uint16))
    for image in tiers(tmp_path, encoded(half)):
        assert is_near(image, (5, 5), (128, 128, 128))


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_a_transparent_colour_of_a_palette_is_alpha_in_every_tier(tmp_path: Path, form: str) -> None:
    source = Image.new("P", (60, 40), 0)
    source.putpalette([255, 0, 0, 0, 255, 0])
    source.paste(1, (30, 0, 60, 40))
    for image in tiers(tmp_path, encoded(source, form, transparency=0)):
        assert image.getpixel((0, 0))[3] == 0
        assert image.getpixel((image.width - 1, 0))[3] == 255
        assert is_near(image, (image.width - 1, 5), (0, 255, 0))


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "AVIF"])
def test_the_first_frame_of_an_animation_is_its_picture(tmp_path: Path, form: str) -> None:
    frames = [Image.new("RGB", (80, 60), colour) for colour in ("red", "blue")]
    for image in tiers(tmp_path, encoded(frames[0], form, save_all=True, append_images=frames[1:], duration=100)):
        assert is_near(image, (5, 5), (255, 0, 0))
        assert image.n_frames == 1


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_colour_profile_is_in_every_tier(tmp_path: Path, form: str) -> None:
    profile = bytes(range(200))
    for image in tiers(tmp_path, encoded(Image.new("RGB", (80, 60)), form, icc_profile=profile)):
        assert image.info["icc_profile"] == profile


def bomb(width: int, height: int, body: bytes) -> bytes:
    """A PNG of one bit a pixel that declares that size."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_a_decompression_bomb_is_refused_by_its_header_whether_it_would_go_off_or_not(tmp_path: Path) -> None:
    sound = bomb(13_300, 13_300, zlib.compress(bytes(13_300 * (1 + 13_300 // 8 + 1)), 9))
    assert len(sound) < 22_000
    for content in (sound, bomb(13_300, 13_300, b"no pixels at all")):
        with pytest.raises(PictureTooLarge, match="13300×13300"):
            encode_picture(job(tmp_path, content), tmp_path)
    with pytest.raises(PictureTooLarge, match="16385×1"):
        encode_picture(job(tmp_path, plain((16_385, 1))), tmp_path)
    assert not (tmp_path / "images").exists()


def test_a_header_without_pixels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadPicture):
        encode_picture(job(tmp_path, bomb(0, 5, b"")), tmp_path)


@pytest.mark.parametrize("form", FORMATS)
def test_a_picture_cut_off_anywhere_is_refused_and_leaves_no_tier(tmp_path: Path, form: str) -> None:
    content = encoded(Image.fromarray(photo(1, 64, 48)), form)
    for end in (10, 40, len(content) // 3, len(content) // 2, len(content) * 4 // 5):
        with pytest.raises(BadPicture) as refused:
            encode_picture(job(tmp_path, content[:end]), tmp_path)
        assert str(refused.value)
    assert not (tmp_path / "images").exists()


@pytest.mark.parametrize("content", [b"", b"<svg/>", b"%!PS-Adobe", b"II*\0" + bytes(99), b"GGUF" + bytes(60)])
def test_what_is_no_picture_is_refused_in_a_sentence(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UnknownFormat, match="PNG, JPEG, WebP"):
        encode_picture(job(tmp_path, content), tmp_path)


def test_an_original_over_the_limit_of_bytes_is_refused(tmp_path: Path) -> None:
    asked = job(tmp_path, plain())
    with (tmp_path / asked.original).open("r+b") as file:
        file.truncate(64 * 2**20 + 1)
    with pytest.raises(Broken, match="64 MiB"):
        encode_picture(asked, tmp_path)


def test_all_that_is_wrong_with_a_picture_is_the_users_to_know() -> None:
    assert all(issubclass(error, UserError) for error in (BadPicture, BadJob, NameTaken, NotTheOriginal))


def test_a_picture_is_removed_with_all_its_tiers_and_no_other(tmp_path: Path) -> None:
    for number in (1, 11):
        encode_picture(job(tmp_path, plain(), number), tmp_path)
    remove_picture(tmp_path, MODEL, 1)
    remove_picture(tmp_path, MODEL, 1)
    assert sorted(tree(tmp_path / "images")) == sorted(Path(name).name for name in picture_names(MODEL, 11).values())
    with pytest.raises(BadJob):
        remove_picture(tmp_path, "../" + MODEL, 11)


def two_pictures(data: Path) -> tuple[str, str]:
    """Two encoded pictures, 0 and 1, and an orphan near the pending original `7-0.png`; the keys of the two blobs."""
    keys = []
    for number, colour in enumerate(("red", "blue")):
        asked = job(data, plain(colour=colour), number)
        encode_picture(asked, data)
        keys.append(asked.source)
    pending = data / "images" / "pending"
    pending.mkdir()
    for name in ("7-0.png", "8-0.png"):
        (pending / name).write_bytes(plain())
    return keys[0], keys[1]


def here(data: Path) -> list[Path]:
    """Every file that is not in the trash."""
    return [path for path in data.rglob("*") if path.is_file() and "trash" not in path.parts]


def later(seconds: float) -> float:
    return time.time() + seconds + 60


def test_files_that_no_catalog_needs_are_swept_and_what_it_needs_stays(tmp_path: Path) -> None:
    needed, orphan = two_pictures(tmp_path)
    originals, pictures = {"images/pending/7-0.png", f"blobs/{needed}"}, {(MODEL, 0)}
    kept = {
        needed: tmp_path / "blobs" / needed,
        "7-0.png": tmp_path / "images" / "pending" / "7-0.png",
        **{Path(name).name: tmp_path / name for name in picture_names(MODEL, 0).values()},
    }
    before = {name: path.read_bytes() for name, path in kept.items()}
    assert tidy(tmp_path, originals, pictures, later(KEEP_BLOBS)) == 5
    assert {path.name: path.read_bytes() for path in here(tmp_path)} == before
    assert len(listed(tmp_path)) == 5 and f"blobs/{orphan}" in {one.file for one in listed(tmp_path)}
    assert orphan not in before
    assert tidy(tmp_path, originals, pictures, later(KEEP_BLOBS)) == 0


def test_young_files_are_kept_although_the_catalog_does_not_know_them_yet(tmp_path: Path) -> None:
    two_pictures(tmp_path)
    before = tree(tmp_path)
    assert tidy(tmp_path, (), (), time.time()) == 0
    assert tree(tmp_path) == before
    assert tidy(tmp_path, (), (), later(KEEP_LOOSE)) == 8
    assert sorted(path.parent.name for path in here(tmp_path)) == ["blobs", "blobs"]


def test_what_is_older_than_the_catalog_is_not_its_to_judge(tmp_path: Path) -> None:
    two_pictures(tmp_path)
    before = tree(tmp_path)
    assert tidy(tmp_path, (), (), later(KEEP_BLOBS), since=time.time() + 1) == 0
    assert tree(tmp_path) == before


def test_an_old_file_that_got_its_name_just_now_is_young(tmp_path: Path) -> None:
    copied, pending = tmp_path / "imports" / "copy", tmp_path / "images" / "pending" / "7-0.png"
    for folder in (copied.parent, pending.parent):
        folder.mkdir(parents=True)
    copied.write_bytes(plain())
    os.utime(copied, (1, 1))
    os.link(copied, pending)
    assert tidy(tmp_path, (), (), time.time()) == 0
    assert pending.is_file()


def test_a_picture_is_not_taken_for_another_whose_number_begins_alike(tmp_path: Path) -> None:
    for number in (1, 11):
        encode_picture(job(tmp_path, plain(), number), tmp_path)
    assert tidy(tmp_path, (), {(MODEL, 11), ("cd" * 32, 1)}, later(KEEP_LOOSE)) == 3
    assert sorted(tree(tmp_path / "images")) == sorted(Path(name).name for name in picture_names(MODEL, 11).values())


def test_what_somebody_else_put_among_the_pictures_is_not_swept(tmp_path: Path) -> None:
    strange = tmp_path / "images" / "pending" / "folder"
    strange.mkdir(parents=True)
    for name in ("notes.txt", f"{MODEL}_0_huge.webp", f"{MODEL}_x_high.webp", f"{MODEL[:-1]}_0_high.webp"):
        (tmp_path / "images" / name).write_bytes(b"theirs")
    (tmp_path / "images" / picture_names(MODEL, 0)["high"].removeprefix("images/")).symlink_to(strange)
    before = sorted(tmp_path.rglob("*"))
    assert tidy(tmp_path, (), (), later(KEEP_BLOBS)) == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_tidying_a_directory_without_pictures_is_nothing(tmp_path: Path) -> None:
    assert tidy(tmp_path, (), (), later(KEEP_BLOBS)) == 0
    assert list(tmp_path.iterdir()) == []
