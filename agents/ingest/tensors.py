"""The table at the head of a safetensors file: eight bytes of length, then JSON. Read strictly, no weight is touched.

Format: https://github.com/huggingface/safetensors#format. What the library would reject is rejected here too, and some
of what it accepts (duplicate keys, headers over 16 MiB).
"""

import math
import os
import re
import struct
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import msgspec

from agents.ingest.errors import BadHeader, Unfinished

HEADER_LIMIT = 16 << 20
"""Bytes of JSON at most."""

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

_MAX = 1 << 62
_MAX_RANK = 64
_ESCAPE = re.compile(rb"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)

Count = Annotated[int, msgspec.Meta(ge=0, le=_MAX)]
if TYPE_CHECKING:
    Dtype = str
else:
    Dtype = Literal[tuple(BITS)]  # and not any text: a decoder makes one object of each, not one for each tensor


class Tensor(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """One entry. `data_offsets` are where it begins and ends, in bytes from the end of the header."""

    dtype: Dtype
    shape: Annotated[tuple[Count, ...], msgspec.Meta(max_length=_MAX_RANK)]
    data_offsets: tuple[Count, Count]

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.data_offsets[1] - self.data_offsets[0]


_ENTRIES = msgspec.json.Decoder(dict[str, msgspec.Raw])
_TENSOR = msgspec.json.Decoder(Tensor)
_METADATA = msgspec.json.Decoder(dict[str, str])
_WRONG = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Table(NamedTuple):
    """Every tensor by name, the metadata, and the length in bytes that the whole file must have."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
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
    if length > HEADER_LIMIT:
        raise BadHeader(_what_else(head, length))
    if len(head) == LENGTH_BYTES:
        raise Unfinished("The file ends before its header.")
    if head[LENGTH_BYTES:] != b"{":
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
        return "This is a web page, not a model: the download asked for a login, say. Download it again."
    return (
        f"This is no safetensors file: its first bytes ask for a header of {length:,} bytes, "
        f"and {HEADER_LIMIT:,} is the limit. Download it again, or convert it."
    )


def read_table(fd: int) -> Table:
    """The table of an open file. Raises BadHeader, Unfinished or OSError."""
    length = read_length(fd)
    raw = os.pread(fd, length, LENGTH_BYTES)
    if len(raw) < length:
        raise Unfinished(f"The file ends within its header of {length:,} bytes; copy or download it again.")
    return parse(raw)


def parse(raw: bytes) -> Table:
    """The table that a header's JSON describes. Raises BadHeader; never anything else, whatever the bytes."""
    entries, metadata = _entries(raw)
    tensors = _tensors(entries)
    if not tensors:
        raise BadHeader("The file is a safetensors file without a single tensor: there is no model in it.")
    if _colons(raw) != _colons_of(tensors, metadata):  # a decoder keeps the last of two that have one name
        raise BadHeader("The header is damaged: a name comes twice in it. Download the file again.")
    return Table(tensors, metadata or {}, LENGTH_BYTES + len(raw) + _contiguous_end(tensors))


def _entries(raw: bytes) -> tuple[dict[str, msgspec.Raw], dict[str, str] | None]:
    """The entries by name, none of them decoded, and the metadata, if there is any. Raises BadHeader."""
    at = ""
    try:
        entries = _ENTRIES.decode(raw)
        at = "__metadata__"
        found = entries.pop(at, None)
        return entries, None if found is None else _METADATA.decode(found)
    except _WRONG as error:
        raise _bad(error, at) from error


def _tensors(entries: dict[str, msgspec.Raw]) -> dict[str, Tensor]:
    """The entries decoded, in their own dictionary: of a quarter of a million, a second one would cost. Raises
    BadHeader."""
    tensors: dict[str, Any] = entries
    decode, prod, name = _TENSOR.decode, math.prod, ""
    try:
        for name, entry in entries.items():
            tensors[name] = tensor = decode(entry)
            begin, end = tensor.data_offsets
            elements = prod(tensor.shape)
            if elements > _MAX or end - begin != -(-elements * BITS[tensor.dtype] // 8):
                raise BadHeader(
                    f"The header is damaged: the shape and the length of {_short(name)} differ. "
                    "Download the file again."
                )
    except _WRONG as error:
        raise _bad(error, name) from error
    return tensors


def _bad(error: Exception, name: str) -> BadHeader:
    """What is wrong with a header, by what its decoder said of the entry `name` (or of all)."""
    where = f" at {_short(name)}" if name else ""
    match error:
        case RecursionError():
            return BadHeader(f"This is no safetensors file: its header is nested too deeply{where}.")
        case UnicodeDecodeError():
            return BadHeader(f"This is no safetensors file: its header is not UTF-8{where}.")
        case msgspec.ValidationError():
            why = f"{_short(str(error))}{where}"
            return BadHeader(f"The header is damaged, or of a newer format ({why}). Download the file again.")
    return BadHeader(f"This is no safetensors file: its header can't be read ({_short(str(error))}{where}).")


def _colons(raw: bytes) -> int:
    """How many colons a JSON text holds, those spelled as an escape included."""
    escaped = 0
    if b"\\u003a" in raw or b"\\u003A" in raw:
        escaped = sum(found[1] in (b"u003a", b"u003A") for found in _ESCAPE.finditer(raw))
    return raw.count(b":") + escaped


def _colons_of(tensors: dict[str, Tensor], metadata: dict[str, str] | None) -> int:
    """How many it must hold, if no name comes twice: one after every name, and those in the texts."""
    after_names = len(tensors) * (1 + len(Tensor.__struct_fields__))
    in_texts = sum(name.count(":") for name in tensors)
    if metadata is not None:
        after_names += 1 + len(metadata)
        in_texts += sum(name.count(":") + text.count(":") for name, text in metadata.items())
    return after_names + in_texts


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
