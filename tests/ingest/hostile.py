"""A corpus of hostile files: what they are made of, and the verdict that each must get."""

import io
import json
import os
import socket
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agents.headers.safetensors import HEADER_LIMIT
from tests.ingest.making import encoded, gguf, model, put

Verdict = Literal["good", "unsafe", "problem", "ignored", "truncated", "oversized", "empty", "outside", "special"]
"""Hashed and ready, listed but never loaded, hashed and listed with a problem, nothing said, or why it is refused."""

SPARSE_BYTES = 64 << 20
BOMB_BYTES = 256 << 20
SECRET = model(metadata={"secret": "of somebody else"})


@dataclass(frozen=True)
class Hostile:
    """One of them: its name, the verdict, and what makes it at a path (the folder outside of the root is given)."""

    name: bytes
    verdict: Verdict
    make: Callable[[Path, Path], object]


def of(name: str | bytes, verdict: Verdict, content: bytes | Callable[[], bytes]) -> Hostile:
    """A plain file."""
    raw = name.encode() if isinstance(name, str) else name
    return Hostile(raw, verdict, lambda path, _: put(path, content if isinstance(content, bytes) else content()))


def entry(begin: int, end: int, shape: Any = None, dtype: Any = "U8") -> dict[str, Any]:
    """What a header says of one tensor, of bytes unless told otherwise."""
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


def many(count: int, room: int) -> bytes:
    """A header of that many tensors of one byte, as short as it can be, cut to `room` bytes of whole entries."""
    entries, size, end = [], 2, 0
    for number in range(count):
        text = b'"%x":{"dtype":"U8","shape":[1],"data_offsets":[%d,%d]}' % (number, end, end + 1)
        size += len(text) + 1
        if size > room:
            break
        entries.append(text)
        end += 1
    return encoded(b"{" + b",".join(entries) + b"}", bytes(end))


def bomb() -> bytes:
    """An archive as torch writes them, of a quarter of a mebibyte, that unpacks to 256 MiB."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("archive/data.pkl", "w") as inner:
        for _ in range(BOMB_BYTES >> 20):
            inner.write(bytes(1 << 20))
    return file.getvalue()


def texts() -> bytes:
    """A GGUF header of nearly two million empty texts."""
    count = (HEADER_LIMIT - 1024) // 8
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<QIIQ", 0, 9, 8, count) + bytes(8 * count)


def sparse(path: Path, _: Path) -> None:
    """As long as its header says, and none of it but the header ever written."""
    put(path, encoded({"a": entry(0, SPARSE_BYTES)}))
    os.truncate(path, path.stat().st_size + SPARSE_BYTES)


def preallocated(path: Path, _: Path) -> None:
    """Zeros all over, as some downloaders begin."""
    path.touch()
    os.truncate(path, SPARSE_BYTES)


def bound(path: Path, _: Path) -> None:
    """A socket; by way of its folder's descriptor, since a socket's path may be no longer than 107 bytes."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


def link_to(target: str) -> Callable[[Path, Path], object]:
    """A link; {outside} is the folder beside the root."""
    return lambda path, outside: path.symlink_to(target.format(outside=outside))


ONE = json.dumps(entry(0, 1)).encode()
NESTED = b'{"a":' + b"[" * (4 << 20) + b"}"
GGUF = b"GGUF" + struct.pack("<IQQ", 3, 2**64 - 1, 2**64 - 1)

CORPUS = (
    of("length-2-63.safetensors", "problem", struct.pack("<Q", 1 << 63) + b"{}"),
    of("17-mib.safetensors", "problem", lambda: many(1 << 30, 17 << 20)),
    of("16-mib.safetensors", "problem", lambda: many(1 << 30, HEADER_LIMIT)),
    of("70-mb.safetensors", "problem", lambda: many(1_200_000, 1 << 30)),
    of("nested.safetensors", "problem", encoded(NESTED)),
    of("overlapping.safetensors", "problem", encoded({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12))),
    of("aliased.safetensors", "problem", encoded({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8))),
    of("negative.safetensors", "problem", encoded({"a": entry(-8, 0)}, bytes(8))),
    of("beyond.safetensors", "problem", encoded({"a": entry(0, 1 << 63)}, bytes(8))),
    of("huge.safetensors", "truncated", encoded({"a": entry(0, 1 << 61)}, bytes(8))),
    of("twice.safetensors", "problem", encoded(b'{"a":%b,"a":%b}' % (ONE, ONE), b"1")),
    of("no-tensor.safetensors", "problem", encoded({})),
    of("empty.safetensors", "empty", b""),
    of("empty.ckpt", "empty", b""),
    of("seven.safetensors", "truncated", b"1234567"),
    of("cut.safetensors", "truncated", model()[:-1]),
    of("cut-header.safetensors", "truncated", model()[:40]),
    of("surplus.safetensors", "oversized", model() + b"1"),
    Hostile(b"sparse.safetensors", "problem", sparse),
    Hostile(b"preallocated.safetensors", "truncated", preallocated),
    of("counts.gguf", "problem", GGUF),
    of("long-text.gguf", "problem", GGUF + struct.pack("<Q", 2**64 - 1) + b"general.architecture"),
    of("texts.gguf", "problem", texts),
    of("cut.gguf", "truncated", gguf(b"flux")[:-40]),
    of("cut.pt", "truncated", lambda: bomb()[:-1]),
    of("bomb.pt", "unsafe", bomb),
    of("bomb.ckpt", "unsafe", bomb),
    of("runs-code.pth", "unsafe", b"\x80\x02cposix\nsystem\nq\x00X\x02\x00\x00\x00idq\x01\x85q\x02Rq\x03."),
    Hostile(b"pipe.safetensors", "special", lambda path, _: os.mkfifo(path)),
    Hostile(b"socket.safetensors", "special", bound),
    Hostile(b"folder.safetensors", "ignored", lambda path, _: path.mkdir()),
    Hostile(b"link-outside.safetensors", "outside", link_to("{outside}/secret.safetensors")),
    Hostile(b"link-to-pipe.safetensors", "outside", link_to("{outside}/pipe")),
    Hostile(b"link-to-device.safetensors", "outside", link_to("/dev/zero")),
    Hostile(b"link-to-folder.safetensors", "ignored", link_to("{outside}")),
    Hostile(b"link-to-itself.safetensors", "ignored", link_to("link-to-itself.safetensors")),
    Hostile(b"link-to-root", "ignored", link_to(".")),
    Hostile(b"link-nowhere.safetensors", "ignored", link_to("nowhere")),
    of("new\nline.safetensors", "good", model(fill=2)),
    of("$JS.API.STREAM.DELETE.S.safetensors", "good", model(fill=3)),
    of(">.safetensors", "good", model(fill=4)),
    of("*.safetensors", "good", model(fill=5)),
    of("darkroom.v1.>", "ignored", model(fill=6)),
    of("%s%n%00%2e%2e%2f.safetensors", "good", model(fill=7)),
    of(b"x" * 243 + b".safetensors", "good", model(fill=8)),
    of(b"not \xff utf-8 \xfe.safetensors", "good", model(fill=9)),
    of("control\x01\x1b[31m\x7f.safetensors", "good", model(fill=10)),
    of("right\u202eto\u200fleft.safetensors", "good", model(fill=11)),
    of("-rf; $(reboot) `id` '\".safetensors", "good", model(fill=12)),
)
