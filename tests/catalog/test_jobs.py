"""Jobs that have ended: written once, found by words, status and page, forgotten by age."""

import sqlite3
from pathlib import Path

import pytest

from agents.catalog.database import Database
from agents.catalog.jobs import AT_ONCE, add_jobs, drop_jobs, list_jobs
from agents.catalog.outbox import outgoing
from bus.jobs import queued
from schemas.jobs import JobPage, JobPlace, JobView, ListJobs, Request, Result, Status
from tests.catalog.conftest import clock
from tests.catalog.sql import execute
from tests.http.serving import picture, plan

DAY = 24 * 3600.0


def id_of(n: int) -> str:
    return f"{n:032x}"


def view(n: int, prompt: str = "a cat", status: Status = "succeeded", *, ended: float = 1.0) -> JobView:
    result = Result(id=id_of(n), status=status, ended_at=ended, images=(picture(id_of(n)),))
    return JobView(id=id_of(n), status=status, plan=plan(id_of(n), prompt), ended_at=ended, attempts=1, result=result)


async def add(db: Database, *jobs: tuple[float, JobView]) -> None:
    async with db.atomic() as sql:
        await add_jobs(sql, jobs)


def ids(page: JobPage) -> list[int]:
    return [int(job.id, 16) for job in page.jobs]


async def test_a_job_that_is_written_down_stays_as_it_is_and_tells_the_history_once(db: Database):
    for prompt in ("first", "second"):
        await add(db, (1.0, view(1, prompt)))
    page = await list_jobs(db, ListJobs(), {})
    assert page == JobPage(jobs=(view(1, "first"),))
    assert [row.kind for row in await outgoing(db)] == ["catalog.changed"]


async def test_words_find_prompts_models_and_ids_with_and_without_an_end(db: Database):
    await add(db, (1.0, view(1, "a red Fox, jumping")), (2.0, view(2, "犬 under a Café lamp")))
    open_ones: dict[JobPlace, JobView] = {
        (3.0, id_of(3)): queued(id_of(3), Request(prompt="a fox on the Café table", model="dream"), 1.0),
        (4.0, id_of(4)): view(4, "犬"),
    }
    for text, wanted in {
        "": [4, 3, 2, 1],
        "  ": [4, 3, 2, 1],
        "fox": [3, 1],
        "FO re": [1],
        "ox": [],
        "cafe": [3, 2],
        "犬": [4, 2],
        "tiny": [4, 2, 1],
        "dream": [3],
        "aaaaaaaaaaaa": [4, 2, 1],
        id_of(1): [1],
        id_of(3): [3],
        id_of(2)[:31]: [4, 3, 2, 1],
        '" OR *': [],
        "!": [],
    }.items():
        assert ids(await list_jobs(db, ListJobs(text=text), open_ones)) == wanted, text


async def test_a_status_is_looked_for_among_all_jobs(db: Database):
    await add(db, (1.0, view(1)), (2.0, view(2, status="failed")), (3.0, view(3, status="failed")))
    waiting = {(9.0, id_of(9)): queued(id_of(9), None, 1.0)}
    assert ids(await list_jobs(db, ListJobs(status="failed"), waiting)) == [3, 2]
    assert ids(await list_jobs(db, ListJobs(status="queued"), waiting)) == [9]
    assert ids(await list_jobs(db, ListJobs(status="running"), waiting)) == []
    assert ids(await list_jobs(db, ListJobs(status="failed", limit=1), waiting)) == [3]


