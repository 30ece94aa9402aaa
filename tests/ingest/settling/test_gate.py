from typing import Any

import pytest

from agents.ingest.scanning.names import controlled_by, is_skipped_folder, why_ignored
from agents.ingest.settling.gate import Admit, Ignore, Observation, Refuse, Track, Wait, decide, follow
from schemas.files import Stat
from schemas.settings import WatcherSettings

SETTINGS = WatcherSettings(stable=2.0, stable_with_holes=30.0)


def stat(size: int = 100, ctime_ns: int = 1) -> Stat:
    return Stat(dev=1, ino=1, size=size, mtime_ns=1, ctime_ns=ctime_ns)


def look(at: float = 0.0, **fields: Any) -> Observation:
    proven = {"stat": stat(), "lease": "free", "holes": False, "header": "whole", "expected": 100}
    return Observation(**{"at": at, "nature": "file", **proven, **fields})


def judge(*looks: Observation) -> object:
    track: Track | None = None
    for seen in looks:
        track = follow(track, seen)
    assert track is not None
    return decide(track, SETTINGS, looks[-1].at)


def test_a_complete_proof_settles_at_once() -> None:
    assert judge(look()) == Admit(proof="complete")


@pytest.mark.parametrize(
    "lacking",
    [
        {"lease": "unknown"},
        {"holes": None},
        {"header": "none", "expected": None},
        {"header": "foreign", "expected": None},
    ],
)
def test_without_a_complete_proof_a_file_must_hold_still(lacking: dict[str, Any]) -> None:
    assert judge(look(**lacking)) == Wait(until=2.0, why="it must hold still for 2 s")
    assert isinstance(judge(look(**lacking), look(1.9, **lacking)), Wait)
    assert judge(look(**lacking), look(2.0, **lacking)) == Admit(proof="stable")


def test_holes_take_longer() -> None:
    assert isinstance(judge(look(holes=True), look(29.9, holes=True)), Wait)
    assert judge(look(holes=True), look(30.0, holes=True)) == Admit(proof="stable")


def test_a_writer_is_waited_for_however_long_it_takes() -> None:
    assert isinstance(judge(look(lease="held"), look(1e6, lease="held")), Wait)


def test_what_is_held_back_is_looked_at_less_often_the_longer_it_is_the_same() -> None:
    def pause(*looks: Observation) -> float:
        verdict = judge(*looks)
        assert isinstance(verdict, Wait)
        return round(verdict.until - looks[-1].at, 3)

    held = [look(float(at), lease="held") for at in (0, 1, 10, 1000)]
    assert [pause(*held[: count + 1]) for count in range(4)] == [0.1, 0.1, 0.5, 1.0]
    assert pause(*held, look(1001.0, lease="held", stat=stat(200))) == 0.1
    controlled = [look(float(at), control="x.aria2") for at in (0, 1000)]
    assert pause(*controlled) == 1.0


def test_time_counts_from_the_last_sign_of_a_writer() -> None:
    kept: dict[str, Any] = {"header": "none", "expected": None}
    assert isinstance(judge(look(lease="held", **kept), look(10.0, **kept)), Wait)
    assert judge(look(lease="held", **kept), look(10.0, **kept), look(12.0, **kept)) == Admit(proof="stable")


DAY = 24 * 3600.0
OLD: dict[str, Any] = {"control": "x.aria2", "control_age": 30 * DAY, "blank": False}
"""A control file of which nothing was heard for a month, beside a file that has all its pieces."""


def test_a_complete_proof_that_holds_still_outweighs_an_old_control_file() -> None:
    assert isinstance(judge(look(**OLD)), Wait)
    assert judge(look(**OLD), look(2.0, **OLD)) == Admit(proof="complete")


@pytest.mark.parametrize(
    ("lacking", "why"),
    [
        ({"control_age": 0.9 * DAY}, "under way"),
        ({"control_age": None}, "under way"),
        ({"lease": "held"}, "open for writing"),
        ({"lease": "unknown", "age": 0.9 * DAY}, "can't be known"),
        ({"lease": "unknown", "age": None}, "can't be known"),
        ({"holes": True}, "resume the download"),
        ({"holes": None}, "resume the download"),
        ({"blank": True}, "blank pieces"),
        ({"blank": None}, "blank pieces"),
        ({"expected": 101}, "30 days; nothing proves"),
        ({"expected": 99}, "nothing proves"),
        ({"header": "none", "expected": None}, "delete x.aria2 if it is"),
        ({"header": "foreign", "expected": None}, "nothing proves"),
        ({"header": "partial", "expected": None}, "nothing proves"),
    ],
)
def test_nothing_less_does_and_the_reason_is_named(lacking: dict[str, Any], why: str) -> None:
    fields = {**OLD, **lacking}
    verdict = judge(look(**fields), look(1e6, **fields))
    assert isinstance(verdict, Wait) and why in verdict.why
    assert lacking.get("lease") == "held" or "x.aria2" in verdict.why


