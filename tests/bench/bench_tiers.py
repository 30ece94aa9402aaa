"""Three tiers of 12-megapixel pictures: throughput against the original method, and the grid behind the choices.

`python -m tests.bench tiers` (or this module with `--pictures N --references M`) has the encoder's own function make
pictures' tiers, two at a time in threads as the encoder does, from files on disk to files on disk with every flush;
M times in between, the original method makes one picture. Of four pictures that take turns, three are JPEG of quality
90 and one is PNG. Each figure weighs the four alike, and takes the median of each one's turns.

The original method is known by its description only: full-resolution source for every tier, a copy by a list of
pixels, method 6, one picture at a time. `original` reads that as cheaply as it can be read: the picture is decoded and
copied once, not once a tier, and nothing is flushed to disk.

`python -m tests.bench.bench_tiers --grid N` tells CPU time, bytes and SSIM by resize source and by WebP method for N
pictures. SSIM is to a Lanczos resize of the full picture, at each tier's size, there and everywhere in this file.
"""

import argparse
import asyncio
import functools
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean, median

import anyio
import msgspec
from anyio import to_thread
from PIL import Image

from agents.images.model_pictures import encode_picture, picture_names
from agents.images.tiers import TIERS, tier_sizes
from agents.storage import blobs
from agents.storage.layout import BLOBS, DataDir
from schemas.images import EncodePicture
from schemas.settings import EncoderSettings
from tests.bench.figures import Figure, loop_lag, p50, p99, table
from tests.images.photos import photo, ssim

