"""The gate: when is a file complete? A pure decision over what was seen of it.

A complete proof settles a file at once: no writer has it open, it is exactly as long as its own header demands, it
has no holes, and it has no control file. Whatever can't be proven must hold still instead. A writer is always
waited for, however long it takes, and so is a control file while a download may own it.

A control file that was not written for `stale_control` seconds is outweighed by a file that holds still and is complete
but for it: exactly as long as its own header demands, without holes, without blank pieces (which a download leaves that
reserved its space), and without a writer. Where the system does not know whether there is one, the file itself must not
have been written for as long. A file whose length nothing proves stays out, and the reason names the control file.
"""

from typing import Literal

import msgspec

from schemas.files import Stat
from schemas.settings import WatcherSettings

Lease = Literal["free", "held", "unknown"]
Header = Literal["none", "whole", "partial", "foreign"]
Nature = Literal["file", "gone", "unreadable", "outside", "special"]

LOOK_AGAIN, LONGEST_PAUSE = 0.1, 1.0
"""Seconds until a file that a writer or a control file holds back is looked at again, while it changes, and when it has
been the same for long: a hundred files that somebody keeps open shall cost next to nothing. An event shortens that."""

_PAUSE_SHARE = 0.05
"""Of the time that it has been the same."""


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """One look at one path, at `at` (seconds of a clock that never goes back).

    `nature` is what is there; only of a "file" is the rest known. `lease`: "held" means a writer has it open,
    "unknown" that the file system or the permissions hide it. `holes` is None when the file system does not know.
    `header`: "none" for formats whose length is not known, "whole" when it gives `expected` bytes for the file,
    "partial" when the file ends within it or it is not written yet, "foreign" when it is not what the extension
    promises. `control` names a control file of it, the last written of several; `control_age` and `age` are seconds
    since it, and the file itself, were written, None when that is unknown or yet to come. `blank` is whether a piece
    of it holds nothing but zeros; it is looked for only when an old control file is all that is left against a file.
    `born` is when it was made, in nanoseconds, None where the system does not know.
    `error` is a sentence for people.
    """

    at: float
    nature: Nature
    stat: Stat | None = None
    lease: Lease = "unknown"
    holes: bool | None = None
    header: Header = "none"
    expected: int | None = None
    control: str = ""
    control_age: float | None = None
    age: float | None = None
    blank: bool | None = None
    born: int | None = None
    error: str = ""


class Track(msgspec.Struct, frozen=True, kw_only=True):
    """The latest look at a path, since when it has been like that, unwritten and uncontrolled, and since when it has
    looked the same, whoever has it."""

    latest: Observation
    since: float
    same_since: float


