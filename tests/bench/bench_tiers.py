"""Time, bytes and SSIM of the three tiers by resize source and by WebP method, on 12-megapixel pictures.

Run: python -m tests.bench.bench_tiers [pictures]. Times are CPU milliseconds for one picture on one core. SSIM is to a
Lanczos resize of the full picture, at each tier's size.

`python -m tests.bench tiers` compares only what was chosen with the plain way (each from the full picture, method 6)
and tells how late an event loop wakes while two pictures are made in threads, as the encoder does it. Budget: p99 under
10 ms.
"""

import asyncio
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median

from PIL import Image

from agents.images.tiers import TIERS, tier_sizes, webp_tiers
from tests.bench.figures import Figure, loop_lag, p50, p99, ratios, seconds
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


async def figures(folder: Path) -> list[Figure]:
    """The tiers of one picture, chosen and plain in turns; the loop's lag with two of them under way."""
    image = Image.fromarray(photo(0, 4000, 3000))

    def plain() -> list[bytes]:
        made = from_full()(image)
        return [encoded(made[tier.name], tier.quality, 6) for tier in TIERS]

    ours, theirs, late = [], [], []
    for _ in range(5):
        ours.append(seconds(lambda: webp_tiers(image)))
        theirs.append(seconds(plain))
        late += await loop_lag(asyncio.gather(*(asyncio.to_thread(webp_tiers, image) for _ in range(2))))
    aside = f"{p50(ours) * 1e3:.0f} ms, plain {p50(theirs) * 1e3:.0f} ms for 12 megapixels"
    return [
        Figure(what="time for three tiers, chosen / plain", value=median(ratios(ours, theirs)), aside=aside),
        Figure(
            what="loop lag p99, two pictures",
            value=p99(late) * 1e3,
            unit="ms",
            at_most=10.0,
            aside=f"p50 {p50(late) * 1e3:.2f} ms",
        ),
    ]


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
