"""Verdicts: what waits, looked at once more and put before the gate; then the verdicts, written down together.

Looking may take long (a header to decode in a child, a slow disk), so it is done outside of any transaction: a row
that was changed meanwhile keeps the change, and is judged again.
"""

import time
from collections.abc import Callable, Mapping, Sequence

import msgspec
import structlog

from agents.ingest.hashing.growing import LEAST_BYTES
from agents.ingest.scanning.reconcile import Row
from agents.ingest.settling import gate
from agents.ingest.settling.attempts import Attempts
from agents.ingest.settling.fingerprint import fingerprint_at
from agents.ingest.settling.observe import observe
from agents.ingest.store import Store
from agents.storage.paths import file_key
from schemas.settings import WatcherSettings
from schemas.ticks import GrowingTick

log = structlog.get_logger()


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """The gate's verdict on one row, and what was seen of it; `fingerprint` is of what settled."""

    row: Row
    track: gate.Track
    verdict: gate.Verdict
    fingerprint: str = ""


class RootFolder(msgspec.Struct, frozen=True):
    """A root's folder; `remote` that others may write there unseen."""

    folder: str
    remote: bool


def judge(
    row: Row,
    root: RootFolder,
    before: gate.Track | None,
    settings: WatcherSettings,
    now: float,
    attempts: Attempts | None = None,
    wall: Callable[[], float] = time.time,
) -> Judged:
    """One look at one file. `now` is of a clock that never goes back, that of the `attempts` which limit how often a
    file is let in; `wall` is the clock of the files' dates."""
    previous = before.latest if before else None
    seen = observe(
        root.folder,
        row.path.rel,
        now,
        remote=root.remote,
        previous=previous,
        stale_control=settings.stale_control,
        wall=wall,
    )
    track = gate.follow(before, seen)
    verdict = gate.decide(track, settings, now)
    if attempts is not None and isinstance(verdict, gate.Admit | gate.Refuse):
        verdict = _limited(verdict, row, track, attempts, now)
    mark = ""
    if isinstance(verdict, gate.Admit):
        assert seen.stat is not None
        mark = fingerprint_at(root.folder, row.path.rel, seen.stat) or ""
    return Judged(row=row, track=track, verdict=verdict, fingerprint=mark)


def _limited(
    verdict: gate.Admit | gate.Refuse, row: Row, track: gate.Track, attempts: Attempts, now: float
) -> gate.Verdict:
    """The verdict, or to wait where the file had too many lately."""
    key, born = _key(row, track.latest), track.latest.born
    until = attempts.ready_at(row.path, key, track.same_since, born)
    if until <= now:
        return verdict
    count = attempts.count(row.path, key, born)
    why = f"it changed again and again, {count} times within a minute, and has to come to rest"
    return gate.Wait(until=until, why=why)


def _key(row: Row, seen: gate.Observation) -> str:
    stat = seen.stat or row.stat
    return file_key(row.path.root, stat.dev, stat.ino)


def growing(before: gate.Track | None, one: Judged) -> GrowingTick | None:
    """What to publish of a file that is still written and worth hashing meanwhile: it became longer since `before`."""
    stat, previous = one.track.latest.stat, before.latest.stat if before else None
    if not isinstance(one.verdict, gate.Wait) or stat is None or previous is None:
        return None
    if stat.size < LEAST_BYTES or stat.size <= previous.size:
        return None
    key = file_key(one.row.path.root, stat.dev, stat.ino)
    return GrowingTick(key=key, path=one.row.path, stat=stat)


def write(judged: Sequence[Judged], db: Store, now: float) -> frozenset[int]:
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
                case gate.Admit(proof=proof):
                    assert stat is not None
                    done = db.settle(row, stat, proof, fingerprint=one.fingerprint, now=now)
                    if done:
                        db.attempts.note(row.path, _key(row, one.track.latest), stat, one.track.latest.born)
                case gate.Refuse(reason=reason, error=error):
                    done = db.refuse(row, stat, reason=reason, error=error, now=now)
                    if done:
                        db.attempts.note(row.path, _key(row, one.track.latest), stat or row.stat, one.track.latest.born)
                        log.warning("file refused", rel=row.path.rel, reason=reason, error=error)
                case _:
                    continue
            (db.written if done else overtaken).add(row.id)
    return frozenset(overtaken)


def root_folders(roots: Mapping[str, str], remote: Mapping[str, bool]) -> dict[str, RootFolder]:
    """The roots by name, and whether each is remote."""
    return {name: RootFolder(folder, remote.get(name, False)) for name, folder in roots.items()}
