"""Importing a legacy catalog: nothing lost, nothing twice, nothing erased, whatever it holds, whenever it is killed."""

import contextlib
import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from agents.catalog.database import Database
from agents.catalog.errors import LegacyUnusable
from agents.catalog.facts import apply
from agents.catalog.history import TABLES
from agents.catalog.legacy import importer, pictures, plan, tags
from agents.catalog.legacy.importer import import_legacy, sweep_imports
from agents.catalog.legacy.state import end_import, import_state
from agents.catalog.outbox import outgoing
from agents.catalog.resolve import list_models
from schemas.imports import Import, ImportReport
from schemas.models import Model, PendingAdded
from tests.catalog.conftest import clock
from tests.catalog.facts import hashed
from tests.catalog.facts import sha as sha_of
from tests.catalog.legacy_making import WHEN, fill, make, model, odd, png, said, sha
from tests.catalog.sql import execute
from tests.effort import sample

Take = Callable[..., Awaitable[ImportReport]]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """The legacy catalog's folder of pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    return folder


@pytest.fixture
def take(db: Database, tmp_path: Path, images: Path) -> Take:
    """Imports a legacy catalog; each time is another job."""
    count = 0

    async def take(source: Path, *, roots: dict[str, str] | None = None, **job: Any) -> ImportReport:
        nonlocal count
        count += 1
        job = {"id": f"{count:032x}", "database": str(source), "images": str(images), **job}
        return await import_legacy(db, Import(**job), tmp_path, roots or {})

    return take


async def table(db: Database, name: str, columns: str = "*") -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await execute(db, f"SELECT {columns} FROM {name} ORDER BY 1, 2")]


async def content(db: Database) -> dict[str, list[tuple[Any, ...]]]:
    """Everything the catalog holds."""
    return {name: await table(db, name) for name in TABLES}


def files(data: Path) -> dict[str, str]:
    """Every file of a data directory but the catalog's own and its history, by its digest. (A temporary file is
    nobody's: the encoder's sweep removes it when it is old.)"""
    return {
        str(file.relative_to(data)): hashlib.sha256(file.read_bytes()).hexdigest()
        for folder in ("blobs", "images", "work")
        for file in (data / folder).rglob("*")
        if file.is_file() and file.suffix != ".writing"
    }


def counts(report: ImportReport, name: str) -> tuple[int, int, int, int, int]:
    """Of one table: seen, inserted, merged, skipped, failed."""
    return msgspec.structs.astuple(report.tables[name])  # type: ignore[return-value]


async def only(db: Database) -> Model:
    [found] = await list_models(db, missing=True)
    return found


async def test_hashed_models_are_catalogued_and_others_wait_with_their_legacy_id(
    db: Database, take: Take, tmp_path: Path
):
    rows = [
        model(7, "/old/dream.safetensors", sha(1), name="Dream", extra_json=said("A dream", positive="yes")),
        model(9, "/old/other.ckpt", "", name="Other", type="lora", size_bytes=12, created_at=WHEN + 500),
    ]
    report = await take(make(tmp_path / "legacy.db", rows, [(1, "checkpoint", "#fff"), (2, "lora")], [(7, 1), (9, 2)]))
    found = await only(db)
    assert (found.name, found.sha256, found.missing, found.tags, found.size) == (
        "dream",
        sha(1),
        True,
        ("checkpoint",),
        1000,
    )
    assert found.details.title == "Dream" and found.details.type == "checkpoint" and found.details.positive == "yes"
    assert (found.identity.kind, found.created_at) == ("checkpoint", WHEN / 1000)
    [pending] = await table(
        db, "pending_import", "id, legacy_id, path, root, folded, name, size, origin, state, created_at"
    )
    assert pending == (9, 9, "/old/other.ckpt", None, "other.ckpt", "Other", 12, "import", "waiting", WHEN / 1000 + 0.5)
    assert await table(db, "pending_model_tags") == [(9, 2)]
    assert counts(report, "models") == counts(report, "pending_import") == (1, 1, 0, 0, 0)
    assert counts(report, "tags") == (2, 2, 0, 0, 0)


async def test_a_pending_path_below_a_root_has_its_place_there(db: Database, take: Take, tmp_path: Path):
    root = tmp_path / "models"
    source = make(tmp_path / "legacy.db", [model(1, f"{root}/lora/50%.ckpt"), model(2, "/elsewhere/a.ckpt")])
    await take(source, roots={"main": str(root)})
    assert await table(db, "pending_import", "id, root, rel, folded") == [
        (1, "main", "lora/50%25.ckpt", "50%.ckpt"),
        (2, None, None, "a.ckpt"),
    ]


async def test_a_duplicate_hash_keeps_both_paths_and_is_counted_once(
    db: Database, take: Take, tmp_path: Path, images: Path
):
    (images / "a.png").write_bytes(png(1))
    (images / "b.png").write_bytes(png(2))
    rows = [
        model(1, "/old/first.safetensors", sha(1), name="First", extra_json=said("", images=["a.png"], one=1)),
        model(2, "/old/second.safetensors", sha(1), name="Second", extra_json=said("Words", images=["b.png"], two=2)),
    ]
    report = await take(make(tmp_path / "legacy.db", rows, [(1, "a"), (2, "b")], [(1, 1), (2, 2)]))
    found = await only(db)
    assert (found.name, found.details.title, found.details.description, found.tags) == (
        "first",
        "First",
        "Words",
        ("a", "b"),
    )
    paths = ["/old/first.safetensors", "/old/second.safetensors"]
    assert found.details.extra == {"one": 1, "two": 2, "legacy_paths": paths}
    assert [row[2] for row in await table(db, "images")] == [0, 1]
    assert counts(report, "models") == (2, 1, 1, 0, 0)
    assert report.reason_counts == {plan.SAME_MODEL: 1}


async def test_a_second_import_adds_no_image_twice_and_keeps_pending_tag_links(
    db: Database, take: Take, tmp_path: Path, images: Path
):
    source = odd(tmp_path / "legacy.db", images)
    first = await take(source)
    before, kept = await content(db), files(tmp_path)
    told = await table(db, "outbox WHERE kind = 'catalog.changed'", "count(*), 0")
    assert before["pending_model_tags"] and before["images"] and before["pending_images"]
    second = await take(source)
    assert await content(db) == before and files(tmp_path) == kept
    for name, tally in second.tables.items():
        assert tally.inserted == 0 and tally.seen == first.tables[name].seen, name
    assert await table(db, "outbox WHERE kind = 'catalog.changed'", "count(*), 0") == told


async def test_a_tag_name_under_another_id_erases_no_links(db: Database, take: Take, tmp_path: Path):
    old = [model(1, "/old/a.safetensors", sha(1))]
    await take(make(tmp_path / "one.db", old, [(1, "anime"), (2, "photo")], [(1, 1), (1, 2)]))
    new = [model(1, "/old/b.safetensors", sha(2))]
    report = await take(make(tmp_path / "two.db", new, [(2, "anime", "#f00"), (1, "Street")], [(1, 2), (1, 1)]))
    assert {one.name: one.tags for one in await list_models(db, missing=True)} == {
        "a": ("anime", "photo"),
        "b": ("anime", "street"),
    }
    assert await table(db, "tags", "id, name, color") == [(1, "anime", "#f00"), (2, "photo", ""), (3, "street", "")]
    assert report.reason_counts == {tags.MAPPED: 1, tags.ID_TAKEN: 1}
    assert counts(report, "tags") == (2, 1, 1, 0, 0)


async def test_tags_that_differ_in_case_only_become_one_and_lose_no_link(db: Database, take: Take, tmp_path: Path):
    rows = [model(n, f"/old/{n}", sha(n)) for n in (1, 2)]
    report = await take(make(tmp_path / "legacy.db", rows, [(1, "Anime"), (2, "ANIME ", "#f00")], [(1, 1), (2, 2)]))
    assert await table(db, "tags", "id, name, color") == [(1, "anime", "#f00")]
    assert await table(db, "model_tags", "tag_id, sha256") == sorted((1, sha(n)) for n in (1, 2))
    assert counts(report, "tags") == (2, 1, 1, 0, 0)


async def test_extra_json_null_or_a_list_aborts_nothing(db: Database, take: Take, tmp_path: Path):
    shapes = [None, "null", "[]", '["a"]', "{broken", "", "NaN", '"\\ud800"', "5", "[" * 3000]
    rows = [model(n, f"/old/{n}", sha(n) if n % 2 else "", extra_json=text) for n, text in enumerate(shapes, 1)]
    report = await take(make(tmp_path / "legacy.db", rows))
    assert counts(report, "models")[:2] == counts(report, "pending_import")[:2] == (5, 5)


async def test_all_images_tag_colours_and_unknown_keys_are_kept(db: Database, take: Take, tmp_path: Path, images: Path):
    names = [f"model_1_{WHEN}_{n}.png" for n in range(12)]
    for n, name in enumerate(names):
        (images / name).write_bytes(png(n))
    rows = [
        model(
            1, "/old/a.ckpt", sha(1), extra_json=said(images=[f"/media/{name}" for name in names], mood={"calm": True})
        ),
        model(2, "/old/b.ckpt", "", extra_json=said(images=names, mood=2), meta_json='{"rating": 5}'),
    ]
    report = await take(make(tmp_path / "legacy.db", rows, [(5, "calm", "#a1b2c3")]))
    wanted = [hashlib.sha256(png(n)).hexdigest() for n in range(12)]
    by_seq = await execute(db, "SELECT source, original, state, origin FROM images ORDER BY seq")
    assert [tuple(row) for row in by_seq] == [(source, f"blobs/{source}", "waiting", "import") for source in wanted]
    pending = await execute(db, "SELECT source, file FROM pending_images ORDER BY n")
    assert [tuple(row) for row in pending] == [(source, f"2-{n}.png") for n, source in enumerate(wanted)]
    for source, file in pending:
        assert hashlib.sha256((tmp_path / "images/pending" / file).read_bytes()).hexdigest() == source
        assert hashlib.sha256((tmp_path / "blobs" / source).read_bytes()).hexdigest() == source
    assert await table(db, "tags", "id, color") == [(5, "#a1b2c3")]
    assert (await only(db)).details.extra["mood"] == {"calm": True}
    [(details,)] = await execute(db, "SELECT details FROM pending_import")
    assert json.loads(details)["extra"] == {"mood": 2, "rating": 5, "legacy_paths": ["/old/b.ckpt"]}
    assert counts(report, "images") == (24, 24, 0, 0, 0) and report.images_found == 24


async def test_pictures_that_are_missing_or_broken_are_counted_and_named(take: Take, tmp_path: Path, images: Path):
    (images / "cut.png").write_bytes(png(1)[:900])
    (images / "cut.jpg").write_bytes(png(1, format="JPEG")[:900])
    (images / "page.png").write_bytes(b"<html>")
    (images / "folder.png").mkdir()
    (images / "twice.png").write_bytes(png(1))
    (images / "again.png").write_bytes(png(1))
    os.mkfifo(images / "fifo.png")
    names = [
        "cut.png",
        "cut.jpg",
        "page.png",
        "folder.png",
        "fifo.png",
        "twice.png",
        "again.png",
        "gone.png",
        "x" * 999,
    ]
    rows = [model(1, "/old/a", sha(1), extra_json=said(images=names))]
    report = await take(make(tmp_path / "legacy.db", rows))
    assert counts(report, "images") == (9, 1, 0, 1, 7)
    assert (report.images_found, report.images_missing, report.images_broken) == (2, 4, 3)
    assert {reason.why for reason in report.reasons} == {pictures.MISSING, pictures.BROKEN}
    assert all(reason.id == 1 and reason.table == "images" and reason.detail for reason in report.reasons)


@pytest.mark.parametrize(
    "name",
    ["/media/x/../../secret.png", "../secret.png", "/media/../secret.png", "..", "/media/", "a/secret.png",
     "..\\secret.png", "{outside}", "/media//{outside}", "link.png", "secret.png\0.png", "\udcff.png"],
)  # fmt: skip
async def test_a_path_in_an_image_name_is_refused(db: Database, take: Take, tmp_path: Path, images: Path, name: str):
    outside = tmp_path / "secret.png"
    outside.write_bytes(png(1))
    (images / "link.png").symlink_to(outside)
    (images / "a").mkdir()
    (images / "a" / "secret.png").write_bytes(png(2))
    text = json.dumps({"images": name.replace("{outside}", str(outside))})
    report = await take(make(tmp_path / "legacy.db", [model(1, "/old/a", sha(1), extra_json=text)]))
    assert await table(db, "images") == [] and files(tmp_path) == {}
    if "\\ud" not in text:  # (which is no JSON at all)
        assert counts(report, "images") == (1, 0, 0, 0, 1)


async def test_rows_that_can_not_be_taken_are_counted_with_a_reason_and_hold_nothing_up(take: Take, tmp_path: Path):
    rows = [model(1, "", ""), model(2, "/old/b", sha(2)), model(3, "", sha(3))]
    links = [(1, 1), (2, 9), (8, 1), ("text", 1), (2, "text"), (2, 1), (None, 1)]
    report = await take(make(tmp_path / "legacy.db", rows[:2], [(1, "a"), (2, " ")], links))
    assert counts(report, "pending_import") == (1, 0, 0, 0, 1)
    assert counts(report, "tags") == (2, 1, 0, 0, 1)
    assert counts(report, "model_tags") == (7, 1, 0, 0, 6)
    assert report.reason_counts[plan.NO_MODEL] == 4 and report.reason_counts[plan.NO_TAG] == 2


async def test_impossible_and_taken_ids_are_replaced_and_the_legacy_one_is_remembered(
    db: Database, take: Take, tmp_path: Path
):
    await take(make(tmp_path / "one.db", [model(5, "/old/mine")]))
    rows = [model(5, "/new/five"), model(-3, "/new/negative"), model(1 << 60, "/new/far"), model(6, "/new/six")]
    report = await take(
        make(tmp_path / "two.db", rows, [(-1, "a"), (1 << 60, "b"), (3, "c")], [(5, -1), (-3, 1 << 60)])
    )
    far = plan.DISPLACED
    assert await table(db, "pending_import", "id, legacy_id, path") == [
        (5, 5, "/old/mine"),
        (6, 6, "/new/six"),
        (far, -3, "/new/negative"),
        (far + 1, 5, "/new/five"),
        (far + 2, 1 << 60, "/new/far"),
    ]
    assert await table(db, "tags", "id, name") == [(3, "c"), (4, "a"), (5, "b")]
    assert await table(db, "pending_model_tags") == [(far, 5), (far + 1, 4)]
    assert report.reason_counts == {plan.ID_TAKEN: 3, tags.ID_TAKEN: 2}


async def test_a_model_whose_file_is_here_keeps_what_is_known_of_it(db: Database, take: Take, tmp_path: Path):
    await apply(db, [("m1", hashed("dream.safetensors", "dream"))], now=1.0)
    before = await only(db)
    rows = [model(1, "/old/other name.ckpt", sha_of("dream"), name="Dream", type="lora", size_bytes=5)]
    report = await take(make(tmp_path / "legacy.db", rows, [(1, "a")], [(1, 1)]))
    after = await only(db)
    assert (after.name, after.size, after.identity, after.paths) == (
        before.name,
        before.size,
        before.identity,
        before.paths,
    )
    assert (after.details.title, after.tags) == ("Dream", ("a",))
    assert counts(report, "models") == (1, 0, 1, 0, 0)


async def test_a_file_that_turns_up_is_what_its_header_says_not_what_the_legacy_catalog_said(
    db: Database, take: Take, tmp_path: Path
):
    await take(make(tmp_path / "legacy.db", [model(1, "/old/x.ckpt", sha_of("dream"), type="lora")]))
    await apply(db, [("m1", hashed("dream.safetensors", "dream"))], now=1.0)
    found = await only(db)
    assert (found.identity.kind, found.identity.unsafe, found.missing) == ("checkpoint", False, False)
    assert found.details.type == "lora"


async def test_what_was_promoted_since_does_not_become_pending_again(db: Database, take: Take, tmp_path: Path):
    await take(make(tmp_path / "one.db", [model(1, "/old/a", sha(1))]))
    report = await take(make(tmp_path / "two.db", [model(1, "/old/a", "")], [(1, "a")], [(1, 1)]))
    assert await table(db, "pending_import") == []
    assert counts(report, "pending_import") == counts(report, "pending_model_tags") == (1, 0, 0, 1, 0)
    assert report.reason_counts == {plan.PROMOTED: 1}


async def test_a_pending_record_that_is_there_gets_what_it_lacks_and_loses_nothing(
    db: Database, take: Take, tmp_path: Path
):
    one = [model(1, "/old/a", "", name="Mine", size_bytes=None, extra_json=said("Mine", kept=1))]
    await take(make(tmp_path / "one.db", one, [(1, "a")], [(1, 1)]))
    two = [
        model(8, "/old/a", "", name="Theirs", size_bytes=7, extra_json=said("Theirs", positive="yes", kept=2, new=3))
    ]
    report = await take(make(tmp_path / "two.db", two, [(2, "b")], [(8, 2)]))
    [(id, name, size, text)] = await table(db, "pending_import", "id, name, size, details")
    details = json.loads(text)
    assert (id, name, size, details["description"], details["positive"]) == (1, "Mine", 7, "Mine", "yes")
    assert details["extra"] == {"kept": 1, "new": 3, "legacy_paths": ["/old/a"]}
    assert await table(db, "pending_model_tags") == [(1, 1), (1, 2)]
    assert counts(report, "pending_import") == (1, 0, 1, 0, 0)


async def test_each_batch_says_once_what_is_pending_and_once_what_changed(
    db: Database, take: Take, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(importer, "BATCH", 4)
    await take(make(tmp_path / "legacy.db", [model(n, f"/old/{n}") for n in range(1, 11)], [(1, "a"), (2, "b")]))
    told = [row for row in await outgoing(db, limit=1000) if row.kind != "catalog.changed"]
    facts = [msgspec.json.decode(row.payload, type=PendingAdded) for row in told]
    assert [(fact.count, fact.first_id, fact.last_id) for fact in facts] == [(4, 1, 4), (4, 5, 8), (2, 9, 10)]
    assert [len(rows) for rows in [await table(db, "outbox WHERE kind = 'catalog.changed'", "id, kind")]] == [4]


async def test_the_counts_add_up_and_reasons_are_bounded(take: Take, tmp_path: Path, images: Path):
    report = await take(odd(tmp_path / "legacy.db", images, count=600))
    with contextlib.closing(sqlite3.connect(tmp_path / "legacy.db")) as source:
        rows = {
            name: source.execute(f"SELECT count(*) FROM {name}").fetchone()[0]
            for name in ("models", "tags", "model_tags")
        }
    seen = {name: tally.seen for name, tally in report.tables.items()}
    assert seen["tags"] == rows["tags"] and seen["models"] + seen["pending_import"] == rows["models"]
    assert seen["model_tags"] + seen["pending_model_tags"] == rows["model_tags"]
    for tally in report.tables.values():
        assert tally.seen == tally.inserted + tally.merged + tally.skipped + tally.failed
    refused = sum(count for why, count in report.reason_counts.items() if why in (pictures.REFUSED, plan.NO_OWNER))
    assert seen["images"] == report.images_found + report.images_missing + report.images_broken + refused
    assert len(report.reasons) == 200 < sum(report.reason_counts.values())
    assert len(msgspec.json.encode(report)) < 128 * 1024


async def test_a_dry_run_writes_nothing_and_counts_what_a_real_run_does(
    db: Database, take: Take, tmp_path: Path, images: Path
):
    source = odd(tmp_path / "legacy.db", images)
    before = await content(db)
    dry = await take(source, dry_run=True)
    assert await content(db) == before and files(tmp_path) == {} and await outgoing(db) == []
    real = await take(source)
    assert dry.dry_run and not real.dry_run
    assert msgspec.structs.replace(dry, dry_run=False, seconds=0.0) == msgspec.structs.replace(real, seconds=0.0)


async def test_a_job_that_is_done_answers_its_report_again(db: Database, take: Take, tmp_path: Path):
    source = make(tmp_path / "legacy.db", [model(1, "/old/a")])
    report = await take(source, id="a" * 32)
    source.unlink()
    assert await take(source, id="a" * 32) == report
    state = await import_state(db, "a" * 32)
    assert (state.state, state.source, state.report, state.ended_at) == ("done", str(source), report, 1.0)
    assert (await import_state(db, "b" * 32)).state == "unknown"


async def test_an_import_that_can_not_be_done_says_why_and_is_over(db: Database, take: Take, tmp_path: Path):
    gone = tmp_path / "gone.db"
    with pytest.raises(LegacyUnusable, match="There is no file"):
        await take(gone)
    with pytest.raises(LegacyUnusable, match="There is no folder"):
        await take(make(tmp_path / "legacy.db"), images=str(tmp_path / "none"))
    job = Import(id="c" * 32, database=str(gone))
    await end_import(db, job, "There is no file.")
    state = await import_state(db, job.id)
    assert (state.state, state.report.error) == ("failed", "There is no file.")
    assert not list((tmp_path / "work").iterdir())


async def test_no_image_is_written_for_a_row_that_was_not_committed(
    db: Database, take: Take, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
):
    (images / "a.png").write_bytes(png(1))
    source = make(tmp_path / "legacy.db", [model(1, "/old/a", "", extra_json=said(images="a.png"))])

    async def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken, pytest.raises(OSError, match="No space"):
        broken.setattr(importer.Run, "_reach", full)
        await take(source)
    assert await table(db, "pending_images") == []
    await sweep_imports(db, tmp_path)
    assert files(tmp_path) == {}
    await take(source)
    assert files(tmp_path) == {"images/pending/1-0.png": hashlib.sha256(png(1)).hexdigest()}


async def test_a_catalog_that_changed_after_a_kill_is_looked_at_from_its_beginning(
    db: Database, take: Take, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(importer, "BATCH", 2)
    rows = [model(n, f"/old/{n}") for n in range(10, 20)]
    source = make(tmp_path / "legacy.db", rows)
    reach, calls = importer.Run._reach, 0

    async def stop(self: importer.Run, *values: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(5, "stopped")
        await reach(self, *values)

    with monkeypatch.context() as broken, pytest.raises(OSError, match="stopped"):
        broken.setattr(importer.Run, "_reach", stop)
        await take(source, id="d" * 32)
    assert len(await table(db, "pending_import")) == 4
    with contextlib.closing(sqlite3.connect(source)) as legacy:
        fill(legacy, [model(1, "/old/1")])
    report = await take(source, id="d" * 32)
    assert counts(report, "pending_import") == (11, 7, 0, 4, 0)
    assert len(await table(db, "pending_import")) == 11


KILLED = """
import anyio, os, signal, sys
from functools import partial
from pathlib import Path
from agents.catalog.legacy import importer
from agents.catalog.database import Database
from agents.storage.database import Sql
from schemas.imports import Import
from tests.catalog.conftest import FixedClock

