"""How long an idle worker waits before it looks at its queues again."""

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream
from nats.aio.msg import Msg

LONGEST = 1.0
SHORTEST = 0.0005


class Patience:
    """Waits until something is heard, or for a second at most.

    A subscriber hears of a job before its stream has stored it, so the look that follows may find nothing: it is
    repeated soon, and then ever later. (Without that, 2 to 17 of 150 requests waited a whole second; with it none.)
    """

    def __init__(self) -> None:
        self.pause = LONGEST

    async def wait(self, heard: MemoryObjectReceiveStream[Msg], *, served: bool) -> None:
        """To be called after each look; `served` says that it found something, and looks again at once."""
        if served:
            self.pause = LONGEST
            return
        news = False
        with anyio.move_on_after(self.pause):
            await heard.receive()
            news = True
        self.pause = SHORTEST if news else min(self.pause * 4, LONGEST)
