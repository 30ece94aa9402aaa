"""GGUF: the quantised format of llama.cpp, as far as it takes to know what is in a file and how long it must be.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Only the header is read, 16 MiB of it at most.
"""

import os
import struct
from math import prod

import msgspec

from agents.headers.classify import recognise
from agents.headers.errors import BadHeader, Unfinished
from agents.headers.safetensors import HEADER_LIMIT, Tensor
from schemas.files import Identity, Kind

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_READ_BYTES = 256 << 10
_ARCHITECTURE, _ALIGNMENT = b"general.architecture", b"general.alignment"
_DEFAULT_ALIGNMENT, _LARGEST_ALIGNMENT = 32, 1 << 20
_MAX_RANK = 8
_MAX_ENTRIES = 1 << 16
"""Of pairs, of tensors, of arrays in an array: no model has a tenth of that, and a hostile header is soon read."""

_MOST = 1 << 62

_STRING, _ARRAY = 8, 9
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes per value type of fixed size."""

_UNSIGNED = {0: "<B", 2: "<H", 4: "<I", 10: "<Q"}
"""Value types that are read as numbers, in forms of `struct`."""

_TYPES = {
    **{0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 28: ("F64", 1, 8)},
    **{24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8)},
    **{2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34)},
    **{10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176)},
    **{14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74)},
    **{18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110)},
    **{22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 29: ("IQ1_M", 256, 56), 34: ("TQ1_0", 256, 54)},
    **{35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17)},
}
"""Tensor types: name, numbers in a block, bytes of a block. Of others the length is not known."""

_ARCHITECTURES: dict[str, tuple[Kind, str]] = {
    "sd1": ("diffusion_model", "sd15"),
    "sdxl": ("diffusion_model", "sdxl"),
    "sd3": ("diffusion_model", "sd3"),
    "flux": ("diffusion_model", "flux"),
    "aura": ("diffusion_model", "auraflow"),
    "ltxv": ("diffusion_model", "ltx-video"),
    "hyvid": ("diffusion_model", "hunyuan-video"),
    "wan": ("diffusion_model", "wan"),
    "lumina2": ("diffusion_model", "lumina2"),
    "qwen_image": ("diffusion_model", "qwen-image"),
    "hidream": ("diffusion_model", "hidream"),
    "cosmos": ("diffusion_model", "cosmos"),
    "t5": ("text_encoder", "t5"),
    "t5encoder": ("text_encoder", "t5"),
    "llama": ("text_encoder", "llm"),
    "qwen2vl": ("text_encoder", "llm"),
    "qwen3": ("text_encoder", "llm"),
    "qwen3vl": ("text_encoder", "llm"),
}


_BY_ARCHITECTURE = "by the architecture that its header names: its tensors leave it open"


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """What is in a header: the architecture it names, every tensor by name (the shape as torch has it), how many
    numbers there are, the bytes of each type of tensor, and where the data ends in the file, by itself and filled up to
    the alignment (None with a type nobody here knows)."""

    architecture: str
    tensors: dict[str, Tensor]
    parameters: int
    sizes: dict[str, int]
    end: int | None
    filled_end: int | None


def identify(fd: int) -> Identity:
    """Kind and family by the tensors, which show more than the architecture that the file names: FLUX.2 and Chroma are
    called flux there, Z-Image lumina2. Raises OSError only."""
    try:
        found = read(fd)
    except BadHeader as error:
        return Identity(problem=str(error))
    recognised, guess = recognise(found.tensors, {}), ""
    kind, family, edition = recognised.kind, recognised.family, recognised.edition
    if kind not in ("diffusion_model", "checkpoint", "text_encoder"):
        kind, family = _ARCHITECTURES.get(found.architecture, ("unknown", ""))
        edition, guess = "", _BY_ARCHITECTURE if kind == "diffusion_model" else ""
    if kind == "unknown":
        named = f" ({found.architecture[:80]!r})" if found.architecture else ""
        return Identity(problem=f"This GGUF file holds no kind of model known here{named}.")
    return Identity(
        kind=kind,
        family=family,
        dtypes=tuple(sorted(found.sizes, key=lambda name: (-found.sizes[name], name))),
        parameters=found.parameters,
        components={"denoiser" if kind == "diffusion_model" else kind: sum(found.sizes.values())},
        metadata={"general.architecture": found.architecture} if found.architecture else {},
        edition=edition,
        guess=guess,
    )


def expected_size(fd: int, size: int) -> int | None:
    """The length in bytes that an open file of `size` bytes must have; what fills the last block up may be there or
    not. None when its header leaves that open. Raises BadHeader, Unfinished or OSError."""
    found = read(fd)
    if found.end is None or found.filled_end is None or size > found.filled_end:
        return None
    return max(size, found.end)


def read(fd: int) -> Contents:
    """The header of an open file. Raises BadHeader, Unfinished or OSError."""
    reader = _Reader(fd)
    if (magic := reader.take(len(MAGIC))) != MAGIC:
        wrong = BadHeader if any(magic) else Unfinished
        raise wrong("This is no GGUF file: it does not begin like one. Download it again.")
    version, tensors, pairs = reader.numbers("<IQQ")
    if version not in _VERSIONS:
        raise BadHeader(f"This is a GGUF file of version {version}; 2 and 3 are known here. Convert it.")
    if max(tensors, pairs) > _MAX_ENTRIES:
        raise BadHeader("The header is damaged: there is more in it than in any model's. Download the file again.")
    known: dict[bytes, object] = {}
    for _ in range(pairs):
        key = reader.text()
        (kind,) = reader.numbers("<I")
        if key in (_ARCHITECTURE, _ALIGNMENT):
            known[key] = reader.value(kind)
        else:
            reader.skip(kind)
    alignment = known.get(_ALIGNMENT, _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or not 0 < alignment <= _LARGEST_ALIGNMENT:
        raise BadHeader("The header is damaged: it has no alignment that could be. Download the file again.")
    return _contents(reader, tensors, str(known.get(_ARCHITECTURE) or ""), alignment)


def _contents(reader: "_Reader", tensors: int, architecture: str, alignment: int) -> Contents:
    """The list of tensors, which ends the header, and what follows from it."""
    parameters, end, is_known = 0, 0, True
    sizes: dict[str, int] = {}
    named: dict[str, Tensor] = {}
    for _ in range(tensors):
        key = reader.text().decode("utf-8", "replace")
        (rank,) = reader.numbers("<I")
        if rank > _MAX_RANK:
            raise BadHeader("The header is damaged: a tensor in it has too many dimensions. Download the file again.")
        *shape, kind, offset = reader.numbers(f"<{rank}QIQ")
        count = prod(shape)
        parameters += count
        name, block, block_bytes = _TYPES.get(kind, ("", 1, 0))
        is_known = is_known and bool(name)
        size = count // block * block_bytes
        sizes[name] = sizes.get(name, 0) + size
        named[key] = Tensor(dtype=name, shape=tuple(reversed(shape)), data_offsets=(offset, offset + size))
        end = max(end, offset + size)
        if max(parameters, end, sizes[name]) > _MOST:
            raise BadHeader("The header is damaged: no file is as large as it claims. Download the file again.")
    sizes.pop("", None)
    end += -(-reader.at // alignment) * alignment if tensors else reader.at
    return Contents(
        architecture=architecture,
        tensors=named,
        parameters=parameters,
        sizes=sizes,
        end=end if is_known else None,
        filled_end=-(-end // alignment) * alignment if is_known else None,
    )


class _Reader:
    """A header, read from its beginning on."""

    def __init__(self, fd: int) -> None:
        self.fd, self.at, self.raw = fd, 0, b""

    def take(self, count: int) -> bytes:
        """The next bytes. Raises Unfinished where the file ends, BadHeader where no header goes on."""
        begin, self.at = self.at, self.at + count
        if self.at > HEADER_LIMIT:
            raise BadHeader(f"This GGUF file's header is longer than {HEADER_LIMIT:,} bytes; it is not opened.")
        while len(self.raw) < self.at:
            more = os.pread(self.fd, max(_READ_BYTES, len(self.raw)), len(self.raw))
            if not more:
                raise Unfinished(f"The file ends within its header, after {len(self.raw):,} bytes; download it again.")
            self.raw += more
        return self.raw[begin : self.at]

    def numbers(self, form: str) -> tuple[int, ...]:
        """What comes next, in a form of `struct`."""
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def text(self) -> bytes:
        """A length, and so many bytes."""
        (length,) = self.numbers("<Q")
        return self.take(length)

    def value(self, kind: int) -> object:
        """A text or an unsigned number; None for another type, which is passed over. Raises as `skip`."""
        if kind == _STRING:
            return self.text().decode("utf-8", "replace")
        if kind in _UNSIGNED:
            return self.numbers(_UNSIGNED[kind])[0]
        self.skip(kind)
        return None

    def skip(self, kind: int, count: int = 1, depth: int = 0) -> None:
        """Past so many values of a type. Raises BadHeader for one that is not of the format, and as `take`."""
        if kind in _SIZES:
            self.take(_SIZES[kind] * count)
        elif kind == _STRING:
            self._skip_texts(count)
        elif kind == _ARRAY and depth < _MAX_RANK and count <= _MAX_ENTRIES:
            for _ in range(count):
                inner, length = self.numbers("<IQ")
                self.skip(inner, length, depth + 1)
        else:
            raise BadHeader("The header is damaged: a value in it is of no known type. Download the file again.")

    def _skip_texts(self, count: int) -> None:
        """The words of a tokenizer are hundreds of thousands."""
        unpack = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if len(self.raw) < self.at + 8:
                self.take(8)
                self.at -= 8
            end = self.at + 8 + unpack(self.raw, self.at)[0]
            if end > len(self.raw):
                self.take(end - self.at)
            self.at = end
