"""What sidecars say of a model: each path for itself, and the user above all of them, also where the word is no."""

import functools
import json
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agents.catalog import history
from agents.catalog.asks.model import edit_model, whole_model
from agents.catalog.asks.pending import promote_chosen
from agents.catalog.asks.pictures import add_picture, drop_picture, list_pictures, order_pictures
from agents.catalog.asks.tags import drop_tag, list_tags, put_tag, tag_models
from agents.catalog.database import Database
from agents.catalog.descriptions import picture_encoded, picture_refused
from agents.catalog.facts import apply
from agents.catalog.outbox import outgoing
from agents.catalog.rebuild import compare, read_only, rebuilt
from agents.catalog.sidecars import Repictured, ordered
from agents.storage.queries import sections
from schemas.catalog import (
    AddPicture,
    DetailsEdit,
    DropPicture,
    DropTag,
    EditModel,
    ListPictures,
    ListTags,
    OrderPictures,
    PutTag,
    TagModels,
    WholeModel,
)
from schemas.files import Described, Details, Preview, Stat
from schemas.images import Encoded, Picture, PictureRefused
from schemas.models import Changed
from tests.catalog.conftest import clock
from tests.catalog.facts import CHECKPOINT, at_path, hashed, key, moved, removed, settled, sha, stat
from tests.catalog.pending import add_pending

A, B = sha("a"), sha("b")
SECOND = stat("a", ino=2)
"""A second file with the same content."""

Describe = Callable[..., Awaitable[None]]


@pytest.fixture
def facts(db: Database) -> Callable[..., Awaitable[None]]:
    """Applies facts, one after the other."""
    told = iter(range(1_000_000))

    async def all_of(*facts: Any) -> None:
        for fact in facts:
            await apply(db, [(f"m{next(told)}", fact)], now=1.0)

    return all_of


def described(
    rel: str = "a.safetensors",
    *,
    tags: tuple[str, ...] = (),
    previews: tuple[str, ...] = (),
    at: float = 50.0,
    content: str = "a",
    problems: tuple[str, ...] = (),
    **details: Any,
) -> Described:
    """What lies next to a path; a preview is written name=content."""
    pairs = [one.partition("=")[::2] for one in previews]
    return Described(
        key=key(stat(content)),
        path=at_path(rel),
        sha256=sha(content),
        details=Details(**details),
        tags=tags,
        previews=tuple(Preview(name=name, blob=sha(text)) for name, text in pairs),
        problems=problems,
        at=at,
    )


async def whole(db: Database, sha256: str = A) -> WholeModel:
    return await whole_model(db, sha256)


async def tags(db: Database, sha256: str = A) -> list[str]:
    return [tag.name for tag in (await whole(db, sha256)).tags]


async def sources(db: Database) -> list[str]:
    """The pictures of the model in order, by what was in them."""
    names = {sha(name): name for name in ("one", "two", "three", "four", "upload", "error")}
    pictures = (await list_pictures(db, ListPictures(sha256=A))).pictures
    assert [one.seq for one in pictures] == list(range(len(pictures)))
    return [names[one.source] for one in pictures]


async def encode_all(db: Database) -> None:
    for one in (await list_pictures(db, ListPictures(sha256=A))).pictures:
        if one.state == "waiting":
            made = Picture(
                index=one.number, seed=0, width=8, height=6, file="images/x", bytes=3, sha256=sha("x"), tiers={}
            )
            async with db.atomic() as sql:
                await picture_encoded(sql, Encoded(id="a" * 32, model=A, pictures=(made,), seconds=0.1, at=1.0))


