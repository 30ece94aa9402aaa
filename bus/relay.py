"""Relay: what an outbox holds on its way to the bus, in order, whatever is killed or lost on the way.

An outbox is filled in the transaction that makes its messages true. Many are under way at once; what the bus has
stored leaves the outbox, and all the others are published again after a failure.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

import anyio
import structlog

from bus.client import Bus
from bus.errors import Full, Retry, Taken, UserError
from bus.wakeup import Wakeup

log = structlog.get_logger()

M = TypeVar("M")

_LONGEST_PAUSE = 30.0


class Outbox(Protocol[M]):
    """The messages of one agent that the bus has not stored yet."""

    async def resume(self) -> bool:
        """Find out how far the bus is, at the beginning and after every failure; True when messages were stored
        meanwhile. Raises UserError when nothing may be published any more."""
        ...

    async def unsent(self) -> Sequence[M]:
        """The oldest messages that may be under way at once, in order; none when there are none."""
        ...

    async def publish(self, message: M) -> None:
        """Have the bus store one message. Raises Retry, Full or Taken when it was not."""
        ...

    async def sent(self, messages: Sequence[M]) -> None:
        """These are stored: they leave the outbox."""
        ...


async def relay(bus: Bus, outbox: Outbox[M], wakeup: Wakeup) -> None:
    """Publish the outbox in order, for ever; what can't be published is tried again, later and later, and nothing
    overtakes it. `wakeup` is rung when there is more. Raises UserError as `resume` does."""
    pause = bus.settings.retry_delay
    while True:
        try:
            if await outbox.resume():
                pause = bus.settings.retry_delay
            while True:
                while messages := await outbox.unsent():
                    async with anyio.create_task_group() as tasks:  # they begin in this order, and leave in it
                        for message in messages:
                            tasks.start_soon(outbox.publish, message)
                    await outbox.sent(messages)
                pause = bus.settings.retry_delay
                await wakeup.wait()
        except UserError:
            raise
        except Exception as error:
            if (expected := _expected(error)) is not None:
                log.warning("not published, trying again", agent=bus.name, error=str(expected))
            else:
                log.exception("not published, trying again", agent=bus.name)
            await anyio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)


def _expected(error: BaseException) -> BaseException | None:
    """The first of the errors that the bus may well raise, if there are no others among them."""
    if isinstance(error, BaseExceptionGroup):
        inner = [_expected(one) for one in error.exceptions]
        return None if None in inner else inner[0]
    return error if isinstance(error, Retry | Full | Taken) else None
