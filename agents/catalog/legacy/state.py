"""How far each import is: one row of the catalog's table of imports, from the first batch to the end."""

import msgspec

from agents.catalog.database import Database, Statements
from schemas.imports import Import, ImportReport, ImportState


class Cursor(msgspec.Struct, frozen=True):
    """How far an import is: `after` is the last id that is done in this phase, `of` the state of the legacy catalog."""

    of: str = ""
    phase: str = "tags"
    after: int | None = None


_report = msgspec.json.Decoder(ImportReport)
_cursor = msgspec.json.Decoder(Cursor)


async def import_state(db: Database, id: str) -> ImportState:
    """How far an import is. Raises sqlite3.Error."""
    for source, state, _, report, began_at, ended_at in await db.committed.rows("import_state", id=id):
        return ImportState(
            id=id, state=state, source=source, report=_report.decode(report), began_at=began_at, ended_at=ended_at
        )
    return ImportState(id=id, state="unknown")


async def end_import(db: Database, job: Import, error: str) -> None:
    """An import can't go on, and failed: `error` is the reason. What it did stays. Raises sqlite3.Error."""
    known = await import_state(db, job.id)
    if known.state in ("unknown", "running"):
        report = msgspec.structs.replace(known.report, dry_run=job.dry_run, error=error)
        began_at = db.clock.now() if known.began_at is None else known.began_at
        await put_state(db, job, "failed", Cursor(phase="done"), report, began_at, db.clock.now())


async def cursor_of(db: Database, id: str) -> Cursor | None:
    """Where an import goes on; None when it was never begun. Raises sqlite3.Error."""
    for _, _, cursor, _, _, _ in await db.committed.rows("import_state", id=id):
        return _cursor.decode(cursor)
    return None


async def put_state(
    db: Database, job: Import, state: str, cursor: Cursor, report: ImportReport, began_at: float, ended_at: float
) -> None:
    """Write it down, in a transaction of its own. Raises sqlite3.Error."""
    async with db.atomic() as sql:
        await write_state(sql, job, state, cursor, report, began_at, ended_at)


async def write_state(
    sql: Statements,
    job: Import,
    state: str,
    cursor: Cursor,
    report: ImportReport,
    began_at: float,
    ended_at: float | None,
) -> None:
    """Write it down, within a transaction. Raises sqlite3.Error."""
    await sql.rows(
        "put_import",
        id=job.id,
        source=job.database,
        state=state,
        cursor=msgspec.json.encode(cursor).decode(),
        report=msgspec.json.encode(report).decode(),
        began_at=began_at,
        ended_at=ended_at,
    )
