"""Attempts: how often a file was let in lately, and when it may be again.

A file that is written, touched or renamed without end would be hashed without end. The first two times cost nothing;
from then on it has to hold still for a while, or wait for a longer while where it never does: both grow with what it
had in the last minute. So whatever is done to a file, it is hashed a few times a minute at most. A path at which one
file replaces another has the same limit while none of them holds still; one that does for two seconds is let in.
"""

import threading
import time
from collections.abc import Callable

from schemas.files import FilePath, Stat

WINDOW = 60.0
"""Seconds that an attempt counts."""

_Pauses = tuple[tuple[float, float], ...]
"""By the attempts that count: seconds from the last one until the next, and seconds of holding still that will do
instead. The last pair is for any more."""

AGAIN: _Pauses = ((0, 0), (0, 0), (4, 0.3), (8, 1), (16, 2), (32, 4), (60, 10), (60, 20))
"""Of one file."""

REPLACED: _Pauses = ((0, 0), (0, 0), (4, 0.3), (8, 0.3), (16, 0.5), (32, 1), (60, 1), (60, 2))
"""Of other files that were at the same path."""

_File = dict[Stat, float]
"""The versions of one file that were let in, and when."""


class Attempts:
    """What was let in during the last minute; for any thread. `clock` never goes back.

    A file is called by its key and when it was born (nanoseconds; None where that is not known): the number of a file
    that is gone is given to another one.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._lock = threading.Lock()
        self._files: dict[tuple[str, int | None], _File] = {}
        self._places: dict[FilePath, list[tuple[float, _File]]] = {}
        self._swept = clock()

    def note(self, path: FilePath, key: str, stat: Stat, born: int | None = None) -> None:
        """A version of a file was let in at this path."""
        now = self.clock()
        with self._lock:
            file = self._files.setdefault((key, born), {})
            file[stat] = now
            self._files.setdefault((key, None), {})[stat] = now
            self._places.setdefault(path, []).append((now, file))
            if now > self._swept + WINDOW:
                self._sweep(now)

    def count(self, path: FilePath, key: str, born: int | None = None) -> int:
        """The attempts that count for a file at this path. The same version of it at several paths is one."""
        again, replaced = self._lately(path, key, born)
        return max(len(again), len(replaced))

    def ready_at(self, path: FilePath, key: str, still_since: float, born: int | None = None) -> float:
        """When a file may be let in that is as it has been since `still_since`, if it stays so; that may be over."""
        again, replaced = self._lately(path, key, born)
        return max(_ready(AGAIN, again, still_since), _ready(REPLACED, replaced, still_since))

    def _lately(self, path: FilePath, key: str, born: int | None) -> tuple[list[float], list[float]]:
        """When a file was let in, and when others were at this path."""
        since = self.clock() - WINDOW
        with self._lock:
            file = self._files.get((key, born), {})
            versions = [at for at in file.values() if at > since]
            here = [at for at, other in self._places.get(path, ()) if other is file and at > since]
            others = [at for at, other in self._places.get(path, ()) if other is not file and at > since]
        return max(versions, here, key=len), others

    def _sweep(self, now: float) -> None:
        since, self._swept = now - WINDOW, now
        self._files = {key: file for key, file in self._files.items() if any(at > since for at in file.values())}
        lately = {path: [one for one in places if one[0] > since] for path, places in self._places.items()}
        self._places = {path: places for path, places in lately.items() if places}


def _ready(pauses: _Pauses, times: list[float], still_since: float) -> float:
    pause, still = pauses[min(len(times), len(pauses) - 1)]
    return min(max(times, default=float("-inf")) + pause, still_since + still)
