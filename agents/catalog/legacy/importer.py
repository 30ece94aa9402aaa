"""Importing: a legacy catalog taken over, once and completely, batch by batch.

Each batch is one transaction, which also moves the import's cursor and report: killed anywhere and run again, it goes
on after the last batch, and ends in the same catalog. Rows are known by what is natural to them (names of tags,
contents of models, paths of what is not hashed), so that importing the same thing again adds nothing.
"""

import shutil
import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import msgspec
from anyio import to_thread

from agents.catalog.database import Database, Statements
from agents.catalog.descriptions import add_picture
from agents.catalog.legacy import rows as legacy_rows
from agents.catalog.legacy.pictures import Copied, PictureCopier, Unusable, sweep_pending
from agents.catalog.legacy.plan import (
    DISPLACED,
    PORTION,
    Batch,
    ImportPlan,
    Met,
    MetPending,
    fail_strays,
    plan_batch,
    to_json,
)
from agents.catalog.legacy.report import ImportTally
from agents.catalog.legacy.rows import LegacyModel, LegacyTag
from agents.catalog.legacy.source import Legacy, opened
from agents.catalog.legacy.state import Cursor, cursor_of, import_state, put_state, write_state
from agents.catalog.legacy.tags import take_tags
from agents.catalog.outbox import publish
from agents.storage.layout import BLOBS, PENDING, DataDir
from agents.storage.roots import RootIndex
from schemas.imports import Import, ImportReport
from schemas.models import PendingAdded

BATCH = 4000
"""Models, or tags, in one transaction at most."""

BATCH_IMAGES = 64
"""Pictures of one batch, about: their models come in smaller batches, so that a kill costs little."""

PARALLEL = 2
"""Pictures looked at side by side."""


async def import_legacy(db: Database, job: Import, data: Path, roots: Mapping[str, str]) -> ImportReport:
    """Take over the legacy catalog that `job` names into `db`, whose files lie below `data`; or go on with that. A job
    that is done already answers its report again. `roots` are the configured folders by name.

    Raises LegacyUnusable for a catalog or a folder of pictures that can't be read, sqlite3.Error when the catalog can't
    be written, and OSError when the data directory can't. None of them ends the import: see `end_import`.
    """
    folder = DataDir(data).work / f"import-{job.id}"
    await to_thread.run_sync(partial(shutil.rmtree, folder, ignore_errors=True))  # of a run that was killed
    state = await import_state(db, job.id)
    if state.state == "done":
        return state.report
    began_at = db.clock.now() if state.began_at is None else state.began_at
    try:
        if not job.dry_run:
            return await _run(db, job, data, roots, folder, began_at)
        async with _copied(db, folder.with_name(f"{folder.name}-dry")) as copy:
            report = await _run(copy, job, data, roots, folder, began_at)
        await put_state(db, job, "done", Cursor(phase="done"), report, began_at, db.clock.now())
        return report
    except BaseExceptionGroup as group:  # of the threads' errors, the first is enough
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


async def sweep_imports(db: Database, data: Path) -> int:
    """Remove what imports that were killed have left; nothing may be importing meanwhile. The number of things
    removed. Raises OSError, sqlite3.Error."""
    used, begun = await _pending_used(db), await db.begun()

    def remove() -> int:
        folders = list(DataDir(data).work.glob("import-*"))
        for folder in folders:
            shutil.rmtree(folder)
        return len(folders) + sweep_pending(data, used, db.clock.now(), begun)

    return await to_thread.run_sync(remove)


async def _pending_used(db: Database) -> set[str]:
    return {str(file) for (file,) in await db.committed.rows("pending_originals", pending=PENDING)}


@asynccontextmanager
async def _copied(db: Database, folder: Path) -> AsyncIterator[Database]:
    """A copy of the catalog as it is now, to be changed and thrown away."""

    def copy() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        original = f"{db.path.absolute().as_uri()}?mode=ro"
        with (
            closing(sqlite3.connect(original, uri=True)) as one,
            closing(sqlite3.connect(DataDir(folder).catalog)) as two,
        ):
            one.backup(two)

    try:
        await to_thread.run_sync(copy)
        async with Database.open(DataDir(folder).catalog, clock=db.clock) as copied:
            yield copied
    finally:
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))


async def _run(
    db: Database,
    job: Import,
    data: Path,
    roots: Mapping[str, str],
    folder: Path,
    began_at: float,
) -> ImportReport:
    images = Path(job.images) if job.images else None
    source = opened(Path(job.database).absolute(), folder / "source", db.clock)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        with anyio.CancelScope(shield=True):  # or the copy would stay
            legacy = await to_thread.run_sync(stack.enter_context, source)
        copier = await to_thread.run_sync(lambda: PictureCopier(images, data, folder, keep=not job.dry_run))
        run = Run(db, job, legacy, copier, RootIndex(roots), began_at)
        await run.begin()
        if not job.dry_run:
            used, begun = await _pending_used(db), await db.begun()
            await to_thread.run_sync(sweep_pending, data, used, db.clock.now(), begun)
        return await run.all()


