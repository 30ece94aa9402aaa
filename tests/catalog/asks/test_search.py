"""Searching: every word begins one that is there, what people type is never syntax, and pages meet without a gap."""

import sqlite3

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.catalog.asks.model import show_model
from agents.catalog.asks.search import WORDS, expression, list_outputs, search_models
from agents.catalog.asks.tags import tag_models
from agents.catalog.database import Database
from agents.catalog.descriptions import put_layer
from agents.catalog.outputs import add_outputs
from schemas.catalog import ListOutputs, SearchModels, ShowModel, TagModels
from schemas.images import Encoded, Picture
from tests.catalog.conftest import Tell, declined
from tests.catalog.facts import CHECKPOINT, LORA, PICKLE, hashed, removed, sha, stat
from tests.effort import examples


@pytest.fixture
async def four(db: Database, tell: Tell) -> Database:
    """Four models: two checkpoints (one called an inpainting one), a LoRA and a pickle whose file is gone."""
    await tell(
        hashed("Golden Hour.safetensors", "a", at=1.0),
        hashed("golden_retriever.safetensors", "b", at=2.0, identity=LORA),
        hashed("paint.safetensors", "c", at=3.0),
        hashed("old.ckpt", "d", at=4.0, identity=PICKLE),
        removed("old.ckpt", stat("d"), at=5.0),
    )
    async with db.atomic() as sql:
        await put_layer(
            sql, sha("a"), "sidecar", {"description": "Warm light; C++ (50% off)", "trigger_words": ["gpz"]}
        )
        await put_layer(sql, sha("c"), "sidecar", {"type": "Checkpoint"})
        await put_layer(sql, sha("c"), "user", {"type": "Inpainting"})
        await put_layer(sql, sha("b"), "import", {"type": ""})
    await tag_models(db, TagModels(models=(sha("a"), sha("b")), put=("warm", "photo")))
    await tag_models(db, TagModels(models=(sha("c"),), put=("photo",)))
    return db


async def names(db: Database, **search: object) -> list[str]:
    page = await search_models(db, SearchModels(**search))
    assert page.next == ""
    return [model.name for model in page.models]


ALL = ["Golden Hour", "golden_retriever", "old", "paint"]


async def test_every_word_begins_a_word_of_the_name_tags_trigger_words_or_description(four: Database):
    assert await names(four) == await names(four, text="  ") == ALL
    assert await names(four, text="gold") == ["Golden Hour", "golden_retriever"]
    assert await names(four, text="HOU gol") == ["Golden Hour"]
    assert await names(four, text="retr") == ["golden_retriever"]
    assert await names(four, text="photo") == ["Golden Hour", "golden_retriever", "paint"]
    assert await names(four, text="gpz") == await names(four, text="light wárm") == ["Golden Hour"]
    assert await names(four, text="olden") == []


@pytest.mark.parametrize(
    "text",
    [
        *('"', '""', "'", "C++", "(50%", "light;", "gold*", "-gold", "^golden", "golden AND hour", "NEAR(golden hour)"),
        *(
            "name:golden",
            "{name}:golden",
            "golden + hour",
            "golden\0hour",
            "NOT",
            "a OR",
            "\\",
            "%",
            ";--",
            "*",
            "\x1a",
        ),
    ],
)
async def test_special_characters_and_words_of_the_search_language_are_text(four: Database, text: str):
    page = await search_models(four, SearchModels(text=text))
    expected = {"C++", "(50%", "light;", "gold*", "-gold", "^golden", "golden + hour", "golden\0hour"}
    assert ("Golden Hour" in [model.name for model in page.models]) == (text in expected)


@given(text=st.text(max_size=40))
@settings(max_examples=examples(300))
def test_any_text_at_all_is_an_expression(text: str):
    with sqlite3.connect(":memory:") as connection:
        connection.execute("CREATE VIRTUAL TABLE t USING fts5 (x)")
        if (words := expression(text.encode("utf-8", "replace").decode())) is not None:
            assert connection.execute("SELECT * FROM t WHERE t MATCH ?", (words,)).fetchall() == []


async def test_a_search_has_a_bounded_number_of_words(four: Database):
    with declined("bad-query"):
        await search_models(four, SearchModels(text="x " * (WORDS + 1)))


async def test_models_are_filtered_by_kind_type_family_tags_and_whether_they_are_there(four: Database):
    assert await names(four, kind="lora") == ["golden_retriever"]
    assert await names(four, kind="checkpoint", family="sd15") == ["Golden Hour", "paint"]
    assert await names(four, type="INPAINTING") == ["paint"]
    assert await names(four, type="checkpoint") == ["Golden Hour", "old"], "a user's word goes over a file's"
    assert await names(four, type="lora") == ["golden_retriever"], "where nobody says, the header does"
    assert await names(four, tags=("Photo", "WARM")) == ["Golden Hour", "golden_retriever"]
    assert await names(four, tags=("photo",), without=("warm",)) == ["paint"]
    assert await names(four, without=("photo", "no such tag")) == ["old"]
    assert await names(four, tags=("no such tag",)) == []
    assert await names(four, missing="no") == ["Golden Hour", "golden_retriever", "paint"]
    assert await names(four, missing="only") == ["old"]
    assert await names(four, text="gold", tags=("photo",), kind="checkpoint", missing="no") == ["Golden Hour"]


