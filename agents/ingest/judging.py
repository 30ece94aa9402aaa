"""Judging: what waits, looked at once more and put before the gate; then the verdicts, written down together.

Looking may take long (a header to decode in a child, a slow disk), so it is done outside of any transaction: a row
that was changed meanwhile keeps the change, and is judged again.
"""

from collections.abc import Mapping, Sequence

import msgspec
import structlog

from agents.ingest import gate
from agents.ingest.files_db import FilesDb
from agents.ingest.fingerprint import fingerprint_at
from agents.ingest.following import LEAST_BYTES
from agents.ingest.observe import observe
from agents.ingest.paths import file_key
from agents.ingest.reconcile import Row
from schemas.settings import WatcherSettings
from schemas.ticks import GrowingTick

log = structlog.get_logger()


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """The gate's word on one row, and what it was said of; `fingerprint` is of what settled."""

    row: Row
    track: gate.Track
    verdict: gate.Verdict
    fingerprint: str = ""


class Place(msgspec.Struct, frozen=True):
    """A root's folder; `remote` that others may write there unseen."""

    folder: str
    remote: bool


def judge(row: Row, place: Place, before: gate.Track | None, settings: WatcherSettings, now: float) -> Judged:
    """One look at one file. `now` is of a clock that never goes back."""
    previous = before.latest if before else None
    seen = observe(
        place.folder,
        row.path.rel,
        now,
        remote=place.remote,
        previous=previous,
        stale_control=settings.stale_control,
    )
    track = gate.follow(before, seen)
    verdict = gate.decide(track, settings, now)
    mark = ""
    if isinstance(verdict, gate.Settled):
        assert seen.stat is not None
        mark = fingerprint_at(place.folder, row.path.rel, seen.stat) or ""
    return Judged(row=row, track=track, verdict=verdict, fingerprint=mark)


def growing(before: gate.Track | None, one: Judged) -> GrowingTick | None:
    """What to say of a file that still is written and is worth hashing meanwhile: it became longer since `before`."""
    stat, previous = one.track.latest.stat, before.latest.stat if before else None
    if not isinstance(one.verdict, gate.Wait) or stat is None or previous is None:
        return None
    if stat.size < LEAST_BYTES or stat.size <= previous.size:
        return None
    key = file_key(one.row.path.root, stat.dev, stat.ino)
    return GrowingTick(key=key, path=one.row.path, stat=stat)


def write(judged: Sequence[Judged], db: FilesDb, now: float) -> frozenset[int]:
    """Write the verdicts down, all or none; the ids of the rows that are left to a scan instead: they changed before it
    came to that, or what was judged is a file that is known, renamed over the one that waited there."""
    overtaken: set[int] = set()
    with db.atomic():
        for one in judged:
            row, stat = one.row, one.track.latest.stat
            if stat is not None and (stat.dev, stat.ino) != (row.stat.dev, row.stat.ino) and db.has_inode(stat):
                overtaken.add(row.id)
                continue
            match one.verdict:
                case gate.Settled(proof=proof):
                    assert stat is not None
                    done = db.settle(row, stat, proof, fingerprint=one.fingerprint, now=now)
                case gate.Refused(reason=reason, error=error):
                    done = db.refuse(row, stat, reason=reason, error=error, now=now)
                    if done:
                        log.warning("file refused", rel=row.path.rel, reason=reason, error=error)
                case _:
                    continue
            if not done:
                overtaken.add(row.id)
    return frozenset(overtaken)


def places(roots: Mapping[str, str], remote: Mapping[str, bool]) -> dict[str, Place]:
    """The roots by name."""
    return {name: Place(folder, remote.get(name, False)) for name, folder in roots.items()}
