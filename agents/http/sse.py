"""Server-sent events: how one is written, and a response that sends them until source, client or server ends."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from functools import partial

import anyio
import structlog
from starlette.types import Receive, Scope, Send

log = structlog.get_logger()

COMMENT_SECONDS = 15.0
RECONNECT_MS = 1000
_HEAD = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


def frame(name: str, data: bytes, id: int | None = None) -> bytes:
    """One event. `data` is a single line; without an `id` the client goes on from the last one it got."""
    head = b"" if id is None else b"id: %d\n" % id
    return b"%sevent: %s\ndata: %s\n\n" % (head, name.encode(), data)


class EventStream:
    """An ASGI response: frames as the source gives them, and a comment line every 15 s so that nobody between takes the
    connection for dead. A client that lost it comes back by itself with the last id it got."""

    def __init__(self, source: AsyncGenerator[bytes, None], stopping: anyio.Event) -> None:
        self.source, self.stopping = source, stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        one_at_a_time = anyio.Lock()

        async def write(chunk: bytes) -> None:
            async with one_at_a_time:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})

        await send({"type": "http.response.start", "status": 200, "headers": list(_HEAD)})
        await write(b"retry: %d\n\n" % RECONNECT_MS)
        async with anyio.create_task_group() as tasks:
            for other in (partial(_gone, receive), self.stopping.wait):
                tasks.start_soon(_then_cancel, other, tasks.cancel_scope)
            tasks.start_soon(_comments, write)
            try:
                async with aclosing(self.source) as frames:
                    async for chunk in frames:
                        await write(chunk)
            except Exception:
                log.exception("event stream broke off")  # the client comes back and goes on
            tasks.cancel_scope.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _then_cancel(wait: Callable[[], Awaitable[object]], scope: anyio.CancelScope) -> None:
    await wait()
    scope.cancel()


async def _comments(write: Callable[[bytes], Awaitable[None]]) -> None:
    while True:
        await anyio.sleep(COMMENT_SECONDS)
        await write(b": still here\n\n")
