"""Jobs for front ends: a state is what is stored, a list is what the catalog has, and a job that nobody asked for is
none."""

import functools
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, aclosing
from pathlib import Path

import anyio
import nats
import pytest

from agents.client import jobs
from agents.migrator import agent as migrator
from bus.client import Bus, connect
from bus.errors import BadSubject, Declined, Full, NoAnswer, TooLarge
from bus.ids import digest_id, new_id
from bus.results import end, ended
from bus.server import LocalServer
from bus.subjects import JOB_FINISHED, JOB_REJECTED, PREFIX, PREPARE, RESULT, TICK_STEP
from schemas.jobs import Finished, JobView, Rejected, Result
from schemas.settings import BusSettings, MigratorSettings
from schemas.ticks import StepTick
from tests.conftest import running
from tests.http.serving import request, say_planned, say_released, say_started, succeed


def cataloguing(bus: Bus, tmp_path: Path) -> AbstractAsyncContextManager[None]:
    """A migrator, which answers for lists."""
    settings = MigratorSettings(jobs_days=0)
    return running(functools.partial(migrator.run, bus, tmp_path / "catalog.db", settings=settings))


async def when(bus: Bus, limit: int, is_so: Callable[[tuple[JobView, ...]], bool]) -> tuple[JobView, ...]:
    """The newest jobs, once something is so of them."""
    with anyio.fail_after(20):
        while True:
            found, _ = await jobs.jobs(bus, limit)
            if is_so(found):
                return found


async def test_the_same_id_submitted_again_is_the_same_job_even_on_another_lane(bus: Bus):
    id = await jobs.submit(bus, request(), lane="low", tenant="t5", id=new_id())
    assert await jobs.submit(bus, request("a dog"), lane="low", tenant="t5", id=id) == id
    assert await jobs.submit(bus, request("a dog"), lane="high", tenant="t1", id=id) == id
    assert list(await bus.waiting("PREPARE", PREFIX + "job.>")) == [PREPARE(lane="low", tenant="t5", id=id)]
    await end(bus, id, "failed", "x", "y")
    await bus.js.purge_stream("PREPARE")
    await jobs.submit(bus, request(), id=id)
    assert await bus.waiting("PREPARE", PREFIX + "job.>") == {}


async def test_what_the_bus_can_not_take_is_told_by_kind(nats_server: LocalServer):
    settings = BusSettings(prepare_queue=1, store_bytes=512 * 1024**2)
    async with connect(nats_server.url, settings, name="small") as bus:
        with pytest.raises(TooLarge):
            await jobs.submit(bus, request("x" * 70_000))
        for bad in ("x", "*", "A" * 32, "0" * 31):
            with pytest.raises(BadSubject):
                await jobs.submit(bus, request(), id=bad)
        id = await jobs.submit(bus, request())
        with pytest.raises(Full):
            await jobs.submit(bus, request())
        assert await jobs.submit(bus, request(), id=id) == id, "a repeat is no new job"


def test_a_caller_has_one_tenant_and_keys_of_its_own():
    tenants = {jobs.tenant_of(f"key {n}") for n in range(100)}
    assert tenants == {f"t{n}" for n in range(8)} and jobs.tenant_of("") == "t0"
    assert jobs.tenant_of("a") == jobs.tenant_of("a")
    assert len({jobs.id_of("a", "k"), jobs.id_of("b", "k"), jobs.id_of("a", "l"), jobs.id_of("ak", "")}) == 4


async def test_an_unknown_job_has_no_state_no_events_and_no_cancelling(bus: Bus):
    id = new_id()
    assert await jobs.state(bus, id) is None
    with pytest.raises(Declined, match="Nobody asked for a job"):
        await jobs.cancel(bus, id)
    with pytest.raises(Declined, match="Nobody asked for a job"):
        await anext(jobs.events(bus, id))
    assert await bus.waiting("RESULTS", PREFIX + "result.>") == {}


async def test_a_state_is_derived_from_what_is_stored(bus: Bus):
    id = await jobs.submit(bus, request("a bird"), lane="high")
    view = await jobs.state(bus, id)
    assert (view.status, view.request.prompt, view.plan, view.ended) == ("queued", "a bird", None, False)
    assert abs(view.created_at - time.time()) < 5
    await say_planned(bus, id)
    view = await jobs.state(bus, id)
    assert (view.status, view.planned_at) == ("planned", view.plan.created_at)
    await say_started(bus, id)
    await say_released(bus, id)
    assert ((view := await jobs.state(bus, id)).status, view.attempts) == ("planned", 0)
    await say_started(bus, id)
    assert ((view := await jobs.state(bus, id)).status, view.attempts) == ("running", 1)
    await succeed(bus, id)
    view = await jobs.state(bus, id)
    assert (view.status, view.ended, len(view.result.images), view.started_at is not None) == (
        "succeeded",
        True,
        1,
        True,
    )


