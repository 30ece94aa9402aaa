"""`darkroom verify` and `darkroom rebuild`: is the catalog what the disk and its own history say?"""

import sqlite3
import sys
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import msgspec
from anyio import to_thread

from agents.catalog import verify as verifying
from agents.catalog.database import Database
from agents.catalog.errors import CatalogUnusable
from agents.catalog.position import Stream, judge, standing_of
from agents.catalog.verify import Checked, Place, Problem
from agents.cli.console import counted, printable
from agents.cli.jobs import running_bus, say
from agents.cli.rebuild import rebuild as make_anew
from agents.ingest.hashing.digests import hash_file
from agents.migrator.relay import CatalogOutbox
from agents.migrator.replay import put_in_place, set_aside, stream_of
from agents.runtime.instance import find, locked
from agents.storage.database import owned
from agents.storage.errors import IngestError
from agents.storage.paths import resolve, stat_of
from bus.client import Bus, connect
from bus.errors import UserError
from bus.relay import relay
from bus.server import local_server
from bus.wakeup import Bell
from schemas.settings import Settings

SHOWN = 50
_NOUNS = {"history": "history file"}


async def verify(settings: Settings, quick: bool, as_json: bool) -> int:
    """Check every file that the catalog refers to (`quick`: models by size alone); the status is 1 when one is not as
    it says. Raises UserError."""
    data = Path(settings.data_dir)
    catalog = data / "catalog.db"
    if not await to_thread.run_sync(catalog.is_file):
        raise UserError(f"{catalog} is not there: name the data directory with --data")
    try:
        checked = await to_thread.run_sync(_check, settings, catalog, data, quick)
    except sqlite3.Error as error:
        raise UserError(f"{catalog} can't be read as a catalog ({error}): restore a backup, or rebuild it") from error
    if as_json:
        say(msgspec.json.encode(checked).decode())
    else:
        _show(checked)
    return 1 if checked.problems else 0


def _check(settings: Settings, catalog: Path, data: Path, quick: bool) -> Checked:
    def models(places: list[Place]) -> list[Problem]:
        with ThreadPoolExecutor(settings.hasher.parallel) as pool:
            told = pool.map(lambda place: _model(settings, place, quick), places)
            return [problem for problem in told if problem is not None]

    return verifying.check(catalog, data, models)


def _model(settings: Settings, place: Place, quick: bool) -> Problem | None:
    folder = settings.roots.get(place.root)
    try:
        path = Path(_text(resolve(folder, place.rel))) if folder is not None else None
        problem = verifying.model_problem(place, settings.roots, (lambda _: place.sha256) if quick else _digest, path)
    except IngestError as error:
        problem = str(error)
    return Problem(about="model", name=f"{place.root}/{place.rel}", error=problem) if problem else None


def _digest(path: Path) -> str:
    return hash_file(str(path), expected=stat_of(path.stat())).sha256


def _text(path: bytes) -> str:
    return path.decode(sys.getfilesystemencoding(), "surrogateescape")


def _show(checked: Checked) -> None:
    for problem in checked.problems[:SHOWN]:
        say(printable(f"{problem.about} {problem.name}: {problem.error}"))
    if (more := len(checked.problems) - SHOWN) > 0:
        say(f"and {more:,} more (see --json)")
    looked_at = ", ".join(counted(count, _NOUNS.get(name, name)) for name, count in sorted(checked.counts.items()))
    say(f"{looked_at}: {counted(len(checked.problems), 'problem')}")


@asynccontextmanager
async def _any_bus(settings: Settings) -> AsyncIterator[Bus]:
    """The bus of the running service; where none runs, the data directory's own, for as long as the body runs. Raises
    UserError where there never was one."""
    data = Path(settings.data_dir)
    if settings.nats_url or find(data):
        async with running_bus(settings) as bus:
            yield bus
        return
    if not await to_thread.run_sync((data / "nats").is_dir):
        raise UserError(f"{data} has no history to make a catalog of: name the data directory with --data")
    with locked(data), local_server(data / "nats", port=0, store_bytes=settings.bus.store_bytes) as server:
        async with connect(server.url, settings.bus, name="cli") as bus:
            yield bus


