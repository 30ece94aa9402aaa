"""Showing things on a terminal: a job's progress as a bar, rows as a table; plain lines where there is no terminal."""

import re
import sys
import unicodedata
from collections.abc import Sequence

from agents.client import jobs
from agents.client.views import JobView
from bus.client import Bus
from schemas.ticks import StepTick


async def shown(bus: Bus, id: str, *, quiet: bool = False) -> JobView:
    """Follow a job to its end, showing where it is on standard error (not when `quiet`); returns its last view."""
    if quiet or not sys.stderr.isatty():
        return await _plain(bus, id, quiet)
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("waiting", total=None, note="")
        async for event in jobs.events(bus, id):
            if isinstance(event.data, StepTick):
                tick = event.data
                done, total = tick.image * tick.steps + tick.step, tick.images * tick.steps
                note = f"picture {tick.image + 1}/{tick.images}, step {tick.step}/{tick.steps}"
                bar.update(task, description=tick.stage, completed=done, total=total, note=note)
            elif event.name in ("planned", "started"):
                bar.update(task, description=event.name)
    return await _view(bus, id)


async def _plain(bus: Bus, id: str, quiet: bool) -> JobView:
    async for event in jobs.events(bus, id):
        if not quiet and event.name in ("planned", "started", "released"):
            sys.stderr.write(f"{event.name} {id}\n")
    return await _view(bus, id)


async def _view(bus: Bus, id: str) -> JobView:
    view = await jobs.state(bus, id)
    assert view is not None, f"job {id} ended and is not known"
    return view


def counted(count: int, noun: str) -> str:
    """So many of something, in words: 1 model, 2,000 models, 3 histories."""
    if count == 1:
        return f"1 {noun}"
    return f"{count:,} {noun.removesuffix('y')}ies" if re.search("[^aeiou]y$", noun) else f"{count:,} {noun}s"


_UNPRINTED = frozenset({"Cc", "Cs", "Zl", "Zp"})
_TURNING = frozenset("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that change the direction of writing, so that a name can look like another."""


def printable(text: str) -> str:
    """Text from outside, safe on a terminal: what would move its cursor, colour it or turn the line around is spelled
    out, as in `\\x1b`."""
    return "".join(
        ascii(char)[1:-1] if unicodedata.category(char) in _UNPRINTED or char in _TURNING else char for char in text
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, nothing: str) -> None:
    """Rows on standard output: a table on a terminal, tab-separated lines elsewhere; `nothing` when there are none."""
    if not rows:
        sys.stderr.write(nothing + "\n")
        return
    rows = [[printable(" ".join(cell.split())) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in rows:
            sys.stdout.write("\t".join(row) + "\n")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(*head, box=None, pad_edge=False)
    for row in rows:
        shown.add_row(*(Text(cell) for cell in row))
    Console().print(shown)
