"""The header of a safetensors file: eight bytes of length, then JSON. Read strictly, no weight is touched.

Format: https://github.com/huggingface/safetensors#format. What the library would reject is rejected here too. It takes
two tensors of one name, and keeps the last; here such a file is not used, since other programs keep the first.
"""

import json
import math
import os
import re
import struct
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import msgspec

from agents.headers.compact import LEFT_OUT, compacted
from agents.headers.errors import BadHeader, Unfinished

HEADER_LIMIT = 16 << 20
"""Bytes of a header that is decoded as it is; of a longer one the long texts are left out first."""

LARGEST_HEADER = 100_000_000
"""Bytes of JSON at most: the limit of the library."""

LENGTH_BYTES = 8
"""A little-endian unsigned integer before the JSON."""

BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
"""Bits per element of every dtype of the format."""

_LARGEST = (1 << 64) - 1
_LONGEST_FILE = 1 << 62
_PLAUSIBLE = 1 << 48
"""Elements; nothing overflows below that, whatever the type."""

_SPACE = b" \t\r\n"
_DEEPEST = 127
"""Objects and lists within one another, as the library takes them."""

_LONGEST_NUMBER = 300
"""Digits of a whole number that no float overflows with."""

_DIGITS_TO_ZEROS = bytes.maketrans(b"123456789", b"0" * 9)

_METADATA_AT = re.compile(rb'(?<!\\)"__metadata__"[ \t\r\n]*:[ \t\r\n]*')

Count = Annotated[int, msgspec.Meta(ge=0)]
if TYPE_CHECKING:
    Dtype = str
else:
    Dtype = Literal[tuple(BITS)]  # and not any text: a decoder makes one object of each, not one for each tensor


class Tensor(msgspec.Struct, frozen=True, gc=False):
    """One entry. `data_offsets` are where it begins and ends, in bytes from the end of the header. Other fields are
    passed over, as the library does."""

    dtype: Dtype
    shape: tuple[Count, ...]
    data_offsets: tuple[Count, Count]

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.data_offsets[1] - self.data_offsets[0]


_ENTRIES = msgspec.json.Decoder(dict[str, msgspec.Raw])
_TENSOR = msgspec.json.Decoder(Tensor)
_METADATA = msgspec.json.Decoder(dict[str, str] | None)
_WRONG = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Header(NamedTuple):
    """Every tensor by name, the metadata (of a header over 16 MiB: without its longest texts), where the header ends,
    and the length that the whole file must have, in bytes."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    start: int
    file_size: int


def read_length(fd: int) -> int:
    """The length of the JSON in bytes, by the file's first eight. Raises BadHeader, or Unfinished for what may yet
    come."""
    head = os.pread(fd, LENGTH_BYTES + 1, 0)
    if len(head) < LENGTH_BYTES:
        raise Unfinished(f"The file is only {len(head)} bytes long: no safetensors file is.")
    (length,) = struct.unpack("<Q", head[:LENGTH_BYTES])
    if length == 0 and not any(head):
        raise Unfinished("The file begins with zeros where its header should be; it was never written to the end.")
    if length > LARGEST_HEADER:
        raise BadHeader(_what_else(head, length))
    if len(head) == LENGTH_BYTES:
        raise Unfinished("The file ends before its header.")
    if head[LENGTH_BYTES:] not in b"{" + _SPACE:
        raise BadHeader(
            "This is no safetensors file: its header does not begin with '{'. Download it again, or convert it."
        )
    return int(length)


def _what_else(head: bytes, length: int) -> str:
    """What a file is that has no length where one should be. (A length's own bytes may be any, those that a pickle or a
    page begins with too.)"""
    if head.startswith((b"PK\x03\x04", b"\x80\x02")):
        return "This is a pickle under the name of a safetensors file; it is never loaded. Convert it."
    if head.lstrip()[:1] == b"<":
        return "This is a web page, not a model: the download asked for a login, perhaps. Download it again."
    return (
        f"This is no safetensors file: its first bytes ask for a header of {length:,} bytes, "
        f"and {LARGEST_HEADER:,} is the limit. Download it again, or convert it."
    )


def read_header(fd: int, *, strict: bool = True) -> Header:
    """The header of an open file. `strict` false is enough for its lengths: names that come twice, and what else the
    library alone refuses, are not looked for, which takes half the time. Raises BadHeader, Unfinished or OSError."""
    length = read_length(fd)
    raw = os.pread(fd, length, LENGTH_BYTES)
    if len(raw) < length:
        raise Unfinished(f"The file ends within its header of {length:,} bytes; copy or download it again.")
    if length <= HEADER_LIMIT:
        return parse(raw, strict=strict)
    raw = compacted(raw)
    header, left_out = parse(raw, strict=strict), length - len(raw)
    metadata = {key: text for key, text in header.metadata.items() if text != LEFT_OUT}
    return Header(header.tensors, metadata, header.start + left_out, header.file_size + left_out)


def parse(raw: bytes, *, strict: bool = True) -> Header:
    """The header that a JSON text describes. Raises BadHeader; never anything else, whatever the bytes."""
    at = ""
    try:
        entries = _ENTRIES.decode(raw)
        at = "__metadata__"
        found = entries.pop(at, None)
        metadata = {} if found is None else _METADATA.decode(found) or {}
    except _WRONG as error:
        raise _bad(error, at) from error
    if strict:
        _check_strictly(raw if found is None else _without(raw, bytes(found)))
    tensors = _tensors(entries)
    if not tensors:
        raise BadHeader("The file is a safetensors file without a single tensor: there is no model in it.")
    start = LENGTH_BYTES + len(raw)
    return Header(tensors, metadata, start, start + _contiguous_end(tensors))


def _tensors(entries: dict[str, msgspec.Raw]) -> dict[str, Tensor]:
    """The entries decoded, in their own dictionary: of a million, a second one would cost. Raises BadHeader."""
    tensors: dict[str, Any] = entries
    decode, prod, name = _TENSOR.decode, math.prod, ""
    try:
        for name, entry in entries.items():
            tensors[name] = tensor = decode(entry)
            begin, end = tensor.data_offsets
            bits = prod(tensor.shape) * BITS[tensor.dtype]
            if (end - begin) * 8 != bits or end > _PLAUSIBLE or not 0 < bits < _PLAUSIBLE:
                _check_length(name, tensor)
    except _WRONG as error:
        raise _bad(error, name) from error
    return tensors


def _check_length(name: str, tensor: Tensor) -> None:
    """Raises BadHeader unless the library would take this tensor: its numbers are those of 64 bits, multiplied from the
    left, and it begins and ends with a whole byte."""
    elements, fits = 1, True
    for side in tensor.shape:
        elements *= side
        fits = fits and max(elements, side) <= _LARGEST
    begin, end = tensor.data_offsets
    if not fits or (end - begin) * 8 != elements * BITS[tensor.dtype] or end > _LONGEST_FILE:
        raise BadHeader(
            f"The header is damaged: the shape and the length of {_short(name)} differ. Download the file again."
        )


def _bad(error: Exception, name: str) -> BadHeader:
    """What is wrong with a header, by its decoder's error at the entry `name` (or of all)."""
    where = f" at {_short(name)}" if name else ""
    match error:
        case RecursionError():
            return BadHeader(f"This is no safetensors file: its header is nested too deeply{where}.")
        case UnicodeDecodeError():
            return BadHeader(f"This is no safetensors file: its header is not UTF-8{where}.")
        case msgspec.ValidationError():
            why = f"{_short(str(error))}{where}"
            return BadHeader(f"The header is not as the format has it ({why}). Download the file again, or convert it.")
    return BadHeader(f"This is no safetensors file: its header can't be read ({_short(str(error))}{where}).")


