"""The waiting set: which files wait for the gate, when each is looked at next, and what asks for a scan. Pure.

`step` takes the state and one observation, and gives the next state and what its owner has to do about it: scan the
roots, or go on judging, earlier than planned. Times are seconds of a clock that never goes back.
"""

from collections.abc import Collection, Mapping, Sequence

import msgspec
from msgspec.structs import replace

from agents.ingest.scanning.events import MANY, Events
from agents.ingest.scanning.reconcile import Row
from agents.ingest.scanning.scan import Scan
from agents.ingest.settling import gate
from agents.ingest.settling.verdicts import Judged
from schemas.files import FilePath, WaitingFile

LEFT_SCANS = 3
"""Scans in a row that leave something to the next one, until they count all the same: some file is never left alone."""

SCAN_TWICE = 1.0
"""Seconds until folders that came are scanned once more: what was made in them in a hurry sends no event."""

_NEVER = float("inf")
_NOT_LOOKED_AT = "it has just come, or changed, and is looked at next"
_LEFT_TO_A_SCAN = "it is gone, or another one: the next scan shows"

Location = tuple[str, str]
"""A root, and a path below it."""


class HeldFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that waits: its row, what was seen of it, when it is looked at next (0: at once), and the gate's reason
    with the time it was first given (None before)."""

    row: Row
    track: gate.Track | None = None
    due: float = 0.0
    why: str = _NOT_LOOKED_AT
    since: float | None = None


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What a watcher knows of its waiting files and its scans.

    `files` is by the ids of rows and `ids` by location. `fresh` are locations that an event named and no row explains;
    `stale` means that the table's list of waiting files has changed. `unexplained` are the files that were not there,
    or others, when they were judged; `in_question` those that the scan under way has to explain. `scan_at`: when to
    scan, wanted or not. `begun` counts the scans, `done` is the last of them that counts, `left` how many in a row left
    something to the next. `problems` is by root, and so is `remote`: whether others may write there unseen. `has_links`
    means that an event may name another path than the one that changed.
    """

    files: Mapping[int, HeldFile] = {}
    ids: Mapping[Location, int] = {}
    fresh: frozenset[Location] = frozenset()
    stale: bool = True
    unexplained: frozenset[int] = frozenset()
    in_question: frozenset[int] = frozenset()
    scan_at: float = _NEVER
    begun: int = 0
    done: int = 0
    left: int = 0
    problems: Mapping[str, tuple[str, ...]] = {}
    remote: Mapping[str, bool] = {}
    has_links: bool = False


class Noticed(msgspec.Struct, frozen=True, tag=True):
    """Events named something below a root."""

    root: str
    events: Events


class Admitting(msgspec.Struct, frozen=True, tag=True):
    """The fresh locations are put before the gate, from now on."""


class Admitted(msgspec.Struct, frozen=True, tag=True):
    """They were, `all` of them or those that are new."""

    all: bool


class Listing(msgspec.Struct, frozen=True, tag=True):
    """The waiting rows are read from the table, from now on."""


class Listed(msgspec.Struct, frozen=True, tag=True):
    """These rows wait."""

    rows: Sequence[Row]


class Looked(msgspec.Struct, frozen=True, tag=True):
    """Files were looked at, and what the gate decided was written, except for the rows `overtaken`. Those, and what is
    gone, are left to a scan: they are not looked at again for `pause` seconds."""

    judged: Sequence[Judged]
    overtaken: Collection[int]
    pause: float


class Unhashed(msgspec.Struct, frozen=True, tag=True):
    """Files that could not be hashed went back before the gate."""


class Scanning(msgspec.Struct, frozen=True, tag=True):
    """A scan begins."""


class Scanned(msgspec.Struct, frozen=True, tag=True):
    """A scan has ended: `changes` were written down, `left` were left to the next one."""

    scans: Sequence[Scan]
    changes: int
    left: int


Observation = Noticed | Admitting | Admitted | Listing | Listed | Looked | Unhashed | Scanning | Scanned


class Actions(msgspec.Struct, frozen=True):
    """What to do, without waiting until it is due: `scan` the roots, go on to `judge`."""

    scan: bool = False
    judge: bool = False


def step(state: State, seen: Observation, now: float) -> tuple[State, Actions]:
    """The state after an observation, and what has to be done about it."""
    match seen:
        case Noticed(root=root, events=events):
            return _noticed(state, root, events, now)
        case Admitting():
            return replace(state, fresh=frozenset(), stale=True), Actions()
        case Admitted(all=everything):
            return state, Actions(scan=not everything)
        case Listing():
            return replace(state, stale=False), Actions()
        case Listed(rows=rows):
            return _listed(state, rows), Actions()
        case Looked():
            return _looked(state, seen, now)
        case Unhashed():
            return replace(state, stale=True), Actions(scan=True, judge=True)
        case Scanning():
            scan_at = _NEVER if state.scan_at <= now else state.scan_at
            question = {"in_question": state.unexplained, "unexplained": frozenset[int]()}
            return replace(state, begun=state.begun + 1, scan_at=scan_at, **question), Actions()
        case Scanned():
            return _scanned(state, seen, now)


