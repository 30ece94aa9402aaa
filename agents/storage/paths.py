"""Paths: bytes on a disk, text on the bus, and the identifiers made of them.

On the bus a path is {root, rel}: `rel` is UTF-8 with '/' between its parts, in which the percent sign and every byte
that is not UTF-8 are written %XX. Any name a file system can hold survives the way there and back.
"""

import os
import re
import unicodedata
from hashlib import blake2b

from agents.storage.errors import BadPath, OutsideRoot
from schemas.files import Stat

_ESCAPED = re.compile(rb"%([0-9A-F]{2})")
_SURROGATE = re.compile("[\udc80-\udcff]")
_HALF = 1 << 63


def encode(raw: bytes) -> str:
    """The text form of a path below a root; any bytes are fine."""
    if raw.isascii():
        return raw.replace(b"%", b"%25").decode("ascii")
    text = raw.replace(b"%", b"%25").decode("utf-8", "surrogateescape")
    return _SURROGATE.sub(lambda found: f"%{ord(found[0]) - 0xDC00:02X}", text)


def decode(rel: str) -> bytes:
    """The bytes that `encode` wrote as `rel`. Raises BadPath for text that `encode` would not write."""
    try:
        raw = _ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), rel.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise BadPath(f"{rel!r} is not UTF-8") from error
    if encode(raw) != rel:
        raise BadPath(f"{rel!r} is not in the form this path is written in: {encode(raw)!r}")
    return raw


def join(root: str | bytes, rel: str) -> bytes:
    """The path of `rel` below the folder `root`, symlinks not looked at. Raises BadPath when it could leave the
    root."""
    raw = decode(rel)
    if b"\0" in raw or any(part in (b"", b".", b"..") for part in raw.split(b"/")):
        raise BadPath(f"{rel!r} is no path below a root: it has an empty part, '.', '..' or a null byte")
    return os.fsencode(root).rstrip(b"/") + b"/" + raw


def resolve(root: str | bytes, rel: str) -> bytes:
    """The real path of `rel` below the folder `root`, every symlink followed.

    Raises BadPath, or OutsideRoot when it leads out of the root. A path that does not exist resolves to where it
    would be.
    """
    real = os.path.realpath(join(root, rel))
    if not is_inside(real, os.path.realpath(os.fsencode(root))):
        raise OutsideRoot(
            f"{rel!r} leads to {encode(real)!r}, out of its root; move the file, or make that folder a root"
        )
    return real


def is_inside(real: bytes, real_root: bytes) -> bool:
    """Whether one real path lies below another."""
    return real.startswith(real_root.rstrip(b"/") + b"/")


def comparison_key(rel: str) -> str:
    """What two paths have in common when people, or a file system that ignores case, would call them the same."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", rel).casefold())


def file_key(root: str, dev: int, ino: int) -> str:
    """32 hex digits for one inode of one root: the same for every hard link, and for a file that was renamed."""
    return blake2b(f"{root}\0{dev}\0{ino}".encode(), digest_size=16).hexdigest()


def hash_id(key: str, rel: str, stat: Stat, algorithms: tuple[str, ...] = (), *, row: int = 0) -> str:
    """32 hex digits for the job to hash one version of a file at one path, with these digests and the SHA-256.

    `row` is the version of what is remembered of the path: a file that went and came back as it was is asked for anew,
    even while the first job ends.
    """
    text = f"{key}\0{rel}\0{stat.dev}\0{stat.ino}\0{stat.size}\0{stat.mtime_ns}\0{stat.ctime_ns}"
    text += f"\0row {row}" * bool(row)
    text += "".join(f"\0{name}" for name in sorted(set(algorithms)))
    return blake2b(text.encode(), digest_size=16).hexdigest()


def stat_of(result: os.stat_result) -> Stat:
    """The five numbers of a stat call that identify one version of a file; the only place that makes them.

    A file system may give a time that does not fit into 64 bits of nanoseconds (before 1677, from 2262 on). It is
    folded into them, here and nowhere else, so that what is stored, sent and compared is the same number; two times
    still differ unless they are exactly 584 years apart.
    """
    return Stat(
        dev=result.st_dev,
        ino=result.st_ino,
        size=result.st_size,
        mtime_ns=signed64(result.st_mtime_ns),
        ctime_ns=signed64(result.st_ctime_ns),
    )


def signed64(number: int) -> int:
    """The number of 64 bits with a sign that has the same lowest 64 bits."""
    return (number + _HALF) % (2 * _HALF) - _HALF
