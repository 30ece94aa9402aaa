"""Which model a generator serves next."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.settings import GeneratorSettings
from tests.later import Later

generator = Later("agents.generator.agent")

SETTINGS = GeneratorSettings(affinity_jobs=8, affinity_seconds=10.0)


def test_the_warm_model_goes_first_though_others_wait_longer():
    warm = generator.Warm("c", jobs=1, since=0.0)
    assert generator.order({"a": 1, "b": 2, "c": 3}, warm, SETTINGS, now=1.0) == ["c", "a", "b"]


@pytest.mark.parametrize("warm", [{"jobs": 8, "since": 0.0}, {"jobs": 1, "since": -9.0}])
def test_after_its_jobs_or_its_seconds_the_oldest_waiting_job_decides(warm: dict[str, float]):
    tired = generator.Warm("c", **warm)
    assert generator.order({"a": 5, "b": 2, "c": 9}, tired, SETTINGS, now=1.0) == ["b", "a", "c"]


def test_a_tired_model_goes_on_when_nobody_else_waits_or_it_holds_the_oldest_job():
    tired = generator.Warm("c", jobs=100, since=0.0)
    assert generator.order({"c": 9}, tired, SETTINGS, now=1.0) == ["c"]
    assert generator.order({"c": 1, "a": 2}, tired, SETTINGS, now=1.0) == ["c", "a"]


def test_a_warm_model_without_jobs_is_not_in_the_order():
    assert generator.order({"a": 5, "b": 2}, generator.Warm("c", jobs=1, since=0.0), SETTINGS, now=1.0) == ["b", "a"]
    assert generator.order({}, generator.Warm(), SETTINGS, now=1.0) == []


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 100), min_size=1), st.sampled_from("abcdefg"))
def test_every_waiting_model_is_in_the_order_once(waiting: dict[str, int], warm: str):
    ordered = generator.order(waiting, generator.Warm(warm, jobs=1, since=0.0), SETTINGS, now=1.0)
    assert sorted(ordered) == sorted(waiting)
    rest = [waiting[model] for model in ordered if model != warm]
    assert rest == sorted(rest)
