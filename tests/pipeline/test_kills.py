"""Kill anything, any time: every job ends once, with its pictures."""

import signal
from pathlib import Path

import anyio
import numpy as np
import pytest
from PIL import Image

from bus.results import result_of
from bus.subjects import DEAD, ENCODE, GENERATE, JOB_STARTED, PREFIX, RESULT
from tests.pipeline.conftest import Agents, ask, bus_of, drop, kill, result

LIGHT = ("migrator", "watcher", "hasher", "preprocess")


async def finished_once(bus, agents: Agents, ids: list[str]) -> None:
    """Every job succeeded, with one result in the stream and its files on disk; nothing is left over."""
    for id in ids:
        told = await result(bus, id)
        assert told.status == "succeeded", told.error
        for picture in told.images:
            assert (agents.data / picture.file).is_file()
            assert all((agents.data / tier).is_file() for tier in picture.tiers.values())
    counts = await bus.waiting("RESULTS", RESULT.filter())
    assert {counts[RESULT(id=id)] for id in ids} == {1}
    assert not list((agents.data / "outputs").rglob(".*"))


@pytest.mark.parametrize("victim", ["generator", "encoder", "preprocess", "migrator"])
async def test_ten_jobs_survive_the_kill_of(victim: str, agents: Agents):
    others = [name for name in (*LIGHT, "encoder") if name != victim]
    agents.start(*others)
    if victim != "generator":
        agents.start("generator")
    process = agents.start(victim)
    async with bus_of(agents) as bus:
        await drop(bus, agents)
        ids = [await ask(bus, f"picture {n}", steps=6) for n in range(10)]
        await result(bus, ids[0])  # it is in the middle of its work
        kill(process)
        agents.start(victim)
        await finished_once(bus, agents, ids)


async def test_a_job_whose_generator_dies_three_times_ends_failed_with_a_dead_letter_and_others_go_on(agents: Agents):
    agents.start(*LIGHT, "encoder")
    async with bus_of(agents) as bus:
        generator = agents.start("generator")
        await drop(bus, agents)
        poison = await ask(bus, "poison", steps=150, width=256, height=256)
        for attempt in range(3):
            with anyio.fail_after(30):
                while (await bus.waiting("EVENTS", JOB_STARTED.filter())).get(JOB_STARTED(id=poison), 0) <= attempt:
                    await bus.flush()
            kill(generator)
            generator = agents.start("generator")
        good = await ask(bus, "good")
        assert (await result(bus, good)).status == "succeeded"
        bad = await result(bus, poison)
        assert (bad.status, bad.reason) == ("failed", "exhausted")
        assert await bus.last(DEAD, kind="generate", reason="exhausted", id=poison)


async def test_a_stopped_generator_gives_its_job_back_and_loses_no_attempt(agents: Agents):
    agents.start(*LIGHT, "encoder")
    async with bus_of(agents) as bus:
        generator = agents.start("generator")
        await drop(bus, agents)
        id = await ask(bus, steps=150, width=128, height=128)
        for _ in range(4):  # more often than a job may die
            async with bus.listen(PREFIX + f"tick.step.{id}") as ticks:
                with anyio.fail_after(30):
                    await ticks.receive()
            generator.send_signal(signal.SIGTERM)
            assert await anyio.to_thread.run_sync(generator.wait, 10) == 0
            generator = agents.start("generator")
        assert (await result(bus, id, seconds=120)).status == "succeeded"


async def test_a_cancelled_job_ends_as_cancelled_within_two_steps(agents: Agents):
    from agents.client import jobs
    from bus.subjects import TICK_STEP

    agents.start(*LIGHT, "encoder")
    agents.start("generator")
    async with bus_of(agents) as bus:
        await drop(bus, agents)
        id = await ask(bus, steps=150, width=256, height=256)
        after = await ask(bus, "after it")
        seen = []
        async with bus.listen(TICK_STEP(id=id), buffer=1000) as ticks:
            with anyio.fail_after(60):
                while not seen or seen[-1] < 3:
                    seen.append(TICK_STEP.decode((await ticks.receive()).data).step)
            view = await jobs.cancel(bus, id)
            assert view.status == "cancelled"
            cancelled_at = seen[-1]
            assert (await result(bus, after)).status == "succeeded"  # the device is free again
            while ticks.statistics().current_buffer_used:
                seen.append(TICK_STEP.decode(ticks.receive_nowait().data).step)
        assert seen[-1] <= cancelled_at + 2
        assert (await result_of(bus, id)).status == "cancelled"
        assert not list((agents.data / "work").glob(f"{id}*"))


