"""The SHA-256 of a warm file of 2 GiB against the best that the machine has, in turns in one run.

Compared with: hashlib over as many bytes from memory (a block too large for the near caches), over as many bytes from
the core's cache (the same MiB again and again: the sum alone), `openssl dgst` and `sha256sum`. Budget: at least 0.95 of
the first two; the second is the stricter one.

Two files in two threads on two cores against one file on one core (as it is read where there is only one), and
against one file that has the other core to read ahead on. Budget: at least 1.8. Beside it what hashing from the cache
gains from two threads, which is what the machine has to give at the moment: with the copy out of the page cache on top,
two cores can't do more for two files than that gain times the speed of one that is read without help. How late an event
loop wakes meanwhile, with the files hashed in threads as the hasher does it (budget: p99 under 10 ms), and how much
memory a process takes at most that hashes both.
"""

import asyncio
import hashlib
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from agents.ingest.hashing.digests import hash_file
from agents.ingest.hashing.reading import Cores, usable_cores
from agents.storage.paths import stat_of
from schemas.files import Stat
from tests.bench.figures import Figure, loop_lag, p50, p99, ratios, seconds

SIZE = 2 * 1024**3
BLOCK, LARGE_BLOCK = 1024**2, 64 * 1024**2
ROUNDS = 5
LAG_ROUNDS = 3
MIB = 1024**2


async def figures(folder: Path) -> list[Figure]:
    """Write two files, read them warm, measure; the folder's owner removes them."""
    block = os.urandom(BLOCK)
    files = [written(folder / f"{number}.bin", block) for number in range(2)]
    return [*speeds(files[0], block), *in_two_threads(files, block), *await lags(files), memory(files)]


def written(path: Path, block: bytes) -> Path:
    """A file of SIZE bytes that is in the page cache and on the disk, so that nothing is written back meanwhile."""
    with path.open("wb") as file:
        for _ in range(SIZE // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return path


def hashed(path: Path, expected: Stat, cores: Cores | None = None) -> str:
    return hash_file(str(path), expected=expected, cores=cores).sha256


def both_hashed(pool: ThreadPoolExecutor, files: list[Path]) -> None:
    """As the hasher does it."""
    cores = Cores()
    for work in [pool.submit(hashed, path, stat_of(path.stat()), cores) for path in files]:
        work.result()


def in_memory(block: bytes) -> str:
    """SIZE bytes, the same block again and again."""
    digest = hashlib.sha256(usedforsecurity=False)
    for _ in range(SIZE // len(block)):
        digest.update(block)
    return digest.hexdigest()


def by_command(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def speeds(path: Path, block: bytes) -> list[Figure]:
    expected = stat_of(path.stat())
    assert hashed(path, expected) == in_memory(block), "both hash the same bytes"
    large = os.urandom(LARGE_BLOCK)
    ways = {
        "in cache": lambda: in_memory(block),
        "in memory": lambda: in_memory(large),
        "hash_file": lambda: hashed(path, expected),
        "openssl": lambda: by_command("openssl", "dgst", "-sha256", str(path)),
        "sha256sum": lambda: by_command("sha256sum", str(path)),
    }
    ways = {name: way for name, way in ways.items() if name not in ("openssl", "sha256sum") or shutil.which(name)}
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            took[name].append(seconds(way))
    found = []
    for name, times in took.items():
        if name != "hash_file":
            aside = f"{SIZE / MIB / p50(took['hash_file']):,.0f} MiB/s, {name} {SIZE / MIB / p50(times):,.0f} MiB/s"
            value = median(ratios(times, took["hash_file"]))
            at_least = 0.95 if name in ("in cache", "in memory") else None
            found.append(Figure(what=f"speed of hash_file / {name}", value=value, at_least=at_least, aside=aside))
    return found


def in_two_threads(files: list[Path], block: bytes) -> list[Figure]:
    expected = stat_of(files[0].stat())
    gains, helped_gains, memory_gains, alone = [], [], [], []
    with ThreadPoolExecutor(2) as pool:
        for _ in range(ROUNDS):
            helped = seconds(lambda: hashed(files[0], expected))
            both = seconds(lambda: both_hashed(pool, files))
            unaided = seconds(lambda: hashed(files[0], expected, Cores(1)))
            in_cache = seconds(lambda: in_memory(block))
            memory_gains.append(2 * in_cache / seconds(lambda: list(pool.map(in_memory, (block, block)))))
            gains.append(2 * unaided / both)
            helped_gains.append(2 * helped / both)
            alone.append(helped / unaided)
    possible = [gain * share for gain, share in zip(memory_gains, alone, strict=True)]
    aside = (
        f"in cache {median(memory_gains):.2f}, one file without read-ahead {median(alone):.2f} as fast as with it, "
        f"on {usable_cores()} cores"
    )
    return [
        Figure(what="two files on two cores / one on one", value=median(gains), at_least=1.8, aside=aside),
        Figure(what="two files / twice one that both cores serve", value=median(helped_gains), at_least=1.8),
        Figure(what="two files / what two cores can do", value=median(ratios(helped_gains, possible))),
    ]


async def lags(files: list[Path]) -> list[Figure]:
    """The loop's lag with two files being hashed, and with nothing to do."""
    hashing: list[float] = []
    idle: list[float] = []
    with ThreadPoolExecutor(2) as pool:
        for _ in range(LAG_ROUNDS):
            idle += await loop_lag(asyncio.ensure_future(asyncio.sleep(0.5)))
            hashing += await loop_lag(asyncio.ensure_future(asyncio.to_thread(both_hashed, pool, files)))
    aside = f"p50 {p50(hashing) * 1e3:.2f} ms; idle p50 {p50(idle) * 1e3:.2f}, p99 {p99(idle) * 1e3:.2f} ms"
    return [Figure(what="loop lag p99, two files", value=p99(hashing) * 1e3, unit="ms", at_most=10.0, aside=aside)]


def memory(files: list[Path]) -> Figure:
    """Of a process of its own, which imports what the hasher imports."""
    program = (
        "import resource, sys; from concurrent.futures import ThreadPoolExecutor; from pathlib import Path; "
        "import agents.hasher; from tests.bench.bench_hashing import both_hashed; "
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; before = peak(); "
        "both_hashed(ThreadPoolExecutor(2), [Path(name) for name in sys.argv[1:]]); print(before, peak())"
    )
    done = subprocess.run([sys.executable, "-c", program, *map(str, files)], check=True, stdout=subprocess.PIPE)
    before, peak = (int(kib) / 1024 for kib in done.stdout.split())
    aside = f"{before:.0f} MiB before the first byte was read"
    return Figure(what="peak memory, two files", value=peak, unit="MiB", aside=aside)