class Run:
    """One run of an import, from where the last one stopped to the end."""

    def __init__(
        self,
        db: Database,
        job: Import,
        legacy: Legacy,
        copier: PictureCopier,
        root_index: RootIndex,
        began_at: float,
    ) -> None:
        self.db, self.job, self.legacy, self.copier, self.root_index = db, job, legacy, copier, root_index
        self.began_at = began_at
        self.cursor, self.report = Cursor(of=legacy.fingerprint), ImportReport(dry_run=job.dry_run)
        self.limiter = anyio.CapacityLimiter(PARALLEL)
        # What is parsed and what is planned would take turns with Python's lock, and the loop would wait for both.
        self.planned = anyio.Semaphore(1)
        self.lap = self.db.clock.steady()
        self.tags: dict[int, int] = {}
        self.promoted: set[str] = set()

    async def begin(self) -> None:
        """Take up the cursor, unless the legacy catalog has changed since: then all of it is looked at again."""
        found = await cursor_of(self.db, self.job.id)
        if found is not None and found.of == self.legacy.fingerprint:
            self.cursor, self.report = found, (await import_state(self.db, self.job.id)).report
        self.promoted = {str(path) for (path,) in await self.db.committed.rows("imported_paths")}

    async def all(self) -> ImportReport:
        """Everything that is left."""
        await self._tags()
        await self._models()
        strays = await to_thread.run_sync(self.legacy.stray_links, self.cursor.after)
        tally = ImportTally(self.report)
        fail_strays(strays, tally)
        async with self.db.atomic() as sql:
            await self._reach(sql, "done", self.cursor.after, tally)
        return self.report

    async def _reach(self, sql: Statements, phase: str, after: int | None, tally: ImportTally) -> None:
        """Move the cursor, within the transaction of what it stands for. (What is taken over here, and then not
        committed, ends the run with an error.)"""
        lap = self.db.clock.steady()
        tally.seconds += lap - self.lap
        self.lap, self.report = lap, tally.report()
        self.cursor = Cursor(of=self.legacy.fingerprint, phase=phase, after=after)
        state, ended_at = ("done", self.db.clock.now()) if phase == "done" else ("running", None)
        await write_state(sql, self.job, state, self.cursor, self.report, self.began_at, ended_at)

    async def _tags(self) -> None:
        """All tags, those that are done already for their ids here only."""
        done = self.cursor.after if self.cursor.phase == "tags" else None
        largest = await to_thread.run_sync(self.legacy.largest_tag, DISPLACED)
        after: int | None = None
        names: dict[int, str] = {}
        while rows := await to_thread.run_sync(self._read_tags, after):
            names |= {row.id: row.name for row in rows if row.name}
            after = rows[-1].id
            if self.cursor.phase != "tags" or (done is not None and after <= done):
                continue
            tally = ImportTally(self.report)
            async with self.db.atomic() as sql:
                await take_tags(sql, rows, tally, now=self.began_at, largest=largest)
                await self._reach(sql, "tags", after, tally)
        ids = {str(name): int(id) for name, id in await self.db.committed.rows("every_tag")}
        self.tags = {id: ids[name] for id, name in names.items() if name in ids}

    def _read_tags(self, after: int | None) -> list[LegacyTag]:
        return [legacy_rows.tag_of(raw) for raw in self.legacy.tags(after, BATCH)]

    async def _models(self) -> None:
        """All models that are left; the next batch is read and parsed while one is written."""
        if self.cursor.phase == "tags":
            self.cursor = msgspec.structs.replace(self.cursor, phase="models", after=None)
        ahead, coming = anyio.create_memory_object_stream[Batch](1)
        batches = self._read_models(self.cursor.after)

        async def read() -> None:
            async with ahead:
                await self.planned.acquire()
                while (batch := await to_thread.run_sync(next, batches, None)) is not None:
                    await ahead.send(batch)
                    await self.planned.acquire()

        async with anyio.create_task_group() as tasks, coming:
            tasks.start_soon(read)
            async for batch in coming:
                await self._take(batch)

    def _read_models(self, after: int | None) -> Iterator[Batch]:
        """In a thread. Batches of at most BATCH models, or about BATCH_IMAGES pictures."""
        while models := self._read_batch(after):
            batch = Batch.of(models, self.legacy.links(after, models[-1].id))
            yield batch
            after = batch.last

    def _read_batch(self, after: int | None) -> list[LegacyModel]:
        models: list[LegacyModel] = []
        images = 0
        while len(models) < BATCH and (raws := self.legacy.models(after, min(BATCH, PORTION))):
            for raw in raws:
                row = legacy_rows.model_of(raw)
                if row.path and not row.sha256:
                    row = msgspec.structs.replace(row, place=self.root_index(row.raw_path))
                models.append(row)
                images += len(row.images)
                if images >= BATCH_IMAGES:
                    return models
            after = models[-1].id
        return models

    async def _take(self, batch: Batch) -> None:
        pictures = await self._copy(batch)
        tally = ImportTally(self.report)
        async with self.db.atomic() as sql:
            met = await self._met(sql, batch)
            plan = await to_thread.run_sync(
                lambda: plan_batch(batch, met, self.tags, pictures, tally, now=self.began_at)
            )
            self.planned.release()
            await to_thread.run_sync(self.copier.link, plan.files, self.db.clock.now())
            await self._write(sql, plan, tally)
            await self._reach(sql, "models", batch.last, tally)

    async def _copy(self, batch: Batch) -> dict[int, list[Copied | Unusable]]:
        """Copy the pictures that the rows of a batch name."""
        if not batch.images:
            return {}
        took: dict[int, list[Copied | Unusable]] = {
            row.id: [Unusable("", "")] * len(row.images) for row in batch.models
        }

        async def take(row: LegacyModel, n: int, name: str) -> None:
            took[row.id][n] = await to_thread.run_sync(
                lambda: self.copier.copy(name, hashed=bool(row.sha256)), limiter=self.limiter
            )

        async with anyio.create_task_group() as tasks:
            for row in batch.models:
                for n, name in enumerate(row.images if row.sha256 or row.path else ()):
                    tasks.start_soon(take, row, n, name)
        return took

    async def _met(self, sql: Statements, batch: Batch) -> Met:
        models = await sql.rows("models_met", sha256s=batch.sha256s)
        records = await sql.rows("pending_met", paths=batch.paths)
        taken = await sql.rows("pending_ids_met", ids=batch.ids)
        [(largest,)] = await sql.rows("largest_pending")
        files = await sql.rows("pending_originals", pending=PENDING) if batch.images else []
        return await to_thread.run_sync(
            lambda: Met(
                models={str(sha256): str(details) for sha256, details in models},
                pending={str(row[1]): _record(*row) for row in records},
                taken={int(id) for (id,) in taken},
                next_id=max(DISPLACED, int(largest) + 1),
                files={str(file) for (file,) in files},
                promoted=self.promoted,
            )
        )

    async def _write(self, sql: Statements, plan: ImportPlan, tally: ImportTally) -> None:
        models = await to_thread.run_sync(to_json, plan.models)
        await sql.rows("import_models", rows=models)
        descriptions = await to_thread.run_sync(to_json, [*plan.descriptions.values()])
        await sql.rows("import_descriptions", rows=descriptions)
        pending = await to_thread.run_sync(to_json, plan.pending)
        await sql.rows("import_pending", rows=pending)
        await sql.many("fill_pending", plan.fill_pending)
        await sql.many("add_pending_image", plan.add_pending_image)
        await self._write_links(sql, "model_tags", "link_models", plan.link_models, tally)
        await self._write_links(sql, "pending_model_tags", "link_pending", plan.link_pending, tally)
        for sha256, source in plan.pictures:
            new = await add_picture(sql, sha256, source, f"{BLOBS}/{source}", "import", self.began_at)
            tally.count("images", "inserted" if new else "skipped")
        if plan.pending:
            ids = [row["id"] for row in plan.pending]
            fact = PendingAdded(
                source=self.job.database, count=len(ids), first_id=min(ids), last_id=max(ids), at=self.db.clock.now()
            )
            await publish(sql, fact, f"{self.job.id}.{ids[0]}")

    async def _write_links(
        self, sql: Statements, table: str, statement: str, links: list[Any], tally: ImportTally
    ) -> None:
        if not links:
            return
        text = await to_thread.run_sync(to_json, links)
        if statement == "link_models":
            await sql.rows("link_models", links=text)
        else:
            await sql.rows("link_pending", links=text)
        [(new,)] = await sql.rows("changed_rows")
        tally.count(table, "inserted", int(new))
        tally.count(table, "skipped", len(links) - int(new))


def _record(
    id: int, path: str, state: str, details: str, size: int | None, root: str | None, pictures: str
) -> MetPending:
    kept: list[tuple[int, str]] = msgspec.json.decode(pictures, type=list[tuple[int, str]])
    return MetPending(
        id=id,
        state=state,
        details=details,
        size=size,
        root=root,
        sources={source for _, source in kept},
        next_n=max((n for n, _ in kept), default=-1) + 1,
    )
