"""Reading a legacy catalog: nothing of it is touched, and no row is too odd."""

import contextlib
import hashlib
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agents.catalog.errors import LegacyUnusable
from agents.catalog.legacy import rows
from agents.catalog.legacy import source as legacy
from agents.catalog.legacy.rows import model_of, tag_of
from agents.catalog.legacy.source import RawModel, RawTag, opened
from agents.storage.roots import RootIndex
from bus.clock import Clock
from schemas.files import Details, Identity
from tests.catalog import legacy_making
from tests.catalog.legacy_making import SCHEMA, SPARE, WHEN, make, model, said, sha

HOLDER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
db.execute("PRAGMA journal_mode = WAL")
db.execute("PRAGMA wal_autocheckpoint = 0")
db.execute("INSERT INTO tags (id, name) VALUES (77, 'only in the log')")
db.commit()
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Another process has the catalog open, with a row that is in the write-ahead log only."""
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield
        process.kill()


def fingerprints(folder: Path) -> dict[str, tuple[str, int, int]]:
    """Every file of a folder: its bytes' digest, its time of change, its inode."""
    found = {}
    for file in folder.iterdir():
        state = file.stat()
        found[file.name] = (hashlib.sha256(file.read_bytes()).hexdigest(), state.st_mtime_ns, state.st_ino)
    return found


def tags_of(source: Path, folder: Path) -> list[int]:
    with opened(source, folder, Clock()) as found:
        return [row.id for row in found.tags(None, 100)]


def test_a_catalog_is_byte_identical_afterwards_with_no_file_beside_it(tmp_path: Path):
    source = tmp_path / "old"
    source.mkdir()
    make(source / "legacy.db", [model(1, "/a.ckpt")], [(1, "a")], wal=True)
    before = fingerprints(source)
    assert tags_of(source / "legacy.db", tmp_path / "work") == [1]
    assert fingerprints(source) == before
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("writable", [True, False], ids=["writable", "read-only"])
def test_rows_in_a_live_write_ahead_log_are_read_and_it_stays_as_it_is(tmp_path: Path, writable: bool):
    source = tmp_path / "old"
    source.mkdir()
    make(source / "legacy.db", tags=[(1, "a")])
    with held(source / "legacy.db"):
        before = fingerprints(source)
        assert {"legacy.db", "legacy.db-wal", "legacy.db-shm"} <= before.keys()
        if not writable:
            source.chmod(0o555)
        try:
            assert tags_of(source / "legacy.db", tmp_path / "work") == [1, 77]
        finally:
            source.chmod(0o755)
        assert fingerprints(source) == before


def test_a_transaction_that_a_crash_left_half_way_is_undone_in_the_copy_only(tmp_path: Path):
    live, crashed = tmp_path / "live.db", tmp_path / "crashed.db"
    make(live, tags=[(1, "a")])
    with contextlib.closing(sqlite3.connect(live)) as db:
        db.execute("PRAGMA cache_size = 1")
        db.executemany("INSERT INTO tags (id, name) VALUES (?, ?)", ((n, f"tag {n}" * 20) for n in range(2, 3000)))
        for suffix in ("", "-journal"):
            crashed.with_name(crashed.name + suffix).write_bytes(live.with_name(live.name + suffix).read_bytes())
        db.rollback()
    before = crashed.read_bytes()
    assert tags_of(crashed, tmp_path / "work") == [1]
    assert crashed.read_bytes() == before


def test_a_catalog_without_the_optional_columns_is_read(tmp_path: Path):
    path = make(tmp_path / "legacy.db", [model(1, "/a.ckpt", None)], [(1, "a")], [(1, 1)], schema=SPARE)
    with opened(path, tmp_path / "work", Clock()) as found:
        assert found.models(None, 10) == [RawModel(1, b"/a.ckpt", None, b"checkpoint", *[None] * 5, 0)]
        assert found.tags(None, 10) == [RawTag(1, b"a", None, None)]
        assert (found.links(None, 1), found.stray_links(1)) == ([(1, 1)], [])


def refused(path: Path, folder: Path) -> str:
    with pytest.raises(LegacyUnusable) as caught, opened(path, folder, Clock()):
        pass
    assert not folder.exists()
    return str(caught.value)


def test_what_is_no_legacy_catalog_is_refused_in_one_sentence_that_helps(tmp_path: Path):
    folder = tmp_path / "work"
    assert "There is no file" in refused(tmp_path / "nothing.db", folder)
    assert "is no file" in refused(tmp_path, folder)
    text, empty = tmp_path / "text.db", tmp_path / "empty.db"
    text.write_bytes(os.urandom(10_000))
    assert "no SQLite database, an encrypted one" in refused(text, folder)
    empty.touch()
    assert "it has no table models" in refused(empty, folder)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert "is no file" in refused(fifo, folder)


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        (SCHEMA.replace("VALUES (2)", "VALUES (3)"), "a newer program wrote it"),
        (SCHEMA.replace("VALUES (2)", "VALUES (1)"), "open it once"),
        (SCHEMA.replace("VALUES (2)", "VALUES ('two')"), "schema version two"),
        (SCHEMA.replace("hash_hex", "digest"), "no column hash_hex of table models"),
        (SCHEMA.replace("id INTEGER PRIMARY KEY, name", "id TEXT PRIMARY KEY, name"), "no primary key"),
        (SCHEMA.replace("CREATE TABLE model_tags", "CREATE TABLE links"), "no table model_tags"),
    ],
)
def test_another_schema_is_refused_and_named(tmp_path: Path, schema: str, says: str):
    assert says in refused(make(tmp_path / "legacy.db", schema=schema), tmp_path / "work")