async def rebuild(settings: Settings, output: Path | None, as_json: bool, replace: bool = False) -> int:
    """Make the catalog anew of its history and compare it with the live one; the status is 1 when they differ. With
    `replace`, put it in the live one's place. Raises UserError."""
    live = Path(settings.data_dir) / "catalog.db"
    if replace:
        return await _replace(settings, live, as_json)
    target = output or live.with_name("catalog.rebuilt.db")
    async with _any_bus(settings) as bus:
        try:
            found = await make_anew(bus, live, target)
        except sqlite3.Error as error:
            unreadable = f"{live} can't be read as a catalog ({error})"
            raise UserError(
                f"{unreadable}: `darkroom rebuild --replace` puts one of the history in its place"
            ) from error
    if as_json:
        say(msgspec.json.encode(found).decode())
        return 0 if found.same else 1
    for table in found.tables:
        if not table.same:
            say(
                f"{table.table}: {counted(table.missing, 'row')} missing in the new one, {table.extra:,} only there, "
                f"{table.different:,} different: {', '.join(table.keys)}"
            )
    rows = sum(table.live for table in found.tables)
    verdict = (
        f"{counted(rows, 'row')} compared, {'all the same' if found.same else 'not the same'}"
        if found.tables
        else (f"there is no {live} to compare it with: stop Darkroom and rename it to that to use it")
    )
    say(f"{found.path}: made of {counted(found.transactions, 'transaction')} in {found.seconds:.1f} s; {verdict}")
    return 0 if found.same else 1


async def _replace(settings: Settings, live: Path, as_json: bool) -> int:
    async with _any_bus(settings) as bus:
        with owned(live):
            stream = await stream_of(bus)
            if stream.end is None:
                raise UserError("the bus has no history to make a catalog of: restore a backup of its files")
            await to_thread.run_sync(_refuse_to_lose, live, stream)
            done = await put_in_place(bus, live, stream.end, time.time())
    if as_json:
        say(msgspec.json.encode({"path": str(live), **msgspec.to_builtins(done)}).decode())
    else:
        made = f"made of {done.transactions:,} transactions in {done.seconds:.1f} s"
        say(f"{live}: {made}; the file that was there is in the trash")
    return 0


def _refuse_to_lose(live: Path, stream: Stream) -> None:
    """Raises UserError where the live catalog only has to publish its last changes to be what its history says."""
    try:
        file = standing_of(live)
    except (sqlite3.DatabaseError, CatalogUnusable):
        return  # it is replaced because it can't be used
    if file and file.unsent and file.unsent[-1].id != stream.last and judge(file, stream).verdict == "current":
        raise UserError(
            f"{live} has changes that were not published yet, and its history does not have them: start Darkroom once, "
            "which publishes them, or move the file away"
        )


async def _until_published(db: Database) -> None:
    while True:
        if not (await db.standing()).unsent:
            return
        await anyio.sleep(0.05)


async def new_history(settings: Settings, empty: bool) -> None:
    """Begin a new history with what the catalog holds, or with nothing, and publish its beginning. Raises UserError."""
    live = Path(settings.data_dir) / "catalog.db"
    async with _any_bus(settings) as bus:
        with owned(live):
            if empty:
                await to_thread.run_sync(set_aside, live, time.time())
            elif not await to_thread.run_sync(live.is_file):
                raise UserError(f"{live} is not there: restore it, or begin with nothing (--empty)")
            after = (await stream_of(bus)).last
            opened = Database.open(live, now=time.time, begin=True, after=after)
            async with opened as db, anyio.create_task_group() as tasks:
                tasks.start_soon(relay, bus, CatalogOutbox(bus, db), Bell())
                await _until_published(db)
                tasks.cancel_scope.cancel()
    say(f"{live}: a new history begins{'' if empty else ' with all that it holds'}")
