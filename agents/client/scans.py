"""A look at every root now, followed until each file in them is settled and hashed, refused, or known to wait.

It always ends: what goes on for ever is no progress. Progress is that less is left than ever before, that a file is
being hashed further than before, and, until every root has been looked at, that another folder was.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import datetime

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream
from msgspec import structs
from nats.aio.msg import Msg

from agents.client.views import WaitingFiles
from bus.client import Bus
from bus.errors import NoAnswer, Undecodable, UserError
from bus.subjects import ASK_COMPARE, ASK_ROOT, TICK_HASH
from schemas.asks import Compare, Compared
from schemas.files import RootState, ScanRoot, WaitingFile
from schemas.settings import Settings
from schemas.ticks import HashTick

_ASK_AGAIN = 0.1
_LOOKING_SECONDS = 600.0
"""Without another folder looked at: a disk that does not answer."""

_COMPARING_SECONDS = 600.0
_HASHING_SECONDS = 30.0
"""Without a sign of a hasher, beyond the lease of one that died."""

_PAGE = 1000

Show = Callable[[int, int], object]


def _unshown(files: int, left: int) -> None:
    pass


async def look(bus: Bus, settings: Settings, show: Show = _unshown) -> list[RootState]:
    """Have every root looked at, wait for what is found, and return how they are; `show` gets how many files there are
    and how many are left. Raises UserError without a watcher, and for a folder that does not answer."""
    wanted = {root: (await _ask(bus, root, look=True)).look for root in settings.roots}
    hashing = settings.bus.ack_wait + _HASHING_SECONDS
    return await _followed(bus, wanted, settings.watcher.stable + 1, hashing, show)


async def compare(bus: Bus) -> int:
    """Have the catalog compared with the watchers' tables; how many differences were mended. Raises UserError when no
    migrator answers, or does not come to an end."""
    try:
        with anyio.move_on_after(_COMPARING_SECONDS):
            now = asked = await bus.ask(ASK_COMPARE, Compare(again=True), Compared, timeout=10)
            while now.done < asked.number:
                await anyio.sleep(_ASK_AGAIN)
                now = await bus.ask(ASK_COMPARE, Compare(), Compared, timeout=10)
                if now.number < asked.number:  # it was started anew, and counts from the beginning
                    now = asked = await bus.ask(ASK_COMPARE, Compare(again=True), Compared, timeout=10)
            return now.mended - asked.mended
    except NoAnswer as error:
        raise UserError("no catalog answers: is a migrator running?") from error
    raise UserError(f"the catalog was not compared within {_COMPARING_SECONDS:g} s: look into the migrator's log")


async def waiting(bus: Bus, roots: Iterable[str], *, after: str = "", limit: int = _PAGE) -> WaitingFiles:
    """Which files of some roots wait: at most `limit`, after the one that is called `after` (root/path)."""
    files: list[WaitingFile] = []
    count, more, unknown = 0, False, []
    after_root, _, after_rel = after.partition("/")
    for root in sorted(roots):
        left = limit - len(files)
        try:
            state, found = await _waits(bus, root, after_rel if root == after_root else "", left)
        except UserError:
            unknown.append(root)
            continue
        count += state.waiting
        if root >= after_root:
            more = more or len(found) > left
            files += found[:left]
    last = f"{files[-1].path.root}/{files[-1].path.rel}" if files and more else ""
    return WaitingFiles(files=tuple(files), waiting=count, next=last, unknown=tuple(unknown))


async def _waits(bus: Bus, root: str, after: str, limit: int) -> tuple[RootState, list[WaitingFile]]:
    """How a root is, and which files wait there, by path, after one: one more than `limit`, where there are so many.
    Raises UserError without a watcher."""
    state = await _ask(bus, root, after=after, limit=limit + 1)
    found, page = [*state.waits], state.waits
    while page and len(found) < min(limit + 1, state.waiting):
        page = (await _ask(bus, root, after=found[-1].path.rel, limit=limit + 1 - len(found))).waits
        found += page
    return state, found


async def _ask(bus: Bus, root: str, *, look: bool = False, after: str = "", limit: int = 1) -> RootState:
    try:
        ask = ScanRoot(look=look, after=after, limit=limit)
        return await bus.ask(ASK_ROOT, ask, RootState, root=root, timeout=10)
    except NoAnswer as error:
        raise UserError(f"no watcher answers for root {root}: is one running that has it among its roots?") from error


async def _followed(bus: Bus, wanted: dict[str, int], settling: float, hashing: float, show: Show) -> list[RootState]:
    """Ask until every root has been looked at and nothing in it is on the way. Files that do not settle within
    `settling` seconds of the last progress are left to the watcher, and those that are not hashed within `hashing`
    seconds of it to a hasher: they are named."""
    seen, since = _Seen(), bus.clock.steady()
    async with bus.listen(TICK_HASH.filter()) as ticks:
        while True:
            states = [await _asked_anew(bus, root, wanted) for root in wanted]
            left = sum(state.unhashed for state in states)
            fresh = sum(state.waiting for state in states)
            show(sum(state.files for state in states), left + fresh)
            looked = all(state.looks >= wanted[state.root] for state in states)
            if seen.progress(left + fresh, looked, sum(state.folders for state in states), _received(ticks)):
                since = bus.clock.steady()
            silent = bus.clock.steady() - since
            if looked and (not left + fresh or silent > (hashing if left else settling)):
                named = [await _named(bus, state) for state in states]
                if silent > hashing or not any(state.unhashed for state in named):  # else one was let in just now
                    return named
            if not looked and silent > _LOOKING_SECONDS:
                raise UserError(f"the folders were not looked at within {_LOOKING_SECONDS:g} s: is a disk away?")
            await anyio.sleep(_ASK_AGAIN)


async def _asked_anew(bus: Bus, root: str, wanted: dict[str, int]) -> RootState:
    """How a root is; a watcher that was started meanwhile, and counts from the beginning, is asked to look."""
    state = await _ask(bus, root)
    if state.look < wanted[root]:
        state = await _ask(bus, root, look=True)
        wanted[root] = state.look
    return state


def _received(ticks: MemoryObjectReceiveStream[Msg]) -> Iterator[HashTick]:
    """The ticks that came since the last call."""
    with suppress(anyio.WouldBlock):
        while True:
            message = ticks.receive_nowait()
            with suppress(Undecodable):
                yield TICK_HASH.decode(message.data)


class _Seen:
    """The best that was seen: what is no better than that is no progress."""

    def __init__(self) -> None:
        self.least, self.folders, self.looked = sys.maxsize, 0, False
        self.furthest: dict[str, int] = {}

    def progress(self, left: int, looked: bool, folders: int, ticks: Iterable[HashTick]) -> bool:
        """Whether this is better than all that was before: `left` files on the way, more `folders` looked at while not
        everything was, a file hashed further."""
        better = left < self.least or (not self.looked and (looked or folders != self.folders))
        if looked and not self.looked:
            self.least = left  # what was found is there to be done from now on
        self.least, self.folders, self.looked = min(self.least, left), folders, self.looked or looked
        for tick in ticks:
            better = better or tick.done > self.furthest.get(tick.rel, 0)
            self.furthest[tick.rel] = max(tick.done, self.furthest.get(tick.rel, 0))
        return better


async def _named(bus: Bus, state: RootState) -> RootState:
    """The state, with all that waits (the first of it, where that is very much) and what nobody hashes named."""
    now, found = await _waits(bus, state.root, "", _PAGE - 1)
    problems = now.problems
    if now.unhashed:
        files_are = "1 file is" if now.unhashed == 1 else f"{now.unhashed:,} files are"
        problems = (f"{files_are} still to be hashed: is a hasher at work?", *problems)
    return structs.replace(now, waits=tuple(found), problems=problems)


def line(file: WaitingFile) -> str:
    """What waits, since when and why, on a line."""
    since = datetime.fromtimestamp(file.since).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return f"{file.path.rel}: waits since {since}: {file.why}"