def test_where_no_lease_can_be_had_the_file_must_be_as_old_as_its_control_file() -> None:
    fields = {**OLD, "lease": "unknown", "age": 2 * DAY}
    assert judge(look(**fields), look(2.0, **fields)) == Admit(proof="stable")


def test_a_control_file_is_waited_for_even_beside_a_file_that_seems_complete() -> None:
    verdict = judge(look(control="x.aria2"), look(1e6, control="x.aria2"))
    assert isinstance(verdict, Wait) and "x.aria2" in verdict.why


def test_every_change_starts_the_clock_anew() -> None:
    slow: dict[str, Any] = {"lease": "unknown"}
    assert isinstance(
        judge(look(**slow), look(1.9, stat=stat(ctime_ns=2), **slow), look(3.0, stat=stat(ctime_ns=2), **slow)), Wait
    )


def test_a_truncated_file_is_refused_with_both_sizes_once_it_holds_still() -> None:
    short: dict[str, Any] = {"expected": 1_234}
    assert isinstance(judge(look(**short)), Wait)
    verdict = judge(look(**short), look(2.0, **short))
    assert isinstance(verdict, Refuse) and verdict.reason == "truncated"
    assert "100 bytes" in verdict.error and "1,234" in verdict.error and "download" in verdict.error


def test_a_truncated_file_gets_more_time_where_a_writer_cannot_be_ruled_out() -> None:
    short: dict[str, Any] = {"expected": 1_234, "lease": "unknown"}
    assert isinstance(judge(look(**short), look(29.0, **short)), Wait)
    assert isinstance(judge(look(**short), look(30.0, **short)), Refuse)


def test_a_truncated_file_that_grew_to_its_end_settles() -> None:
    assert judge(look(expected=100, stat=stat(50)), look(5.0)) == Admit(proof="complete")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"expected": 40}, "oversized"),
        ({"stat": stat(0), "header": "partial", "expected": None}, "empty"),
        ({"stat": stat(0), "header": "none", "expected": None}, "empty"),
        ({"header": "partial", "expected": None}, "truncated"),
        ({"nature": "outside", "error": "It leads out."}, "outside"),
        ({"nature": "special", "error": "It is a pipe."}, "special"),
        ({"nature": "unreadable", "error": "It is closed."}, "unreadable"),
    ],
)
def test_what_can_not_be_a_model_is_refused_after_holding_still(fields: dict[str, Any], reason: str) -> None:
    assert isinstance(judge(look(**fields)), Wait)
    verdict = judge(look(**fields), look(2.0, **fields))
    assert isinstance(verdict, Refuse) and verdict.reason == reason and verdict.error.endswith(".")


def test_what_is_gone_is_nobodys_business() -> None:
    assert isinstance(judge(look(), look(nature="gone", stat=None)), Ignore)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "x.safetensors.part",
            "x.part",
            "x.safetensors.crdownload",
            "x.ckpt.aria2",
            "x.bin.!qB",
            "Unconfirmed 1.crdownload",
        ),
        *(
            ".x.safetensors.a8Bx2Z",
            ".syncthing.x.safetensors.tmp",
            "~syncthing~x.ckpt.tmp",
            "._x.safetensors",
            "x.partial",
        ),
        *("x.safetensors.tmp", "x.download", "readme.txt", "x.safetensors.bak", "x.png", "safetensors"),
    ],
)
def test_a_temporary_or_foreign_name_is_not_looked_at(name: str) -> None:
    assert why_ignored(name.encode())


@pytest.mark.parametrize(
    "name", ["x.safetensors", "X.SAFETENSORS", "x.ckpt", "x.pt", "x.pth", "x.bin", "x.gguf", "a b>.ckpt"]
)
def test_a_models_name_is_looked_at(name: str) -> None:
    assert not why_ignored(name.encode())


def test_a_control_file_names_its_target() -> None:
    assert controlled_by(b"x.safetensors.aria2") == b"x.safetensors"
    assert controlled_by(b"x.safetensors") == b""


def test_unfinished_downloads_and_caches_are_not_entered() -> None:
    assert is_skipped_folder(b"x.safetensors.download") and is_skipped_folder(b".cache")
    assert not is_skipped_folder(b"Stable-diffusion")
