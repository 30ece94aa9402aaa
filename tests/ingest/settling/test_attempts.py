from collections.abc import Callable
from itertools import pairwise

import pytest

from agents.ingest.settling.attempts import WINDOW, Attempts
from schemas.files import FilePath, Stat

PATH = FilePath(root="models", rel="a.safetensors")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def stat(version: int) -> Stat:
    return Stat(dev=1, ino=1, size=1, mtime_ns=version, ctime_ns=version)


def let_in(seconds: int, still: float, key: Callable[[int], str], *, same: bool = False) -> list[float]:
    """When a file was let in that changes every `still` seconds, and is judged each time just before it does."""
    clock, found = Clock(), list[float]()
    attempts = Attempts(clock)
    began = clock.now
    for change in range(int(seconds / still)):
        since = clock.now = began + change * still
        clock.now += still * 0.99
        if attempts.ready_at(PATH, key(change), since) <= clock.now:
            attempts.note(PATH, key(change), stat(0 if same else change))
            found.append(clock.now)
    return found


@pytest.mark.parametrize("still", [0.05, 0.5, 1.1, 2.5, 5.0, 9.0, 10.5, 15.0, 21.0])
@pytest.mark.parametrize("same", [False, True], ids=["changing", "never_agreeing"])
def test_whatever_a_file_does_it_is_let_in_a_few_times_a_minute(still: float, same: bool) -> None:
    times = let_in(600, still, lambda change: "a", same=same)
    busiest = max(sum(0 <= other - at < WINDOW for other in times) for at in times)
    assert busiest <= 9, "in the worst minute"
    assert len(times) <= 7 * 10, "and then"
    assert times[-1] > 1500, "and still from time to time"


def test_a_file_that_never_rests_is_let_in_ever_later() -> None:
    times = let_in(60, 0.05, lambda change: "a")
    assert len(times) <= 5
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert pauses == sorted(pauses) and pauses[0] < 0.1, "the second time at once"


@pytest.mark.parametrize(("still", "most"), [(0.05, 6), (0.5, 9), (1.5, 9)])
def test_a_file_replaced_without_rest_is_no_new_one_each_time(still: float, most: int) -> None:
    times = let_in(600, still, lambda change: f"inode {change}")
    busiest = max(sum(0 <= other - at < WINDOW for other in times) for at in times)
    assert busiest <= most


def test_a_file_replaced_by_another_that_holds_still_is_let_in_soon() -> None:
    times = let_in(600, 2.1, lambda change: f"inode {change}")
    assert len(times) == int(600 / 2.1)


def test_the_same_version_at_many_paths_is_let_in_at_all_of_them() -> None:
    clock = Clock()
    attempts = Attempts(clock)
    for number in range(50):
        path = FilePath(root="models", rel=f"{number}.safetensors")
        assert attempts.ready_at(path, "a", clock.now) <= clock.now
        attempts.note(path, "a", stat(1))


def test_a_file_with_the_number_of_one_that_is_gone_is_another_one() -> None:
    clock = Clock()
    attempts = Attempts(clock)
    for version in range(6):
        attempts.note(PATH, "a", stat(version), born=1)
    elsewhere = FilePath(root="models", rel="b.safetensors")
    assert attempts.ready_at(elsewhere, "a", clock.now, born=1) == clock.now + 10
    assert attempts.ready_at(elsewhere, "a", clock.now, born=2) <= clock.now
    assert attempts.ready_at(PATH, "a", clock.now, born=2) == clock.now + 1


def test_what_was_long_ago_does_not_count_and_takes_no_room() -> None:
    clock = Clock()
    attempts = Attempts(clock)
    for number in range(100):
        attempts.note(FilePath(root="models", rel=f"{number}"), str(number), stat(number))
    clock.now += 2 * WINDOW
    attempts.note(PATH, "a", stat(1))
    assert attempts.count(FilePath(root="models", rel="1"), "1") == 0
    assert len(attempts._places) == len(attempts._files) == 1