@pytest.mark.parametrize("sort", ["name", "newest"])
async def test_pages_meet_without_gap_or_repeat_whatever_is_put_before_them(db: Database, tell: Tell, sort: str):
    for n in range(7):
        await tell(hashed(f"m{n // 2}.safetensors", f"content {n}", at=float(n // 3)))
    whole = [model.sha256 for model in (await search_models(db, SearchModels(sort=sort))).models]
    seen, cursor, more = [], "", True
    while more:
        page = await search_models(db, SearchModels(sort=sort, cursor=cursor, limit=2))
        seen += [model.sha256 for model in page.models]
        cursor, more = page.next, bool(page.next)
        await tell(hashed(f"a{len(seen)}.safetensors", f"early {len(seen)}", at=100.0 + len(seen)))
    assert seen == whole and len(seen) == 7


async def test_a_cursor_of_another_list_is_refused(four: Database):
    page = await search_models(four, SearchModels(limit=1))
    for ask in (
        SearchModels(sort="newest", cursor=page.next),
        *(SearchModels(cursor=cursor) for cursor in ("x", "é", "W10", "../..", page.next + "x", "A" * 5000)),
    ):
        with declined("bad-cursor"):
            await search_models(four, ask)
    with declined("bad-cursor"):
        await list_outputs(four, ListOutputs(cursor=page.next))


async def test_lists_leave_the_long_things_out_and_one_model_has_them(db: Database, tell: Tell):
    long = msgspec.structs.replace(CHECKPOINT, metadata={"ss_tag_frequency": "x" * 30_000})
    await tell(hashed("a.safetensors", "a", identity=long))
    await tell(hashed("copy/a.safetensors", "a", stat=stat("a", ino=7), identity=long))
    await tell(removed("a.safetensors", stat("a")))
    async with db.atomic() as sql:
        await put_layer(sql, sha("a"), "import", {"extra": {"civitai": 1}, "title": "A"})
        await sql.rows("put_digest", sha256=sha("a"), algorithm="crc32", digest="0AB1C2D3")
    await tag_models(db, TagModels(models=(sha("a"),), put=("photo",)))
    [slim] = (await search_models(db, SearchModels())).models
    assert slim.identity.metadata == {} and slim.details.extra == {} and slim.details.title == "A"
    for name in ("a", "A.safetensors", sha("a"), sha("a")[:8], "copy/a.safetensors"):
        whole = (await show_model(db, ShowModel(name=name))).model
        assert whole.model.identity == long and whole.model.details.extra == {"civitai": 1}
        assert [(one.path.rel, one.present) for one in whole.paths] == [
            ("copy/a.safetensors", True),
            ("a.safetensors", False),
        ]
        assert [(tag.id, tag.name, tag.models) for tag in whole.tags] == [(1, "photo", 1)]
        assert whole.model.digests == {"crc32": "0AB1C2D3"} and set(whole.layers) == {"import"}


async def test_a_name_that_means_no_model_or_several_is_declined(db: Database, tell: Tell):
    await tell(hashed("x/same.safetensors", "a"), hashed("y/same.safetensors", "b"))
    for hash in (sha("a")[:10], sha("b")[:10]):
        with declined("ambiguous-model", hash):
            await show_model(db, ShowModel(name="same"))
    for name in ("", "nothing", "0" * 64, "*", "same%", "../same"):
        with declined("unknown-model"):
            await show_model(db, ShowModel(name=name))


async def test_a_model_at_very_many_paths_is_still_one_answer(db: Database, tell: Tell):
    await tell(hashed("a.safetensors", "a"))
    same = {"root": "models", "folded": "x", "sha256": sha("a"), "dev": "1", "ino": "1", "size": 1}
    same |= {"mtime_ns": 1, "ctime_ns": 1, "present": True, "away": False, "seen_at": 1.0}
    paths = [f"{'d' * 200}/{'e' * 200}/{n}.safetensors" for n in range(2500)]
    async with db.atomic() as sql:
        await sql.many("put_path", [same | {"rel": rel, "file_key": rel} for rel in paths])
    whole = (await show_model(db, ShowModel(name=sha("a")))).model
    assert whole is not None and whole.more_paths + len(whole.paths) == 2501 and whole.more_paths > 0
    [model] = (await search_models(db, SearchModels())).models
    assert 0 < len(model.paths) < 2501


async def draw(db: Database, job: int, at: float, *texts: str, model: str = "a") -> None:
    pictures = tuple(
        Picture(index=n, seed=n, width=8, height=8, file=f"outputs/{job}-{n}.webp", bytes=1, sha256="b" * 64, tiers={})
        for n in range(len(texts))
    )
    async with db.atomic() as sql:
        await add_outputs(sql, Encoded(id=f"{job:032x}", pictures=pictures, seconds=0.1, at=at), sha(model), [*texts])


async def test_the_gallery_is_listed_newest_first_and_searched_by_what_made_it(db: Database):
    await draw(db, 1, 10.0, "a red fox\nSteps: 20", "a red fox, snow")
    await draw(db, 2, 20.0, "a blue bird", model="b")
    await draw(db, 3, 20.0, "foxglove")

    async def listed(**ask: object) -> list[str]:
        seen, cursor, more = [], "", True
        while more:
            page = await list_outputs(db, ListOutputs(cursor=cursor, limit=1, **ask))
            seen += [output.infotext for output in page.outputs]
            cursor, more = page.next, bool(page.next)
        return seen

    assert await listed() == ["foxglove", "a blue bird", "a red fox, snow", "a red fox\nSteps: 20"]
    assert await listed(text="fox") == ["foxglove", "a red fox, snow", "a red fox\nSteps: 20"]
    assert await listed(text="red sno") == ["a red fox, snow"]
    assert await listed(model=sha("b")[:8].upper()) == ["a blue bird"]
    assert await listed(model=sha("b"), text="fox") == [] == await listed(text="***")