source, images, data, point, when = sys.argv[1:]
importer.BATCH, importer.BATCH_IMAGES = 16, 8
commits = files = 0
execute, fsync = Sql.execute, os.fsync

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def counted(self, sql, *values):
    global commits
    commits += sql == "COMMIT"
    if sql == "COMMIT" and point == "before" and commits == int(when):
        die()
    found = execute(self, sql, *values)
    if sql == "COMMIT" and point == "after" and commits == int(when):
        die()
    return found

def synced(handle):
    global files
    files += 1
    if point == "file" and files == int(when):
        die()
    fsync(handle)

async def main():
    async with Database.open(Path(data) / "catalog.db", clock=FixedClock(1.0)) as db:
        Sql.execute, os.fsync = counted, synced
        job = Import(id="e" * 32, database=source, images=images)
        await importer.import_legacy(db, job, Path(data), {"old": "/old"})
    print(commits, files)

anyio.run(main)
"""


def run_until(point: str, when: int, source: Path, images: Path, data: Path) -> "subprocess.CompletedProcess[str]":
    data.mkdir(exist_ok=True)
    command = [sys.executable, "-W", "error", "-c", KILLED, *map(str, (source, images, data, point, when))]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3], timeout=120)


async def everything(data: Path) -> tuple[dict[str, list[tuple[Any, ...]]], dict[str, str], dict[str, Any]]:
    """Content, files, and the report without its seconds."""
    async with Database.open(data / "catalog.db", clock=clock) as db:
        state = await import_state(db, "e" * 32)
        assert state.state == "done"
        return await content(db), files(data), msgspec.to_builtins(msgspec.structs.replace(state.report, seconds=0.0))


@pytest.mark.timeout(600)
async def test_killed_at_any_commit_and_run_again_it_ends_as_if_never_killed(tmp_path: Path, images: Path):
    source = odd(tmp_path / "legacy.db", images, count=60)
    whole = run_until("never", 0, source, images, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    commits, synced = map(int, whole.stdout.split())
    wanted = await everything(tmp_path / "whole")
    assert wanted[0]["pending_images"] and wanted[0]["images"] and commits > 8
    points = [(point, n) for n in range(1, commits + 1) for point in ("before", "after")]
    points += [("file", n) for n in range(1, synced, max(1, synced // 8))]
    points = sample(points, 12)
    run = partial(anyio.to_thread.run_sync, limiter=anyio.CapacityLimiter(2))

    async def check(point: str, when: int) -> None:
        data = tmp_path / f"{point}-{when}"
        killed = await run(run_until, point, when, source, images, data)
        again = await run(run_until, "never", 0, source, images, data)
        if killed.returncode != -signal.SIGKILL or again.returncode:
            pytest.fail(f"{point} {when}: {killed.stderr}{again.stderr}")
        if await everything(data) != wanted:
            pytest.fail(f"{point} {when} ended differently")

    async with anyio.create_task_group() as tasks:
        for point, when in points:
            tasks.start_soon(check, point, when)


async def test_a_nul_in_the_name_of_a_model_without_a_usable_path_ends_no_import(
    db: Database, take: Take, tmp_path: Path
):
    await take(make(tmp_path / "old.db", [model(1, b"/old/\0.pt", sha(1), name="\0dream")]))
    assert ((await only(db)).name, (await only(db)).details.title) == ("dream", "dream")
