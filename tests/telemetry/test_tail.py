"""Messages of the bus as lines that nobody can inject anything into."""

import json

import anyio
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.telemetry import tail
from bus.client import Bus
from bus.errors import UserError
from bus.subjects import (
    ALL,
    FILE_REFUSED,
    JOB_PLANNED,
    PREFIX,
    TICK_AGENT,
)
from schemas.files import FilePath, Refused
from tests.http.serving import plan, request, say_planned, succeed
from tests.telemetry.test_agent import KEY, agent


async def test_tail_gets_what_its_pattern_names_and_no_more(bus: Bus):
    listening = anyio.Event()
    received = []

    async def listen() -> None:
        messages = tail.tail(bus, "evt.job.*.*")
        listening.set()
        async for message in messages:
            received.append(message)
            if message.subject.endswith("finished." + KEY):
                await messages.aclose()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listen)
        await listening.wait()
        await bus.flush()
        await bus.tick(TICK_AGENT, agent("a", "a-1"), name="a", instance="a-1")
        await say_planned(bus, KEY)
        await succeed(bus, KEY)
    assert [message.subject.split(".")[4] for message in received] == ["planned", "finished"]


def test_a_pattern_is_checked_against_the_table():
    assert tail.pattern_of("") == tail.pattern_of(">") == PREFIX + ">"
    for good in (
        "evt.job.>",
        "tick.*.*",
        "tick.step." + KEY,
        "*.job.>",
        "evt.job.planned.*",
        PREFIX + "dlq.>",
        "result.>",
    ):
        assert tail.pattern_of(good) == PREFIX + good.removeprefix(PREFIX)
    for bad in (
        "evt.jobs.>",
        "tick",
        "tick.*",
        "evt.>.x",
        "a b",
        "evt..x",
        "evt.job.PLANNED.*",
        "$JS.API.>",
        "evt.job",
        "ask.x",
        "évt.>",
    ):
        with pytest.raises(UserError):
            tail.pattern_of(bad)
    with pytest.raises(UserError, match=r"tick\.step\.>"):
        tail.pattern_of("ticks.>")


def test_a_line_has_what_matters():
    shown = tail.line(JOB_PLANNED(id=KEY), msgspec.json.encode(plan(KEY)), 0.5)
    fields = 'prompt="a cat" name=tiny width=64 height=64 steps=4 sampler=euler scheduler=normal seeds=[1]'
    assert shown.endswith(f"  evt.job.planned.{KEY}  {fields}")
    assert shown[8:12] == ".500"
    shown = tail.line(PREFIX + f"job.prepare.low.t0.{KEY}", msgspec.json.encode(request()), 0)
    assert 'prompt="a cat"' in shown
    assert "rel" not in tail.line("darkroom.v1.unheard.of", b"[1]", 0) and tail.line("x", b"", 0).endswith("x")


NASTY = "a\x1b]0;owned\x07\x1b[2J\r\n\x9b31m\u202egnp.exe\u2028\x00\u200b\\x"


def test_a_file_name_can_not_speak_to_the_terminal():
    refused = Refused(key=KEY, path=FilePath(root="models", rel=NASTY), reason=NASTY, error=NASTY, at=1.0)
    shown = tail.line(FILE_REFUSED(key=KEY), msgspec.json.encode(refused), 0)
    assert shown.isprintable() and "\\x1b]0;owned" in shown and "\\u202e" in shown


@given(
    st.sampled_from([row.filter().replace("*", KEY) for row in ALL]) | st.text(),
    st.binary()
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ).map(lambda value: json.dumps(value).encode()),
)
def test_every_message_is_one_printable_line(subject: str, data: bytes):
    shown = tail.line(subject, data, 0.0)
    assert shown.isprintable() and len(shown) < 2500