LANCZOS = Image.Resampling.LANCZOS
MODEL = "0" * 64
Resize = Callable[[Image.Image], dict[str, Image.Image]]


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds for one picture, on the wall and of CPU: ours (of several, two at a time) and the original's, and what
    its copy by a list took of that."""

    ours: float
    ours_cpu: float
    original: float
    original_cpu: float
    copying: float


def original(source: Path, folder: Path) -> float:
    """The three tiers of one picture by the original method, as `<tier>.webp`; the seconds that the copy took."""
    with Image.open(source) as image:
        image.load()
        began = time.perf_counter()
        pixels = list(image.get_flattened_data())
        copy = Image.new(image.mode, image.size)
        copy.putdata(pixels)
        del pixels
        copying = time.perf_counter() - began
    for tier in TIERS:
        tiered = copy.resize(tier_sizes(*copy.size)[tier.name], LANCZOS)
        (folder / f"{tier.name}.webp").write_bytes(encoded(tiered, tier.quality, 6))
    return copying


async def ours(jobs: list[EncodePicture], data: Path) -> tuple[float, list[float]]:
    """Seconds for each of these pictures as the encoder makes them, and how late the loop woke meanwhile."""
    waiting = iter(jobs)

    async def work(waiting: Iterator[EncodePicture]) -> None:
        for job in waiting:
            await to_thread.run_sync(encode_picture, job, data)

    began = time.perf_counter()
    late = await loop_lag(asyncio.gather(*(work(waiting) for _ in range(EncoderSettings().parallel))))
    return (time.perf_counter() - began) / len(jobs), late


def jobs(source: str, first: int, count: int) -> list[EncodePicture]:
    """Jobs for one original under new numbers."""
    plain = EncodePicture(id="", sha256=MODEL, number=0, original=f"{BLOBS}/{source}", source=source)
    return [msgspec.structs.replace(plain, number=first + index) for index in range(count)]


def sources() -> list[bytes]:
    """The four pictures."""
    one, other = (Image.fromarray(photo(seed, 4000, 3000)) for seed in range(2))
    cameras = (one, one.transpose(Image.Transpose.ROTATE_180), other)
    return [*(saved(image, "JPEG", quality=90) for image in cameras), saved(other, "PNG", compress_level=3)]


async def figures(folder: Path, *, pictures: int = 24, references: int = 4) -> list[Figure]:
    """`pictures` of ours and `references` of the original's, in turns (both rounded to whole rounds of the four)."""
    keys = [blobs.put(folder, data) for data in sources()]
    rounds = max(1, references // len(keys))
    share = max(1, pictures // (rounds * len(keys)))
    turns: dict[str, list[Turn]] = {key: [] for key in keys}
    late: list[float] = []
    for round in range(rounds):
        for place, key in enumerate(keys):
            turn, lag = await one_turn(folder, key, jobs(key, (round * len(keys) + place) * share, share))
            turns[key].append(turn)
            late += lag
    made = {key: picture_names(MODEL, place * share) for place, key in enumerate(keys)}
    return [*_speed(turns, late, share * rounds * len(keys)), *_likeness(folder, made)]


async def one_turn(folder: Path, key: str, jobs: list[EncodePicture]) -> tuple[Turn, list[float]]:
    """One picture made by the original method and then as often as there are jobs by ours; the loop's lag meanwhile."""
    (folder / key).mkdir(exist_ok=True)
    wall, cpu = time.perf_counter(), time.process_time()
    copying = original(DataDir(folder).blobs / key, folder / key)
    theirs, theirs_cpu = time.perf_counter() - wall, time.process_time() - cpu
    cpu = time.process_time()
    mine, late = await ours(jobs, folder)
    mine_cpu = (time.process_time() - cpu) / len(jobs)
    return Turn(ours=mine, ours_cpu=mine_cpu, original=theirs, original_cpu=theirs_cpu, copying=copying), late


def _speed(turns: dict[str, list[Turn]], late: list[float], made: int) -> list[Figure]:
    def typical(field: str) -> float:
        return fmean(median(getattr(turn, field) for turn in every) for every in turns.values())

    mine, theirs, copying = typical("ours"), typical("original"), typical("copying")
    mine_cpu, theirs_cpu = typical("ours_cpu"), typical("original_cpu")
    references = sum(map(len, turns.values()))
    return [
        Figure(
            what="pictures/s, ours / original method",
            value=theirs / mine,
            at_least=4.0,
            aside=f"{1 / mine:.2f}/s ({made} made), original {1 / theirs:.2f}/s ({references} made)",
        ),
        Figure(
            what="… / original method without its copy",
            value=(theirs - copying) / mine,
            aside=f"{mine * 1e3:.0f} ms, original {(theirs - copying) * 1e3:.0f} + {copying * 1e3:.0f} ms to copy",
        ),
        Figure(
            what="… in CPU time alone, original / ours",
            value=theirs_cpu / mine_cpu,
            aside=f"{mine_cpu * 1e3:.0f} ms, original {theirs_cpu * 1e3:.0f} ms, whatever else the machine does",
        ),
        Figure(
            what="loop lag p99 meanwhile",
            value=p99(late) * 1e3,
            unit="ms",
            at_most=10.0,
            aside=f"p50 {p50(late) * 1e3:.2f} ms",
        ),
    ]


def _likeness(folder: Path, made: dict[str, dict[str, str]]) -> list[Figure]:
    alike = {way: dict.fromkeys((tier.name for tier in TIERS), 0.0) for way in ("ours", "original")}
    sizes = dict.fromkeys(alike, 0)
    for key, names in made.items():
        with Image.open(DataDir(folder).blobs / key) as full:
            target = from_full()(full)
        for tier in TIERS:
            for way, file in (("ours", folder / names[tier.name]), ("original", folder / key / f"{tier.name}.webp")):
                sizes[way] += file.stat().st_size
                with Image.open(file) as picture:
                    alike[way][tier.name] += ssim(picture, target[tier.name]) / len(made)
    worst = max(alike["original"][tier.name] - alike["ours"][tier.name] for tier in TIERS)
    said = (f"{name} {score:.4f}/{alike['original'][name]:.4f}" for name, score in alike["ours"].items())
    return [
        Figure(what="mean SSIM lost, worst tier", value=worst * 1e3, unit="‰", at_most=5.0, aside=", ".join(said)),
        Figure(
            what="bytes, ours / original method",
            value=sizes["ours"] / sizes["original"],
            at_most=1.1,
            aside=f"{sizes['ours'] // len(made):,}, original {sizes['original'] // len(made):,} a picture",
        ),
    ]


def from_full(gap: float | None = None) -> Resize:
    return lambda image: {
        name: image.resize(size, LANCZOS, reducing_gap=gap) for name, size in tier_sizes(*image.size).items()
    }


def from_high(image: Image.Image) -> dict[str, Image.Image]:
    sizes = tier_sizes(*image.size)
    high = image.resize(sizes["high"], LANCZOS)
    return {name: high if name == "high" else high.resize(size, LANCZOS) for name, size in sizes.items()}


def from_previous(gap: float | None = None, filter: Image.Resampling = LANCZOS) -> Resize:
    def resize(image: Image.Image) -> dict[str, Image.Image]:
        made = {}
        for name, size in tier_sizes(*image.size).items():
            made[name] = image = image.resize(size, filter, reducing_gap=gap)
        return made

    return resize


def by_draft(image: Image.Image, filter: Image.Resampling = LANCZOS) -> dict[str, Image.Image]:
    """The picture as a camera's JPEG, decoded at half size; the time includes that decoding."""
    half = Image.open(io.BytesIO(image.info["jpeg"]))
    half.draft("RGB", tier_sizes(*image.size)["high"])
    made: dict[str, Image.Image] = {}
    tiered: Image.Image = half
    for name, size in tier_sizes(*image.size).items():
        made[name] = tiered = tiered.resize(size, filter)
    return made


def by_decode(image: Image.Image) -> dict[str, Image.Image]:
    """The same JPEG decoded at full size, for comparison with `by_draft`."""
    return from_previous()(Image.open(io.BytesIO(image.info["jpeg"])))


def encoded(image: Image.Image, quality: int, method: int) -> bytes:
    return saved(image, "WEBP", quality=quality, method=method)


def saved(image: Image.Image, form: str, **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def row(label: str, images: list[Image.Image], resize: Resize, method: int) -> None:
    """One line of the grid: CPU milliseconds for one picture, the least of three; bytes of its three files; SSIM."""
    resizing = encoding = 0.0
    size = 0
    alike: dict[str, list[float]] = {tier.name: [] for tier in TIERS}
    for image in images:
        resizing += min(cpu_seconds(lambda image=image: resize(image)) for _ in range(3))
        made, reference = resize(image), from_full()(image)
        for tier in TIERS:
            encode = functools.partial(encoded, made[tier.name], tier.quality, method)
            encoding += min(cpu_seconds(encode) for _ in range(3))
            file = encode()
            size += len(file)
            alike[tier.name].append(ssim(Image.open(io.BytesIO(file)), reference[tier.name]))
    count = len(images)
    scores = "  ".join(f"{name} {fmean(values):.4f}" for name, values in alike.items())
    times = f"resize {resizing / count * 1e3:4.0f} ms  encode {encoding / count * 1e3:4.0f} ms"
    print(f"{label:22} method {method}  {times}  {size // count:7} bytes  SSIM {scores}", flush=True)


def cpu_seconds(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def grid(count: int) -> None:
    images = [Image.fromarray(photo(seed, 4000, 3000)) for seed in range(count)]
    for image in images:
        image.info["jpeg"] = saved(image, "JPEG", quality=90)
    bicubic = Image.Resampling.BICUBIC
    lines: list[tuple[str, Resize, int]] = [
        ("full", from_full(), 6),
        ("full", from_full(), 4),
        ("full, gap 2", from_full(2.0), 4),
        ("high", from_high, 4),
        *(("previous", from_previous(), method) for method in (6, 4, 3, 2)),
        ("previous, bicubic", from_previous(filter=bicubic), 4),
        ("previous, gap 1.1", from_previous(1.1), 4),
        ("JPEG, previous", by_decode, 4),
        ("JPEG draft, previous", by_draft, 4),
        ("JPEG draft, bicubic", functools.partial(by_draft, filter=bicubic), 4),
    ]
    for label, resize, method in lines:
        row(label, images, resize, method)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bench_tiers")
    parser.add_argument("--grid", type=int, metavar="N", help="the grid, with this many pictures, and nothing else")
    parser.add_argument("--pictures", type=int, default=24, help="how many ours makes")
    parser.add_argument("--references", type=int, default=4, help="how many the original method makes")
    chosen = parser.parse_args()
    if chosen.grid:
        grid(chosen.grid)
        return
    with tempfile.TemporaryDirectory(prefix="darkroom-bench-tiers-") as folder:
        measure = functools.partial(figures, Path(folder), pictures=chosen.pictures, references=chosen.references)
        print(table(anyio.run(measure)))


if __name__ == "__main__":
    main()