async def test_a_tag_that_was_taken_off_stays_off_whatever_the_files_do(db: Database, facts: Any):
    of = stat("a")
    await facts(hashed("a.safetensors", "a"), described(tags=("Fox", "light")))
    await tag_models(db, TagModels(models=(A,), take=("fox",)))
    await facts(
        described(tags=("fox", "light"), at=60, title="touched"),
        moved("a.safetensors", "deep/a.safetensors", of, 70, content="a"),
        described("deep/a.safetensors", tags=("fox", "light", "new"), at=80),
    )
    assert await tags(db) == ["light", "new"]
    await tag_models(db, TagModels(models=(A,), put=("fox",)))
    await facts(described("deep/a.safetensors", tags=("new",), at=90))
    assert await tags(db) == ["fox", "new"], "what the user put on is no sidecar's to take off"
    await tag_models(db, TagModels(models=(A,), take=("fox",)))
    await tag_models(db, TagModels(models=(A,), put=("fox",)))
    await tag_models(db, TagModels(models=(A,), put=()))
    await facts(described("deep/a.safetensors", tags=("fox",), at=100))
    assert await tags(db) == ["fox"]


async def test_a_deleted_tag_is_not_made_again_by_any_sidecar_until_the_user_makes_it(db: Database, facts: Any):
    await facts(hashed("a.safetensors", "a"), described(tags=("fox", "light")))
    [fox, _] = (await list_tags(db, ListTags())).tags
    await drop_tag(db, DropTag(id=fox.id))
    await facts(hashed("b.safetensors", "b"), described(tags=("fox", "light"), at=60))
    await facts(described("b.safetensors", content="b", tags=("fox", "b"), at=70))
    assert [tag.name for tag in (await list_tags(db, ListTags())).tags] == ["b", "light"]
    await put_tag(db, PutTag(name="Fox"))
    await facts(described(tags=("fox", "light"), at=80), hashed("c.safetensors", "c"))
    await facts(described("c.safetensors", content="c", tags=("fox",), at=80))
    assert (await tags(db), await tags(db, sha("c"))) == (["light"], ["fox"])


async def test_a_renamed_tag_does_not_return_under_its_old_name(db: Database, facts: Any):
    await facts(hashed("a.safetensors", "a"), described(tags=("fox", "light")))
    [fox, _] = (await list_tags(db, ListTags())).tags
    for name in ("vixen", "red fox"):
        await put_tag(db, PutTag(id=fox.id, name=name))
    await facts(described(tags=("fox", "light"), at=60, title="touched"), hashed("b.safetensors", "b"))
    await facts(described("b.safetensors", content="b", tags=("fox",), at=60))
    assert (await tags(db), await tags(db, B)) == (["light", "red fox"], ["red fox"])
    await tag_models(db, TagModels(models=(A,), take=("red fox",)))
    await put_tag(db, PutTag(id=fox.id, name="fox"))
    await facts(described(tags=("fox", "light"), at=70))
    assert (await tags(db), await tags(db, B)) == (["light"], ["fox"])
    await put_tag(db, PutTag(id=fox.id, name="vulpes"))
    await drop_tag(db, DropTag(id=fox.id))
    await facts(described("b.safetensors", content="b", tags=("fox", "vulpes"), at=80))
    assert await tags(db, B) == []


async def test_a_picture_that_was_deleted_stays_away_until_it_is_uploaded(db: Database, facts: Any):
    await facts(hashed("a.safetensors", "a"), described(previews=("a.png=one", "a.jpg=two")))
    await drop_picture(db, DropPicture(sha256=A, seq=0))
    await facts(described(previews=("a.png=one", "a.jpg=two"), at=60, title="touched"))
    assert await sources(db) == ["two"]
    assert (await add_picture(db, AddPicture(sha256=A, blob=sha("one")))).added
    await facts(described(previews=("a.jpg=two",), at=70))
    assert await sources(db) == ["two", "one"], "an upload is no sidecar's to take away"


