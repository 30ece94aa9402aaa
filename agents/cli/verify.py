"""`darkroom verify`: is the disk what the catalog refers to?"""

import sqlite3
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer
from anyio import to_thread

from agents.catalog import verify as verifying
from agents.catalog.verify import CatalogedFile, Checked, VerifyProblem
from agents.cli import console
from agents.ingest.hashing.digests import hash_file
from agents.storage.errors import IngestError
from agents.storage.layout import DataDir
from agents.storage.paths import resolve, stat_of
from bus.errors import UserError
from schemas.settings import Settings

SHOWN = 50
_NOUNS = {"history": "history file"}


async def verify(
    settings: Settings,
    quick: Annotated[bool, typer.Option("--quick", help="Models by their size alone.")] = False,
    as_json: bool = False,
) -> int:
    """Check every file that the catalog refers to (`quick`: models by size alone); the status is 1 when one is not as
    the catalog has it. Raises UserError."""
    data = Path(settings.data_dir)
    catalog = DataDir(data).catalog
    if not await to_thread.run_sync(catalog.is_file):
        raise UserError(f"{catalog} is not there: name the data directory with --data")
    try:
        checked = await to_thread.run_sync(_check, settings, catalog, data, quick)
    except sqlite3.Error as error:
        raise UserError(f"{catalog} can't be read as a catalog ({error}): restore a backup, or rebuild it") from error
    if as_json:
        console.json(checked)
    else:
        _print(checked)
    return 1 if checked.problems else 0


def _check(settings: Settings, catalog: Path, data: Path, quick: bool) -> Checked:
    def models(places: list[CatalogedFile]) -> list[VerifyProblem]:
        with ThreadPoolExecutor(settings.hasher.parallel) as pool:
            found = pool.map(lambda place: _model(settings, place, quick), places)
            return [problem for problem in found if problem is not None]

    return verifying.check(catalog, data, models)


def _model(settings: Settings, place: CatalogedFile, quick: bool) -> VerifyProblem | None:
    folder = settings.roots.get(place.root)
    try:
        path = Path(_text(resolve(folder, place.rel))) if folder is not None else None
        problem = verifying.model_problem(place, settings.roots, (lambda _: place.sha256) if quick else _digest, path)
    except IngestError as error:
        problem = str(error)
    return VerifyProblem(about="model", name=f"{place.root}/{place.rel}", error=problem) if problem else None


def _digest(path: Path) -> str:
    return hash_file(str(path), expected=stat_of(path.stat())).sha256


def _text(path: bytes) -> str:
    return path.decode(sys.getfilesystemencoding(), "surrogateescape")


def _print(checked: Checked) -> None:
    for problem in checked.problems[:SHOWN]:
        console.line(console.printable(f"{problem.about} {problem.name}: {problem.error}"))
    if (more := len(checked.problems) - SHOWN) > 0:
        console.line(f"and {more:,} more (see --json)")
    looked_at = ", ".join(
        console.counted(count, _NOUNS.get(name, name)) for name, count in sorted(checked.counts.items())
    )
    console.line(f"{looked_at}: {console.counted(len(checked.problems), 'problem')}")
