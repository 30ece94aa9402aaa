import io

import numpy as np
import pytest
from PIL import Image

from agents.images.infotext import exif, read
from agents.images.tiers import TIERS, tier_sizes, webp, webp_tiers
from tests.images.photos import photo, ssim


def test_the_documented_picture_gets_the_documented_sizes() -> None:
    assert tier_sizes(3000, 2000) == {"high": (1732, 1154), "medium": (1143, 761), "low": (571, 380)}


def test_no_tier_of_any_shape_is_empty_over_two_megapixels_or_too_long_for_webp() -> None:
    for width, height in [(1, 1), (2, 2), (1, 16384), (60_000, 1), (1, 60_000), (40_000, 10), (9999, 7), (4096, 4096)]:
        for sides in tier_sizes(width, height).values():
            assert min(sides) >= 1
            assert max(sides) <= 16_383
            assert sides[0] * sides[1] <= 2_000_000


def test_a_small_picture_keeps_its_size_in_high() -> None:
    assert tier_sizes(1024, 1024)["high"] == (1024, 1024)


def test_two_pixel_images_do_not_crash() -> None:
    for size in [(1, 1), (2, 1), (1, 2), (2, 2)]:
        for name, data in webp_tiers(Image.new("RGB", size)).items():
            assert Image.open(io.BytesIO(data)).size == tier_sizes(*size)[name]


def test_a_picture_without_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="no pixels"):
        tier_sizes(0, 5)


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 1), (4, 4, 5), (0, 4, 3)])
def test_arrays_that_are_no_picture_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="pixels are uint8"):
        webp_tiers(np.zeros(shape, np.uint8))


def test_a_picture_too_long_for_webp_is_an_error() -> None:
    with pytest.raises(ValueError, match="16383"):
        webp(Image.new("RGB", (16_384, 1)), quality=80)


def test_alpha_profile_and_infotext_reach_every_tier() -> None:
    image = Image.new("RGBA", (300, 200), (200, 30, 30, 0))
    image.paste((0, 200, 0, 255), (0, 0, 150, 200))
    image.info["icc_profile"] = b"a profile"
    for data in webp_tiers(image, exif=exif("a fox")).values():
        tier = Image.open(io.BytesIO(data))
        assert tier.mode == "RGBA"
        assert tier.getpixel((tier.width - 1, 0))[3] == 0
        assert tier.getpixel((0, 0))[3] == 255
        assert tier.info["icc_profile"] == b"a profile"
        assert read(tier) == "a fox"


def test_tiers_resized_one_from_the_other_look_like_tiers_of_the_full_picture() -> None:
    picture = Image.fromarray(photo(1, 2400, 1800))
    tiers = webp_tiers(picture)
    for tier in TIERS:
        size = tier_sizes(*picture.size)[tier.name]
        reference = picture.resize(size, Image.Resampling.LANCZOS)
        plain = io.BytesIO()
        reference.save(plain, "WEBP", quality=tier.quality, method=6)
        ours = tiers[tier.name]
        likeness = ssim(Image.open(io.BytesIO(ours)), reference)
        assert likeness > ssim(Image.open(plain), reference) - 0.005
        assert len(ours) <= 1.1 * plain.tell()


def test_the_measure_of_likeness_measures_likeness() -> None:
    picture = Image.fromarray(photo(2, 400, 300))
    blurred = picture.resize((40, 30)).resize((400, 300))
    assert ssim(picture, picture) == pytest.approx(1)
    assert ssim(picture, blurred) < 0.8
