"""Elders: files that are old enough for their hashes to be known for certain, and are moved and linked, never written.
Nothing that is done to them is a reason to read them again."""

import os
import time
from collections.abc import Iterable
from pathlib import Path

from tests.pipeline.folders import ENDINGS, At, Folders

OLD_ENOUGH = 2.0
"""Seconds after which a hash is believed to be of that version of the file (`store.CLOCK_GRAIN`)."""

FIRST = (At("models", "elder.safetensors"), At("models", "elder.ckpt"), At("models", "old/elder.safetensors"))


Place = tuple[frozenset[At], int]
"""The names of a file that are a model's, below roots that are away too, and how many names it has."""


class Elders:
    """The elders of some folders, by inode, with where each has been since it was last known where it is.

    One that left a place and came back between two looks at the disk, or was out of sight (under a name that is no
    model's, or with its root) while, or after, it was moved, may have been written meanwhile, for all its
    change time tells: it is `excused`. One that was hashed for such a reason is young again, and excused if anything is
    done to it before it has grown old.
    """

    def __init__(self, folders: Folders) -> None:
        self.folders = folders
        self.homes: dict[int, Path] = {}
        for at in FIRST:
            folders.write(at)
            path = folders.roots[at.root] / at.name
            self.homes[path.stat().st_ino] = path
        folders.spared.update(self.homes)
        self.excused: set[int] = set()
        self.been: dict[int, list[Place]] = {}
        self.changed_at: dict[int, int] = {}
        self.was_away = False
        self.hashed: set[int] = set()
        self.known_since: dict[int, float] = {}
        self.are_known(())

    def bring_home(self) -> None:
        """Each under one name, its first. On the way none is ever out of its root."""
        away = [inode for inode, home in self.homes.items() if self.folders.paths_of(inode) != [home]]
        for inode in away:
            name, *others = self.folders.paths_of(inode)
            for other in others:
                other.unlink()
            name.rename(self._between(inode))
        for inode in away:
            self.homes[inode].parent.mkdir(parents=True, exist_ok=True)
            self._between(inode).rename(self.homes[inode])

    def _between(self, inode: int) -> Path:
        return self.folders.roots[FIRST[0].root] / f"{inode}.ckpt"

    def note(self) -> None:
        """To be called after each thing that is done."""
        self.was_away |= self._is_away()
        for inode in self.homes:
            place, changed_at = self._place(inode)
            if time.time() - self.known_since.get(inode, 0.0) < OLD_ENOUGH:
                self.excused.add(inode)
            if changed_at != self.changed_at[inode]:
                self.changed_at[inode] = changed_at
                if place in self.been[inode] or not place[0]:
                    self.excused.add(inode)
                self.been[inode].append(place)
            if self.was_away and len(self.been[inode]) > 1:
                self.excused.add(inode)

    def are_known(self, hashed: Iterable[int]) -> None:
        """The agents have seen where each is, and since this was last called they have hashed some. But what is below a
        root that is away they have not seen."""
        self.hashed.update(hashed)
        if self._is_away():
            return
        self.known_since |= dict.fromkeys(self.hashed, time.time())
        self.hashed.clear()
        self.excused.clear()
        self.was_away = False
        for inode in self.homes:
            place, self.changed_at[inode] = self._place(inode)
            self.been[inode] = [place]
            if not place[0]:
                self.excused.add(inode)

    def _is_away(self) -> bool:
        return not all(folder.exists() for folder in self.folders.roots.values())

    def _place(self, inode: int) -> tuple[Place, int]:
        """Where a file is, and when that changed last (nanoseconds)."""
        paths = self.folders.paths_of(inode)
        names = frozenset(self.folders.at(path) for path in paths if path.suffix.lower() in ENDINGS)
        found = os.lstat(paths[0])
        return (names, found.st_nlink), found.st_ctime_ns
