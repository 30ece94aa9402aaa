"""How much a run of the tests tries: a sample that is another one every day (`make test`), or all (`make test-all`)."""

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TypeVar

T = TypeVar("T")

ALL = os.environ.get("TESTS") == "all"
SEED = int(os.environ.setdefault("TESTS_SEED", str(datetime.now(UTC).toordinal())))
"""Chooses the sample; the same in every worker, which inherits it."""
HEADER = "effort: all" if ALL else f"effort: a sample; TESTS_SEED={SEED} chooses the same one, TESTS=all is everything"


def examples(full: int) -> int:
    """How many examples a property is tried on, of so many in a full run."""
    return full if ALL else max(10, full // 5)


def sample(points: Sequence[T], count: int) -> list[T]:
    """All points, or about `count` of them, evenly spread, others for another seed."""
    stride = 1 if ALL else max(1, -(-len(points) // count))
    return list(points[SEED % stride :: stride])
