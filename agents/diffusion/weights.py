"""Weights: the tensors of a checkpoint, read from its .safetensors file in the order they lie in.

Tensors are read into memory of their own instead of being mapped. A mapped file that somebody overwrites or truncates
kills the process with SIGBUS, and weights already handed out would change; a read gives an error at worst. It costs one
copy, which the cast to the compute type needs anyway, and it lets the content's SHA-256 be checked on the way.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch

from agents.headers.errors import BadHeader, Unfinished
from agents.headers.safetensors import Header, Tensor, read_header

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
"""Types that weights may have. A file may hold tensors of others, if nothing needs them."""


class CannotLoad(ValueError):
    """A checkpoint can't be used. The message gives the reason, and what the user can do."""


class FileGone(CannotLoad):
    """Nothing can be read where the checkpoint should be."""


class NotACheckpoint(CannotLoad):
    """The file is no complete checkpoint: truncated, another format, or weights missing."""


class UnsupportedFamily(CannotLoad):
    """The checkpoint is whole, but of a family or variant that Darkroom can't run yet."""


class ContentChanged(CannotLoad):
    """The file no longer has the content that the catalog knows it by."""


def checkpoint_header(file: BufferedReader) -> Header:
    """The file's header; NotACheckpoint unless the file is as long as that has it."""
    total = os.fstat(file.fileno()).st_size
    try:
        header = read_header(file.fileno())
    except Unfinished as error:
        raise NotACheckpoint(f"{file.name} is not complete ({error}); copy or download it again.") from error
    except BadHeader as error:
        raise NotACheckpoint(f"{file.name} can't be loaded: {error}") from error
    if header.file_size != total:
        raise NotACheckpoint(
            f"{file.name} has {total:,} bytes where its header promises {header.file_size:,}; "
            "copy or download it again."
        )
    return header


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
        digest.update(file.read(header.start))
    for name, entry in sorted(header.tensors.items(), key=lambda item: item[1].data_offsets):
        if not (sha256 or wanted(name)):
            continue
        file.seek(header.start + entry.data_offsets[0])
        tensor, memory = _room(name, entry) if wanted(name) else (None, memoryview(bytearray(entry.size)))
        if file.readinto(memory) != memory.nbytes:
            raise NotACheckpoint(f"{file.name} shrank while it was read; try again when it is written.")
        if sha256:
            digest.update(memory)
        if tensor is not None:
            yield name, tensor
    if sha256 and digest.hexdigest() != sha256:
        raise ContentChanged(f"{file.name} is not the file that was hashed; wait until its new content is catalogued.")


def open_checkpoint(path: str | Path) -> BufferedReader:
    """The file for reading, or FileGone."""
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise FileGone(f"{path} can't be read ({error.strerror}); put the file back or scan its folder.") from error


def _room(name: str, entry: Tensor) -> tuple[torch.Tensor, memoryview]:
    """An empty tensor and its bytes. NotACheckpoint for a type that no weight has."""
    if entry.dtype not in _DTYPES:
        raise NotACheckpoint(
            f"The weight {name!r} is of the type {entry.dtype}, which can't be used here; choose another version."
        )
    tensor = torch.empty(entry.shape, dtype=_DTYPES[entry.dtype])
    flat: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return tensor, memoryview(flat)
