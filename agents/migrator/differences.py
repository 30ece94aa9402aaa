"""Comparing: what the catalog says lies below a root against what the watcher's table says, and the facts that mend it.

The facts of the FILES stream keep the two alike. They part when one of the files is restored from a backup, or deleted.
"""

from collections.abc import Iterable, Mapping

from agents.catalog.ledger import Place
from schemas.files import FilePath, ListedFile, Removed, Settled


def differences(places: Mapping[FilePath, Place], listed: Iterable[ListedFile], at: float) -> list[Settled | Removed]:
    """What has to be applied to the catalog's present `places` of a root for them to be what the watcher `listed` at
    `at` (its clock). Files that wait to be judged or hashed will be told of by themselves. Pure."""
    there = {one.path: one for one in listed}
    settled = [
        Settled(key=one.key, path=path, stat=one.stat, proof="complete", at=at, known=one.known)
        for path, one in there.items()
        if one.known is not None and ((row := places.get(path)) is None or row.sha256 != one.known.sha256)
    ]
    removed = [Removed(key=row.key, path=path, at=at) for path, row in places.items() if path not in there]
    return [*settled, *removed]  # a model that is elsewhere now is not missing in between