async def test_the_same_request_published_three_times_is_one_result(agents: Agents):
    from bus.errors import Taken
    from bus.ids import new_id
    from bus.subjects import PREPARE
    from schemas.jobs import Request

    agents.start(*LIGHT, "encoder")
    agents.start("generator")
    async with bus_of(agents) as bus:
        await drop(bus, agents)
        id, published = new_id(), 0
        request = Request(prompt="once", steps=2, width=64, height=64)
        for _ in range(3):
            try:
                await bus.publish(PREPARE, request, lane="normal", tenant="t0", id=id)
                published += 1
            except Taken:
                assert published, "the first was refused"
        first = await result(bus, id)
        await bus.publish(PREPARE, request, lane="normal", tenant="t0", id=id)  # long after
        last = await ask(bus, "the last")
        await result(bus, last)
        assert await result_of(bus, id) == first
        assert (await bus.waiting("EVENTS", JOB_STARTED.filter()))[JOB_STARTED(id=id)] == 1


async def test_a_plan_replayed_gives_the_same_bytes(agents: Agents):
    agents.start(*LIGHT, "encoder")
    agents.start("generator")
    async with bus_of(agents) as bus:
        await drop(bus, agents)
        pictures = []
        for _ in range(2):
            id = await ask(bus, "twice", seed=11, sampler="euler_a", lossless=True, n=2)
            told = await result(bus, id)
            pictures.append([np.asarray(Image.open(agents.data / one.file)) for one in told.images])
        for one, other in zip(*pictures, strict=True):
            assert one.tobytes() == other.tobytes()
        assert pictures[0][0].tobytes() != pictures[0][1].tobytes()


async def test_a_full_generate_queue_delays_and_loses_nothing(nats_server, tmp_path: Path):
    from schemas.settings import BusSettings

    tight = BusSettings(ack_wait=2.0, heartbeat=0.5, retry_delay=0.1, generate_queue=2, store_bytes=256 * 1024 * 1024)
    (tmp_path / "data" / "models").mkdir(parents=True)
    agents = Agents(nats_server.url, tmp_path / "data", tight)
    try:
        agents.start(*LIGHT, "encoder")
        async with bus_of(agents) as bus:
            await drop(bus, agents)
            ids = [await ask(bus, f"picture {n}", steps=2) for n in range(7)]
            with anyio.fail_after(20):
                while len(await bus.waiting("GENERATE", GENERATE.filter())) < 2:
                    await bus.flush()
            assert len(await bus.waiting("PREPARE", PREFIX + "job.prepare.>")) >= 4
            agents.start("generator")
            await finished_once(bus, agents, ids)
            assert await bus.waiting("ENCODE", ENCODE.filter()) == {}
    finally:
        agents.stop()


async def test_a_model_file_deleted_before_its_job_fails_it_with_a_reason_and_the_agents_live_on(agents: Agents):
    light = agents.start(*LIGHT, "encoder")
    async with bus_of(agents) as bus:
        await drop(bus, agents)
        kill(light)  # nobody watches, so the job is planned for a file that goes
        agents.start("migrator", "preprocess", "encoder")
        id = await ask(bus, "too late")
        with anyio.fail_after(20):
            while not await bus.waiting("GENERATE", GENERATE.filter()):
                await bus.flush()
        (agents.data / "models" / "tiny.safetensors").unlink()
        agents.start("generator")
        told = await result(bus, id)
        assert (told.status, told.reason) == ("failed", "model-file-gone")
        assert "put it back" in told.error
        agents.start("watcher", "hasher")
        await drop(bus, agents, "other", seed=3)
        assert (await result(bus, await ask(bus, "still here"))).status == "succeeded"


async def test_pixels_lost_in_a_power_cut_are_drawn_again(agents: Agents):
    agents.start(*LIGHT)
    agents.start("generator")
    async with bus_of(agents) as bus:
        await drop(bus, agents)
        lost, cut = await ask(bus, "lost"), await ask(bus, "cut short")
        with anyio.fail_after(30):
            while len(await bus.waiting("ENCODE", ENCODE.filter())) < 2:
                await bus.flush()
        (agents.data / "work" / f"{lost}-0.npy").unlink()
        (agents.data / "work" / f"{cut}-0.npy").write_bytes(b"\x93NUMPY")
        agents.start("encoder")
        await finished_once(bus, agents, [lost, cut])
        assert not list((agents.data / "work").iterdir())
