"""Time, bytes and SSIM of the three tiers by resize source and by WebP method, on 12-megapixel pictures.

Run: python -m tests.bench.bench_tiers [pictures]. Times are CPU milliseconds for one picture on one core. SSIM is to a
Lanczos resize of the full picture, at each tier's size.
"""

import io
import sys
import time
from collections.abc import Callable
from statistics import fmean

from PIL import Image

from agents.images.tiers import TIERS, tier_sizes
from tests.images.photos import photo, ssim

LANCZOS = Image.Resampling.LANCZOS
Resize = Callable[[Image.Image], dict[str, Image.Image]]


def from_full(gap: float | None = None) -> Resize:
    return lambda image: {
        name: image.resize(size, LANCZOS, reducing_gap=gap) for name, size in tier_sizes(*image.size).items()
    }


def from_high(image: Image.Image) -> dict[str, Image.Image]:
    sizes = tier_sizes(*image.size)
    high = image.resize(sizes["high"], LANCZOS)
    return {name: high if name == "high" else high.resize(size, LANCZOS) for name, size in sizes.items()}


def from_previous(gap: float | None = None) -> Resize:
    def resize(image: Image.Image) -> dict[str, Image.Image]:
        made = {}
        for name, size in tier_sizes(*image.size).items():
            made[name] = image = image.resize(size, LANCZOS, reducing_gap=gap)
        return made

    return resize


def by_draft(image: Image.Image) -> dict[str, Image.Image]:
    """The picture as a camera's JPEG, decoded at half size; the time includes that decoding."""
    half = Image.open(io.BytesIO(image.info["jpeg"]))
    half.draft("RGB", tier_sizes(*image.size)["high"])
    made = {}
    for name, size in tier_sizes(*image.size).items():
        made[name] = half = half.resize(size, LANCZOS)
    return made


def by_decode(image: Image.Image) -> dict[str, Image.Image]:
    """The same JPEG decoded at full size, for comparison with `by_draft`."""
    return from_previous()(Image.open(io.BytesIO(image.info["jpeg"])))


def encoded(image: Image.Image, quality: int, method: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "WEBP", quality=quality, method=method)
    return file.getvalue()


def row(label: str, images: list[Image.Image], resize: Resize, method: int) -> None:
    resizing = encoding = 0.0
    size = 0
    alike: dict[str, list[float]] = {tier.name: [] for tier in TIERS}
    for image in images:
        start = time.process_time()
        made = resize(image)
        resizing += time.process_time() - start
        reference = from_full()(image)
        for tier in TIERS:
            start = time.process_time()
            file = encoded(made[tier.name], tier.quality, method)
            encoding += time.process_time() - start
            size += len(file)
            alike[tier.name].append(ssim(Image.open(io.BytesIO(file)), reference[tier.name]))
    count = len(images)
    scores = "  ".join(f"{name} {fmean(values):.4f}" for name, values in alike.items())
    times = f"resize {resizing / count * 1e3:4.0f} ms  encode {encoding / count * 1e3:4.0f} ms"
    print(f"{label:22} method {method}  {times}  {size // count:7} bytes  SSIM {scores}", flush=True)


def main(count: int) -> None:
    images = [Image.fromarray(photo(seed, 4000, 3000)) for seed in range(count)]
    for image in images:
        camera = io.BytesIO()
        image.save(camera, "JPEG", quality=92)
        image.info["jpeg"] = camera.getvalue()
    sources: dict[str, Resize] = {
        "full": from_full(),
        "full, gap 2": from_full(2.0),
        "high": from_high,
        "previous": from_previous(),
        "previous, gap 1.1": from_previous(1.1),
        "JPEG, previous": by_decode,
        "JPEG draft, previous": by_draft,
    }
    for label, resize in sources.items():
        row(label, images, resize, 4)
    for method in (2, 6):
        row("previous", images, from_previous(), method)
    row("full", images, from_full(), 6)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
