"""What a benchmark hands back, the few ways to measure it, and the table that it becomes."""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from statistics import median, quantiles

import msgspec


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One comparison. `value` is in `unit` (× is a ratio of two things measured in turns); a budget is what it may be
    at most or has to be at least, and without one it is there to explain. `aside` holds the figures behind it."""

    benchmark: str = ""
    what: str
    value: float
    unit: str = "×"
    at_most: float | None = None
    at_least: float | None = None
    aside: str = ""

    @property
    def verdict(self) -> str:
        """ok, MISSED, or nothing where there is no budget."""
        if self.at_most is None and self.at_least is None:
            return ""
        high = self.at_most is None or self.value <= self.at_most
        low = self.at_least is None or self.value >= self.at_least
        return "ok" if high and low else "MISSED"

    @property
    def budget(self) -> str:
        """The budget as it is printed."""
        if self.at_most is not None:
            return f"≤ {self.at_most:g} {self.unit}"
        return f"≥ {self.at_least:g} {self.unit}" if self.at_least is not None else ""


def table(figures: Iterable[Figure]) -> str:
    """The figures in aligned columns, one line each."""
    rows = [("benchmark", "what", "figure", "budget", "", "side by side")]
    rows += [
        (one.benchmark, one.what, f"{one.value:.{_digits(one)}f} {one.unit}", one.budget, one.verdict, one.aside)
        for one in figures
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, what, figure, budget, verdict, aside in rows:
        left = f"{name:{widths[0]}}  {what:{widths[1]}}  {figure:>{widths[2]}}"
        lines.append(f"{left}  {budget:>{widths[3]}}  {verdict:{widths[4]}}  {aside}".rstrip())
    return "\n".join(lines)


def _digits(figure: Figure) -> int:
    return 1 if figure.unit == "ms" else 2


def p50(values: Sequence[float]) -> float:
    """The median."""
    return median(values)


def p99(values: Sequence[float]) -> float:
    """The 99th percentile; the largest of a few values."""
    return quantiles(values, n=100, method="inclusive")[98] if len(values) > 1 else values[0]


def milliseconds(values: Sequence[float]) -> str:
    """`p50/p99 ms` of values in seconds."""
    return f"{p50(values) * 1e3:.2f}/{p99(values) * 1e3:.2f} ms"


def ratios(ones: Sequence[float], others: Sequence[float]) -> list[float]:
    """What was measured in the same round, divided."""
    return [one / other for one, other in zip(ones, others, strict=True)]


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes on the wall."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


async def loop_lag(until: asyncio.Future[object], *, every: float = 0.002) -> list[float]:
    """How late, in seconds, this loop woke from each sleep of `every` seconds, until the future is done."""
    late = []
    while not until.done():
        began = time.perf_counter()
        await asyncio.sleep(every)
        late.append(time.perf_counter() - began - every)
    return late
