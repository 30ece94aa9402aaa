"""Messages of the bus for people: those on a pattern, and each as one line."""

import json
import re
from collections.abc import AsyncGenerator
from contextlib import suppress
from datetime import datetime
from typing import Any

import msgspec

from bus.client import Bus
from bus.errors import UserError
from bus.subjects import (
    ALL,
    FILE_HASHED,
    IMAGE_ENCODED,
    JOB_PLANNED,
    PREFIX,
    TICK_AGENT,
    TICK_HASH,
    TICK_PREVIEW,
    TICK_STEP,
    row_of,
)


class Received(msgspec.Struct, frozen=True, kw_only=True):
    """One message of the bus, with the Unix time at which it came."""

    subject: str
    data: bytes
    at: float


def pattern_of(text: str) -> str:
    """The full pattern that a person means: `evt.job.>`, `tick.*.*` or the same with the prefix; empty means all.

    Raises UserError for one that is no pattern, or that nothing in the table of subjects can ever match.
    """
    short = (text.strip() or ">").removeprefix(PREFIX)
    tokens = short.split(".")
    if not all(re.fullmatch(r"[a-z0-9_-]{1,64}|\*|>", token) for token in tokens) or ">" in tokens[:-1]:
        raise UserError(f"{text!r} is no pattern: words of a to z, 0 to 9, '_' and '-', `*` for one, `>` for the rest")
    if not any(_can_match(tokens, row.template.split(".")) for row in ALL):
        kinds = sorted({".".join(row.template.split(".")[:2]) for row in ALL})
        raise UserError(f"nothing on the bus is called {text!r}; there are {', '.join(f'{kind}.>' for kind in kinds)}")
    return PREFIX + short


def _can_match(tokens: list[str], template: list[str]) -> bool:
    if tokens[-1] == ">":
        if len(template) < len(tokens):
            return False
        tokens, template = tokens[:-1], template[: len(tokens) - 1]
    return len(tokens) == len(template) and all(
        token == "*" or word.startswith("<") or token == word for token, word in zip(tokens, template, strict=True)
    )


async def tail(bus: Bus, pattern: str = "") -> AsyncGenerator[Received, None]:
    """Messages on a pattern (see `pattern_of`) from now on; some may be missed. Close it when leaving early."""
    async with bus.listen(pattern_of(pattern)) as messages:
        while True:
            message = await messages.receive()
            yield Received(subject=message.subject, data=message.data, at=bus.clock.now())


def line(subject: str, data: bytes, at: float) -> str:
    """One message for people: local time, the subject without its prefix, the fields that matter.

    Total: whatever the bytes are, it is one line without control characters, escapes or text that turns around.
    """
    when = datetime.fromtimestamp(at).strftime("%H:%M:%S.%f")[:-3]
    shown = " ".join(f"{name}={value}" for name, value in _fields(subject, data))
    return f"{when}  {_clean(subject.removeprefix(PREFIX), 120)}  {shown}".rstrip()


_HIDDEN = ("id", "job", "key", "at", "instance", "jpeg", "stat", "spec")
_LONGEST = 60
_MOST_FIELDS = 12


def _fields(subject: str, data: bytes) -> list[tuple[str, str]]:
    payload: Any = None
    with suppress(ValueError, RecursionError, UnicodeDecodeError):
        payload = json.loads(data)
    if not isinstance(payload, dict):
        return [("data", _clean(data[:200].decode("utf-8", "replace"), _LONGEST))] if data else []
    shown = _SHOWN.get(row.template) if (row := row_of(subject)) else None
    named = [(name, _reach(payload, name)) for name in shown] if shown else _flat(payload)
    return [
        (_clean(name.rsplit(".", 1)[-1], _LONGEST), _value(value))
        for name, value in named
        if value not in (None, "", [], {})
    ][:_MOST_FIELDS]


_SHOWN: dict[str, tuple[str, ...]] = {
    JOB_PLANNED.template: ("prompt", "model.name", "width", "height", "steps", "sampler", "scheduler", "seeds"),
    TICK_STEP.template: ("stage", "step", "steps", "image", "images", "rate", "eta"),
    TICK_HASH.template: ("rel", "done", "total", "rate", "eta"),
    TICK_PREVIEW.template: ("step", "image"),
    TICK_AGENT.template: ("name", "state", "host", "pid", "rss", "lag"),
    FILE_HASHED.template: ("path.rel", "sha256", "stat.size", "seconds", "identity.kind", "identity.family"),
    IMAGE_ENCODED.template: ("pictures", "seconds"),
}


def _reach(payload: dict[str, Any], name: str) -> object:
    found: Any = payload
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _flat(payload: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(str(name), value) for name, value in payload.items() if name not in _HIDDEN]


def _value(value: object) -> str:
    match value:
        case float():
            return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
        case {"root": str(root), "rel": str(rel), **rest} if not rest:
            return _clean(f"{root}:{rel}", _LONGEST)
        case {"name": str(name)}:
            return _clean(name, _LONGEST)
        case dict():
            return f"{{{len(value)}}}"
        case list() if len(value) > 4 or any(isinstance(item, dict | list) for item in value):
            return f"[{len(value)}]"
        case str():
            text = _clean(value, _LONGEST)
            return '"' + text.replace('"', '\\"') + '"' if re.search(r'[ "=]', text) else text
        case _:
            return _clean(json.dumps(value), _LONGEST)


def _clean(text: str, longest: int) -> str:
    """Printable characters as they are, all others escaped, and not too many."""
    shown = "".join(c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode() for c in text[:longest])
    return shown + ("…" if len(text) > longest else "")