class Admit(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The file is complete: proven, or it held still for as long as asked."""

    proof: Literal["complete", "stable"]


class Wait(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Not yet. Look again at `until`; `why` is for people."""

    until: float
    why: str


class Refuse(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """It held still and can't be a model. It is judged again when it changes. `reason` is a word for programs."""

    reason: Literal["truncated", "oversized", "empty", "outside", "special", "unreadable"]
    error: str


class Ignore(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Nothing to judge: it is gone."""

    why: str


Verdict = Admit | Wait | Refuse | Ignore


def follow(track: Track | None, seen: Observation) -> Track:
    """The track with one more look. The clock starts anew whenever anything differs, and stands while a writer or a
    control file is there."""
    if track is None or _content(track.latest) != _content(seen):
        return Track(latest=seen, since=seen.at, same_since=seen.at)
    is_kept = seen.lease == "held" or bool(seen.control)
    return Track(latest=seen, since=seen.at if is_kept else track.since, same_since=track.same_since)


def decide(track: Track, settings: WatcherSettings, now: float) -> Verdict:
    """What to do with a file, given how long it has been as it is. `now` is of the clock of the observations."""
    seen = track.latest
    match seen.nature:
        case "gone":
            return Ignore(why="it is gone")
        case "unreadable" | "outside" | "special":
            return _after(track.since, settings.stable, now, Refuse(reason=seen.nature, error=seen.error))
    if seen.lease == "held":
        return Wait(until=now + _pause(track, now), why="a program has it open for writing")
    if seen.control:
        if why := _why_controlled(seen, settings):
            return Wait(until=now + _pause(track, now), why=why)
        return _after(track.same_since, settings.stable, now, Admit(proof=_proof(seen)))
    refusal = _refusal(seen)
    if refusal is not None:
        return _after(track.since, _least_still(seen, settings), now, refusal)
    if _proof(seen) == "complete":
        return Admit(proof="complete")
    needed = settings.stable_with_holes if seen.holes else settings.stable
    return _after(track.since, needed, now, Admit(proof="stable"))


def _pause(track: Track, now: float) -> float:
    """Seconds until a file that is held back is looked at again."""
    return min(LONGEST_PAUSE, max(LOOK_AGAIN, _PAUSE_SHARE * (now - track.same_since)))


def is_full_length(seen: Observation) -> bool:
    """Whether the file is exactly as long as its own header demands, and has no holes."""
    size = seen.stat.size if seen.stat else None
    return seen.header == "whole" and seen.expected == size and seen.holes is False


def _proof(seen: Observation) -> Literal["complete", "stable"]:
    """ "complete" when, length and all, nothing about this file is left to hope."""
    return "complete" if seen.lease == "free" and is_full_length(seen) else "stable"


def _why_controlled(seen: Observation, settings: WatcherSettings) -> str:
    """Why the control file still holds the file back; empty when the file outweighs it."""
    name, age = seen.control, seen.control_age
    if age is None or age < settings.stale_control:
        return f"{name} marks it as still under way"
    old = f"{name} marks it as still under way, but was not written for {_days(age)}"
    if not is_full_length(seen):
        return f"{old}; nothing proves that the file is complete: resume the download, or delete {name} if it is"
    if seen.blank is not False:
        return f"{old}; the file has its full length, with blank pieces: resume the download, or delete {name}"
    if seen.lease == "unknown" and (seen.age is None or seen.age < settings.stale_control):
        return f"{old}; whether a program writes the file can't be known here: delete {name} if none does"
    return ""


def _days(seconds: float) -> str:
    """A length of time for people: days, or hours under two of them."""
    hours = int(seconds // 3600)
    return f"{hours // 24:,} days" if hours >= 48 else f"{hours} hour{'s' * (hours != 1)}"


def _refusal(seen: Observation) -> Refuse | None:
    """Why this file, if it stays as it is, can't be a model. A foreign header is no reason: such a file is
    catalogued as unknown, with its problem, so that its owner finds it where the others are."""
    size = seen.stat.size if seen.stat else 0
    lengths = f"The file is {size:,} bytes long, but its header asks for {seen.expected or 0:,}"
    if size == 0:
        return Refuse(
            reason="empty", error="The file is empty; unless it is still on its way, copy or download it again."
        )
    if seen.header == "partial":
        return Refuse(
            reason="truncated",
            error=f"{seen.error or 'The file ends within its own header'}, after {size:,} bytes; "
            "copy or download it again.",
        )
    if seen.expected is None or seen.expected == size:
        return None
    if size < seen.expected:
        missing = f"{lengths}: {seen.expected - size:,} bytes are missing. Resume the download, or copy it again."
        return Refuse(reason="truncated", error=missing)
    surplus = f"{lengths}: {size - seen.expected:,} bytes are too many, and no loader takes it. Copy it again."
    return Refuse(reason="oversized", error=surplus)


def _least_still(seen: Observation, settings: WatcherSettings) -> float:
    """Seconds before a file of the wrong length is refused: where a writer can't be ruled out, a stall looks the
    same."""
    certain = seen.lease == "free" and not seen.holes
    return settings.stable if certain else max(settings.stable, settings.stable_with_holes)


def _after(since: float, seconds: float, now: float, verdict: Admit | Refuse) -> Verdict:
    """The verdict, once the file has held still for so many seconds since then."""
    until = since + seconds
    if now >= until:
        return verdict
    return Wait(until=until, why=f"it must hold still for {seconds:g} s")


def _content(seen: Observation) -> tuple[object, ...]:
    """What must not differ between two looks for a file to have held still."""
    return (seen.nature, seen.stat, seen.header, seen.expected, seen.lease == "held", seen.control)
