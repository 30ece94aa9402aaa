"""`darkroom scan`: a look at the roots now, and what it found."""

from agents.cli import console
from agents.cli.service import CATALOGUING, running_bus
from agents.client import scans
from schemas.files import RootState
from schemas.settings import Settings

_SHOWN = 20
"""Of the files that wait in a root, how many are named."""


async def scan(settings: Settings, as_json: bool = False) -> int:
    """Print a summary for each root and what waits there; the status is 1 when something was refused, or can't be
    looked at or hashed. What waits (is still being written, for example) is none of that: it is named, with why and
    since when."""
    async with running_bus(settings, start=(CATALOGUING,)) as bus:
        began = bus.clock.steady()
        with console.file_bar(quiet=as_json) as show:
            states = await scans.look(bus, settings, show)
        mended = await scans.compare(bus)
        seconds = bus.clock.steady() - began
    if as_json:
        console.json({"seconds": round(seconds, 3), "mended": mended, "roots": states})
    else:
        if mended:
            console.line(f"the catalog differed from the folders: {console.counted(mended, 'difference')} mended")
        for state in states:
            _print(state, settings.roots[state.root], seconds)
    return 1 if any(state.problems for state in states) else 0


def _print(state: RootState, folder: str, seconds: float) -> None:
    ready = state.files - state.refused - state.waiting - state.unhashed
    waiting = f"{state.waiting:,} waiting, " if state.waiting else ""
    found = f"{console.counted(ready, 'model')} in {folder}"
    console.line(f"{state.root}: {found}, {waiting}{state.refused:,} refused, {seconds:.1f} s")
    for line in (*state.problems, *map(scans.line, state.waits[:_SHOWN])):
        console.line(console.printable(f"  {line}"))
    if (more := state.waiting - len(state.waits[:_SHOWN])) > 0:
        console.line(f"  and {more:,} more waiting (see --json)")
