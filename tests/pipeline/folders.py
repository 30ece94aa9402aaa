"""Folders: what people and programs do to drop folders, and what a look at the disk says should be in the catalog.

The truth is told here in words of its own, not by the code under test: a name with a model's ending, a whole file,
inside its root, that nobody has open for writing.
"""

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from tests.ingest.making import model

ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
ROOTS = ("models", "loras")
LONGEST_HEADER = 16 << 20
AWAY = "-away"


class At(NamedTuple):
    """A path: a root's name, and the name below it (bytes that are not UTF-8 as Python writes them)."""

    root: str
    name: str

    def __repr__(self) -> str:
        return ascii(f"{self.root}/{self.name}")


class Writer(NamedTuple):
    """A program that has a file open, and what it has still to write."""

    file: IO[bytes]
    rest: bytes


class Folders:
    """Two roots, side by side below `home`, and everything that can happen in them. What can't be done as things are (a
    file that is not there, a root that is away) is left undone. Files of the inodes `spared` are never written, nor
    deleted."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.roots = {name: home / name for name in ROOTS}
        for folder in self.roots.values():
            folder.mkdir(parents=True)
        self.count = 0
        self.writers: list[Writer] = []
        self.spared: set[int] = set()

    # What is done.

    def write(self, at: At) -> None:
        """A whole new file, or another content in the file that is there."""
        if path := self._free(at):
            path.write_bytes(self._content(path))

    def write_half(self, at: At) -> None:
        """A copy that broke off: half a file, and nobody who goes on with it."""
        if path := self._free(at):
            content = self._content(path)
            path.write_bytes(content[: len(content) // 2])

    def begin(self, at: At) -> None:
        """The first part of a file, by a program that keeps it open."""
        if path := self._free(at):
            content = self._content(path)
            file = path.open("wb", buffering=0)
            file.write(content[:100])
            self.writers.append(Writer(file, content[100:]))

    def go_on(self) -> None:
        """Another part of each file that is open."""
        for index, writer in enumerate(self.writers):
            writer.file.write(writer.rest[:50])
            self.writers[index] = writer._replace(rest=writer.rest[50:])

    def finish(self) -> None:
        """The rest of each file that is open, and its end."""
        for writer in self.writers:
            writer.file.write(writer.rest)
            writer.file.close()
        self.writers.clear()

    def grow(self, at: At) -> None:
        """A file that was closed is opened again and gets longer."""
        if (path := self._free(at)) and path.is_file():
            with path.open("ab") as file:
                file.write(b"more")

    def overwrite_and_restore_date(self, at: At) -> None:
        """Another content of the same length in the same file, under the same date."""
        if (path := self._free(at)) and path.is_file() and path.stat().st_size > 8:
            before = path.stat()
            self.count += 1
            with path.open("r+b") as file:
                file.seek(-8, os.SEEK_END)
                file.write(f"{self.count:08}".encode())
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def replace(self, at: At) -> None:
        """A new content written beside, and renamed over what is there."""
        if path := self._free(at):
            temporary = path.with_name("new.tmp")
            temporary.write_bytes(self._content(path))
            temporary.replace(path)

    def rename(self, old: At, new: At) -> None:
        source, target = self._there(old), self._free(new)
        if source and target and source != target:
            source.rename(target)

    def change_case(self, at: At) -> None:
        """A rename by which only the case of the name changes."""
        folder, slash, name = at.name.rpartition("/")
        self.rename(at, at._replace(name=folder + slash + name.swapcase()))

    def swap(self, one: At, other: At) -> None:
        """Two files change places."""
        first, second = self._there(one), self._there(other)
        if first and second and first != second and not first.is_symlink() and not second.is_symlink():
            between = first.with_name(f"between-{first.name}")
            first.rename(between)
            second.rename(first)
            between.rename(second)

    def copy(self, old: At, new: At) -> None:
        """Byte for byte, and the date too."""
        source, target = self._there(old), self._free(new)
        if source and target and not os.path.lexists(target):
            shutil.copy2(source, target)

    def hard_link(self, old: At, new: At) -> None:
        source, target = self._there(old), self._free(new)
        if source and target and not os.path.lexists(target) and not source.is_symlink():
            target.hardlink_to(source)

    def symlink(self, old: At, new: At) -> None:
        """A symbolic link; one out of its root is not to be followed."""
        source, target = self._there(old), self._free(new)
        if source and target and not os.path.lexists(target):
            target.symlink_to(os.path.relpath(source, target.parent))

    def delete(self, at: At) -> None:
        if (path := self._free(at)) and os.path.lexists(path):
            path.unlink()

    def recreate(self, at: At) -> None:
        """Deleted, and written anew under the same name."""
        if (path := self._free(at)) and os.path.lexists(path):
            path.unlink()
            path.write_bytes(self._content(path))

    def move_folder(self, old: At, new: At) -> None:
        """A folder with all that is in it, within a root or into the other one."""
        source, target = self.roots[old.root] / old.name, self.roots[new.root] / new.name
        into_itself = target.is_relative_to(source)
        if source.is_dir() and self.roots[new.root].exists() and not target.exists() and not into_itself:
            target.parent.mkdir(parents=True, exist_ok=True)
            source.rename(target)

    def move_in(self, at: At) -> None:
        """A folder that was made elsewhere, with a file in it and another one in a folder of its own."""
        target = self.roots[at.root] / at.name
        if self.roots[at.root].exists() and not target.exists():
            made = self.home / "made"
            (made / "y").mkdir(parents=True)
            for path in (made / "a.safetensors", made / "y" / "b.ckpt"):
                path.write_bytes(self._content(path))
            target.parent.mkdir(parents=True, exist_ok=True)
            made.rename(target)

    def unmount(self, root: str) -> None:
        if self.roots[root].exists():
            self.roots[root].rename(self._away(root))

    def mount(self, root: str) -> None:
        if self._away(root).exists():
            self._away(root).rename(self.roots[root])

    def clear(self) -> None:
        """Nothing open, no root away, and nothing there but what is spared."""
        self.finish()
        for root in ROOTS:
            self.mount(root)
            for path in _below(self.roots[root]):
                if path.lstat().st_ino not in self.spared:
                    path.unlink()

    # What is so.

    def truth(self) -> dict[At, str]:
        """The SHA-256 of each model that is there and nobody is writing."""
        return {at: sha256(path) for at, path in self._visible(open_ones=False) if _is_whole(path)}

    def unsure(self) -> set[At]:
        """The paths of files that are open: of each, what it held before may be told, or nothing."""
        return {at for at, _ in self._visible(open_ones=True)}

    def paths_of(self, inode: int) -> list[Path]:
        """Every name of a file, below roots that are away too; where that is now is left out."""
        tops = [folder for root in ROOTS for folder in (self.roots[root], self._away(root))]
        return [path for top in tops for path in _below(top) if path.lstat().st_ino == inode]

    def at(self, path: Path) -> At:
        """What a path below a root is called, whether that is away or not."""
        folder, _, name = str(path.relative_to(self.home)).partition("/")
        return At(folder.removesuffix(AWAY), name)

    def _visible(self, *, open_ones: bool) -> Iterator[tuple[At, Path]]:
        """The names of models that lead to a file inside their root."""
        written = {os.fstat(writer.file.fileno()).st_ino for writer in self.writers}
        for folder in self.roots.values():
            for path in _below(folder):
                is_inside = path.resolve().is_relative_to(folder.resolve()) and path.is_file()
                if path.suffix.lower() in ENDINGS and is_inside and (path.stat().st_ino in written) == open_ones:
                    yield self.at(path), path

    def _away(self, root: str) -> Path:
        return self.home / f"{root}{AWAY}"

    def _there(self, at: At) -> Path | None:
        path = self.roots[at.root] / at.name
        return path if path.is_file() else None

    def _free(self, at: At) -> Path | None:
        """Where to put something, unless the root is away, or something is there that is spared."""
        if not self.roots[at.root].exists():
            return None
        path = self.roots[at.root] / at.name
        path.parent.mkdir(parents=True, exist_ok=True)
        is_taken = path.exists() and path.stat().st_ino in self.spared
        return None if is_taken else path

    def _content(self, path: Path) -> bytes:
        """What nobody wrote before: by most names a model of a few hundred bytes, of one of many lengths."""
        self.count += 1
        number = f"{self.count:08}".encode()
        if path.suffix.lower() == ".safetensors":
            return model(metadata={"pad": "x" * (self.count % 61)})[:-8] + number
        return b"pickle" * (20 + self.count % 59) + number


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _below(folder: Path) -> list[Path]:
    """Every file and link below a folder; links to folders are not followed."""
    return sorted(Path(top) / name for top, _, names in os.walk(folder) for name in names)


def _is_whole(path: Path) -> bool:
    """As long as its own header says; without a header it can be read by, not empty."""
    content = path.read_bytes()
    if path.suffix.lower() != ".safetensors" or not content:
        return bool(content)
    if len(content) < 8 or (length := struct.unpack("<Q", content[:8])[0]) > LONGEST_HEADER:
        return len(content) >= 8
    if len(content) < 8 + length:
        return False
    try:
        table = json.loads(content[8 : 8 + length])
    except ValueError:
        return True  # no model, but listed as a file with a problem
    end = max(entry["data_offsets"][1] for name, entry in table.items() if name != "__metadata__")
    return len(content) == 8 + int(length) + int(end)