async def test_a_rejected_job_and_one_whose_result_was_forgotten_have_ended(bus: Bus):
    id, old = new_id(), new_id()
    await bus.publish(JOB_REJECTED, Rejected(id=id, reason="bad-size", error="no", at=1.0), id=id)
    assert (await jobs.state(bus, id)).status == "queued", "its result is not written yet"
    await end(bus, id, "rejected", "bad-size", "no")
    assert (await jobs.state(bus, id)).result.reason == "bad-size"
    await bus.publish(JOB_FINISHED, Finished(id=old, status="succeeded", at=7.0), id=old)
    view = await jobs.state(bus, old)
    assert (view.status, view.result, view.ended_at) == ("succeeded", None, 7.0)


async def test_a_request_that_can_not_be_read_is_still_a_job(bus: Bus, tmp_path: Path):
    id = new_id()
    await bus.publish_raw(PREPARE(lane="normal", tenant="t0", id=id), b"\xff not json")
    view = await jobs.state(bus, id)
    assert (view.status, view.request) == ("queued", None)
    async with cataloguing(bus, tmp_path):
        assert [job.id for job in (await jobs.jobs(bus, 5))[0]] == [id]


async def test_the_newest_jobs_are_found_behind_any_number_of_other_facts(bus: Bus, tmp_path: Path):
    ids = [new_id(1_700_000_000 + n) for n in range(6)]
    for id in ids[:4]:
        await succeed(bus, id)
    for n in range(200):
        await say_started(bus, digest_id("noise", n % 2))
    async with cataloguing(bus, tmp_path):
        undated = await jobs.submit(bus, request(), id=digest_id("undated"))
        await jobs.submit(bus, request(), id=ids[5])
        await say_planned(bus, ids[4])
        planned = await when(bus, 7, lambda found: [job.status for job in found][:3] == ["queued", "queued", "planned"])
        assert [job.id for job in planned] == [undated, *reversed(ids)]
        assert [job.id for job in (await jobs.jobs(bus, 1))[0]] == [undated]
        await end(bus, digest_id("noise", 0), "failed", "x", "y")
        found = await when(bus, 8, lambda found: len(found) == 8)
        assert [job.id for job in found] == [undated, digest_id("noise", 0), *reversed(ids)]
        assert found[1].attempts == 100, "a job without a time counts from its end, if nobody planned it"


async def test_no_jobs_is_an_empty_list_at_once(bus: Bus, tmp_path: Path):
    async with cataloguing(bus, tmp_path):
        with anyio.fail_after(2):
            assert await jobs.jobs(bus, 50) == ((), "")


async def test_a_list_without_a_catalog_says_who_is_missing(bus: Bus):
    with pytest.raises(NoAnswer, match="agent"):
        await jobs.jobs(bus, 50)


async def test_a_list_of_fifty_jobs_costs_four_messages_on_the_bus(bus: Bus, nats_server: LocalServer, tmp_path: Path):
    for n in range(60):
        id = new_id(1_700_000_000 + n)
        await say_planned(bus, id)
        await succeed(bus, id)
    async with cataloguing(bus, tmp_path):
        wire = await nats.connect(nats_server.url)
        for n in range(5):
            await jobs.submit(bus, request(f"queued {n}"), id=new_id(1_750_000_000 + n))
        await say_planned(bus, new_id(1_760_000_000))
        await say_started(bus, new_id())
        await when(bus, 100, lambda found: len(found) == 66 and sum(job.ended for job in found) == 60)
        everything = await wire.subscribe(">")
        await wire.flush()
        found, cursor = await jobs.jobs(bus, 50)
        await wire.flush()
        seen = [(await everything.next_msg()).subject for _ in range(everything.pending_msgs)]
        await wire.close()
        # The followers' standing pulls and what the server tells those who watch it are no part of it.
        sent = [one for one in seen if not one.startswith(("$JS.API.CONSUMER.MSG.NEXT", "$JS.EVENT"))]
        assert len(found) == 50 and cursor and found[0].status == "planned"
        assert [job.request for job in found[1:6]] == [request(f"queued {n}") for n in (4, 3, 2, 1, 0)]
        assert len(sent) == 4, sent


