"""Mounts: which file system a folder is on, so that nobody trusts events or leases where they can't work."""

import os
import re
from pathlib import Path

REMOTE = frozenset(
    (
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "virtiofs", "ceph", "glusterfs", "lustre", "afs", "beegfs"),
        *("gpfs", "vboxsf", "vmhgfs", "prl_fs", "fakeowner", "drvfs", "davfs", "ncpfs", "orangefs", "pvfs2"),
    )
)
"""File systems that others write without this kernel seeing it. FUSE is counted among them: nobody can know."""

_MOUNTINFO = Path("/proc/self/mountinfo")
_OCTAL = re.compile(rb"\\([0-7]{3})")


def file_system(path: str | bytes) -> str:
    """The type of the file system that holds a path, such as "ext4"; empty where the system does not know."""
    try:
        table = _MOUNTINFO.read_bytes()
    except OSError:
        return ""
    return find_type(table, os.path.realpath(os.fsencode(path)))


def find_type(mountinfo: bytes, real: bytes) -> str:
    """The type of the mount that holds a real path, in a text of the form of /proc/self/mountinfo (see proc(5))."""
    best, kind = -1, ""
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(b" - ")
        if not rest or not _point(fields):
            continue
        point = _point(fields).rstrip(b"/")
        if (real == point or real.startswith(point + b"/")) and len(point) >= best:
            best, kind = len(point), rest.split(b" ")[0].decode("ascii", "replace")
    return kind


def _point(line: bytes) -> bytes:
    """Where a line of the table is mounted; empty for a line that is none."""
    words = line.split(b" ")
    return _OCTAL.sub(lambda found: bytes([int(found[1], 8) & 255]), words[4]) if len(words) > 4 else b""


def mounts_below(folder: str | bytes) -> frozenset[bytes]:
    """What is mounted below a folder (lines of the system's table); nothing where the system does not know."""
    try:
        table = _MOUNTINFO.read_bytes()
    except OSError:
        return frozenset()
    below = os.path.realpath(os.fsencode(folder)).rstrip(b"/") + b"/"
    return frozenset(line for line in table.splitlines() if _point(line).startswith(below))


def is_remote(path: str | bytes) -> bool:
    """Whether a folder may change without events, and without a lease knowing its writers."""
    kind = file_system(path)
    return kind in REMOTE or kind.startswith("fuse")
