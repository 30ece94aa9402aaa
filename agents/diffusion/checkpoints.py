"""Reading a .safetensors file: its header, and its tensors in the order they lie in.

Tensors are read into memory of their own instead of being mapped. A mapped file that somebody overwrites or truncates
kills the process with SIGBUS, and weights already handed out would change; a read gives an error at worst. It costs one
copy, which the cast to the compute type needs anyway, and it lets the content's SHA-256 be checked on the way.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch

MAX_HEADER = 100_000_000
"""Bytes; the limit of the format's own library."""

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class CannotLoad(ValueError):
    """A checkpoint can't be used. The message says why, and what the user can do."""


class FileGone(CannotLoad):
    """Nothing can be read where the checkpoint should be."""


class NotACheckpoint(CannotLoad):
    """The file is no complete checkpoint: truncated, another format, or weights missing."""


class UnsupportedFamily(CannotLoad):
    """The checkpoint is whole, but of a family or variant that Darkroom can't run yet."""


class ContentChanged(CannotLoad):
    """The file no longer has the content that the catalog knows it by."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Where a tensor lies: bytes from the end of the header, first and one behind the last."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Header:
    """A file's tensors by name in the order they lie in, and its free text. `size` is the header's own bytes."""

    tensors: dict[str, Entry]
    metadata: dict[str, str]
    size: int


def read_header(file: BufferedReader) -> Header:
    """Reads the header and checks that all tensors lie in the file, one behind the other; NotACheckpoint if not."""
    total = os.fstat(file.fileno()).st_size
    file.seek(0)
    size = int.from_bytes(file.read(8), "little")
    if total < 8 or not 2 <= size <= min(MAX_HEADER, total - 8):
        raise NotACheckpoint(f"{file.name} is no complete .safetensors file; copy or download it again.")
    try:
        fields: dict[str, Any] = json.loads(file.read(size))
        metadata = fields.pop("__metadata__", None) or {}
        entries = {name: _entry(value) for name, value in fields.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotACheckpoint(f"{file.name} has no readable .safetensors header; download it again.") from error
    tensors = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)))
    end = 0
    for name, entry in tensors.items():
        if entry.start != end or entry.stop - entry.start != _bytes(entry):
            raise NotACheckpoint(f"{file.name} is damaged at tensor {name!r}; download it again.")
        end = entry.stop
    if 8 + size + end != total:
        raise NotACheckpoint(
            f"{file.name} has {total:,} bytes where its header promises {8 + size + end:,}; copy or download it again."
        )
    return Header(tensors=tensors, metadata={str(key): str(value) for key, value in metadata.items()}, size=8 + size)


def read_tensors(
    file: BufferedReader,
    header: Header,
    wanted: Callable[[str], bool],
    *,
    sha256: str = "",
) -> Iterator[tuple[str, torch.Tensor]]:
    """The wanted tensors, each in memory of its own and in the file's type, in the order they lie in.

    With `sha256` (64 hex digits) every byte of the file is read and ContentChanged raised at the end when the digest is
    another one: what was yielded before must be thrown away then. NotACheckpoint when the file shrinks meanwhile.
    """
    digest = hashlib.sha256()
    file.seek(0)
    if sha256:
        digest.update(file.read(header.size))
    for name, entry in header.tensors.items():
        if not (sha256 or wanted(name)):
            continue
        file.seek(header.size + entry.start)
        tensor, memory = _room(entry)
        if file.readinto(memory) != memory.nbytes:
            raise NotACheckpoint(f"{file.name} shrank while it was read; try again when it is written.")
        if sha256:
            digest.update(memory)
        if wanted(name):
            yield name, tensor
    if sha256 and digest.hexdigest() != sha256:
        raise ContentChanged(f"{file.name} is not the file that was hashed; wait until its new content is catalogued.")


def open_checkpoint(path: str | Path) -> BufferedReader:
    """The file for reading, or FileGone."""
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise FileGone(f"{path} can't be read ({error.strerror}); put the file back or scan its folder.") from error


def _room(entry: Entry) -> tuple[torch.Tensor, memoryview]:
    """An empty tensor and its bytes."""
    tensor = torch.empty(entry.shape, dtype=_DTYPES[entry.dtype])
    flat: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return tensor, memoryview(flat)


def _entry(value: dict[str, Any]) -> Entry:
    start, stop = value["data_offsets"]
    shape = tuple(value["shape"])
    if value["dtype"] not in _DTYPES:
        raise ValueError(f"unknown type {value['dtype']}")
    if not all(isinstance(number, int) and number >= 0 for number in (*shape, start, stop)):
        raise ValueError("sizes are whole numbers")
    return Entry(dtype=value["dtype"], shape=shape, start=start, stop=stop)


def _bytes(entry: Entry) -> int:
    count = 1
    for side in entry.shape:
        count *= side
    return count * _DTYPES[entry.dtype].itemsize
