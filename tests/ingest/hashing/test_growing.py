"""Following: what was hashed while a file grew is believed when it is proven, and whatever its writer does, no other
digest is ever said."""

import hashlib
import os
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from agents.ingest.errors import ChangedWhileHashing, HashCancelled
from agents.ingest.hashing import growing as following
from agents.ingest.hashing.digests import Digests
from agents.ingest.hashing.growing import FORGET_SECONDS, Followed, GrowingHash, proven
from agents.ingest.hashing.reading import BUFFER_BYTES, Cores
from agents.ingest.scanning.reconcile import Row
from agents.ingest.settling import gate, verdicts
from agents.storage.paths import file_key, stat_of
from schemas.files import FilePath, Stat

KEY, OTHER = "1" * 32, "2" * 32
PIECE = os.urandom(3 * BUFFER_BYTES + 17)
"""Not a whole number of buffers, and with a beginning that is nowhere else."""


class Growing:
    """A file that is written piece by piece, and followed after each."""

    def __init__(self, path: Path) -> None:
        self.path, self.busy, self.now = path, False, 0.0
        self.follower = GrowingHash(lambda: self.busy, lambda: self.now)
        self.file = path.open("w+b", buffering=0)

    def add(self, piece: bytes = PIECE, times: int = 1) -> None:
        for _ in range(times):
            self.file.seek(0, os.SEEK_END)
            self.file.write(piece)
            self.look()

    def look(self, key: str = KEY, path: Path | None = None) -> None:
        self.follower.grown(key, os.fsencode(path or self.path))

    def taken(self, key: str = KEY) -> Followed:
        one = self.follower.take(key)
        assert one is not None, "the file was followed"
        return one

    def settled(self, cancelled: Callable[[], bool] = lambda: False) -> Digests | None:
        """What the hasher gets of it once it is complete."""
        self.file.close()
        return believed(self.taken(), self.path, cancelled)


def believed(
    one: Followed, path: Path, cancelled: Callable[[], bool] = lambda: False, stat: Stat | None = None
) -> Digests | None:
    return proven(
        one,
        os.fsencode(path),
        expected=stat or stat_of(path.stat()),
        on_progress=lambda progress: None,
        cancelled=cancelled,
        cores=Cores(),
    )


@pytest.fixture
def growing(tmp_path: Path) -> Iterator[Growing]:
    growing = Growing(tmp_path / "a.safetensors")
    with growing.file:
        yield growing


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_that_was_appended_to_is_proven(growing: Growing) -> None:
    growing.add(times=5)
    digests = growing.settled()
    assert digests is not None
    assert digests.sha256 == digest(growing.path) and digests.autov2 == digests.sha256[:10]
    assert digests.blake3 == blake3(growing.path.read_bytes()).hexdigest()


def test_a_stall_and_an_end_that_nobody_told_of_make_no_difference(growing: Growing) -> None:
    growing.add(times=3)
    growing.now += 3600
    growing.look()
    growing.add(times=2)
    growing.file.write(PIECE)
    digests = growing.settled()
    assert digests is not None and digests.sha256 == digest(growing.path)


