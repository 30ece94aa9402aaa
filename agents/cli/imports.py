"""`darkroom import`: a legacy catalog taken over."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import anyio
import typer

from agents.cli import console
from agents.cli.service import CATALOGUING, running_bus
from agents.client import catalog as client
from schemas.imports import Import, ImportReport, ImportState
from schemas.settings import Settings


async def take_over(
    settings: Settings,
    database: Annotated[Path, typer.Argument(help="The legacy catalog; it is only read.")],
    images: Annotated[Path | None, typer.Option(help="The folder with its pictures.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do it to a copy, and report the same.")] = False,
    as_json: bool = False,
) -> int:
    """Import a legacy catalog; the status is 1 when it, or a row of it, failed."""
    paths = [str(await anyio.Path(path).absolute()) if path else "" for path in (database, images)]
    job = Import(id="", database=paths[0], images=paths[1], dry_run=dry_run)
    async with running_bus(settings, start=(CATALOGUING,)) as bus:
        id = await client.submit_import(bus, job)
        with _status(quiet=as_json) as show:
            state = await client.followed(bus, id, math.inf, show)
    report = state.report
    if as_json:
        console.json(state)
    else:
        _print(report)
    failed = state.state == "failed" or any(tally.failed for tally in report.tables.values())
    return 1 if failed else 0


@contextmanager
def _status(*, quiet: bool) -> Iterator[Callable[[ImportState], None]]:
    """Shows how far an import is, in one line of a terminal; else nothing."""
    if quiet or not sys.stderr.isatty():
        yield lambda state: None
        return
    from rich.console import Console

    with Console(stderr=True).status("waiting for the migrator") as status:

        def show(state: ImportState) -> None:
            if state.state == "running":
                seen = ", ".join(f"{tally.seen:,} {name}" for name, tally in state.report.tables.items())
                status.update(f"importing: {seen or 'reading'}")

        yield show


def _print(report: ImportReport) -> None:
    """An import's report, for people."""
    if report.error:
        console.note(f"darkroom: {report.error}")
    if not report.tables:
        return
    rows = [
        (name, *(f"{count:,}" for count in (one.seen, one.inserted, one.merged, one.skipped, one.failed)))
        for name, one in report.tables.items()
    ]
    console.table(("what", "seen", "inserted", "merged", "skipped", "failed"), rows, nothing="")
    found = f"{report.images_found:,} found, {report.images_missing:,} missing, {report.images_broken:,} broken"
    console.note(f"pictures: {found}; {report.seconds:.1f} s{', a dry run' if report.dry_run else ''}")
    for why, count in report.reason_counts.items():
        console.note(f"{count:,} × {why}")
    for reason in report.reasons:
        where = reason.table if reason.id is None else f"{reason.table} {reason.id}"
        console.note(f"  {where}: {reason.why} {console.printable(reason.detail)}")
