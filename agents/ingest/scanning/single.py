"""Single paths: what an event named is admitted at once when nothing is known of it; the rest needs a scan.

In a folder of 20,000 models a scan takes a third of a second, and a new file should not wait for the next one.
"""

import os
import stat
from collections.abc import Collection, Mapping

from agents.ingest.scanning.names import is_skipped_folder, why_ignored
from agents.ingest.scanning.reconcile import Appeared
from agents.ingest.scanning.scan import Candidate
from agents.ingest.store import Store
from agents.storage.errors import BadPath
from agents.storage.paths import join, stat_of
from schemas.files import FilePath


def admit_new(fresh: Collection[tuple[str, str]], folders: Mapping[str, str], db: Store, now: float) -> bool:
    """Put those of the paths (root, rel) before the gate that are new; False when a scan has to explain the others. A
    scan under way did not see what waits there now."""
    new: list[Appeared] = []
    known = 0
    for root, rel in fresh:
        path = FilePath(root=root, rel=rel)
        row = db.row_at(path)
        if row is not None and not row.gone and row.state == "waiting":
            known += 1
            db.written.add(row.id)
        elif row is None:
            candidate = candidate_at(folders[root], rel)
            if candidate is not None and not db.has_inode(candidate.stat):
                new.append(Appeared(path=path, candidate=candidate))
    db.apply(new, roots=(), looked_at=now, now=now)
    db.written.update(row.id for one in new if (row := db.row_at(one.path)))
    return known + len(new) == len(fresh)


def candidate_at(folder: str, rel: str) -> Candidate | None:
    """What a scan would find at one path, if it is a plain file with one name; never raises."""
    top = os.path.realpath(os.fsencode(folder))
    try:
        path = join(top, rel)
        above, _, name = path.rpartition(b"/")
        found = os.lstat(path)
        is_plain = stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and os.path.realpath(above) == above
    except (BadPath, OSError):
        return None
    if not is_plain or why_ignored(name) or lies_in_skipped(path[len(top) + 1 :]):
        return None
    return Candidate(rel, stat_of(found), found.st_nlink)


def lies_in_skipped(raw: bytes) -> bool:
    """Whether a path below a root leads through a folder that no scan enters."""
    return any(is_skipped_folder(part) for part in raw.split(b"/")[:-1])
