"""Waiting for work: a wakeup between two tasks, and when to look at a queue."""

from enum import Enum
from typing import Any

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream
from nats.aio.msg import Msg

from bus.subjects import Subject

LONGEST = 1.0
SHORTEST = 0.0005
"""Seconds between two looks."""


class Wakeup:
    """One side sets it, the other waits; set any number of times between two waits, it wakes once."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def set(self) -> None:
        """There is something to do."""
        self._event.set()

    async def wait(self) -> None:
        """Until it was set since the last wait."""
        await self._event.wait()
        self._event = anyio.Event()


class Found(Enum):
    """What came of trying to take jobs: none was to be had; one was, and there may be more; one was, the only one."""

    NOTHING = "nothing"
    SOME = "some"
    ALL = "all"


class IdleBackoff:
    """When to look at a queue, and when no look is needed.

    A job that comes in while nothing else waits is taken by the tokens of its subject. What came in together, what was
    released and what nobody noticed is found by looks: at once while they find something, soon and then ever later
    after an arrival, and in any case a second after the last one, since arrivals are lossy. (A subscriber gets a job
    before its stream has stored it, so the first look may find nothing: without the soon repeated ones, 2 to 17 of 150
    requests waited a whole second.)
    """

    def __init__(self, subject: Subject[Any], arrivals: MemoryObjectReceiveStream[Msg]) -> None:
        self.subject, self.arrivals = subject, arrivals
        self.pause, self.looked = LONGEST, float("-inf")

    async def wait(self, found: Found) -> dict[str, str] | None:
        """To be called with what the last try found. The tokens of the one job that came in; None for: look."""
        if found is not Found.NOTHING:
            self.pause = LONGEST
        due, message = self.looked + LONGEST - anyio.current_time(), None
        if found is not Found.SOME and due > 0:
            with anyio.move_on_after(min(self.pause, due)):
                message = await self.arrivals.receive()
            self.pause = SHORTEST if message else min(self.pause * 4, LONGEST)
        together = self.arrivals.statistics().current_buffer_used
        if message and not together and self.subject.matches(message.subject):
            return self.subject.parse(message.subject)
        self.looked = anyio.current_time()
        for _ in range(together):  # the look finds them, or the next one, which is soon
            self.arrivals.receive_nowait()
            self.pause = SHORTEST
        return None
