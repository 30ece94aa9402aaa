"""Benchmarks: what Darkroom does, measured in turns with the plain way of doing it, against the budgets of the design.

Run: python -m tests.bench [NAME…] [--json]. The exit status is 1 when a budget is missed. Figures are medians; a ratio
(×) holds on any machine, a time only on one that does little else meanwhile.
"""

import argparse
import functools
import importlib
import os
import sys
import tempfile
import time
from pathlib import Path

import anyio
import msgspec
import structlog

from tests.bench.figures import Figure, table

# The one that imports torch comes last, so that it is in nobody else's way.
BENCHMARKS = ("bus", "scan", "hashing", "arrival", "following", "promotion", "start", "tiers", "import", "pipeline")
QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--json", action="store_true", help="JSON on standard output")
    chosen = parser.parse_args()
    if unknown := [name for name in chosen.names if name not in BENCHMARKS]:
        parser.error(f"no benchmark {', '.join(unknown)}; there are: {', '.join(BENCHMARKS)}")
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger("warning"),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    measured: list[Figure] = []
    for name in chosen.names or BENCHMARKS:
        began = time.monotonic()
        measured += run(name)
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    if chosen.json:
        print(msgspec.json.format(msgspec.json.encode([described(one) for one in measured])).decode())
    else:
        print(table(measured))
    return int(any(one.verdict == "MISSED" for one in measured))


def run(name: str) -> list[Figure]:
    """One benchmark, in a folder of its own that is gone afterwards."""
    os.environ.update(QUIET)
    module = importlib.import_module(f"tests.bench.bench_{name}")
    with tempfile.TemporaryDirectory(prefix=f"darkroom-bench-{name}-") as folder:
        found: list[Figure] = anyio.run(functools.partial(module.figures, Path(folder)))
    return [msgspec.structs.replace(one, benchmark=name) for one in found]


def described(figure: Figure) -> dict[str, object]:
    return {**msgspec.to_builtins(figure), "verdict": figure.verdict}


if __name__ == "__main__":
    sys.exit(main())
