"""Reconciling: what the table remembers against what a scan saw, as a list of changes. Pure.

A file is the same file when device, inode, size and modification time are: at the same path with the same change time
too, at another path without it, since renaming and linking touch that. A change time that nothing explains means that
the content may have been written and its date put back, and is a change. A file that was lost is known again at another
path, however long it was out of sight: renamed while its disk was away, or in the moment of a scan that missed it.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Literal

import msgspec

from agents.ingest.scanning.scan import Candidate, Scan
from schemas.files import FilePath, Stat

State = Literal["waiting", "settled", "refused"]


class Row(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What the table remembers of one path.

    `state` is the gate's last word on it. `published` means that a fact of a file here was published and not yet its
    end. `gone` means the path is not there now, and `unmounted` that its disk is not. `fingerprint` is of the settled
    content (see `fingerprint`). `version` counts the changes of this row.
    """

    id: int
    path: FilePath
    key: str
    stat: Stat
    links: int
    state: State = "waiting"
    published: bool = False
    gone: bool = False
    unmounted: bool = False
    fingerprint: str = ""
    version: int = 1


class Appeared(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A file to be judged at a path where none was; `row` is what is remembered of an earlier one there."""

    path: FilePath
    candidate: Candidate
    row: Row | None = None


class WasChanged(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The content at a path was written or replaced: it is to be judged anew."""

    row: Row
    candidate: Candidate


class WasMoved(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A settled file is at another path now."""

    row: Row
    path: FilePath
    candidate: Candidate


class Linked(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Another path of a settled file that is also still where it was, or was lost. `row`: an earlier file at that
    path."""

    source: Row
    path: FilePath
    candidate: Candidate
    row: Row | None = None


class Returned(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A settled file that was gone is back as it was (its disk may have another number)."""

    row: Row
    candidate: Candidate


class Touched(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The same content: only its change time, links or device number differ. Nobody needs to know."""

    row: Row
    candidate: Candidate


class Lost(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A path is gone, or its whole disk is (`unmounted`); or the disk is back, and the path is not."""

    row: Row
    unmounted: bool


Change = Appeared | WasChanged | WasMoved | Linked | Returned | Touched | Lost

_Inode = tuple[int, int]
_Content = tuple[int, int, int, int]
_Lasting = tuple[int, int, int]


def reconcile(rows: Iterable[Row], scans: Sequence[Scan]) -> list[Change]:
    """The changes that turn the table into what the scans saw, in an order in which they can be applied one by one.

    Rows of roots that were not scanned, and of what a scan could not read, are left alone.
    """
    return _Reconciliation(rows, scans).changes()


def doubted(change: Change) -> list[Change]:
    """What to apply instead of a change that takes a content for known, when its fingerprint turns out to differ."""
    match change:
        case WasMoved(row=row, path=path, candidate=candidate):
            return [Lost(row=row, unmounted=False), Appeared(path=path, candidate=candidate)]
        case Linked(path=path, candidate=candidate, row=earlier):
            return [Appeared(path=path, candidate=candidate, row=earlier)]
        case Returned(row=row, candidate=candidate):
            return [Appeared(path=row.path, candidate=candidate, row=row)]
        case Touched(row=row, candidate=candidate):
            return [WasChanged(row=row, candidate=candidate)]
    return [change]


def without(changes: Sequence[Change], ids: Collection[int]) -> list[Change]:
    """What can be done of the changes when the rows of these ids are left as they are: nothing that goes to a place
    which is still taken then."""
    left = [change for change in changes if change.row and change.row.id in ids]
    kept = [change for change in changes if not (change.row and change.row.id in ids)]
    while left:
        held = {change.row.path for change in left if change.row and not change.row.gone}
        left = [change for change in kept if isinstance(change, Appeared | WasMoved | Linked) and change.path in held]
        kept = [change for change in kept if change not in left] if left else kept
    return kept


class _Reconciliation:
    """The steps share these tables: who is where now, who has lost its place, which places are to be explained."""

    def __init__(self, rows: Iterable[Row], scans: Sequence[Scan]) -> None:
        self.scans = {scan.root: scan for scan in scans if scan.state != "unreadable"}
        self.seen = {
            FilePath(root=scan.root, rel=rel): candidate
            for scan in self.scans.values()
            for rel, candidate in scan.candidates.items()
        }
        every = list(rows)
        self.live = [row for row in every if not row.gone]
        self.former = {row.path: row for row in every if row.gone}
        lost = sorted((row for row in self.former.values() if row.state == "settled"), key=_changed_at)
        self.lost = {_lasting(row.stat): row for row in lost}
        self.open = dict(self.seen)
        self.staying: dict[_Content, Row] = {}
        self.displaced: dict[FilePath, Row] = {}
        self.found: list[Change] = []

    def changes(self) -> list[Change]:
        paths_changed = self.inodes_whose_paths_changed()
        for row in self.live:
            self.place(row, paths_changed)
        arrivals = self.moves() + self.arrivals()
        lost = [Lost(row=row, unmounted=self.is_unmounted(row)) for row in self.displaced.values()]
        return [*lost, *self.gone_for_good(arrivals), *self.found, *arrivals]

    def gone_for_good(self, arrivals: list[Change]) -> list[Change]:
        """Files whose disk was away and is back without them."""
        back = {change.row.path for change in arrivals if change.row is not None}
        return [
            Lost(row=row, unmounted=False)
            for path, row in self.former.items()
            if row.unmounted
            and path not in self.seen
            and path not in back
            and (scan := self.scans.get(path.root)) is not None
            and not _is_unread(scan, path.rel)
            and not self.is_unmounted(row)
        ]

    def inodes_whose_paths_changed(self) -> set[_Inode]:
        """The inodes that have other paths than before: what explains a new change time."""
        before = {(_inode(row.stat), row.path) for row in self.live if row.path.root in self.scans}
        now = {(_inode(candidate.stat), path) for path, candidate in self.seen.items()}
        return {inode for inode, _ in before ^ now}

    def place(self, row: Row, paths_changed: set[_Inode]) -> None:
        """A row whose file is where it was stays; any other is displaced."""
        scan = self.scans.get(row.path.root)
        if scan is None or _is_unread(scan, row.path.rel):
            self.staying.setdefault(_content(row.stat), row)
            return
        candidate = self.seen.get(row.path)
        if candidate is None or not (_inode(row.stat) == _inode(candidate.stat) or _is_same_disk(row, candidate)):
            self.displaced[row.path] = row
            return
        del self.open[row.path]
        if row.stat == candidate.stat and row.links == candidate.links:
            self.staying.setdefault(_content(row.stat), row)
        elif _is_same_disk(row, candidate) or (
            row.state == "settled"
            and _content(row.stat) == _content(candidate.stat)
            and (row.links != candidate.links or _inode(row.stat) in paths_changed)
        ):
            self.staying.setdefault(_content(candidate.stat), row)
            self.found.append(Touched(row=row, candidate=candidate))
        else:
            self.found.append(WasChanged(row=row, candidate=candidate))

    def moves(self) -> list[Change]:
        """Displaced files that are found at a path nobody else explains; each goes to one path only."""
        waiting: dict[_Content, list[Row]] = {}
        for row in sorted(self.displaced.values(), key=_path_of, reverse=True):
            if row.state == "settled":
                waiting.setdefault(_content(row.stat), []).append(row)
        moves: list[Change] = []
        for path in sorted(self.open):
            candidate = self.open[path]
            if rows := waiting.get(_content(candidate.stat)):
                row = rows.pop()
                del self.open[path], self.displaced[row.path]
                self.staying.setdefault(_content(candidate.stat), row)
                moves.append(WasMoved(row=row, path=path, candidate=candidate))
        return moves

    def arrivals(self) -> list[Change]:
        """The paths that no move explains."""
        arrivals: list[Change] = []
        for path, candidate in sorted(self.open.items()):
            former = self.former.get(path)
            source = self.staying.get(_content(candidate.stat))
            if former is not None and former.state == "settled" and _is_same_disk(former, candidate):
                arrivals.append(Returned(row=former, candidate=candidate))
            elif source is not None and source.state == "settled":
                arrivals.append(Linked(source=source, path=path, candidate=candidate, row=former))
            elif lost := self.lost_as(path, candidate):
                arrivals.append(Linked(source=lost, path=path, candidate=candidate, row=former))
            elif path in self.displaced:
                arrivals.append(WasChanged(row=self.displaced.pop(path), candidate=candidate))
            else:
                arrivals.append(Appeared(path=path, candidate=candidate, row=former))
        return arrivals

    def lost_as(self, path: FilePath, candidate: Candidate) -> Row | None:
        """The file that was lost elsewhere and is here now; a disk may have come back under another number."""
        row = self.lost.get(_lasting(candidate.stat))
        if row is None or row.path == path or not (row.unmounted or row.stat.dev == candidate.stat.dev):
            return None
        return row

    def is_unmounted(self, row: Row) -> bool:
        """Whether a lost file's whole disk is away: its root is, or no folder seen is on that device."""
        scan = self.scans[row.path.root]
        return scan.state == "gone" or row.stat.dev not in scan.devices


def _inode(stat: Stat) -> _Inode:
    return (stat.dev, stat.ino)


def _content(stat: Stat) -> _Content:
    """What renaming and linking leave as it is."""
    return (stat.dev, stat.ino, stat.size, stat.mtime_ns)


def _lasting(stat: Stat) -> _Lasting:
    """What is left of that when the disk gets another number."""
    return (stat.ino, stat.size, stat.mtime_ns)


def _is_same_disk(row: Row, candidate: Candidate) -> bool:
    """Whether only the device's number may differ: a disk that was mounted again."""
    old, new = row.stat, candidate.stat
    return (old.ino, old.size, old.mtime_ns, old.ctime_ns) == (new.ino, new.size, new.mtime_ns, new.ctime_ns)


def _is_unread(scan: Scan, rel: str) -> bool:
    """Whether the scan could not look at this path, or at a folder above it."""
    return any(rel == unread or rel.startswith(unread + "/") for unread in scan.unread)


def _path_of(row: Row) -> FilePath:
    return row.path


def _changed_at(row: Row) -> int:
    return row.stat.ctime_ns
