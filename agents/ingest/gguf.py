"""GGUF: the quantised format of llama.cpp, as far as it takes to say what is in a file.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Only the beginning is read.
"""

import os
import struct

from schemas.files import Identity, Kind

MAGIC = b"GGUF"
_READ_BYTES = 64 << 10
_STRING = 8
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes per value type of fixed size."""

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


def identify(fd: int) -> Identity:
    """Kind and family by the architecture the file names. Raises OSError only."""
    raw = os.pread(fd, _READ_BYTES, 0)
    if not raw.startswith(MAGIC):
        return Identity(problem="This is no GGUF file: it does not begin like one. Download it again.")
    try:
        architecture = _architecture(raw)
    except (struct.error, KeyError, UnicodeDecodeError):
        architecture = ""
    kind, family = _ARCHITECTURES.get(architecture, ("unknown", ""))
    if kind == "unknown":
        named = f" ({architecture[:80]!r})" if architecture else ""
        return Identity(problem=f"This GGUF file holds no kind of model known here{named}.")
    return Identity(kind=kind, family=family, metadata={"general.architecture": architecture})


def _architecture(raw: bytes) -> str:
    """The text under general.architecture; empty when it does not come before the first list."""
    _, _, pairs = struct.unpack_from("<IQQ", raw, 4)
    offset = 24
    for _ in range(min(pairs, 256)):
        key, offset = _text(raw, offset)
        (kind,) = struct.unpack_from("<I", raw, offset)
        offset += 4
        if kind == _STRING:
            value, offset = _text(raw, offset)
            if key == b"general.architecture":
                return value.decode()
        else:
            offset += _SIZES[kind]
    return ""


def _text(raw: bytes, offset: int) -> tuple[bytes, int]:
    (length,) = struct.unpack_from("<Q", raw, offset)
    start = offset + 8
    if length > len(raw) - start:
        raise struct.error("a text leads out of what was read")
    return raw[start : start + length], start + length
