"""A bell: one side rings, the other waits; what was rung while nobody waited is heard at the next wait, once."""

import anyio


class Bell:
    """Rung any number of times, heard once."""

    def __init__(self) -> None:
        self._rung = anyio.Event()

    def ring(self) -> None:
        """There is something to do."""
        self._rung.set()

    async def wait(self) -> None:
        """Until it was rung since the last wait."""
        await self._rung.wait()
        self._rung = anyio.Event()
