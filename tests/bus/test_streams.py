"""The topology is made, brought in line, and never at the cost of a message."""

import anyio
import msgspec
import pytest
from nats.js.api import RetentionPolicy, StreamConfig

from bus.client import Bus, connect
from bus.errors import Full, UserError
from bus.ids import new_id
from bus.server import LocalServer
from bus.streams import DEFAULT_STORE_BYTES, reconcile, store_limit, topology
from bus.subjects import PREFIX, PREPARE
from schemas.jobs import Request
from schemas.settings import BusSettings
from tests.conftest import QUICK


async def ask(bus: Bus) -> None:
    await bus.publish(PREPARE, Request(prompt="x"), lane="low", tenant="t1", id=new_id())


def test_the_shares_of_the_store_leave_some_of_it():
    assert 0.9 < sum(stream.share for stream in topology(BusSettings())) < 1


async def test_a_changed_limit_is_brought_in_line_and_every_message_stays(bus: Bus, nats_server: LocalServer):
    for _ in range(5):
        await ask(bus)
    smaller = msgspec.structs.replace(QUICK, prepare_queue=3)
    async with connect(nats_server.url, smaller, name="other") as other:
        config = (await other.js.stream_info("PREPARE")).config
        assert config.max_msgs == 5  # no less than it holds: the oldest server would throw them away
        assert len(await other.waiting("PREPARE", PREPARE.filter())) == 5
        with pytest.raises(Full):
            await ask(other)
    async with connect(nats_server.url, QUICK, name="again") as again:
        await ask(again)
        assert (await again.js.stream_info("PREPARE")).config.max_msgs == QUICK.prepare_queue
        assert len(await again.waiting("PREPARE", PREPARE.filter())) == 6


async def test_what_an_operator_gave_more_of_is_left_alone(bus: Bus):
    config = (await bus.js.stream_info("DLQ")).config
    await bus.js.update_stream(config.evolve(max_bytes=(config.max_bytes or 0) * 2, max_age=3600.0))
    await reconcile(bus.js, topology(QUICK), QUICK.store_bytes)
    after = (await bus.js.stream_info("DLQ")).config
    assert after.max_bytes == (config.max_bytes or 0) * 2
    assert after.max_age == config.max_age


async def test_a_stream_of_somebody_elses_by_the_same_name_is_told_and_not_touched(bus: Bus, nats_server: LocalServer):
    await bus.js.delete_stream("DLQ")
    await bus.js.add_stream(StreamConfig(name="DLQ", subjects=["theirs.>"], retention=RetentionPolicy.INTEREST))
    with pytest.raises(UserError, match="DLQ"):
        async with connect(nats_server.url, QUICK, name="other"):
            raise AssertionError("never here")
    assert (await bus.js.stream_info("DLQ")).config.subjects == ["theirs.>"]


async def test_ten_agents_that_start_at_once_make_the_streams_once(nats_server: LocalServer):
    together: list[int] = []

    async def agent() -> None:
        async with connect(nats_server.url, QUICK, name="agent") as bus:
            together.append(len(await bus.js.streams_info()))

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(agent)
    assert together[-1] == len(topology(QUICK)) and len(together) == 10


async def test_a_store_too_small_for_its_shares_gets_smaller_streams(nats_server: LocalServer):
    greedy = msgspec.structs.replace(QUICK, store_bytes=30 * 1024**3)  # on a server with one
    async with connect(nats_server.url, greedy, name="test") as bus:
        sizes = [info.config.max_bytes or 0 for info in await bus.js.streams_info()]
        assert len(sizes) == len(topology(greedy)) and 0.4 * 1024**3 < sum(sizes) <= 1024**3
        shares = {stream.name: stream.share for stream in topology(greedy)}
        infos = await bus.js.streams_info()
        assert len({round((info.config.max_bytes or 0) / shares[info.config.name or ""] / 1e6) for info in infos}) == 1
        await ask(bus)


async def test_the_store_is_what_the_setting_says_or_else_what_the_server_has(bus: Bus):
    assert await store_limit(bus.js, QUICK) == QUICK.store_bytes
    assert await store_limit(bus.js, BusSettings()) == DEFAULT_STORE_BYTES  # it does not say


async def test_every_stream_keeps_what_the_table_says_and_one_job_per_subject(bus: Bus):
    for info in await bus.js.streams_info():
        config = info.config
        queue = config.retention == RetentionPolicy.WORK_QUEUE
        assert all(subject.startswith(PREFIX) for subject in config.subjects or ())
        assert bool(config.discard_new_per_subject) == (queue or config.name == "RESULTS")
