"""Ids: UUIDs of version 7 that sort by time, and the day they were drawn."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.ids import day_of, digest_id, new_id, time_of

YEAR_2024 = 1_704_067_200.0


@given(st.floats(min_value=0, max_value=2**47 / 1000), st.binary(min_size=10, max_size=10))
def test_an_id_is_a_uuid_of_version_seven_that_holds_its_time(now: float, noise: bytes):
    id = new_id(now, noise)
    assert len(id) == 32 and id == id.lower()
    read = uuid.UUID(hex=id)
    assert (read.version, read.variant) == (7, uuid.RFC_4122)
    assert time_of(id) == int(now * 1000) / 1000


@given(st.binary(min_size=10, max_size=10), st.binary(min_size=10, max_size=10))
def test_ids_sort_by_time_whatever_their_randomness(one: bytes, other: bytes):
    assert new_id(YEAR_2024, one) < new_id(YEAR_2024 + 0.001, other)


@given(st.binary(min_size=10, max_size=10), st.binary(min_size=10, max_size=10))
def test_all_but_six_of_the_random_bits_are_kept(one: bytes, other: bytes):
    kept = (1 << 74) - 1  # 12 and 62
    same = int.from_bytes(one) >> 68 & 0xFFF == int.from_bytes(other) >> 68 & 0xFFF
    same = same and int.from_bytes(one) & (kept >> 12) == int.from_bytes(other) & (kept >> 12)
    assert (new_id(0, one) == new_id(0, other)) == same


def test_ids_are_drawn_differently():
    assert len({new_id() for _ in range(10_000)}) == 10_000


def test_the_day_is_that_of_the_id_in_utc_or_else_the_other():
    assert day_of(new_id(YEAR_2024 - 1), otherwise=0) == "2023-12-31"
    assert day_of(new_id(YEAR_2024), otherwise=0) == "2024-01-01"
    foreign = uuid.UUID(int=0x1234, version=4).hex
    assert time_of(foreign) is None
    assert day_of(foreign, otherwise=YEAR_2024) == "2024-01-01"


@pytest.mark.parametrize("at", [0.0, 1_000_000_000.0, 4_102_444_800.0, 2**48 / 1000 - 1])
def test_a_day_that_is_not_plausible_is_not_believed(at: float):
    assert day_of(new_id(at), otherwise=YEAR_2024) == "2024-01-01"


def test_the_same_parts_make_the_same_id_and_others_another():
    assert digest_id("a", 1) == digest_id("a", "1") != digest_id("a1")
    assert len(digest_id("a name \udcff that is not UTF-8")) == 32