def test_a_damaged_catalog_is_an_error_in_a_sentence(tmp_path: Path):
    path = make(tmp_path / "legacy.db", [model(n, f"/{n}", name="x" * 3000) for n in range(1, 200)])
    data = bytearray(path.read_bytes())
    data[40_000:-8000] = b"\xa5" * (len(data) - 48_000)
    path.write_bytes(data)
    with pytest.raises(LegacyUnusable, match="damaged"), opened(path, tmp_path / "work", Clock()) as found:
        found.models(None, 1000)


def test_a_value_that_is_too_large_is_left_out_without_being_loaded(tmp_path: Path):
    path = make(tmp_path / "legacy.db", [model(1, "/a", extra_json="x" * (legacy.VALUE_BYTES + 1))])
    with opened(path, tmp_path / "work", Clock()) as found:
        [row] = found.models(None, 10)
    assert (row.extra_json, row.too_large) == (None, 1)


def raw(**columns: Any) -> RawModel:
    row = {**model(1, "/old/dream.safetensors"), "too_large": 0, **columns}
    return RawModel(**{name: v.encode() if isinstance(v, str) else v for name, v in row.items()})


def details_of(**columns: Any) -> Details:
    return msgspec.json.decode(model_of(raw(**columns)).details, type=Details)


def whys(**columns: Any) -> set[str]:
    return {why for why, _ in model_of(raw(**columns)).notes}


def test_everything_that_extra_json_and_meta_json_say_is_kept():
    extra = said(
        "What it is", "https://example.org/1", ["/media/a.png"], "yes", "no", params={"n": 1}, rating=[5, None]
    )
    found = details_of(name="Dream", type="lora", extra_json=extra, meta_json='{"rating": 4, "note": {"a": null}}')
    assert found == Details(
        title="Dream",
        type="lora",
        description="What it is",
        source_url="https://example.org/1",
        positive="yes",
        negative="no",
        extra={
            "params": {"n": 1},
            "rating": [5, None],
            "note": {"a": None},
            "meta_json": {"rating": 4},
            "legacy_paths": ["/old/dream.safetensors"],
        },
    )


def test_links_that_are_no_address_are_kept_as_they_are():
    found = details_of(extra_json=said(links="see https://a.example and https://b.example"))
    assert (found.source_url, found.extra["community_links"]) == ("", "see https://a.example and https://b.example")


@pytest.mark.parametrize("text", [None, "", "null", "[]", "{}"])
def test_json_that_says_nothing_is_nothing(text: str | None):
    assert details_of(extra_json=text, meta_json=text).extra == {"legacy_paths": ["/old/dream.safetensors"]}
    assert not whys(extra_json=text, meta_json=text)


@pytest.mark.parametrize("text", ['["a", 1]', '"text"', "17"])
def test_json_that_is_no_object_is_kept_under_its_columns_name(text: str):
    assert details_of(extra_json=text).extra["extra_json"] == json.loads(text)
    assert details_of(meta_json=text).extra["meta_json"] == json.loads(text)


@pytest.mark.parametrize(
    "text", ["{broken", "NaN", '{"a": Infinity}', '"\\ud800"', "[" * 5000, '{"a":' * 70 + "1" + "}" * 70]
)
def test_json_that_nobody_can_read_is_kept_as_text_and_told(text: str):
    assert details_of(extra_json=text).extra["extra_json"] == text
    assert whys(extra_json=text) <= {rows.BAD_JSON, rows.DEEP_JSON} and whys(extra_json=text)


@pytest.mark.parametrize(
    "odd", [{"description": 5}, {"prompts": "both"}, {"prompts": {"positive": ["x"]}}, {"notes": {}}]
)
def test_a_known_key_of_another_shape_is_kept_under_its_name(odd: dict[str, Any]):
    found = details_of(extra_json=json.dumps(odd))
    assert {key: found.extra[key] for key in odd} == odd


@pytest.mark.parametrize(
    ("images", "names"),
    [
        (["/media/a.png", "b.png"], ("/media/a.png", "b.png")),
        ("a.png", ("a.png",)),
        (None, ()),
        ("", ()),
        ([None, 5, "", ["a"], "b.png"], ("b.png",)),
        ([{"path": "a.png"}, {"url": "b.png"}, {}], ("a.png", "b.png")),
        (7, ()),
    ],
)
def test_pictures_are_named_by_a_string_or_a_list_or_nothing(images: object, names: tuple[str, ...]):
    assert model_of(raw(extra_json=said(images=images))).images == names


