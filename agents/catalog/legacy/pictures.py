"""Pictures of a legacy catalog on their way into the data directory. Synchronous, for worker threads.

A picture is copied, durably, before the transaction that mentions it: to the blobs when its model is hashed, else to
the import's own folder, from where the transaction gives it its name among the pending originals, which depends on the
id that its record gets. A killed import leaves nothing but what its next run uses again or sweeps.
"""

import hashlib
import os
import re
import stat
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import msgspec

from agents.catalog.errors import LegacyUnusable
from agents.images.decode import MAX_BYTES, BadPicture, picture
from agents.storage import blobs
from agents.storage.atomic import place, sync_folder
from agents.storage.layout import PENDING, DataDir
from agents.storage.trash import TrashBatch

MEDIA = "/media/"

REFUSED = "A picture's name is a path, and not taken: names are looked up in the folder of pictures only."
MISSING = "A picture is not in the folder of pictures."
BROKEN = "A picture can't be decoded."

_FORMATS = ((b"\x89PNG", "png"), (b"\xff\xd8\xff", "jpg"), (b"RIFF", "webp"), (b"GIF8", "gif"))
_OURS = re.compile(r"[1-9][0-9]*-[0-9]+\.(?:png|jpg|webp|gif|avif)")
_OPEN_SAFELY = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY | os.O_NOFOLLOW


class Copied(msgspec.Struct, frozen=True):
    """A picture that can be used: the SHA-256 of its bytes, and the extension of its format."""

    source: str
    suffix: str


class Unusable(msgspec.Struct, frozen=True):
    """A picture that can't: why, and what its name or fault is."""

    why: str
    detail: str


class PictureCopier:
    """The pictures in `images` (None: no folder was named), on their way to `data`, by way of the import's own
    `folder`. With `keep` false nothing is copied, and everything else done all the same. Raises LegacyUnusable."""

    def __init__(self, images: Path | None, data: Path, folder: Path, *, keep: bool) -> None:
        self.data, self._folder, self._keep = data, folder, keep
        self._images = None if images is None else images.resolve()
        if self._images is not None and not self._images.is_dir():
            raise LegacyUnusable(f"There is no folder {images}: name the one with the legacy catalog's pictures.")

    def copy(self, name: str, *, hashed: bool) -> Copied | Unusable:
        """Check one picture by its name, and copy it for a model that is hashed, or not. Raises OSError when it can't
        be written."""
        base = name.removeprefix(MEDIA)
        if base in ("", ".", "..") or re.search(r"[/\\\0]", base):
            return Unusable(REFUSED, name)
        try:
            data = self._read(base)
        except (OSError, ValueError):  # a name with a lone surrogate, for example, names no file
            data = None
        if data is None:
            return Unusable(MISSING, name)
        try:
            picture(data, enough=(1, 1))  # all of it is read; a JPEG is drawn small
        except BadPicture as error:
            return Unusable(BROKEN, f"{name}: {error}")
        source = hashlib.sha256(data).hexdigest()
        if self._keep and hashed:
            blobs.put(self.data, data)
        elif self._keep:
            place(self._folder / source, data)
        suffix = next((suffix for magic, suffix in _FORMATS if data.startswith(magic)), "avif")
        return Copied(source, suffix)

    def link(self, files: dict[str, str], now: float) -> None:
        """Give pictures that were copied, by their SHA-256, their names among the pending originals, durably. A file
        that has such a name and belongs to no record (nobody committed it) goes to the trash; `now` is seconds since
        1970. Raises OSError."""
        if not self._keep or not files:
            return
        folder = DataDir(self.data).pending
        folder.mkdir(parents=True, exist_ok=True)
        trash = TrashBatch(self.data, now)
        for file, source in files.items():
            trash.move(f"{PENDING}/{file}")
            os.link(self._folder / source, folder / file)
        sync_folder(folder)

    def _read(self, base: str) -> bytes | None:
        """A regular file's bytes, one more than allowed at most; None when it is not there, or elsewhere."""
        if self._images is None:
            return None
        path = (self._images / base).resolve()
        if path.parent != self._images:
            return None
        with os.fdopen(os.open(path, _OPEN_SAFELY), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return None
            return file.read(MAX_BYTES + 1)


def sweep_pending(data: Path, used: Collection[str], now: float, since: float) -> int:
    """Move pending originals that no record has to the trash, but for those that are older than `since`, the beginning
    of the catalog: they are another's. Both times are seconds since 1970. How many. Raises OSError."""
    trash = TrashBatch(data, now)
    for file in DataDir(data).pending.glob("*-*.*"):
        with suppress(FileNotFoundError):  # another sweep takes it this moment
            if _OURS.fullmatch(file.name) and file.name not in used and file.stat().st_ctime >= since:
                trash.move(f"{PENDING}/{file.name}")
    return trash.moved
