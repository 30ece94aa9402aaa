"""Imports of legacy catalogs: the job, how far it is, and its report."""

from typing import Literal

import msgspec


class Import(msgspec.Struct, frozen=True, kw_only=True):
    """A job for the migrator: take over the legacy catalog `database`, with the pictures in the folder `images` (empty:
    none). Both are paths as the migrator sees them. `dry_run` does everything to a copy, and reports the same."""

    id: str
    database: str
    images: str = ""
    dry_run: bool = False


class ImportCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Rows that an import met; `seen` is the sum of the others. `merged` rows went into what was there already,
    `skipped` ones were there already, just so."""

    seen: int = 0
    inserted: int = 0
    merged: int = 0
    skipped: int = 0
    failed: int = 0


class ImportReason(msgspec.Struct, frozen=True, kw_only=True):
    """Why a row was not simply inserted, or what was changed of it. `id` is the row's in the legacy catalog (for a link
    and a picture, the model's; None where it has none), `why` one of few sentences, `detail` the value it is about."""

    table: str
    id: int | None
    why: str
    detail: str = ""


class ImportReport(msgspec.Struct, frozen=True, kw_only=True):
    """What an import of a legacy catalog found and did, so far or in the end (`error`: why it ended early).

    `tables` by where rows went, or should have gone: tags, models, pending_import, model_tags, pending_model_tags,
    images. Pictures that the rows name were `images_found` (and can be decoded), `images_missing` or `images_broken`;
    what failed besides was refused for its name. `reasons` are the first of those that `reason_counts` counts.
    """

    dry_run: bool = False
    tables: dict[str, ImportCounts] = {}
    images_found: int = 0
    images_missing: int = 0
    images_broken: int = 0
    reasons: tuple[ImportReason, ...] = ()
    reason_counts: dict[str, int] = {}
    seconds: float = 0.0
    error: str = ""


class AskImport(msgspec.Struct, frozen=True, kw_only=True):
    """How far is the import of a legacy catalog with this job id?"""

    id: str


class ImportState(msgspec.Struct, frozen=True, kw_only=True):
    """An import: `unknown` (not begun here, or never asked for), `running`, `done` or `failed`; its report so far."""

    id: str
    state: Literal["unknown", "running", "done", "failed"]
    source: str = ""
    report: ImportReport = ImportReport()
    began_at: float | None = None
    ended_at: float | None = None