async def test_what_was_taken_off_stays_off_when_an_import_is_merged(db: Database, facts: Any):
    await facts(hashed("a.safetensors", "a"), described(tags=("fox",), previews=("a.png=one",)))
    await tag_models(db, TagModels(models=(A,), take=("fox",)))
    await drop_picture(db, DropPicture(sha256=A, seq=0))
    await edit_model(db, EditModel(sha256=A, edit=DetailsEdit(description="")))
    await add_pending(db, 7, "/old/a.safetensors", size=1, tags=("fox", "sun"), images=(b"x",))
    async with db.atomic() as sql:
        await sql.rows("refuse_picture", sha256=A, source=(await sql.rows("pictures_of_pending", id=7))[0][1])
    await promote_chosen(db, [7], "merge", 1.0)
    await facts(described(tags=("fox",), previews=("a.png=one",), at=60, description="from a file"))
    found = await whole(db)
    assert ([tag.name for tag in found.tags], await sources(db)) == (["sun"], [])
    assert found.model.details.description == "", "an empty text is a word, too"


async def test_copies_have_each_its_own_words_and_the_model_has_those_of_all(db: Database, facts: Any):
    await facts(
        hashed("a.safetensors", "a"),
        hashed("z/a.safetensors", "a", stat=SECOND),
        described(tags=("fox",), previews=("a.png=one",), title="first", trigger_words=("x", "y")),
        described("z/a.safetensors", tags=("sun",), previews=("a.png=two",), title="second", notes="of z"),
    )
    both = await whole(db)
    assert (both.model.details.title, both.model.details.notes) == ("first", "of z")
    assert (await tags(db), await sources(db)) == (["fox", "sun"], ["one", "two"])
    await facts(described(at=60))
    alone = await whole(db)
    assert alone.layers == {"sidecar": {"title": "second", "notes": "of z"}}
    assert (await tags(db), await sources(db)) == (["sun"], ["two"])


async def test_a_copy_that_is_deleted_takes_its_own_words_and_leaves_the_others(db: Database, facts: Any):
    await facts(
        hashed("a.safetensors", "a"),
        hashed("z/a.safetensors", "a", stat=SECOND),
        described(tags=("fox",), previews=("a.png=one",), title="first"),
        described("z/a.safetensors", tags=("sun",), notes="of z"),
        removed("a.safetensors", stat("a"), 60),
    )
    left = await whole(db)
    assert (left.layers, await tags(db), await sources(db)) == ({"sidecar": {"notes": "of z"}}, ["sun"], [])
    await facts(hashed("a.safetensors", "a", 70, stat=stat("a", version=2)))
    assert (await whole(db)).model.details.title == "first", "the file is back, and what lies next to it with it"


async def test_a_copy_without_sidecars_keeps_nothing_of_one_that_is_deleted(db: Database, facts: Any):
    await facts(hashed("a.safetensors", "a"), hashed("z/a.safetensors", "a", stat=SECOND), described(title="first"))
    await facts(removed("a.safetensors", stat("a"), 60))
    assert (await whole(db)).layers == {}


async def test_words_of_a_disk_that_is_away_stay_and_those_of_a_model_that_lies_nowhere_too(db: Database, facts: Any):
    away = msgspec.structs.replace(removed("a.safetensors", stat("a"), 60), unmounted=True)
    await facts(
        hashed("a.safetensors", "a"),
        hashed("z/a.safetensors", "a", stat=SECOND),
        described(tags=("fox",), previews=("a.png=one",), title="first"),
        away,
        removed("z/a.safetensors", SECOND, 70),
        settled("z/a.safetensors", SECOND, 80, content="a"),
    )
    kept = await whole(db)
    assert (kept.model.details.title, await tags(db), await sources(db)) == ("first", ["fox"], ["one"])
    await facts(msgspec.structs.replace(away, unmounted=False, at=90))
    gone = await whole(db)
    assert (gone.layers, await tags(db), await sources(db)) == ({}, [], [])


