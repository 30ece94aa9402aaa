"""Cursors: where a page of a list ended, as text that says nothing to people. The place itself is in it, not a row, so
that the next page begins there whatever came, went or was renamed meanwhile."""

import base64
import binascii
from typing import TypeVar

import msgspec

from agents.catalog.errors import Impossible

T = TypeVar("T")


def written(place: object) -> str:
    """A place (a tuple of text and numbers) as a cursor."""
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def read(cursor: str, form: type[T]) -> T:
    """The place that `written` wrote. Raises Impossible (bad-cursor) for anything else."""
    try:
        text = base64.b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        return msgspec.json.decode(text, type=form)
    except (binascii.Error, UnicodeEncodeError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Impossible("bad-cursor", "A cursor is what the page before said as `next`.") from error
