"""Showing things on a terminal: lines, rows as a table, bars; plain lines where there is no terminal."""

import re
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import msgspec


def line(text: str) -> None:
    """One line on standard output, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """One line on standard error."""
    sys.stderr.write(text + "\n")


def json(content: object) -> None:
    """Anything msgspec encodes, as JSON on a line of standard output."""
    line(msgspec.json.encode(content).decode())


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
        note(nothing)
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


@contextmanager
def file_bar(*, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Shows how many files there are and how many are left: a bar on a terminal, else nothing."""
    if quiet or not sys.stderr.isatty():
        yield lambda files, left: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("files", total=None)
        yield lambda files, left: bar.update(task, total=files, completed=files - left)
