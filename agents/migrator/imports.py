"""Imports: jobs to take over a legacy catalog, worked off one at a time by the migrator, which owns the catalog.

A job is one row of the catalog's table of imports, from its first batch to its end: that is where it goes on after a
kill, what shows that it is over, and what answers ask.catalog.import. One that can't be done ends there as failed, with
a sentence, and is not tried again.
"""

import functools
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import anyio
import anyio.abc
import structlog

from agents.catalog.database import Database
from agents.catalog.legacy.importer import import_legacy, sweep_imports
from agents.catalog.legacy.state import end_import, import_state
from bus.client import Bus
from bus.errors import Retry, Undecodable, UserError
from bus.queues import serve
from bus.subjects import ASK_IMPORT, DEAD, IMPORT
from bus.worker import Delivery, Work, words
from schemas.imports import AskImport, Import, ImportState

log = structlog.get_logger()

NAME = "migrator-imports"
RETRY_SECONDS = 5.0
"""Until an import goes on that found the disk full, or the catalog's file held by another process."""


async def serve_imports(
    bus: Bus,
    db: Database,
    data_dir: Path,
    roots: Mapping[str, str],
    done: Callable[[], Awaitable[object]],
    *,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Work off the queue IMPORT, and answer how far each import is, for ever. `roots` are the configured folders by
    name, `data_dir` holds the catalog; `done` is called after each import. Ready when the first pull is out."""
    imports = Imports(bus, db, data_dir, roots, done)
    removed = await sweep_imports(db, data_dir)
    if removed:
        log.info("leavings of imports removed", count=removed)
    work = Work(IMPORT, imports.take_over, ended=imports.ended, give_up=imports.give_up)
    async with anyio.create_task_group() as tasks:
        await tasks.start(bus.answer, ASK_IMPORT, imports.asked)
        await tasks.start(functools.partial(serve, bus, work, NAME, window=1))
        task_status.started()


class Imports:
    """The imports into one catalog, whose files lie below `data_dir`."""

    def __init__(
        self,
        bus: Bus,
        db: Database,
        data_dir: Path,
        roots: Mapping[str, str],
        done: Callable[[], Awaitable[object]],
    ) -> None:
        self.bus, self.db, self.data_dir, self.roots = bus, db, data_dir, roots
        self.done = done

    async def take_over(self, job: Import, delivery: Delivery) -> None:
        """Do one import, or what is left of it. Raises Retry for what may pass: a full disk, a catalog in use."""
        job = _of(job, delivery)
        try:
            report = await import_legacy(self.db, job, self.data_dir, self.roots)
            await self.done()
        except UserError as error:
            log.warning("import failed", source=job.database, error=str(error))
            await end_import(self.db, job, words(error))
        except OSError as error:
            raise Retry(f"the import can't write to {self.data_dir}: {error.strerror}", delay=RETRY_SECONDS) from error
        except sqlite3.OperationalError as error:
            raise Retry(f"the catalog can't be written now: {error}", delay=RETRY_SECONDS) from error
        else:
            log.info("import done", source=job.database, dry_run=job.dry_run, seconds=report.seconds)

    async def ended(self, delivery: Delivery) -> bool:
        """Is there nothing left to do? Another delivery of an import that is over, for example."""
        return (await import_state(self.db, delivery.id)).state in ("done", "failed")

    async def give_up(self, delivery: Delivery, status: str, reason: str, error: str) -> None:
        """A job that can't be done at all ends as failed; its payload is in the dead letter, if it is one."""
        log.error("import given up", job=delivery.id, reason=reason, error=error)
        job = Import(id=delivery.id, database="")
        letter = await self.bus.raw("DLQ", DEAD(kind="import", reason=reason, id=delivery.id))
        if letter is not None:
            try:
                job = _of(IMPORT.decode(letter.payload), delivery)
            except Undecodable as undecodable:
                error = f"{error} ({undecodable})"
        await end_import(self.db, job, error)

    async def asked(self, ask: AskImport) -> ImportState:
        """How far an import is."""
        return await import_state(self.db, ask.id)


def _of(job: Import, delivery: Delivery) -> Import:
    """The job by the id in its subject, which is the one that counts."""
    return Import(id=delivery.id, database=job.database, images=job.images, dry_run=job.dry_run)