def test_only_what_is_new_is_read(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    plainly = following.plainly

    def counted(fd: int, offset: int, *others):
        read.append(offset)
        return plainly(fd, offset, *others)

    monkeypatch.setattr(following, "plainly", counted)
    growing.add(times=3)
    assert read == [0, len(PIECE), 2 * len(PIECE)]


@pytest.mark.parametrize("place", [0, 8, BUFFER_BYTES + 5, 2 * len(PIECE), 5 * len(PIECE) - 1])
def test_what_a_writer_went_back_to_is_not_proven(growing: Growing, place: int) -> None:
    growing.add(times=5)
    growing.file.seek(place)
    growing.file.write(bytes([growing.path.read_bytes()[place] ^ 1]))
    assert growing.settled() is None


def test_a_header_that_was_filled_in_at_the_end_is_seen_without_reading_the_file(
    growing: Growing, monkeypatch: pytest.MonkeyPatch
) -> None:
    growing.add(bytes(100) + PIECE)
    growing.file.seek(0)
    growing.file.write(b"header")
    monkeypatch.setattr(following, "sums_of", None)
    assert growing.settled() is None


def test_a_file_that_was_cut_off_and_grew_again_is_followed_anew(growing: Growing) -> None:
    growing.add(times=5)
    growing.file.truncate(100)
    growing.add(b"something else")
    growing.add(times=3)
    digests = growing.settled()
    assert digests is not None and digests.sha256 == digest(growing.path)


def test_a_file_that_was_cut_off_unseen_is_not_proven(growing: Growing) -> None:
    growing.add(times=3)
    growing.file.truncate(len(PIECE))
    growing.add(PIECE[::-1] * 3)
    assert growing.settled() is None


def test_a_file_that_settles_shorter_than_it_was_is_not_proven(growing: Growing) -> None:
    growing.add(times=3)
    growing.file.truncate(2 * len(PIECE))
    assert growing.settled() is None


def test_another_file_at_its_path_is_not_proven(growing: Growing, tmp_path: Path) -> None:
    growing.add(times=3)
    other = tmp_path / "other"
    other.write_bytes(PIECE + PIECE[::-1] + PIECE)
    other.rename(growing.path)
    assert growing.settled() is None


@pytest.mark.parametrize("allocate", [os.posix_fallocate, lambda fd, start, size: os.ftruncate(fd, size)])
def test_a_file_whose_room_was_taken_beforehand_is_not_followed(
    growing: Growing, allocate: Callable[[int, int, int], None]
) -> None:
    allocate(growing.file.fileno(), 0, 16 << 20)
    growing.file.write(PIECE)
    growing.look()
    assert growing.follower.take(KEY) is None


def test_a_pipe_and_a_path_where_nothing_is_are_not_followed(growing: Growing, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    growing.look(KEY, tmp_path / "pipe")
    growing.look(KEY, tmp_path / "nothing")
    growing.file.close()
    growing.path.unlink()
    growing.look()
    assert growing.follower.take(KEY) is None


def test_a_second_file_waits_until_the_first_has_stopped_growing(growing: Growing, tmp_path: Path) -> None:
    other = tmp_path / "b.safetensors"
    other.write_bytes(PIECE)
    growing.add()
    growing.now += FORGET_SECONDS / 2
    growing.look(OTHER, other)
    assert growing.follower.take(OTHER) is None
    growing.add()
    growing.now += FORGET_SECONDS
    growing.look(OTHER, other)
    assert growing.follower.take(KEY) is None
    digests = believed(growing.taken(OTHER), other)
    assert digests is not None and digests.sha256 == hashlib.sha256(PIECE).hexdigest()


def test_what_is_followed_gives_way_to_jobs_and_catches_up(growing: Growing) -> None:
    growing.add(times=3)
    growing.busy = True
    growing.add(times=2)
    one = growing.taken()
    assert one.offset == 3 * len(PIECE)
    digests = believed(one, growing.path)
    assert digests is not None and digests.sha256 == digest(growing.path)


def test_a_file_of_which_less_than_half_was_hashed_is_left_to_an_ordinary_pass(growing: Growing) -> None:
    growing.add(times=2)
    growing.busy = True
    growing.add(times=3)
    assert growing.settled() is None


def test_reading_stops_between_two_buffers_for_a_job_that_comes_meanwhile(growing: Growing) -> None:
    asked: list[None] = []

    def busy() -> bool:
        asked.append(None)
        return len(asked) > 2

    growing.follower = GrowingHash(busy)
    growing.add()
    assert growing.taken().offset == 2 * BUFFER_BYTES


def test_a_file_that_is_written_during_the_proof_has_changed(growing: Growing) -> None:
    growing.add(times=3)
    one = growing.taken()

    def written_meanwhile() -> bool:
        growing.file.write(b"more")
        return False

    with pytest.raises(ChangedWhileHashing):
        believed(one, growing.path, written_meanwhile)


def test_a_file_that_is_gone_is_left_to_an_ordinary_pass_which_says_so(growing: Growing) -> None:
    growing.add(times=3)
    stat, one = stat_of(growing.path.stat()), growing.taken()
    growing.path.unlink()
    assert believed(one, growing.path, stat=stat) is None


def test_a_proof_is_cancelled_between_two_buffers(growing: Growing) -> None:
    growing.add(times=3)
    with pytest.raises(HashCancelled):
        growing.settled(lambda: True)


def test_nothing_is_open_and_nothing_runs_between_two_looks(growing: Growing) -> None:
    def open_and_running() -> tuple[int, int]:
        return sum(1 for _ in Path("/proc/self/fd").iterdir()), threading.active_count()

    before = open_and_running()
    growing.add(times=3)
    assert open_and_running() == before
    assert growing.settled() is not None
    assert open_and_running() == (before[0] - 1, before[1])  # the writer's own


def test_no_more_than_a_few_buffers_are_held_whatever_the_length(growing: Growing) -> None:
    growing.file.write(os.urandom(1 << 20) * 32)
    tracemalloc.start()
    growing.look()
    assert growing.settled() is not None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6 * BUFFER_BYTES


LEAST = following.LEAST_BYTES
PATH = FilePath(root="models", rel="a.safetensors")
WAIT = gate.Wait(until=1.0, why="a program has it open for writing")


def seen(size: int) -> gate.Observation:
    return gate.Observation(
        at=0.0, nature="file", stat=Stat(dev=1, ino=2, size=size, mtime_ns=3, ctime_ns=4), lease="held"
    )


def looked(before: int | None, size: int, verdict: gate.Verdict = WAIT) -> object:
    """What is said after a look at a file of `size` bytes that had `before` at the last."""
    stat = seen(size).stat
    assert stat is not None
    row = Row(id=1, path=PATH, key="old", stat=stat, links=1)
    one = verdicts.Judged(row=row, track=gate.Track(latest=seen(size), since=0.0, same_since=0.0), verdict=verdict)
    return verdicts.growing(
        gate.Track(latest=seen(before), since=0.0, same_since=0.0) if before is not None else None, one
    )


def test_a_long_file_that_became_longer_is_told_under_the_key_that_its_job_will_have() -> None:
    tick = looked(LEAST - 1, LEAST)
    assert isinstance(tick, verdicts.GrowingTick)
    assert (tick.key, tick.path, tick.stat.size) == (file_key("models", 1, 2), PATH, LEAST)


@pytest.mark.parametrize(
    ("before", "size", "verdict"),
    [
        (1, LEAST - 1, WAIT),
        (None, LEAST, WAIT),
        (LEAST, LEAST, WAIT),
        (LEAST + 1, LEAST, WAIT),
        (LEAST, LEAST + 1, gate.Admit(proof="complete")),
        (LEAST, LEAST + 1, gate.Ignore(why="it is gone")),
    ],
    ids=["short", "seen once", "not longer", "shorter", "settled", "gone"],
)
def test_nothing_is_said_of_a_file(before: int | None, size: int, verdict: gate.Verdict) -> None:
    assert looked(before, size, verdict) is None