async def test_pages_and_filters_go_on_from_each_other(bus: Bus, tmp_path: Path):
    ids = [new_id(1_700_000_000 + n) for n in range(7)]
    for id in ids[:4]:
        await succeed(bus, id)
    async with cataloguing(bus, tmp_path):
        for n, id in enumerate(ids[4:]):
            await jobs.submit(bus, request(f"fox {n}"), id=id)
        await when(bus, 7, lambda found: len(found) == 7)
        seen, cursor = await jobs.jobs(bus, 2)
        while cursor:
            page, cursor = await jobs.jobs(bus, 2, before=cursor)
            seen += page
        assert [job.id for job in seen] == [*reversed(ids)]
        assert [job.id for job in (await jobs.jobs(bus, 9, status="succeeded"))[0]] == [*reversed(ids[:4])]
        assert [job.id for job in (await jobs.jobs(bus, 9, text="fox 1"))[0]] == [ids[5]]
        for bad in ("x", "1.0", f"nan-{ids[0]}", f"1e999999-{ids[0]}", f"1.0-{ids[0]} ", f"-1-{ids[0]}"):
            with pytest.raises(Declined) as caught:
                await jobs.jobs(bus, 2, before=bad)
            assert caught.value.reason == "bad-cursor", bad
        with pytest.raises(Declined, match="words"):
            await jobs.jobs(bus, 2, text="x " * 100)


async def test_events_come_in_order_once_each_however_much_is_missed_in_between(bus: Bus):
    id = await jobs.submit(bus, request())
    names = []
    async with aclosing(jobs.events(bus, id)) as events:
        await say_planned(bus, id)
        async for event in events:
            names.append(event.name)
            if event.name == "planned":  # while nobody reads: more than the listener's buffer holds
                for step in range(600):
                    tick = StepTick(job=id, step=step, steps=600, image=0, images=1, rate=1.0, eta=1.0)
                    await bus.tick(TICK_STEP, tick, id=id)
                await say_started(bus, id)
                await bus.flush()
                await succeed(bus, id)
    facts = [name for name in names if name != "step"]
    assert facts == ["planned", "started", "finished"] and names[-1] == "finished"


async def test_a_fact_that_is_announced_before_it_is_stored_is_shown_soon(bus: Bus, monkeypatch: pytest.MonkeyPatch):
    id, raw, late = await jobs.submit(bus, request()), bus.raw, 0

    async def stored_late(stream: str, pattern: str, *, seq: int = 0):
        nonlocal late
        if stream == "EVENTS" and seq and (late := late - 1) >= 0:
            return None
        return await raw(stream, pattern, seq=seq)

    monkeypatch.setattr(bus, "raw", stored_late)
    monkeypatch.setattr(jobs, "LOOK_SECONDS", 60.0)
    monkeypatch.setattr(jobs, "END_SECONDS", 60.0)
    async with aclosing(jobs.events(bus, id)) as events:
        with anyio.fail_after(10):
            await say_planned(bus, id)
            assert (await anext(events)).name == "planned"
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anext, events)
                late = 3
                await say_started(bus, id)
            late = 3
            await succeed(bus, id)
            assert [event.name async for event in events] == ["finished"]


async def test_events_after_a_sequence_of_a_job_that_ended_still_tell_the_end(bus: Bus):
    id = new_id()
    planned = await say_planned(bus, id)
    await succeed(bus, id)
    after = [event.name async for event in jobs.events(bus, id, planned)]
    beyond = [(event.name, event.seq) async for event in jobs.events(bus, id, planned + 1000)]
    assert after == ["finished"] and beyond == [("finished", None)]
    assert await jobs.ended_by(bus, id, planned + 1) and not await jobs.ended_by(bus, id, planned)


async def test_cancelling_a_queued_job_writes_its_one_result(bus: Bus):
    id = await jobs.submit(bus, request())
    assert (await jobs.cancel(bus, id)).status == "cancelled"
    assert (await jobs.cancel(bus, id)).status == "cancelled"
    assert (await bus.waiting("RESULTS", RESULT.filter())) == {RESULT(id=id): 1}
    done = new_id()
    await bus.publish(RESULT, Result(id=done, status="failed", ended_at=1.0), id=done)
    assert (await jobs.cancel(bus, done)).status == "failed"


async def test_models_without_a_catalog_say_who_is_missing(bus: Bus):
    with pytest.raises(NoAnswer, match="agent"):
        await jobs.models(bus)


async def test_a_result_that_nobody_can_read_is_a_failed_job_and_the_others_are_listed(bus: Bus, tmp_path: Path):
    good, bad, short = new_id(), new_id(), new_id()
    for id in (good, bad, short):
        await jobs.submit(bus, request("a fox"), id=id)
    await bus.publish_raw(RESULT(id=bad), b"junk")
    await bus.publish_raw(RESULT(id=short), b'{"status": "cancelled"}')
    assert [(await jobs.state(bus, id)).status for id in (bad, short, good)] == ["failed", "cancelled", "queued"]
    for id in (bad, short):  # as whoever meets the job next does
        assert await ended(bus, id)
    async with cataloguing(bus, tmp_path):
        found = await when(bus, 10, lambda found: sum(job.ended for job in found) == 2)
    views = {view.id: view for view in found}
    assert (views[bad].status, views[short].status, views[good].status) == ("failed", "cancelled", "queued")
    assert views[short].result is not None and views[short].result.id == short
