"""Which configured root a path of a legacy catalog lies in now, and where there."""

import os
from collections.abc import Mapping

from agents.storage.paths import encode


class RootIndex:
    """Finds a path's place below the roots (folders by name). A path is compared as it is written, and with the links
    in its folders followed; whether there is a file plays no part. For one thread at a time."""

    def __init__(self, roots: Mapping[str, str]) -> None:
        written = [(os.path.normpath(os.fsencode(folder)), name) for name, folder in roots.items()]
        real = [(os.path.realpath(folder), name) for folder, name in written]
        self._written, self._real = (sorted(one, key=lambda root: -len(root[0])) for one in (written, real))
        self._folders: dict[bytes, bytes] = {}

    def __call__(self, path: bytes) -> tuple[str, str] | None:
        """The root and the path below it as it is written on the bus; None for a path in no root."""
        if not path.startswith(b"/") or path.endswith(b"/"):
            return None
        if b"/../" not in path and (place := _inside(os.path.normpath(path), self._written)):
            return place
        folder, _, name = path.rpartition(b"/")
        if name in (b".", b".."):
            return None
        if (real := self._folders.get(folder)) is None:
            real = self._folders[folder] = os.path.realpath(folder or b"/")
        return _inside(real.rstrip(b"/") + b"/" + name, self._real)


def _inside(path: bytes, roots: list[tuple[bytes, str]]) -> tuple[str, str] | None:
    """The place below the innermost root."""
    for folder, name in roots:
        below = folder.rstrip(b"/") + b"/"
        if path.startswith(below):
            return name, encode(path[len(below) :])
    return None
