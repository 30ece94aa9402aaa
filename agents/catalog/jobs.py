"""Jobs that have ended: one row each, written once, found by words, status and page."""

import json
import unicodedata
from collections.abc import Iterable, Mapping
from functools import lru_cache

import msgspec
from anyio import to_thread

from agents.catalog.asks.search import expression
from agents.catalog.database import Database, Row, Statements
from agents.catalog.index_words import is_of_a_word, searchable
from schemas.fitting import ANSWER_BYTES, fitted
from schemas.jobs import UNDER_WAY, JobPage, JobPlace, JobView, ListJobs

AT_ONCE = 1000
"""Jobs in one answer, and rows that are dropped in one transaction, at most."""
_LATEST: JobPlace = (float("inf"), "")

_view = msgspec.json.Decoder(JobView)


async def add_jobs(sql: Statements, jobs: Iterable[tuple[float, JobView]]) -> None:
    """Write down jobs that have ended, each with the time (Unix seconds) of its place in lists. One that is written
    down already stays as it is. Raises sqlite3.Error, IntegrityError among them for an id that is none."""
    rows = [{"id": view.id, "at": at, "view": msgspec.json.encode(view).decode()} for at, view in jobs]
    added = [id for (id,) in await sql.rows("add_jobs", rows=json.dumps(rows))]
    await sql.rows("search_jobs", ids=json.dumps(added))


async def drop_jobs(db: Database, *, before: float) -> int:
    """Drop the jobs that ended before a time (Unix seconds). Returns how many. Raises sqlite3.Error."""
    count = 0
    while True:
        async with db.atomic() as sql:
            dropped = [id for (id,) in await sql.rows("drop_jobs", before=before, limit=AT_ONCE)]
            await sql.rows("unsearch_jobs", ids=json.dumps(dropped))
        count += len(dropped)
        if len(dropped) < AT_ONCE:
            return count


async def known_jobs(db: Database, ids: Iterable[str]) -> set[str]:
    """Which of these jobs are written down? Raises sqlite3.Error."""
    return {str(id) for (id,) in await db.committed.rows("jobs_among", ids=json.dumps([*ids]))}


async def list_jobs(db: Database, ask: ListJobs, under_way: Mapping[JobPlace, JobView]) -> JobPage:
    """A page of the jobs that have ended and of those `under_way`, by their places in lists. Raises Declined
    (bad-query) for too many words."""
    text, limit, place = expression(ask.text), max(1, min(ask.limit, AT_ONCE)), ask.before or _LATEST
    fitting = await to_thread.run_sync(_fitting, under_way, ask, place)
    rows: list[Row] = []
    if ask.status not in UNDER_WAY:
        at, id = place
        rows = await db.committed.rows("jobs_found", text=text, status=ask.status, at=at, id=id, limit=limit + 1)
    ended = await known_jobs(db, [view.id for view in fitting.values()]) if fitting else set()
    unfinished = {at: view for at, view in fitting.items() if view.id not in ended}
    return await to_thread.run_sync(_page, rows, unfinished, limit)


def _page(rows: list[Row], unfinished: dict[JobPlace, JobView], limit: int) -> JobPage:
    found = {(at, id): _view.decode(view) for at, id, view in rows} | unfinished
    places = sorted(found, reverse=True)
    jobs = fitted((found[place] for place in places[:limit]), each=ANSWER_BYTES)
    return JobPage(jobs=jobs, next=places[len(jobs) - 1] if len(jobs) < len(places) else None)


def _fitting(under_way: Mapping[JobPlace, JobView], ask: ListJobs, place: JobPlace) -> dict[JobPlace, JobView]:
    return {at: view for at, view in under_way.items() if at < place and _fits(view, ask)}


def _fits(view: JobView, ask: ListJobs) -> bool:
    """Is a job one of those that are asked for? (The index decides the same for those that have ended.)"""
    if ask.status not in ("", view.status):
        return False
    if not ask.text.strip():
        return True
    wanted, have = _words(ask.text), _words(f"{view.id} {_shown(view)}")
    return bool(wanted) and all(f" {word}" in have for word in wanted.split())


def _shown(view: JobView) -> str:
    """The prompt and the model of a job."""
    if view.plan:
        return f"{view.plan.prompt} {view.plan.model.name} {view.plan.model.sha256}"
    return f"{view.request.prompt} {view.request.model}" if view.request else ""


@lru_cache(maxsize=4096)  # more than the jobs under way: a long prompt takes 25 ms
def _words(text: str) -> str:
    """Every word of a text, each after a space."""
    plain = unicodedata.normalize("NFKD", searchable(text).casefold())
    letters = (char for char in plain if not unicodedata.combining(char))
    words = "".join(char if is_of_a_word(char) else " " for char in letters).split()
    return "".join(f" {word}" for word in words)
