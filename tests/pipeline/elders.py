"""Elders: files that are old enough for their hashes to be known for certain, and are moved and linked, never written.
Nothing that is done to them is a reason to read them again."""

import os
from pathlib import Path

from tests.pipeline.folders import At, Folders

FIRST = (At("models", "elder.safetensors"), At("models", "elder.ckpt"), At("models", "old/elder.safetensors"))


class Elders:
    """The elders of some folders, by inode, with where each has been since it was last known where it is.

    One that left a place and came back between two looks at the disk may have been written meanwhile, for all its
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
        self.been: dict[int, list[frozenset[Path]]] = {}
        self.changed_at: dict[int, int] = {}
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
        for inode in self.homes:
            paths = self.folders.paths_of(inode)
            changed_at = os.lstat(paths[0]).st_ctime_ns
            if changed_at != self.changed_at[inode]:
                self.changed_at[inode] = changed_at
                if frozenset(paths) in self.been[inode]:
                    self.excused.add(inode)
                self.been[inode].append(frozenset(paths))

    def are_known(self) -> None:
        """The agents have seen where each is."""
        self.excused.clear()
        for inode in self.homes:
            paths = self.folders.paths_of(inode)
            self.been[inode] = [frozenset(paths)]
            self.changed_at[inode] = os.lstat(paths[0]).st_ctime_ns
