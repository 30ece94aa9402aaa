"""Disks: which of them spin, and one file at a time from each that does; elsewhere reading side by side is quicker."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import anyio
from anyio import to_thread

from agents.storage.errors import IngestError

Rotational = Literal["auto", "yes", "no"]

SYSFS = Path("/sys")
_VIRTUAL = frozenset(("virtio", "xen"))
"""Their drivers call every disk rotational: what it is made of they do not know."""


def rotational_disk(dev: int, sysfs: Path = SYSFS) -> str:
    """The name of the rotational disk ("sda") on which the file system of this `st_dev` lies; empty when there is none,
    or when the system does not know (network file systems, btrfs, other systems than Linux). Raises OSError."""
    return _rotational(sysfs / "dev" / "block" / f"{os.major(dev)}:{os.minor(dev)}")


def _rotational(device: Path) -> str:
    """The same for a block device's folder: that of a disk, a partition, or of what is mapped onto some (LVM, RAID)."""
    device = device.resolve()
    if (device / "partition").exists():
        device = device.parent
    if below := sorted((device / "slaves").glob("*")):
        return next(filter(None, map(_rotational, below)), "")
    flag = device / "queue" / "rotational"
    if (device / "device" / "subsystem").resolve().name in _VIRTUAL or not flag.exists():
        return ""
    return device.name if flag.read_text().strip() == "1" else ""


class DiskTurns:
    """One file at a time from each rotational disk. `rotational` is a user's word for all of them: with "yes" every
    file system counts as a disk that spins, with "no" none."""

    def __init__(self, rotational: Rotational, sysfs: Path = SYSFS) -> None:
        self.rotational, self.sysfs = rotational, sysfs
        self._disks: dict[tuple[str, int], str] = {}
        self._locks: dict[str, anyio.Lock] = {}

    @asynccontextmanager
    async def turn(self, place: tuple[str, int], path: Callable[[], bytes]) -> AsyncIterator[None]:
        """Wait until a file may be read. All files of a `place` (a root, and a device number of the host that found
        them) are on one disk, which is looked up once, by the path of any."""
        if disk := await self.disk(place, path):
            async with self._locks.setdefault(disk, anyio.Lock()):
                yield
        else:
            yield

    async def disk(self, place: tuple[str, int], path: Callable[[], bytes]) -> str:
        """The rotational disk that a place is on; empty when there is none."""
        if self.rotational == "no":
            return ""
        if place not in self._disks:
            try:
                self._disks[place] = await to_thread.run_sync(self._look_up, path)
            except (OSError, IngestError):
                return ""  # who reads the file gets the same error, and reports it
        return self._disks[place]

    def _look_up(self, path: Callable[[], bytes]) -> str:
        dev = Path(os.fsdecode(path())).stat().st_dev
        return rotational_disk(dev, self.sysfs) or (str(dev) if self.rotational == "yes" else "")
