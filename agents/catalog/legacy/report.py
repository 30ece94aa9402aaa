"""What an import counts, row by row, as it goes; the report is made of it, and it of the report."""

from collections import Counter
from typing import Literal

from agents.catalog.legacy.source import ODD
from schemas.imports import ImportCounts, ImportReason, ImportReport

REASONS = 200
"""Reasons that a report names; the others are only counted."""

DETAIL_LENGTH = 160
TABLES = ("tags", "models", "pending_import", "model_tags", "pending_model_tags", "images")

Outcome = Literal["inserted", "merged", "skipped", "failed"]


class ImportTally:
    """The counts of one import, going on from a report."""

    def __init__(self, report: ImportReport) -> None:
        self.dry_run = report.dry_run
        self._counts: Counter[tuple[str, str]] = Counter()
        for table, counts in report.tables.items():
            for outcome in ("inserted", "merged", "skipped", "failed"):
                self._counts[table, outcome] = getattr(counts, outcome)
        self.found, self.missing, self.broken = report.images_found, report.images_missing, report.images_broken
        self._reasons = list(report.reasons)
        self._why = Counter(report.reason_counts)
        self.seconds = report.seconds

    def count(self, table: str, outcome: Outcome, rows: int = 1) -> None:
        """So many rows had this outcome."""
        self._counts[table, outcome] += rows

    def note(self, table: str, id: int | None, why: str, detail: str = "") -> None:
        """Note why something happened to a row; one whose id is no number (see `source.ODD`) has none in the report."""
        id = None if id is not None and id >= ODD else id
        self._why[why] += 1
        if len(self._reasons) < REASONS:
            self._reasons.append(ImportReason(table=table, id=id, why=why, detail=detail[:DETAIL_LENGTH]))

    def report(self, *, error: str = "") -> ImportReport:
        """All of it."""
        tables = {}
        for table in TABLES:
            inserted, merged, skipped, failed = (
                self._counts[table, outcome] for outcome in ("inserted", "merged", "skipped", "failed")
            )
            seen = inserted + merged + skipped + failed
            tables[table] = ImportCounts(seen=seen, inserted=inserted, merged=merged, skipped=skipped, failed=failed)
        return ImportReport(
            dry_run=self.dry_run,
            tables=tables,
            images_found=self.found,
            images_missing=self.missing,
            images_broken=self.broken,
            reasons=tuple(self._reasons),
            reason_counts=dict(self._why),
            seconds=round(self.seconds, 3),
            error=error,
        )
