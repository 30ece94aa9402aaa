"""The relay by itself: what is tried again, what is not, and in which order things leave."""

from collections.abc import Sequence

import anyio
import pytest
from structlog.testing import capture_logs

from bus.client import Bus
from bus.errors import Retry, UserError
from bus.relay import relay
from bus.wakeup import Wakeup


class Letters:
    """An outbox of words. `failures` are raised, one by one, instead of publishing the word they are of."""

    def __init__(self, *words: str) -> None:
        self.words, self.published, self.resumed = list(words), list[str](), 0
        self.failures: list[tuple[str, Exception]] = []
        self.end: UserError | None = None
        self.empty = anyio.Event()

    async def resume(self) -> bool:
        self.resumed += 1
        if self.end is not None:
            raise self.end
        return True

    async def unsent(self) -> Sequence[str]:
        if not self.words:
            self.empty.set()
        return self.words[:3]

    async def publish(self, message: str) -> None:
        if self.failures and self.failures[0][0] == message:
            raise self.failures.pop(0)[1]
        self.published.append(message)

    async def sent(self, messages: Sequence[str]) -> None:
        del self.words[: len(messages)]


async def test_what_is_in_the_outbox_is_published_in_order_and_so_is_what_comes_later(bus: Bus) -> None:
    letters, wakeup = Letters(*"abcde"), Wakeup()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(relay, bus, letters, wakeup)
            await letters.empty.wait()
            letters.empty = anyio.Event()
            letters.words.append("f")
            wakeup.set()
            await letters.empty.wait()
            tasks.cancel_scope.cancel()
    assert letters.published == [*"abcdef"] and letters.resumed == 1


async def test_after_a_failure_all_that_was_not_stored_is_published_again(bus: Bus) -> None:
    letters = Letters(*"abcd")
    letters.failures = [("b", Retry("the bus is away")), ("b", ValueError("a bug"))]
    with capture_logs() as logs, anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(relay, bus, letters, Wakeup())
            await letters.empty.wait()
            tasks.cancel_scope.cancel()
    assert letters.published[-4:] == [*"abcd"] and letters.resumed == 3
    assert [one["log_level"] for one in logs] == ["warning", "error"], "a bug has its traceback in the log"


async def test_an_outbox_that_may_not_be_published_ends_the_relay(bus: Bus) -> None:
    letters = Letters("a")
    letters.end = UserError("another catalog's")
    with pytest.raises(UserError, match="another"):
        await relay(bus, letters, Wakeup())
    assert letters.published == []
