"""Waits: what is not let in yet, for people: why, and since when."""

import time
from collections.abc import Collection

import msgspec

from agents.ingest.store import FilesDb
from schemas.files import WaitingFile

_NOT_LOOKED_AT = "it has just come, or changed, and is looked at next"
LISTED = 1000
"""Files in a page, at most."""


class Waits:
    """The reasons that the gate gave last, by the ids of rows. A file waits since it came, or since this watcher knows
    of it, whatever happened to it meanwhile."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[str, float]] = {}

    def note(self, id: int, why: str) -> None:
        """The gate's last word on a file that waits."""
        _, since = self._known.get(id, ("", time.time()))
        self._known[id] = (why, since)

    def drop(self, id: int) -> None:
        """It waits no longer."""
        self._known.pop(id, None)

    def keep(self, ids: Collection[int]) -> None:
        """Only these wait."""
        self._known = {id: known for id, known in self._known.items() if id in ids}

    def page(self, db: FilesDb, root: str, after: str, limit: int, most: int) -> tuple[WaitingFile, ...]:
        """The files that wait below a root, by path, after one: `limit` of them, and as many as fit into `most`
        bytes."""
        files = []
        for id, path, changed_at in db.waiting_since(root, after=after, limit=max(1, min(limit, LISTED))):
            why, since = self._known.get(id, (_NOT_LOOKED_AT, changed_at))
            files.append(WaitingFile(path=path, why=why, since=min(since, changed_at)))
        while len(msgspec.json.encode(files)) > most and len(files) > 1:
            files = files[: len(files) // 2]
        return tuple(files)
