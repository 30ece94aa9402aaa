"""The clock and the source of ids of an agent: what it reads of time and chance comes from here, so that tests can give
their own."""

import time

from bus.ids import new_id


class Clock:
    """Time and ids. Each agent has one, `bus.clock`; libraries are given it, or what was read of it."""

    def now(self) -> float:
        """Unix seconds of the wall clock, which may be set back."""
        return time.time()

    def steady(self) -> float:
        """Seconds of a clock that never goes back, from any beginning."""
        return time.monotonic()

    def new_id(self) -> str:
        """A new UUIDv7 as 32 hex digits."""
        return new_id(self.now())
