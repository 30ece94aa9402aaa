"""Making the files that the tests drop: real safetensors files of a few hundred bytes, and broken ones."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Shapes = dict[str, tuple[int, ...]]

SD15 = (
    "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
    "model.diffusion_model.input_blocks.0.0.weight",
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
    "first_stage_model.encoder.conv_in.weight",
    "first_stage_model.decoder.conv_in.weight",
)


def header(shapes: Mapping[str, tuple[int, ...]], metadata: dict[str, str] | None = None) -> tuple[dict[str, Any], int]:
    """A table of F16 tensors that follow one another, and the bytes they take."""
    table: dict[str, Any] = {"__metadata__": metadata} if metadata is not None else {}
    end = 0
    for name, shape in shapes.items():
        begin = end
        end += 2 * _product(shape)
        table[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [begin, end]}
    return table, end


def encoded(table: Any, data: bytes = b"") -> bytes:
    """A file of that header (JSON text, or what becomes it) and data."""
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + data


def model(
    shapes: Mapping[str, tuple[int, ...]] | tuple[str, ...] = SD15,
    metadata: dict[str, str] | None = None,
    fill: int = 1,
) -> bytes:
    """A whole file of these tensors (given names only, of four numbers each), every byte of data `fill`."""
    named = dict.fromkeys(shapes, (2, 2, 1, 1)) if isinstance(shapes, tuple) else shapes
    table, size = header(named, metadata)
    return encoded(table, bytes([fill]) * size)


def gguf(architecture: bytes, tensor_type: int = 8, filling: int = 28) -> bytes:
    """A whole GGUF file with two tensors: 32 numbers of a type (Q8_0), and 41 of F32 behind them; after those the last
    block is filled up with 28 bytes."""

    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    pairs = text(b"general.alignment") + struct.pack("<II", 4, 32) + text(b"general.architecture")
    pairs += struct.pack("<I", 8) + text(architecture)
    pairs += text(b"tokens") + struct.pack("<IIQ", 9, 8, 2) + text(b"a") + text(b"b")
    pairs += text(b"scores") + struct.pack("<IIQ", 9, 6, 3) + bytes(12)
    tensors = text(b"one") + struct.pack("<IQIQ", 1, 32, tensor_type, 0)
    tensors += text(b"two") + struct.pack("<IQQIQ", 2, 41, 1, 0, 64)
    head = b"GGUF" + struct.pack("<IQQ", 3, 2, 4) + pairs + tensors
    data = bytes([1]) * 34 + bytes(30) + bytes([2]) * 164 + bytes(filling)
    return head.ljust(-(-len(head) // 32) * 32, b"\0") + data


def gguf_of(architecture: bytes, shapes: Shapes) -> bytes:
    """The header of a GGUF file with these tensors of F32, in its own order of sides; no data."""

    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    pairs = text(b"general.architecture") + struct.pack("<I", 8) + text(architecture)
    tensors = b"".join(
        text(name.encode()) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), 0, 0)
        for name, shape in shapes.items()
    )
    return b"GGUF" + struct.pack("<IQQ", 3, len(shapes), 1) + pairs + tensors


def put(path: Path, content: bytes) -> Path:
    """Writes a file, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total
