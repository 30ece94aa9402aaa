"""Fitting: what goes into one message is cut until it fits. Pure, and it always ends.

A page holds as many items as its message has room for, and at least one. An item that is too large by itself loses the
end of what is longest in it, until it fits: a text that was cut ends in "…", and an item that has a
field `cut` names the fields that were.
"""

from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec

T = TypeVar("T", bound=msgspec.Struct)

ANSWER_BYTES = 900_000
"""Of one page of a list at most: a server takes messages of 1 MiB."""
ITEM_BYTES = 64 * 1024
"""Of one item of a list at most: whoever needs all of it asks for it alone."""
MARK = "…"
SHORT = 100
"""Characters of a text that is never cut: names of files, digests, ids."""

_encode = msgspec.json.Encoder(decimal_format="number").encode


def fitted(items: Iterable[T], room: int = ANSWER_BYTES, each: int = ITEM_BYTES) -> tuple[T, ...]:
    """The first of these items: as many as fit into `room` bytes of JSON, each cut to `each` bytes at most. No more of
    them are made than that, and one."""
    taken: list[T] = []
    left = room
    for item in items:
        item = cut(item, min(each, room))
        left -= len(_encode(item)) + 1  # a comma
        if left < 0 and taken:
            break
        taken.append(item)
    return tuple(taken)


def cut(item: T, room: int) -> T:
    """The item, with what is longest in it cut until its JSON fits into `room` bytes. Of each list one element stays,
    of each text SHORT characters: one that is too large all the same is returned as small as it gets."""
    names: dict[str, None] = {}
    while (size := len(_encode(item))) > room:
        shorter = _shortened(item, min(room / size, 0.75))
        if shorter is None:
            return item
        item, name = shorter
        names[name] = None
        if "cut" in item.__struct_fields__:
            item = msgspec.structs.replace(item, cut=tuple(names))
    return item


def _shortened(value: Any, keep: float) -> tuple[Any, str] | None:
    """The value with its longest part cut to this share of it, from the end, and the name of the field that this was
    in; None when nothing in it can be shorter."""
    match value:
        case msgspec.Struct():
            return _with_shorter_field(value, keep)
        case str() if len(value) > SHORT:
            return value[: max(SHORT, int(len(value) * keep)) - 1] + MARK, ""
        case tuple() | list() if len(value) > 1:
            return value[: max(1, int(len(value) * keep))], ""
        case tuple() | list() if value and (inner := _shortened(value[0], keep)):
            return type(value)([inner[0]]), ""
        case dict() if value:
            return dict([*value.items()][: int(len(value) * keep)]), ""
    return None


def _with_shorter_field(item: msgspec.Struct, keep: float) -> tuple[Any, str] | None:
    sizes = {name: len(_encode(getattr(item, name))) for name in item.__struct_fields__ if name != "cut"}
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        if shorter := _shortened(getattr(item, name), keep):
            inner, below = shorter
            return msgspec.structs.replace(item, **{name: inner}), f"{name}.{below}" if below else name
    return None