def due(state: State, now: float) -> list[Row]:
    """The files to look at now."""
    return [one.row for one in state.files.values() if one.due <= now]


def next_due(state: State) -> float:
    """When the next file is to be looked at; infinite when none waits."""
    return min((one.due for one in state.files.values()), default=_NEVER)


def track_of(state: State, row: Row) -> gate.Track | None:
    """What was seen of a file that waits; None before the first look."""
    one = state.files.get(row.id)
    return one.track if one else None


def page(
    state: State, rows: Sequence[tuple[int, FilePath, float]], *, now: float, wall: float, most: int
) -> tuple[WaitingFile, ...]:
    """For people, why these rows wait (ids, paths, when they changed), as many as fit into `most` bytes. `wall` is the
    wall clock's time `now`. A file waits since it came, or since this watcher knows of it, whatever happened to it
    meanwhile."""
    files = []
    for id, path, changed_at in rows:
        one = state.files.get(id)
        known = changed_at if one is None or one.since is None else wall - (now - one.since)
        files.append(WaitingFile(path=path, why=one.why if one else _NOT_LOOKED_AT, since=min(known, changed_at)))
    while len(msgspec.json.encode(files)) > most and len(files) > 1:
        files = files[: len(files) // 2]
    return tuple(files)


def unknown(state: State, root: str, events: Events) -> list[str]:
    """The paths of these events at which nothing waits."""
    return [rel for rel in events.rels if (root, rel) not in state.ids]


def sentences(scan: Scan) -> tuple[str, ...]:
    """What could not be looked at in a scan, for people."""
    return tuple(f"{problem.rel}: {problem.error}" for problem in scan.problems)


def _noticed(state: State, root: str, events: Events, now: float) -> tuple[State, Actions]:
    """A file that waits is looked at by itself, soon; so is a new one. Anything else is a reason to scan."""
    new = unknown(state, root, events)
    fresh = state.fresh.union((root, rel) for rel in new)
    ids = [state.ids[root, rel] for rel in events.rels.difference(new)]
    sooner = {id: replace(state.files[id], due=0.0) for id in ids if state.files[id].due > now + gate.LOOK_AGAIN}
    lost = events.unknown or len(fresh) > MANY
    linked = state.has_links and bool(events.sidecars or fresh)  # a link may lead there, from anywhere
    state = replace(
        state,
        files={**state.files, **sooner} if sooner else state.files,
        fresh=frozenset() if lost else fresh,
        scan_at=now + SCAN_TWICE if events.folders else state.scan_at,
    )
    return state, Actions(scan=lost or linked, judge=bool(sooner or state.fresh))


def _listed(state: State, rows: Sequence[Row]) -> State:
    """What changed meanwhile (went and came back with its disk, perhaps) is looked at afresh, at once."""
    files = {}
    for row in rows:
        one = state.files.get(row.id)
        if one is None:
            files[row.id] = HeldFile(row=row)
        else:
            files[row.id] = replace(one, row=row, due=one.due if one.row.version == row.version else 0.0)
    return replace(state, files=files, ids={(row.path.root, row.path.rel): row.id for row in rows})


def _looked(state: State, seen: Looked, now: float) -> tuple[State, Actions]:
    files, ids, unexplained = dict(state.files), dict(state.ids), set[int]()
    for one in seen.judged:
        row = one.row
        match one.verdict:
            case gate.Wait(until=due, why=why):
                pass
            case verdict if row.id in seen.overtaken or isinstance(verdict, gate.Ignore):
                due, why = now + seen.pause, _LEFT_TO_A_SCAN
                unexplained.add(row.id)
            case _:
                files.pop(row.id, None)
                ids.pop((row.path.root, row.path.rel), None)
                continue
        before = files.get(row.id)
        since = now if before is None or before.since is None else before.since
        files[row.id] = HeldFile(row=before.row if before else row, track=one.track, due=due, why=why, since=since)
    state = replace(
        state,
        files=files,
        ids=ids,
        unexplained=state.unexplained | unexplained,
        stale=state.stale or bool(unexplained),
    )
    return state, Actions(scan=bool(unexplained))


def _scanned(state: State, seen: Scanned, now: float) -> tuple[State, Actions]:
    """What was not there, or another file, when it was judged, and is there by the scan, is judged soon. (Of what the
    scan did not see either, the next one decides.)"""
    found = {one.root: one.candidates for one in seen.scans}
    sooner = {
        id: replace(one, due=min(one.due, now + gate.LOOK_AGAIN))
        for id in state.in_question
        if (one := state.files.get(id)) and one.row.path.rel in found.get(one.row.path.root, {})
    }
    left = state.left + 1 if seen.left else 0
    state = replace(
        state,
        files={**state.files, **sooner} if sooner else state.files,
        in_question=frozenset(),
        stale=state.stale or bool(seen.changes),
        done=state.begun if not seen.left or left >= LEFT_SCANS else state.done,
        left=left,
        problems={one.root: sentences(one) for one in seen.scans},
        remote={one.root: one.remote for one in seen.scans},
        has_links=any(one.has_links for one in seen.scans),
    )
    return state, Actions(scan=bool(seen.left), judge=bool(sooner or seen.changes))