def _without(raw: bytes, metadata: bytes) -> bytes:
    """A header with null for its metadata, in which a name may come twice, and which may be most of the header."""
    for found in _METADATA_AT.finditer(raw):
        if raw.startswith(metadata, found.end()):
            return raw[: found.end()] + b"null" + raw[found.end() + len(metadata) :]
    return raw


def _check_strictly(raw: bytes) -> None:
    """What decodes may still be no header: raises BadHeader where a name comes twice (a decoder keeps the last) among
    the entries or in one of them, and where the library takes no such number, or so many lists in lists."""
    try:
        # A function for each number takes as long as all the rest, so only where one may be odd.
        is_odd = b"-0" in raw or b"0" * _LONGEST_NUMBER in raw.translate(_DIGITS_TO_ZEROS)
        integer = _integer if is_odd else None
        entries = json.loads(raw, object_pairs_hook=_object, parse_int=integer, parse_float=_finite)
        entries.pop("__metadata__", None)
        odd = [one for one in entries.values() if isinstance(one, _Object) and one is not _PLAIN]
        is_deep = 1 + max(map(_depth, odd), default=0) > _DEEPEST
    except RecursionError as error:
        raise _bad(error, "") from error
    except ValueError as error:
        raise BadHeader("The header is not as the format has it. Download the file again, or convert it.") from error
    if is_deep:
        raise _bad(RecursionError(), "")
    numbers = (one.get(name) for one in odd for name in ("shape", "data_offsets"))
    if any(isinstance(value, list) and None in value for value in numbers):
        raise BadHeader("The header is not as the format has it: no length is -0. Download the file again.")
    if (twice := next((one.twice for one in (entries, *odd) if one.twice is not None), None)) is not None:
        raise BadHeader(
            f"The name {_short(twice)} comes twice in the header: some programs use the first, some the last of the "
            "two, so the file is not used here. Save it again with the program that made it."
        )


class _Object(dict[str, Any]):
    """A JSON object, and a name that comes twice in it, if one does."""

    twice: str | None = None


_PLAIN = _Object()
"""In place of every entry that has its three fields once and no -0 in them: of a million, each would cost."""

_FIELDS = {"dtype", "shape", "data_offsets"}


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    if len(pairs) == len(_FIELDS) and (plain := dict(pairs)).keys() == _FIELDS:
        shape, offsets = plain["shape"], plain["data_offsets"]
        if type(shape) is type(offsets) is list and None not in shape and None not in offsets:
            return _PLAIN
    found = _Object(pairs)
    if len(found) < len(pairs):
        found.twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
    return found


def _integer(text: str) -> int | None:
    """A whole number; None for "-0", which is none to the library. Raises ValueError where it overflows a float."""
    if len(text) > _LONGEST_NUMBER:
        _finite(text)
    return None if text == "-0" else int(text)


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError
    return number


def _depth(value: Any) -> int:
    """How many objects and lists are within one another."""
    if not isinstance(value, dict | list):
        return 0
    return 1 + max(map(_depth, value.values() if isinstance(value, dict) else value), default=0)


def _contiguous_end(tensors: dict[str, Tensor]) -> int:
    """Where the last tensor ends, in bytes from the header's end. They must follow one another without gap or
    overlap."""
    at = 0
    for begin, end in sorted(tensor.data_offsets for tensor in tensors.values()):
        if begin != at:
            what = "overlap" if begin < at else "leave a gap"
            raise BadHeader(f"The header is damaged: two tensors in it {what}. Download the file again.")
        at = end
    return at


def _short(text: str, limit: int = 80) -> str:
    """Anything of a file's own, fit for a sentence: printable and not long."""
    return repr(text[:limit])
