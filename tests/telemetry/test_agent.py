"""Telemetry: numbers that are right though messages are lost or repeated."""

import functools
import time

import anyio
from prometheus_client.parser import text_string_to_metric_families

from agents.telemetry import agent as telemetry
from bus.client import Bus
from bus.ids import new_id
from bus.results import ended
from bus.subjects import (
    ASK_METRICS,
    FILE_HASHED,
    IMAGE_ENCODED,
    JOB_FINISHED,
    JOB_PLANNED,
    PREFIX,
    TICK_AGENT,
)
from schemas.asks import Metrics, Nothing
from schemas.files import FilePath, Hashed, Identity, Stat
from schemas.images import Encoded
from schemas.jobs import Finished
from schemas.ticks import AgentTick
from tests.conftest import running
from tests.http.serving import picture, plan, say_planned, serving, succeed

KEY = "0" * 32


async def numbers(bus: Bus) -> dict[str, float]:
    text = (await bus.ask(ASK_METRICS, Nothing(), Metrics)).text
    return {
        sample.name + "".join(f" {value}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def reaches(bus: Bus, name: str, value: float) -> dict[str, float]:
    """The numbers, once one of them is what it should be: asks are answered by the loop that counts."""
    with anyio.fail_after(10):
        while (found := await numbers(bus)).get(name) != value:
            await anyio.lowlevel.checkpoint()
    return found


def agent(name: str, instance: str, state: str = "ready") -> AgentTick:
    return AgentTick(name=name, instance=instance, state=state, pid=1, host="h", rss=100, lag=0.5)


async def test_what_happens_is_counted_once_though_it_is_received_twice(bus: Bus):
    async with running(functools.partial(telemetry.run, bus)):
        id = new_id()
        await bus.publish(JOB_PLANNED, plan(id, created_at=time.time() - 3), first=True, id=id)
        result = await succeed(bus, id)
        for _ in range(5):
            assert await ended(bus, id)  # publishes finished again, which the stream refuses and listeners receive
        encoded = Encoded(id=id, pictures=(picture(id),), seconds=0.5, at=1.0)
        for _ in range(2):
            await bus.publish(IMAGE_ENCODED, encoded, msg_id="same", id=id)
        failed = new_id()
        await bus.publish(JOB_FINISHED, Finished(id=failed, status="failed", at=result.ended_at), id=failed)
        found = await reaches(bus, "darkroom_jobs_total failed", 1)
        assert found["darkroom_jobs_total succeeded"] == 1
        assert found["darkroom_job_seconds_count succeeded"] == 1
        assert 3 <= found["darkroom_job_seconds_sum succeeded"] < 10
        assert found["darkroom_steps_total"] == 4 and found["darkroom_images_total"] == 1


async def test_hashing_and_agents_are_counted_and_an_agent_that_stops_is_not_up(bus: Bus):
    stat = Stat(dev=1, ino=1, size=1000, mtime_ns=1, ctime_ns=1)
    hashed = Hashed(
        key=KEY,
        path=FilePath(root="models", rel="a"),
        stat=stat,
        sha256="a" * 64,
        identity=Identity(),
        seconds=2.0,
        at=1.0,
    )
    async with running(functools.partial(telemetry.run, bus)):
        await bus.publish(FILE_HASHED, hashed, key=KEY)
        for instance in ("a-1", "a-2"):
            await bus.tick(TICK_AGENT, agent("a", instance), name="a", instance=instance)
        found = await reaches(bus, "darkroom_agents_up a", 2)
        assert found["darkroom_agent_memory_bytes a"] == 200 and found["darkroom_agent_lag_seconds a"] == 0.5
        await bus.tick(TICK_AGENT, agent("other", "a-9"), name="b", instance="b-1")  # its subject names another
        await bus.tick(TICK_AGENT, agent("a", "a-1", "stopping"), name="a", instance="a-1")
        found = await reaches(bus, "darkroom_agents_up a", 1)
        assert "darkroom_agents_up other" not in found
        assert found["darkroom_hashed_bytes_total"] == 1000 and found["darkroom_hashed_files_total"] == 1


async def test_queue_lengths_and_dead_letters_are_looked_up_and_no_label_names_a_thing(bus: Bus, monkeypatch):
    monkeypatch.setattr(telemetry, "POLL_SECONDS", 0.05)
    async with running(functools.partial(telemetry.run, bus)):
        await bus.publish_raw(f"{PREFIX}dlq.prepare.undecodable.{KEY}", b"{}")
        await bus.publish_raw(f"{PREFIX}job.prepare.low.t0.{KEY}", b"{}")
        found = await reaches(bus, "darkroom_stream_messages PREPARE", 1)
        assert found["darkroom_dead_letters"] == 1 and found["darkroom_bus_connected"] == 1
        await say_planned(bus, KEY)
        await bus.publish_raw(f"{PREFIX}evt.job.finished.{KEY}", b"not json")
        text = (await bus.ask(ASK_METRICS, Nothing(), Metrics)).text
        await reaches(bus, "darkroom_undecodable_total", 1)
        assert KEY not in text and "a cat" not in text and "darkroom_build_info{version=" in text


async def test_the_bridge_hands_the_metrics_out(bus: Bus, tmp_path):
    async with serving(bus, tmp_path) as client:
        assert (await client.get("/metrics")).status_code == 503
        async with running(functools.partial(telemetry.run, bus)):
            answer = await client.get("/metrics")
            assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain; version=0.0.4")
            assert "darkroom_jobs_total" in answer.text
