"""Elders: files that are old enough for their hashes to be known for certain, and are moved and linked, never written.
Nothing that is done to them is a reason to read them again."""

import os
from pathlib import Path

from tests.pipeline.folders import ENDINGS, At, Folders

FIRST = (At("models", "elder.safetensors"), At("models", "elder.ckpt"), At("models", "old/elder.safetensors"))


Place = tuple[frozenset[At], int]
"""The names of a file that are a model's, below roots that are away too, and how many names it has."""


class Elders:
    """The elders of some folders, by inode, with where each has been since it was last known where it is.

    One that left a place and came back between two looks at the disk, or was out of sight (under a name that is no
    model's, or with its root) while, or after, it was moved, may have been written meanwhile, for all its
    change time tells: it is `excused`.
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
        self.are_known()

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
            if changed_at != self.changed_at[inode]:
                self.changed_at[inode] = changed_at
                if place in self.been[inode] or not place[0]:
                    self.excused.add(inode)
                self.been[inode].append(place)
            if self.was_away and len(self.been[inode]) > 1:
                self.excused.add(inode)

    def are_known(self) -> None:
        """The agents have seen where each is; but those below a root that is away they have not."""
        if self._is_away():
            return
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
