"""Trace context (W3C traceparent) that travels in message headers and in every log line."""

import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import structlog

HEADER = "traceparent"
_PATTERN = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_current: ContextVar[str | None] = ContextVar("traceparent", default=None)


def current() -> str:
    """The traceparent to send now: a new span of the running trace, or the start of a new one."""
    parent = _current.get()
    match = _PATTERN.fullmatch(parent) if parent else None
    trace_id, flags = (match[1], match[3]) if match else (secrets.token_hex(16), "01")
    return f"00-{trace_id}-{secrets.token_hex(8)}-{flags}"


@contextmanager
def continued(headers: Mapping[str, str] | None) -> Iterator[None]:
    """Run the body inside the trace that a message's headers carry (a new one when they carry none or a broken one)."""
    value = (headers or {}).get(HEADER, "")
    token = _current.set(value if _PATTERN.fullmatch(value) else current())
    trace_id = (_current.get() or "").split("-")[1]
    try:
        with structlog.contextvars.bound_contextvars(trace=trace_id):
            yield
    finally:
        _current.reset(token)
