"""Making the files that the tests drop: real safetensors files of a few hundred bytes, and broken ones."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