async def test_a_model_that_went_and_comes_back_elsewhere_brings_its_words_and_keeps_its_pictures_numbers(
    db: Database, facts: Any
):
    before = described(tags=("fox",), previews=("a.png=one", "a.jpg=two"), title="first")
    await facts(hashed("a.safetensors", "a"), before)
    numbers = [one.number for one in (await whole(db)).pictures]
    await order_pictures(db, OrderPictures(sha256=A, numbers=(numbers[1], numbers[0])))
    await facts(removed("a.safetensors", stat("a"), 60), hashed("disk/a.safetensors", "a", 70, stat=SECOND))
    assert (await whole(db)).model.details.title == "first"
    await facts(msgspec.structs.replace(before, path=at_path("disk/a.safetensors"), at=80))
    found = await whole(db)
    assert [one.number for one in found.pictures] == [numbers[1], numbers[0]]
    assert (found.model.details.title, await tags(db)) == ("first", ["fox"])
    await facts(described("disk/a.safetensors", at=90))
    assert ((await whole(db)).layers, await tags(db), await sources(db)) == ({}, [], [])


async def test_a_touched_copy_keeps_its_words_while_it_is_hashed_again(db: Database, facts: Any):
    again = stat("a", version=5)
    await facts(
        hashed("a.safetensors", "a"),
        hashed("z/a.safetensors", "a", stat=SECOND),
        described(tags=("fox",), title="first"),
        settled("a.safetensors", again, 60),
    )
    assert await tags(db) == ["fox"]
    await facts(hashed("a.safetensors", "a", 61, stat=again))
    assert (await whole(db)).model.details.title == "first"
    await facts(hashed("a.safetensors", "other", 62, stat=stat("other", ino=again.ino, version=9)))
    assert (await tags(db), (await whole(db)).layers) == ([], {})


async def test_words_of_a_path_go_when_another_content_is_found_there(db: Database, facts: Any):
    other = stat("other", ino=7)
    await facts(
        hashed("a.safetensors", "a"),
        hashed("z/a.safetensors", "a", stat=SECOND),
        described(tags=("fox",), title="first"),
        settled("a.safetensors", other, 60),
    )
    assert await tags(db) == ["fox"], "nobody knows what lies there"
    await facts(hashed("a.safetensors", "other", 61, stat=other))
    assert (await tags(db), (await whole(db)).layers) == ([], {})


async def test_two_models_that_change_places_keep_their_words_until_they_are_described_anew(db: Database):
    one, two = stat("a"), stat("b")
    await apply(db, [("1", hashed("a.safetensors", "a")), ("2", hashed("b.safetensors", "b"))], now=1.0)
    said = [described(title="of a"), described("b.safetensors", content="b", title="of b")]
    await apply(db, [("3", said[0]), ("4", said[1])], now=1.0)
    swap = [
        ("5", moved("a.safetensors", "b.safetensors", one, content="a")),
        ("6", moved("b.safetensors", "a.safetensors", two, content="b")),
    ]
    await apply(db, swap, now=1.0)
    assert [(await whole(db, sha256)).model.details.title for sha256 in (A, B)] == ["of a", "of b"]


async def test_a_description_of_a_path_that_the_model_has_left_counts_for_nothing(db: Database, facts: Any):
    await facts(hashed("a.safetensors", "a"), described("gone.safetensors", title="x", tags=("fox",)))
    assert ((await whole(db)).layers, await tags(db)) == ({}, [])


async def test_an_older_word_about_a_path_does_not_overtake_a_newer_one(db: Database, facts: Any):
    await facts(hashed("a.safetensors", "a"), described(title="new", at=60), described(title="old", at=50))
    assert (await whole(db)).model.details.title == "new"


async def test_a_preview_that_is_replaced_takes_the_place_of_the_old_one_and_the_old_one_goes(db: Database, facts: Any):
    await facts(hashed("a.safetensors", "a"), described(previews=("a.preview.png=error", "a.png=two")))
    await add_picture(db, AddPicture(sha256=A, blob=sha("upload")))
    async with db.atomic() as sql:
        await picture_refused(sql, PictureRefused(id="b" * 32, sha256=A, number=0, error="no picture", at=1.0))
    await encode_all(db)
    await facts(described(previews=("a.preview.png=one", "a.png=two"), at=60))
    assert await sources(db) == ["one", "two", "upload"]
    await encode_all(db)
    numbers = [one.number for one in (await whole(db)).pictures]
    await order_pictures(db, OrderPictures(sha256=A, numbers=(numbers[2], numbers[1], numbers[0])))
    await facts(described(previews=("a.preview.png=three", "a.png=two", "a.webp=four"), at=70))
    assert await sources(db) == ["upload", "two", "three", "four"], "in the order that the user had made"
    await facts(described(previews=("a.webp=four",), at=80))
    assert await sources(db) == ["upload", "four"]


