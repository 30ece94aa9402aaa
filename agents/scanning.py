"""A look at every root now, followed until each file in them is settled and hashed, or refused."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio

from bus.client import Bus
from bus.errors import NoAnswer, UserError
from bus.subjects import ASK_COMPARE, ASK_ROOT
from schemas.asks import Compare, Compared, RootState, ScanRoot
from schemas.settings import Settings

_ASK_AGAIN = 0.1


async def look(bus: Bus, settings: Settings, *, quiet: bool) -> list[RootState]:
    """Have every root looked at, wait for what is found, and say how they are. Raises UserError without a watcher."""
    wanted = {root: (await _ask(bus, root, look=True)).look for root in settings.roots}
    return await _followed(bus, wanted, settings.watcher.stable + 1, quiet=quiet)


async def compare(bus: Bus) -> int:
    """Have the catalog compared with the watchers' tables; how many differences were mended. Raises UserError when no
    migrator answers."""
    try:
        now = asked = await bus.ask(ASK_COMPARE, Compare(again=True), Compared, timeout=10)
        while now.done < asked.number:
            await anyio.sleep(_ASK_AGAIN)
            now = await bus.ask(ASK_COMPARE, Compare(), Compared, timeout=10)
    except NoAnswer as error:
        raise UserError("no catalog answers: is a migrator running?") from error
    return now.mended - asked.mended


async def _ask(bus: Bus, root: str, *, look: bool = False) -> RootState:
    try:
        return await bus.ask(ASK_ROOT, ScanRoot(look=look), RootState, root=root, timeout=10)
    except NoAnswer as error:
        raise UserError(f"no watcher answers for root {root}: is one running that has it among its roots?") from error


async def _followed(bus: Bus, wanted: dict[str, int], patience: float, *, quiet: bool) -> list[RootState]:
    """Ask until every root has been looked at and nothing in it is on the way. Files that do not settle within
    `patience` seconds of the last that did are being written still: they are left to the watcher."""
    before, since = -1, time.monotonic()
    with _bar(quiet) as show:
        while True:
            states = [await _ask(bus, root) for root in wanted]
            left = sum(state.unhashed for state in states)
            fresh = sum(state.waiting for state in states)
            show(sum(state.files for state in states), left + fresh)
            looked = all(state.looks >= wanted[state.root] for state in states)
            if fresh != before or left:
                before, since = fresh, time.monotonic()
            if looked and not left and (not fresh or time.monotonic() - since > patience):
                return states
            await anyio.sleep(_ASK_AGAIN)


@contextmanager
def _bar(quiet: bool) -> Iterator[Callable[[int, int], None]]:
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