@pytest.mark.parametrize(
    ("written", "kept", "told"),
    [
        (sha(1), sha(1), set()),
        (sha(1).upper(), sha(1), set()),
        ("", "", set()),
        (None, "", set()),
        (sha(1)[:40], "", {rows.BAD_HASH}),
        ("g" * 64, "", {rows.BAD_HASH}),
        (17, "", {rows.BAD_HASH}),
    ],
)
def test_a_hash_is_64_hex_digits_or_none_at_all(written: object, kept: str, told: set[str]):
    assert model_of(raw(hash_hex=written)).sha256 == kept
    assert whys(hash_hex=written) == told


def test_impossible_sizes_and_times_count_as_unknown_and_are_told():
    for size in (-1, "large", 1.5, 1 << 60):
        assert model_of(raw(size_bytes=size)).size is None and whys(size_bytes=size) == {rows.BAD_SIZE}
    for time in (0, -5, 1 << 60, "yesterday"):
        assert model_of(raw(created_at=time)).created_at is None and whys(created_at=time) == {rows.BAD_TIME}
    assert model_of(raw(created_at=WHEN)).created_at == WHEN / 1000
    assert not whys(size_bytes=None, created_at=None)


def test_text_that_is_not_utf8_is_replaced_and_a_path_keeps_its_bytes():
    found = model_of(raw(name=b"caf\xe9", path=b"/old/caf\xe9 50%.ckpt"))
    assert (found.title, found.path) == ("caf\ufffd", "/old/caf%E9 50%25.ckpt")
    assert found.raw_path == b"/old/caf\xe9 50%.ckpt"
    assert rows.BAD_TEXT in whys(name=b"caf\xe9")


def test_a_path_with_a_null_byte_is_no_path():
    assert model_of(raw(path=b"/a\0b")).path == "" and whys(path=b"/a\0b") == {rows.BAD_PATH}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/old/a.b.safetensors", "a.b"),
        ("C:\\models\\a.ckpt", "a"),
        ("/old/back\\slash.pt", "back\\slash"),
        ("/old/.x", ".x"),
    ],
)
def test_a_model_is_called_by_its_file(path: str, name: str):
    assert model_of(raw(path=path)).name == name


@pytest.mark.parametrize(
    ("type", "path", "kind", "unsafe"),
    [
        ("checkpoint", "/a.safetensors", "checkpoint", False),
        ("LoRA", "/a.SAFETENSORS", "lora", False),
        ("Textual Inversion", "/a.pt", "embedding", True),
        ("checkpoint", "/a.ckpt", "checkpoint", True),
        ("what?", "/a", "unknown", True),
    ],
)
def test_a_file_that_nobody_has_read_is_of_the_kind_its_type_says_and_trusted_by_no_more(
    type: str, path: str, kind: str, unsafe: bool
):
    identity = msgspec.json.decode(model_of(raw(type=type, path=path)).identity, type=Identity)
    assert (identity.kind, identity.unsafe) == (kind, unsafe)


def test_tags_are_named_as_they_are_kept():
    tag = tag_of(RawTag(3, " Héllo\n World ".encode(), b" #fff ", WHEN))
    assert (tag.name, tag.color, tag.created_at, tag.notes) == ("héllo world", "#fff", WHEN / 1000, ())
    assert tag_of(RawTag(3, None, None, None)).name == ""
    assert [why for why, _ in tag_of(RawTag(3, b"x" * 300, None, None)).notes] == [rows.CUT_NAME]


def test_a_path_is_found_below_the_innermost_root_also_through_links(tmp_path: Path):
    models = tmp_path / "models"
    (models / "lora").mkdir(parents=True)
    (tmp_path / "link").symlink_to(models)
    root_index = RootIndex({"all": str(models), "loras": str(tmp_path / "link" / "lora")})
    at = os.fsencode(tmp_path)
    assert root_index(at + b"/models/50%\xe9.ckpt") == ("all", "50%25%E9.ckpt")
    assert root_index(at + b"/link/sub/a.ckpt") == ("all", "sub/a.ckpt")
    assert root_index(at + b"/link/lora/a.ckpt") == ("loras", "a.ckpt")
    assert root_index(at + b"/models/../models/a.ckpt") == ("all", "a.ckpt")
    for path in (
        b"/elsewhere/a.ckpt",
        b"relative/a.ckpt",
        at + b"/models",
        at + b"/models/",
        at + b"/models/../a.ckpt",
        b"",
    ):
        assert root_index(path) is None


def test_the_generator_makes_every_odd_shape_and_the_same_again(tmp_path: Path):
    one, two = (legacy_making.odd(tmp_path / f"{n}.db", tmp_path / "images") for n in (1, 2))
    with contextlib.closing(sqlite3.connect(one)) as db, contextlib.closing(sqlite3.connect(two)) as again:
        assert list(db.iterdump()) == list(again.iterdump())
        assert db.execute("SELECT count(*) FROM models WHERE hash_hex IS NULL").fetchone()[0] > 0