@pytest.mark.parametrize(
    ("images", "before", "best", "after", "replaced", "ends"),
    [
        ("u", "", "", "n", {}, "un"),
        ("", "", "", "ab", {}, "ab"),
        ("su", "s", "s", "ns", {}, "nsu"),
        ("su", "s", "", "ns", {}, "nsu"),
        ("su", "s", "s", "n", {"n": "s"}, "nu"),
        ("usv", "s", "s", "", {}, "uv"),
        ("bua", "ba", "ab", "abc", {}, "buac"),
        ("bua", "ba", "", "abc", {}, "buac"),
        ("ab", "ab", "ba", "bac", {}, "abc"),
        ("aub", "ab", "ab", "ba", {}, "bua"),
        ("aub", "ab", "axb", "ba", {}, "bua"),
        ("sxu", "sx", "sx", "nx", {"n": "s"}, "nxu"),
    ],
)
def test_the_order_of_pictures(images: str, before: str, best: str, after: str, replaced: dict[str, str], ends: str):
    repictured = Repictured(best=(*best,), replaced=replaced)
    assert "".join(ordered([*images], [*before], [*after], repictured)) == ends


async def test_a_tag_that_is_taken_off_while_its_sidecar_is_being_written_stays_off(db: Database, facts: Any):
    await facts(hashed("a.safetensors", "a"), described(tags=("fox",)), described(at=60))
    await tag_models(db, TagModels(models=(A,), take=("fox",)))
    await facts(described(tags=("fox", "light"), at=70))
    assert await tags(db) == ["light"]
    await tag_models(db, TagModels(models=(A,), put=("fox",)))
    assert await tags(db) == ["fox", "light"]


async def test_previews_whose_files_change_places_change_places_and_one_that_is_renamed_goes_first(
    db: Database, facts: Any
):
    await facts(hashed("a.safetensors", "a"), described(previews=("a.preview.png=one", "a.png=two")))
    await facts(described(previews=("a.preview.png=two", "a.png=one"), at=60))
    assert await sources(db) == ["two", "one"]
    await facts(described(previews=("a.jpg=two", "a.png=three", "a.webp=one"), at=70))
    await facts(described(previews=("a.preview.webp=one", "a.jpg=two", "a.png=three"), at=80))
    assert await sources(db) == ["one", "two", "three"]


async def test_a_sidecar_that_can_not_be_read_is_named_while_its_model_lies_there(db: Database, facts: Any):
    await facts(hashed("a.safetensors", "a"), described(problems=("a.json is not JSON; correct it.",)))
    [problem] = (await whole(db)).sidecar_problems
    assert (problem.path, problem.problem) == (at_path("a.safetensors"), "a.json is not JSON; correct it.")
    await facts(described(at=60))
    assert (await whole(db)).sidecar_problems == ()


async def test_what_stays_the_same_is_no_fact(db: Database, facts: Any):
    word = described(tags=("fox",), previews=("a.png=one", "a.jpg=two"), title="x", trigger_words=("t",))
    await facts(hashed("a.safetensors", "a"), word)
    before = len(await outgoing(db, limit=1000))
    await facts(word)
    assert len(await outgoing(db, limit=1000)) == before


TEXTS = {
    "models": "created_at",
    "paths": "seen_at",
    "tags": "created_at",
    "images": "created_at",
}
"""The columns of version 2 that hold reals, by table: the history has them as text."""


