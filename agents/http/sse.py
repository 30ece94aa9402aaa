"""Server-sent events: a response that sends them until source, client or server ends."""

from collections.abc import AsyncGenerator, Mapping

import anyio
import structlog
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

log = structlog.get_logger()

COMMENT_SECONDS = 15.0
RECONNECT_MS = 1000

Event = Mapping[str, str | int]
"""Fields of one event: `event`, `data`, `id`. Without an `id` the client goes on from the last one it got."""


class EventStream(EventSourceResponse):
    """An ASGI response: events as the source gives them, and a comment line every 15 s so that nobody between takes the
    connection for dead. A client that lost it comes back by itself with the last id it got."""

    def __init__(self, source: AsyncGenerator[Event, None], stopping: anyio.Event) -> None:
        comment = ServerSentEvent(comment="still here", sep="\n")
        super().__init__(_unbroken(source), ping=COMMENT_SECONDS, ping_message_factory=lambda: comment, sep="\n")
        self.stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await super().__call__(scope, receive, send)
        # An end, not a broken connection; the answer to HEAD, which has no events, has one.
        if self.active and self.stopping.is_set() and scope["method"] != "HEAD":
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _listen_for_exit_signal(self) -> None:  # type: ignore[override]
        """The end of our server. The library's own way polls for a signal twice a second for as long as the process
        lives."""
        await self.stopping.wait()


async def _unbroken(source: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
    yield {"retry": RECONNECT_MS}
    try:
        async for event in source:
            yield event
    except Exception:
        log.exception("event stream broke off")  # the client comes back and goes on
    finally:
        await source.aclose()
