"""Trace context: one trace through a whole job, whatever the header says."""

import re

import pytest
import structlog

from bus import trace

GOOD = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"


def test_a_new_trace_is_a_valid_traceparent_and_each_is_another():
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", trace.current())
    assert trace.current() != trace.current()


def test_inside_a_continued_trace_every_message_has_its_id_and_a_span_of_its_own():
    with trace.continued({trace.HEADER: GOOD}):
        one, other = trace.current(), trace.current()
        assert structlog.contextvars.get_contextvars()["trace"] == "ab" * 16
    assert {one.split("-")[1], other.split("-")[1]} == {"ab" * 16}
    assert len({one, other, GOOD}) == 3
    assert trace.current().split("-")[1] != "ab" * 16


@pytest.mark.parametrize(
    "header", [None, "", "x", GOOD.upper(), GOOD + "-more", "ff" + GOOD[2:], GOOD + "\n", "00-1-2-3"]
)
def test_a_broken_header_starts_a_new_trace(header: str | None):
    with trace.continued({trace.HEADER: header} if header is not None else None):
        inside = trace.current().split("-")[1]
        assert inside == trace.current().split("-")[1] != "ab" * 16


def test_traces_nest_and_the_outer_one_comes_back():
    other = GOOD.replace("ab", "ef")
    with trace.continued({trace.HEADER: GOOD}):
        with trace.continued({trace.HEADER: other}):
            assert "ef" * 16 in trace.current()
        assert "ab" * 16 in trace.current()
