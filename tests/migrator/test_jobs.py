"""Jobs on a real bus: what has ended is written down once, what is under way is listed beside it."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from agents.catalog import history
from agents.catalog.database import Database
from agents.catalog.jobs import list_jobs
from agents.client.jobs import jobs, state
from agents.migrator import agent as migrator
from agents.migrator.jobs import JobRecords, UnfinishedJobs
from agents.migrator.replay import transactions
from bus import results
from bus.client import Bus
from bus.followers import Fact
from bus.ids import digest_id, new_id
from bus.subjects import DEAD, GENERATE, JOB_FINISHED, JOB_PLANNED, JOB_STARTED, PREPARE, RESULT
from schemas.jobs import Finished, JobView, ListJobs
from schemas.settings import MigratorSettings
from tests.conftest import running
from tests.http.serving import request, say_planned, say_released, say_started, succeed
from tests.plans import plan


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "catalog.db"


def migrating(bus: Bus, path: Path, **settings: Any) -> functools.partial[Any]:
    return functools.partial(migrator.run, bus, path, settings=MigratorSettings(**settings))


async def listed(bus: Bus, is_so: Callable[[list[JobView]], bool], **asked: Any) -> list[JobView]:
    """The jobs, once something is so of them."""
    with anyio.fail_after(20):
        while True:
            found = [*(await jobs(bus, 100, **asked))[0]]
            if is_so(found):
                return found


async def until(is_so: Callable[[], bool]) -> None:
    with anyio.fail_after(20):
        while not is_so():
            await anyio.lowlevel.checkpoint()


def have_ended(count: int) -> Callable[[list[JobView]], bool]:
    return lambda found: sum(view.ended for view in found) == count


def statuses(found: list[JobView]) -> list[tuple[str, str]]:
    return [(view.id, view.status) for view in found]


async def rows_in_history(bus: Bus, path: Path, count: int) -> list[str]:
    """What the history tells of jobs, once it tells so much: put or drop for each that was written down or dropped."""
    with anyio.fail_after(20):
        while True:
            told = [
                change.op
                async for facts in transactions(bus)
                for fact in facts
                for change in history.changes_of(fact, path.parent / "history")
                if change.table == "jobs"
            ]
            if len(told) >= count:
                return told


async def test_a_job_is_listed_as_its_streams_show_it_from_the_queue_to_its_end_and_written_down_once(
    bus: Bus, path: Path
):
    id = new_id()
    async with running(migrating(bus, path)):
        await bus.publish(PREPARE, request("a fox"), lane="low", tenant="t1", id=id)
        for act in (None, say_planned, say_started, say_released, say_started):
            if act:
                await act(bus, id)
            wanted = await state(bus, id)
            assert wanted is not None
            [found] = await listed(bus, lambda views, wanted=wanted: [one.status for one in views] == [wanted.status])
            if wanted.plan:
                assert (found.plan, found.started_at, found.attempts) == (
                    wanted.plan,
                    wanted.started_at,
                    wanted.attempts,
                )
            else:
                assert found.request == request("a fox")
        await bus.js.purge_stream("PREPARE")
        await succeed(bus, id)
        [found] = await listed(bus, have_ended(1))
        assert found == await state(bus, id) and found.result is not None and len(found.result.images) == 1
        assert await rows_in_history(bus, path, 1) == ["put"]


async def test_jobs_that_ended_before_there_was_a_list_are_in_it_and_a_repeated_fact_changes_nothing(
    bus: Bus, path: Path
):
    ids = [new_id(1_700_000_000 + n) for n in range(40)]
    for id in ids:
        await say_planned(bus, id)
        await say_started(bus, id)
        await succeed(bus, id)
    wanted = [await state(bus, id) for id in reversed(ids)]
    async with running(migrating(bus, path, jobs_days=0)):
        assert await listed(bus, have_ended(40)) == wanted
        last = await bus.last(JOB_FINISHED, id=ids[3])
        assert last is not None
        await bus.publish(JOB_FINISHED, last.payload, id=ids[3])
        late = new_id()
        await succeed(bus, late)
        assert len(await listed(bus, have_ended(41))) == 41
        assert await rows_in_history(bus, path, 41) == ["put"] * 41


async def test_jobs_that_end_while_no_migrator_runs_are_written_down_by_the_next(bus: Bus, path: Path):
    first, second = new_id(1_790_000_000), new_id(1_790_000_001)
    async with running(migrating(bus, path)):
        await succeed(bus, first)
        await listed(bus, have_ended(1))
    await say_planned(bus, second)
    await results.end(bus, second, "failed", "exhausted", "given up after 3 attempts")
    async with running(migrating(bus, path)):
        found = await listed(bus, have_ended(2))
        assert statuses(found) == [(second, "failed"), (first, "succeeded")]
        assert found[0].result is not None and found[0].result.reason == "exhausted" and found[0].plan is not None


async def test_a_catalog_that_was_deleted_has_its_jobs_again_also_those_the_streams_have_forgotten(
    bus: Bus, path: Path
):
    async with running(migrating(bus, path)):
        for _ in range(3):
            id = new_id()
            await say_planned(bus, id)
            await succeed(bus, id)
        before = await listed(bus, have_ended(3))
        await rows_in_history(bus, path, 3)
    for file in path.parent.glob("catalog.db*"):
        file.unlink()
    for stream in ("EVENTS", "RESULTS"):
        await bus.js.purge_stream(stream)
    async with running(migrating(bus, path)):
        assert await listed(bus, have_ended(3)) == before
        await succeed(bus, new_id())
        assert (await listed(bus, have_ended(4)))[1:] == before
        assert await rows_in_history(bus, path, 4) == ["put"] * 4


async def test_a_job_that_ended_unplanned_keeps_what_was_asked_for(bus: Bus, path: Path):
    heard, queued, unread = (new_id() for _ in range(3))
    await bus.publish(PREPARE, request("cancelled in the queue"), lane="low", tenant="t1", id=queued)
    await bus.publish_raw(PREPARE(lane="low", tenant="t1", id=unread), b"\xff not json")
    async with running(migrating(bus, path)):
        await bus.publish(PREPARE, request("too large"), lane="low", tenant="t1", id=heard)
        await listed(bus, lambda views: len(views) == 3)
        await bus.js.purge_stream("PREPARE")
        await results.end(bus, heard, "rejected", "bad-size", "no")
        await results.cancel(bus, queued)
        await results.end(bus, unread, "rejected", "undecodable", "no")
        found = {view.id: view for view in await listed(bus, have_ended(3))}
        assert found[heard].request == request("too large") and found[heard].status == "rejected"
        assert found[queued].request == request("cancelled in the queue") and found[queued].status == "cancelled"
        assert found[unread].request is None
        assert [view.id for view in await listed(bus, bool, text="queue cancelled")] == [queued]


async def test_what_the_streams_have_forgotten_or_nobody_can_read_is_left_out_of_a_row(bus: Bus, path: Path):
    bare, no_plan, bad_plan, bad_result = (new_id(1_760_000_000 + n) for n in range(4))
    await bus.publish(JOB_FINISHED, Finished(id=bare, status="failed", at=7.0), id=bare)
    await succeed(bus, no_plan)
    await bus.publish_raw(JOB_PLANNED(id=bad_plan), b"junk", first=True)
    await succeed(bus, bad_plan)
    await bus.publish_raw(RESULT(id=bad_result), b"junk")
    assert await results.ended(bus, bad_result)
    async with running(migrating(bus, path, jobs_days=0)):
        found = {view.id: view for view in await listed(bus, have_ended(4))}
    assert (found[bare].status, found[bare].result, found[bare].ended_at) == ("failed", None, 7.0)
    assert found[no_plan].plan is None and found[no_plan].status == "succeeded"
    assert found[bad_plan].plan is None and found[bad_plan].status == "succeeded"
    assert found[bad_result].status == "failed" and found[bad_result].result is not None
    assert found[bad_result].result.reason == "undecodable-result"


async def test_a_start_that_nobody_can_read_neither_stops_the_list_nor_the_rows_after_it(bus: Bus, path: Path):
    ended, drawing, later = (new_id(1_790_000_000 + n) for n in range(3))
    for id in (ended, drawing):
        await say_planned(bus, id)
        await bus.publish_raw(JOB_STARTED(id=id), b"junk")
    await bus.publish(GENERATE, plan(drawing), lane="low", model="a" * 12, id=drawing)
    await succeed(bus, ended)
    await succeed(bus, later)
    async with running(migrating(bus, path, jobs_days=0)):
        found = await listed(bus, have_ended(2))
        assert statuses(found) == [(later, "succeeded"), (drawing, "running"), (ended, "succeeded")]
        assert found[1].started_at is None and found[1].attempts == 1


async def test_a_fact_that_no_row_can_hold_is_a_dead_letter_and_the_others_go_on(bus: Bus, path: Path):
    good, other = new_id(), new_id()
    await succeed(bus, good)
    await bus.publish(JOB_FINISHED, Finished(id="../../etc", status="failed", at=1.0), id=new_id())
    await succeed(bus, other)
    async with running(migrating(bus, path)):
        assert {view.id for view in await listed(bus, have_ended(2))} == {good, other}
        assert await bus.last(DEAD, kind="fact", reason="impossible") is not None


async def test_a_migrator_that_starts_knows_what_is_under_way(bus: Bus, path: Path):
    queued, waiting, drawing = (new_id(1_790_000_000 + n) for n in range(3))
    for id in (queued, waiting, drawing):
        await bus.publish(PREPARE, request(f"prompt of {id}"), lane="low", tenant="t1", id=id)
    for id in (waiting, drawing):
        await say_planned(bus, id)
        await bus.publish(GENERATE, plan(id), lane="low", model="a" * 12, id=id)
    await say_started(bus, drawing)
    await bus.js.purge_stream("PREPARE", subject=PREPARE(lane="low", tenant="t1", id=drawing))
    async with running(migrating(bus, path)):
        found, _ = await jobs(bus, 100)
        assert statuses([*found]) == [(drawing, "running"), (waiting, "planned"), (queued, "queued")]
        assert found[2].request == request(f"prompt of {queued}") and found[0].attempts == 1
        only, _ = await jobs(bus, 100, status="planned")
        assert [view.id for view in only] == [waiting]
        only, _ = await jobs(bus, 100, text=f"prompt {queued}")
        assert [view.id for view in only] == [queued]


async def test_a_job_whose_facts_were_missed_is_written_down_as_its_streams_show_it(bus: Bus, path: Path):
    missed, followed = new_id(), new_id()
    async with Database.open(path, clock=bus.clock, begin=True) as db:
        records = JobRecords(bus, db, 0)
        async with running(records.unfinished.keep):
            await say_planned(bus, missed)
            await say_planned(bus, followed)
            await until(lambda: {missed, followed} <= records.unfinished.followed)
        await say_started(bus, missed)  # nobody listens, as while a connection is lost
        async with running(records.unfinished.keep):
            await succeed(bus, missed)
            last = await bus.last(JOB_FINISHED, id=missed)
            assert last is not None
            await records.write_down([Fact(JOB_FINISHED, last.payload, last.seq)])
        [found] = (await list_jobs(db, ListJobs(), {})).jobs
        assert found == await state(bus, missed) and found.attempts == 1 and found.started_at is not None


async def test_a_job_that_is_planned_while_the_list_is_made_anew_stays_in_it(
    bus: Bus, path: Path, monkeypatch: pytest.MonkeyPatch
):
    id, listing, go_on = new_id(), anyio.Event(), anyio.Event()
    waiting = bus.waiting

    async def slowly(stream: str, pattern: str) -> dict[str, int]:
        found = await waiting(stream, pattern)
        if stream == "ENCODE":
            listing.set()
            await go_on.wait()
        return found

    unfinished = UnfinishedJobs(bus)
    async with running(unfinished.keep):
        monkeypatch.setattr(bus, "waiting", slowly)
        for call in tuple(bus.on_reconnect):
            call()
        await listing.wait()
        await say_planned(bus, id)
        await until(lambda: unfinished.of(id) is not None)
        monkeypatch.undo()
        go_on.set()
        await say_started(bus, id)
        await until(lambda: (view := unfinished.of(id)) is not None and view.status == "running")
    assert (view := unfinished.of(id)) is not None and (view.id, view.attempts) == (id, 1)


async def test_a_job_that_was_planned_but_in_no_queue_yet_when_the_list_was_made_is_in_it_once_it_starts(
    bus: Bus, path: Path
):
    id = new_id(1_790_000_000)
    await bus.publish(PREPARE, request(), lane="low", tenant="t1", id=id)
    await say_planned(bus, id)  # and then the queue GENERATE was full
    async with running(migrating(bus, path)):
        await listed(bus, lambda views: statuses(views) == [(id, "queued")])
        await bus.publish(GENERATE, plan(id), lane="low", model="a" * 12, id=id)
        await bus.js.purge_stream("PREPARE")
        await say_started(bus, id)
        [found] = await listed(bus, lambda views: statuses(views) == [(id, "running")])
        assert found == await state(bus, id)


async def test_words_are_looked_for_among_more_queued_jobs_than_one_page_holds(bus: Bus, path: Path):
    ids = [new_id(1_790_000_000 + n) for n in range(12)]
    for n, id in enumerate(ids):
        await bus.publish(PREPARE, request(f"number{n:02}"), lane="low", tenant="t1", id=id)
    async with running(migrating(bus, path)):
        found, _ = await jobs(bus, 5, text="number00")
        assert [view.id for view in found] == [ids[0]]


async def test_ids_without_a_time_are_the_newest_while_they_wait_and_count_from_their_plan_then(bus: Bus, path: Path):
    undated, dated = digest_id("undated"), new_id(1_790_000_000)
    await bus.publish(PREPARE, request(), lane="low", tenant="t1", id=undated)
    async with running(migrating(bus, path)):
        await bus.publish(PREPARE, request(), lane="low", tenant="t1", id=dated)
        found = await listed(bus, lambda views: len(views) == 2)
        assert [view.id for view in found] == [undated, dated]
        first, cursor = await jobs(bus, 1)
        rest, end = await jobs(bus, 1, before=cursor)
        assert [view.id for view in (*first, *rest)] == [undated, dated] and end == ""
        await say_planned(bus, undated)  # planned in 2027
        await succeed(bus, undated)
        await bus.js.purge_stream("PREPARE")
        [found_again] = await listed(bus, have_ended(1))
        assert found_again.created_at == plan(undated).created_at


async def test_old_jobs_are_dropped_not_written_down_again_and_a_new_catalog_has_none_of_them(bus: Bus, path: Path):
    old, new = new_id(1_700_000_000), new_id()
    await bus.publish(RESULT, results.Result(id=old, status="failed", ended_at=1_700_000_001.0), id=old)
    assert await results.ended(bus, old)
    async with running(migrating(bus, path, jobs_days=0)):
        await listed(bus, have_ended(1))
    async with running(migrating(bus, path, jobs_days=30)):
        await succeed(bus, new)
        assert [view.id for view in await listed(bus, lambda views: [view.id for view in views] == [new])] == [new]
        assert sorted(await rows_in_history(bus, path, 3)) == ["drop", "put", "put"]
    for file in path.parent.glob("catalog.db*"):
        file.unlink()
    async with running(migrating(bus, path, jobs_days=30)):
        assert [view.id for view in await listed(bus, have_ended(1))] == [new]
    await bus.js.delete_consumer("EVENTS", "migrator-jobs")  # it reads all facts again
    async with running(migrating(bus, path, jobs_days=30)):
        late = new_id()
        await succeed(bus, late)
        assert [view.id for view in await listed(bus, have_ended(2))] == [late, new]
        assert sorted(await rows_in_history(bus, path, 4)) == ["drop", "put", "put", "put"]
