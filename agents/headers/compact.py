"""Compact: a large header without its padding and its long texts, so that what is left of it is soon decoded.

Headers grow large by what programs write into their metadata: workflows, training logs, pictures. Nothing here reads
those, and the tensors' part of a header has 16 MiB in no model.
"""

import re

from agents.headers.errors import BadHeader

LONG_TEXT = 64 << 10
"""Bytes of a text of the metadata that may be left out."""

LONG_TEXTS = 8 << 20
"""Bytes of such texts that are kept, the first ones; the tags of a large training set are one."""

COMPACT_LIMIT = 20 << 20
"""Bytes that may be left of a header, of which the tensors take a multiple of that in memory."""

MOST_TENSORS = 250_000
"""No model has a tenth of that."""

LEFT_OUT = "\0left out\0"
"""In place of a text that was left out."""

UNREADABLY_LARGE = (
    "This file's header is too large to read here: it takes more time or memory than the limit for one header. "
    "The file may be good, but its contents can't be shown."
)
"""The problem of a file whose header can't be decoded within the limits."""

_ENTRY = b'"data_offsets"'
_TEXT_OR_SPACE = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[ \t\r\n]{4096,}', re.DOTALL)
_HEX = rb"[0-9a-fA-F]"
_GOOD_TEXT = re.compile(
    rb'"(?:[ !#-\[\]-\x7f]++|[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}'
    rb"|\xed[\x80-\x9f][\x80-\xbf]|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2}"
    rb'|\\["\\/bfnrt]|\\u(?:[0-9a-cefA-CEF]' + _HEX + rb"{3}|[dD][0-7]" + _HEX + rb"{2}"
    rb"|[dD][89abAB]" + _HEX + rb"{2}\\u[dD][c-fC-F]" + _HEX + rb'{2}))*+"'
)
"""A JSON text that a decoder would take: UTF-8, no control characters, only escapes that there are."""

_WRITTEN = b'"\\u0000left out\\u0000"'


def compacted(raw: bytes) -> bytes:
    """The JSON text of a header, with LEFT_OUT for texts that are too long and no long runs of white space. Names stay.
    Raises BadHeader for what is still too large."""
    if raw.count(_ENTRY) > MOST_TENSORS:
        raise BadHeader(UNREADABLY_LARGE)
    pieces, at, room, left = [], 0, LONG_TEXTS, len(raw)
    for found in _TEXT_OR_SPACE.finditer(raw):
        begin, end = found.span()
        is_space = raw[begin] != ord('"')
        if not is_space and (end - begin <= LONG_TEXT or raw[end : end + 1].strip() == b":"):
            continue
        if not is_space and end - begin <= room:
            room -= end - begin
            continue
        if not is_space and not _GOOD_TEXT.fullmatch(raw, begin, end):  # nobody decodes it later
            raise BadHeader(
                "The header is damaged: a text in it can't be read. Download the file again, or convert it."
            )
        pieces += [raw[at:begin], b" " if is_space else _WRITTEN]
        at, left = end, left - (end - begin)
    if left > COMPACT_LIMIT:
        raise BadHeader(UNREADABLY_LARGE)
    return b"".join((*pieces, raw[at:]))