def version_2(path: Path) -> None:
    """A catalog as version 2 left it: a model with a sidecar's words, of which the user took off a tag and a picture;
    and its history, in the words of that time."""
    identity = msgspec.json.encode(CHECKPOINT).decode()
    of: Stat = stat("a")
    rows: list[tuple[str, dict[str, Any]]] = [
        (
            "models",
            {
                "sha256": A,
                "name": "a",
                "folded": "a",
                "size": 1,
                "identity": identity,
                "created_at": 1.5,
                "numbered": 2,
            },
        ),
        (
            "paths",
            {"root": "models", "rel": "a.safetensors", "folded": "a", "file_key": key(of), "sha256": A, "dev": "1"}
            | {"ino": str(of.ino), "size": 1, "mtime_ns": 1, "ctime_ns": 1, "present": 1, "seen_at": 10.0},
        ),
        ("descriptions", {"sha256": A, "layer": "sidecar", "details": '{"title": "first"}'}),
        ("tags", {"id": 3, "name": "light", "color": "", "created_at": 2.5}),
        ("model_tags", {"sha256": A, "tag_id": 3}),
        (
            "images",
            {"sha256": A, "number": 1, "seq": 0, "source": sha("two"), "origin": "sidecar", "state": "ready"}
            | {"original": "", "width": 8, "height": 8, "bytes": 9, "error": "", "created_at": 3.5},
        ),
    ]
    changes = []
    with closing(sqlite3.connect(path)) as old:
        for version in ("1", "2"):
            old.executescript(sections("agents.catalog", "schema.sql", "version")[version])
            old.execute("INSERT INTO migrations VALUES (?, 1.0)", (version,))
        old.execute("INSERT INTO db_meta VALUES ('history', 'begun')")
        for table, row in rows:
            names = ", ".join(row)
            old.execute(f"INSERT INTO {table} ({names}) VALUES ({', '.join(f':{name}' for name in row)})", row)
            told = {name: repr(value) if name == TEXTS.get(table) else value for name, value in row.items()}
            changes.append({"op": "put", "table": table, "row": told})
        payload = json.dumps({"id": "old", "changes": changes, "at": 4.0})
        old.execute(
            "INSERT INTO outbox (kind, tokens, payload, msg_id) VALUES ('catalog.changed', '{}', ?, 'old')", (payload,)
        )
        old.commit()


async def made_anew(db: Database, other: Path) -> None:
    told = [row for row in await outgoing(db, limit=100_000) if row.kind == "catalog.changed"]
    async with Database.open(other, clock=clock):
        pass
    with rebuilt(other) as new:
        for row in told:
            new.replay(history.changes_of(msgspec.json.decode(row.payload, type=Changed), db.path.parent / "history"))
        new.make_searchable()


async def test_a_catalog_of_version_2_is_migrated_keeps_what_was_taken_off_and_is_rebuilt_the_same(tmp_path: Path):
    path, other = tmp_path / "catalog.db", tmp_path / "new.db"
    version_2(path)
    async with Database.open(path, clock=clock) as db:
        tell = functools.partial(apply, db, now=1.0)
        word = described(tags=("fox", "light"), previews=("a.png=one", "a.jpg=two"), title="first")
        await tell([("1", word)])
        assert (await tags(db), await sources(db)) == (["light"], ["two"])
        await tell([("2", described(tags=("fox", "light", "sun"), at=60, title="second"))])
        assert await tags(db) == ["light", "sun"]
        await tag_models(db, TagModels(models=(A,), take=("sun",)))
        await put_tag(db, PutTag(id=3, name="warm light"))
        await put_tag(db, PutTag(id=4, name="moon"))  # a refused name is another one then
        await drop_tag(db, DropTag(id=4))
        await tell([("3", removed("a.safetensors", stat("a"), 70))])
        await made_anew(db, other)
    with read_only(path) as live, read_only(other) as new:
        found = compare(live, new)
        assert [table for table in found if not table.same] == []
        counts = {table.table: table.live for table in found}
    assert (counts["sidecars"], counts["refused_tags"], counts["refused_pictures"], counts["tag_names"]) == (1, 2, 1, 3)