async def test_pages_put_together_are_all_jobs_in_order_whatever_comes_meanwhile(db: Database):
    await add(db, *((float(n // 3), view(n)) for n in range(30)))
    waiting = {(float(n), id_of(n)): queued(id_of(n), None, 1.0) for n in (40, 41)}
    seen: list[int] = []
    page = JobPage(next=(1e15, ""))
    while page.next:
        page = await list_jobs(db, ListJobs(limit=7, before=page.next), waiting)
        assert len(page.jobs) == 7 or page.next is None
        seen += ids(page)
        await add(db, (100.0 + len(seen), view(100 + len(seen))))
    assert seen == [41, 40, *reversed(range(30))]


async def test_a_job_that_ended_meanwhile_is_listed_once_as_ended(db: Database):
    await add(db, (1.0, view(1, status="cancelled")))
    page = await list_jobs(db, ListJobs(), {(1.0, id_of(1)): queued(id_of(1), None, 1.0)})
    assert [job.status for job in page.jobs] == ["cancelled"]
    assert ids(await list_jobs(db, ListJobs(status="queued"), {(1.0, id_of(1)): queued(id_of(1), None, 1.0)})) == []


async def test_long_prompts_come_whole_on_as_many_pages_as_they_need(db: Database):
    await add(db, *((float(n), view(n, f"{n} " + "x" * 40_000)) for n in range(50)))
    first = await list_jobs(db, ListJobs(limit=50), {})
    assert 1 < len(first.jobs) < 50 and first.next == (float(50 - len(first.jobs)), id_of(50 - len(first.jobs)))
    assert all(len(job.plan.prompt) > 40_000 for job in first.jobs if job.plan)
    rest = await list_jobs(db, ListJobs(limit=50, before=first.next), {})
    assert ids(first) + ids(rest) == [*reversed(range(50))][: len(first.jobs) + len(rest.jobs)]


async def test_old_jobs_are_dropped_with_their_words_and_others_stay(db: Database):
    await add(db, *((float(n), view(n, f"old {n}", ended=float(n))) for n in range(AT_ONCE + 5)))
    late = (2.0, view(9999, "old but ended late", ended=5 * DAY))
    await add(db, late, (5 * DAY, view(10_000, "new")))
    assert await drop_jobs(db, before=2 * DAY) == AT_ONCE + 5
    assert await drop_jobs(db, before=2 * DAY) == 0
    assert ids(await list_jobs(db, ListJobs(limit=1000), {})) == [10_000, 9999]
    assert ids(await list_jobs(db, ListJobs(text="old"), {})) == [9999]
    [(count,)] = await execute(db, "SELECT count(*) FROM search_jobs")
    assert count == 2


async def test_what_people_look_for_in_the_file_stands_in_columns(db: Database):
    rejected = Result(id=id_of(1), status="rejected", ended_at=7.0, reason="bad-size", error="too large")
    asked = Request(prompt="a fox", model="dream")
    await add(
        db, (6.0, JobView(id=id_of(1), status="rejected", created_at=6.0, ended_at=7.0, request=asked, result=rejected))
    )
    columns = "id, status, created_at, started_at, ended_at, model, prompt, attempts, reason, error"
    [row] = await execute(db, f"SELECT {columns} FROM jobs")
    assert row == (id_of(1), "rejected", 6.0, None, 7.0, "dream", "a fox", 0, "bad-size", "too large")


async def test_a_row_holds_only_a_job_that_has_ended_and_has_an_id(db: Database):
    for one in (JobView(id=id_of(1), status="running"), JobView(id="x" * 32, status="failed")):
        with pytest.raises(sqlite3.IntegrityError):
            await add(db, (1.0, one))
    assert (await list_jobs(db, ListJobs(), {})).jobs == ()


async def test_the_words_of_jobs_are_indexed_anew_with_the_others(tmp_path: Path):
    async with Database.open(tmp_path / "catalog.db", clock=clock) as db:
        await add(db, (1.0, view(1, "a fox")))
        await db.put_meta("search_version", "0")
    async with Database.open(tmp_path / "catalog.db", clock=clock) as db:
        assert ids(await list_jobs(db, ListJobs(text="fox"), {})) == [1]
        [(count,)] = await execute(db, "SELECT count(*) FROM search_jobs")
        assert count == 1
