"""The table at the head of a safetensors file: eight bytes of length, then JSON. Read strictly, no weight is touched.

Format: https://github.com/huggingface/safetensors#format. What the library would reject is rejected here too, and some
of what it accepts (duplicate keys, headers over 16 MiB).
"""

import json
import os
import struct
from operator import attrgetter
from typing import Any, NamedTuple, NoReturn

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


class Tensor(NamedTuple):
    """One entry: offsets are bytes from the end of the header. `elements` is their number."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    elements: int


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
    if head.startswith((b"PK\x03\x04", b"\x80\x02")):
        raise BadHeader("This is a pickle under the name of a safetensors file; it is never loaded. Convert it.")
    if head.lstrip()[:1] == b"<":
        raise BadHeader("This is a web page, not a model: the download asked for a login, say. Download it again.")
    if length > HEADER_LIMIT:
        raise BadHeader(
            f"This is no safetensors file: its first bytes ask for a header of {length:,} bytes, "
            f"and {HEADER_LIMIT:,} is the limit. Download it again, or convert it."
        )
    if len(head) == LENGTH_BYTES:
        raise Unfinished("The file ends before its header.")
    if head[LENGTH_BYTES:] != b"{":
        raise BadHeader(
            "This is no safetensors file: its header does not begin with '{'. Download it again, or convert it."
        )
    return int(length)


def read_table(fd: int) -> Table:
    """The table of an open file. Raises BadHeader, Unfinished or OSError."""
    length = read_length(fd)
    raw = os.pread(fd, length, LENGTH_BYTES)
    if len(raw) < length:
        raise Unfinished(f"The file ends within its header of {length:,} bytes; copy or download it again.")
    return parse(raw)


def parse(raw: bytes) -> Table:
    """The table that a header's JSON describes. Raises BadHeader; never anything else, whatever the bytes."""
    try:
        top = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_pairs, parse_float=_no_number, parse_constant=_no_number
        )
    except RecursionError:
        raise BadHeader("This is no safetensors file: its header is nested too deeply.") from None
    except UnicodeDecodeError as error:
        raise BadHeader("This is no safetensors file: its header is not UTF-8.") from error
    except ValueError as error:
        raise BadHeader(f"This is no safetensors file: its header can't be read ({_short(error)}).") from error
    if not isinstance(top, dict):
        raise BadHeader("This is no safetensors file: its header is not an object.")
    metadata = _metadata(top.pop("__metadata__", {}))
    for name, tensor in top.items():
        if not isinstance(tensor, Tensor):
            raise BadHeader(f"The header is damaged: {_short(name)} is no tensor. Download the file again.")
    if not top:
        raise BadHeader("The file is a safetensors file without a single tensor: there is no model in it.")
    return Table(top, metadata, LENGTH_BYTES + len(raw) + _contiguous_end(top))


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any] | Tensor:
    """One JSON object: a tensor when it has a tensor's three keys, else a dict. Keys may not come twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        double = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise BadHeader(f"The header is damaged: {_short(double)} comes twice in it. Download the file again.")
    if len(found) == 3 and "data_offsets" in found and "dtype" in found and "shape" in found:
        return _tensor(found["dtype"], found["shape"], found["data_offsets"])
    return found


def _tensor(dtype: Any, shape: Any, offsets: Any) -> Tensor:
    """One entry, its length in bytes checked against its shape."""
    if not (isinstance(dtype, str) and dtype in BITS):
        raise BadHeader(
            f"The header names a number format that does not exist: {_short(dtype)}. A newer one is needed."
        )
    if not (_are_counts(shape) and _are_counts(offsets) and len(offsets) == 2):
        raise BadHeader("The header is damaged: a shape or an offset is no number. Download the file again.")
    count = 1
    for length in shape:
        count *= length
        if count > _MAX:
            raise BadHeader("The header is damaged: a tensor in it is larger than any disk. Download the file again.")
    begin, end = offsets
    if end - begin != -(-count * BITS[dtype] // 8):
        raise BadHeader("The header is damaged: a tensor's shape and its length differ. Download the file again.")
    return Tensor(dtype, tuple(shape), begin, end, count)


def _are_counts(value: Any) -> bool:
    """Whether this is a list of whole numbers from 0 to 2⁶², and not too many."""
    if not isinstance(value, list) or len(value) > _MAX_RANK:
        return False
    for number in value:  # noqa: SIM110 - a large header has a million of these, and a loop takes half the time
        if type(number) is not int or not 0 <= number <= _MAX:
            return False
    return True


def _contiguous_end(tensors: dict[str, Tensor]) -> int:
    """Where the last tensor ends, in bytes from the header's end. They must follow one another without gap or
    overlap."""
    end = 0
    for tensor in sorted(tensors.values(), key=attrgetter("begin", "end")):
        if tensor.begin != end:
            what = "overlap" if tensor.begin < end else "leave a gap"
            raise BadHeader(f"The header is damaged: two tensors in it {what}. Download the file again.")
        end = tensor.end
    return end


def _metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise BadHeader("The header is damaged: its metadata is not made of texts. Download the file again.")
    return value


def _no_number(text: str) -> NoReturn:
    raise BadHeader(f"The header is damaged: {_short(text)} is no size. Download the file again.")


def _short(value: object, limit: int = 80) -> str:
    """Anything of a file's own, fit for a sentence: printable and not long."""
    text = value if isinstance(value, str) else str(value)
    return repr(text[:limit]) if isinstance(value, str) else text[:limit]
