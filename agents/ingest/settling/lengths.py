"""Lengths: how long a file must be, by its own account: a safetensors header, the list of tensors in a GGUF
file, the directory at the end of a zip archive (which is what torch.save writes). Older pickles give none.
"""

import os
import struct

import msgspec

from agents.headers import gguf, sandbox
from agents.headers.errors import BadHeader, HeaderUnread, Unfinished
from agents.ingest.settling.gate import Header

_PICKLES = (b".ckpt", b".pt", b".pth", b".bin")
_ZIP, _ZIP_END, _ZIP_ENTRY = b"PK\x03\x04", b"PK\x05\x06", b"PK\x01\x02"
_ZIP64_PLACE, _ZIP64_END = b"PK\x06\x07", b"PK\x06\x06"
_END_BYTES, _PLACE_BYTES, _END64_BYTES = 22, 20, 56
_COMMENT_BYTES = 0xFFFF
_ELSEWHERE = 0xFFFFFFFF
"""In place of a number that only the 64-bit record holds."""


class Length(msgspec.Struct, frozen=True, kw_only=True):
    """What a file gives as its length. `header`: "none" when nothing, "whole" when it must have `expected` bytes,
    "partial" when it ends before that or that is not written yet (`error` is a sentence for people), "foreign"
    when it is not what its name promises."""

    header: Header = "none"
    expected: int | None = None
    error: str = ""


def length_of(fd: int, name: bytes, size: int) -> Length:
    """What an open file of `size` bytes gives as its length; of `name` only the extension counts. Nothing, when it
    could not be read this time. Raises OSError."""
    lower = name.lower()
    try:
        if lower.endswith(b".safetensors"):
            return Length(header="whole", expected=sandbox.expected_size(fd))
        if lower.endswith(b".gguf"):
            expected = gguf.expected_size(fd, size)
            return Length() if expected is None else Length(header="whole", expected=expected)
        return _of_archive(fd, size) if lower.endswith(_PICKLES) else Length()
    except Unfinished:
        return Length(header="partial")
    except BadHeader:
        return Length(header="foreign")
    except HeaderUnread:
        return Length()


def _of_archive(fd: int, size: int) -> Length:
    """A zip archive is whole when its directory lies right before its end. What only looks like one gives nothing,
    nor does one with more after it: it can be loaded."""
    if os.pread(fd, len(_ZIP), 0) != _ZIP:
        return Length()
    begin = max(0, size - _END_BYTES - _COMMENT_BYTES)
    tail = os.pread(fd, size - begin, begin)
    at = tail.rfind(_ZIP_END)
    if at < 0 or len(tail) - at < _END_BYTES:
        return Length(header="partial", error="The file ends before the list of what is in it")
    length, offset, comment = struct.unpack_from("<IIH", tail, at + 12)
    end = begin + at
    if _ELSEWHERE in (length, offset):
        place = os.pread(fd, _PLACE_BYTES, end - _PLACE_BYTES) if end >= _PLACE_BYTES else b""
        if len(place) < _PLACE_BYTES or not place.startswith(_ZIP64_PLACE):
            return Length()
        (end,) = struct.unpack_from("<Q", place, 8)
        record = os.pread(fd, _END64_BYTES, end) if end < size else b""
        if len(record) < _END64_BYTES or not record.startswith(_ZIP64_END):
            return Length()
        length, offset = struct.unpack_from("<QQ", record, 40)
    if offset + length > end or os.pread(fd, len(_ZIP_ENTRY), offset) != _ZIP_ENTRY:
        return Length()
    expected = begin + at + _END_BYTES + comment
    return Length(header="whole", expected=expected) if size <= expected else Length()
