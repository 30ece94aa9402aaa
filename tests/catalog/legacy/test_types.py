"""Legacy rows whose columns hold other types than they should: each is taken for what it means, or a reason is told."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from agents.catalog.database import Database
from agents.catalog.errors import LegacyUnusable
from agents.catalog.legacy import plan
from agents.catalog.legacy import tags as import_tags
from agents.catalog.legacy.importer import BATCH
from agents.catalog.legacy.rows import BAD_ID, BAD_SIZE, BAD_TIME, model_of, tag_of
from agents.catalog.legacy.source import ODD, RawModel, RawTag, opened
from bus.clock import Clock
from schemas.imports import ImportReport
from tests.catalog.legacy.test_importer import Take, counts, images, table, take
from tests.catalog.legacy_making import LENIENT, SCHEMA, WHEN, make, model, sha

__all__ = ["images", "take"]

DESCENDING = LENIENT.replace("id INTEGER PRIMARY KEY AUTOINCREMENT", "id INTEGER PRIMARY KEY DESC").replace(
    "tags (id INTEGER PRIMARY KEY,", "tags (id INTEGER PRIMARY KEY DESC,"
)
"""A key that is no number of rows: SQLite takes anything at all for it, NULL too."""
UNTYPED = """
CREATE TABLE models (id INTEGER PRIMARY KEY, path, name, type, size_bytes, hash_hex, created_at, meta_json, extra_json);
CREATE TABLE tags (id INTEGER PRIMARY KEY, name, color, created_at);
CREATE TABLE model_tags (model_id, tag_id);
CREATE TABLE schema_version (version);
INSERT INTO schema_version VALUES (2);
"""
VALUES = (None, "", "text", b"\xff\x00blob", 0, -1, 1, 2**63 - 1, -(2**63), 1.5, -0.0, 1e300, float("inf"), "12",
          "null", "nul\0byte", "1e999", "[1, 2]", '{"a": 1e400}', "2024-02-30", "9" * 5000)  # fmt: skip
COLUMNS = ("path", "name", "type", "size_bytes", "hash_hex", "created_at", "meta_json", "extra_json")


def reasons(report: ImportReport, why: str) -> list[tuple[str, int | None, str]]:
    return [(one.table, one.id, one.detail) for one in report.reasons if one.why == why]


async def test_rows_whose_ids_are_text_or_null_are_taken_with_a_reason_and_their_links(
    db: Database, take: Take, tmp_path: Path
):
    rows = [
        model(1, "/old/a.safetensors", sha(1)),
        model("abc", "/old/b.safetensors", sha(2)),
        model(None, "/old/c.safetensors", sha(3)),
        model(None, "/old/d.safetensors", ""),
        model(1.5, "/old/e.safetensors", ""),
        model(2**62 + 5, "/old/f.safetensors", ""),
    ]
    tags = [(1, "one"), ("t", "two"), (None, "three"), (b"\x01", "four")]
    links = [(1, 1), ("abc", "t"), (1.5, b"\x01"), (None, 1), ("abc", "no"), (1, "t"), ("nobody", 1)]
    report = await take(make(tmp_path / "legacy.db", rows, tags, links, schema=DESCENDING))
    assert counts(report, "models") == counts(report, "pending_import") == (3, 3, 0, 0, 0)
    assert counts(report, "tags") == (4, 4, 0, 0, 0)
    assert sorted(reasons(report, BAD_ID)) == [
        ("models", None, "NULL"),
        ("models", None, "abc (text)"),
        ("pending_import", None, "1.5 (real)"),
        ("pending_import", None, f"{2**62 + 5} (integer)"),
        ("pending_import", None, "NULL"),
        ("tags", None, "\x01 (blob)"),
        ("tags", None, "NULL"),
        ("tags", None, "t (text)"),
    ]
    assert reasons(report, plan.ID_TAKEN) == reasons(report, import_tags.ID_TAKEN) == []
    named = dict(await table(db, "tags", "id, name"))
    assert sorted(named.values()) == ["four", "one", "three", "two"] and max(named) < 10
    linked = {(sha256, named[id]) for sha256, id in await table(db, "model_tags", "sha256, tag_id")}
    assert linked == {(sha(1), "one"), (sha(1), "two"), (sha(2), "two")}
    pending = await table(db, "pending_import", "path, legacy_id")
    assert pending == [(f"/old/{name}.safetensors", None) for name in "def"]
    assert counts(report, "model_tags")[1:] == (3, 0, 0, 3) and counts(report, "pending_model_tags")[1] == 1
    assert all(one.id is None or one.id < ODD for one in report.reasons)
    again = await take(tmp_path / "legacy.db")
    assert counts(again, "models") == counts(again, "pending_import") == (3, 0, 0, 3, 0)


def test_pages_of_rows_with_and_without_numbers_meet(tmp_path: Path):
    ids: list[Any] = [3, "b", None, 1, None, 2.5, "a", 2**62]
    path = make(tmp_path / "legacy.db", [model(id, f"/{n}") for n, id in enumerate(ids)], schema=DESCENDING)
    for limit in (1, 2, 3, len(ids), BATCH):
        with opened(path, tmp_path / "work", Clock()) as found:
            seen, after = list[RawModel](), None
            while page := found.models(after, limit):
                assert len(page) <= limit
                seen, after = [*seen, *page], page[-1].id
        assert [one.id for one in seen] == [1, 3, *range(ODD, ODD + 6)]
        assert sorted(one.path for one in seen) == [b"/%d" % n for n in range(len(ids))]
        assert [bool(one.odd_id) for one in seen] == [False] * 2 + [True] * 6


async def test_links_written_as_text_lead_to_the_rows_that_they_mean(db: Database, take: Take, tmp_path: Path):
    rows = [model(n, f"/old/{n}.ckpt", sha(n)) for n in (1, 2, 12)]
    links = [("1", "7"), (" 2 ", 7.0), (12.0, "07"), ("2x", 7), (None, None), (b"\xff", 7), (2, b"\xff"), (1.5, 7)]
    report = await take(make(tmp_path / "legacy.db", rows, [(7, "seven")], links, schema=UNTYPED))
    assert {sha256 for sha256, *_ in await table(db, "model_tags")} == {sha(1), sha(2), sha(12)}
    assert counts(report, "model_tags") == (8, 3, 0, 0, 5)


async def test_any_value_in_any_column_is_taken_or_told_of(db: Database, take: Take, tmp_path: Path):
    ids = itertools.count(1)
    rows = [
        {**model(id := next(ids), f"/old/{id}.safetensors", sha(id)), column: value}
        for column in COLUMNS
        for value in VALUES
    ]
    tags = [(next(ids), value, None, None) for value in VALUES]
    tags += [(next(ids), f"tag {n}", value, value) for n, value in enumerate(VALUES)]
    report = await take(make(tmp_path / "legacy.db", rows, tags, schema=UNTYPED))
    taken = counts(report, "models"), counts(report, "pending_import")
    assert report.error == "" and sum(one[0] for one in taken) == len(rows) and taken[0][4] == 0
    assert counts(report, "tags")[0] == len(tags)


def raw_model(**columns: Any) -> RawModel:
    plain: dict[str, Any] = dict.fromkeys(RawModel._fields)
    return RawModel(**{**plain, "id": 1, "path": b"/a.ckpt", "type": b"", "too_large": 0, "odd_id": "", **columns})


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        *((WHEN, WHEN / 1000), (float(WHEN), WHEN / 1000), (str(WHEN).encode(), WHEN / 1000), (b" 1000.0 ", 1.0)),
        *((b"2023-11-14 22:13:20", 1_700_000_000), (b"2023-11-14T23:13:20+01:00", 1_700_000_000)),
        *((b"2023-11-14T22:13:20Z", 1_700_000_000), (b"2023-11-14", 1_699_920_000)),
    ],
)
def test_a_time_is_taken_however_it_is_written(written: Any, seconds: float):
    assert tag_of(RawTag(1, b"a", None, written)).created_at == seconds
    assert model_of(raw_model(created_at=written)).notes == ()


@pytest.mark.parametrize("written", [b"yesterday", b"\xff", 0, -1, float("inf"), b"9999-99-99", b"3024-01-01", b""])
def test_a_time_that_can_not_be_is_told_as_it_is_written(written: Any):
    [(why, detail)] = tag_of(RawTag(1, b"a", None, written)).notes
    assert why == BAD_TIME and not detail.startswith("b'")


def test_a_size_is_taken_however_it_is_written():
    assert [model_of(raw_model(size_bytes=size)).size for size in (5, 5.0, b"5", b"5.0", None)] == [5, 5, 5, 5, None]
    for size in (-1, 1.5, b"large", 2**62, b"\xff", float("inf")):
        found = model_of(raw_model(size_bytes=size))
        assert found.size is None and found.notes[0][0] == BAD_SIZE


@pytest.mark.parametrize("version", ["'2'", "2.0", "' 2 '", "'2.0'", "x'32'", "1), (2", "'1'), ('2'"])
def test_a_schema_version_that_means_2_is_2(tmp_path: Path, version: str):
    path = make(tmp_path / "legacy.db", tags=[(1, "a")], schema=UNTYPED.replace("VALUES (2)", f"VALUES ({version})"))
    with opened(path, tmp_path / "work", Clock()) as found:
        assert [row.id for row in found.tags(None, 10)] == [1]


@pytest.mark.parametrize(
    ("version", "says"),
    [
        *(("'3'", "version 3, not 2: a newer"), ("2), (3", "version 3,"), ("'two'", "version two (text), not 2")),
        *(
            ("NULL", "version NULL, not 2"),
            ("2.5", "version 2.5 (real), not 2"),
            ("1", "version 1, not 2: open it once"),
        ),
    ],
)
def test_another_schema_version_is_told_as_it_is_written(tmp_path: Path, version: str, says: str):
    schema = UNTYPED.replace("VALUES (2)", f"VALUES ({version})")
    path = make(tmp_path / "legacy.db", schema=schema)
    with pytest.raises(LegacyUnusable, match="schema") as caught, opened(path, tmp_path / "work", Clock()):
        pass
    assert says in str(caught.value)


def test_a_catalog_without_a_version_is_refused(tmp_path: Path):
    path = make(tmp_path / "legacy.db", schema=SCHEMA.replace("INSERT INTO schema_version VALUES (2);", ""))
    with pytest.raises(LegacyUnusable, match="version none, not 2"), opened(path, tmp_path / "work", Clock()):
        pass
