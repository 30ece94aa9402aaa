"""Index words: what people see as a word is one, on whichever side it is written, and nothing else is found by it."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from agents.catalog.asks.search import expression, list_outputs
from agents.catalog.asks.tags import tag_models
from agents.catalog.database import Database
from agents.catalog.descriptions import put_layer
from agents.catalog.index_words import functions, searchable, searchable_json
from bus.clock import Clock
from schemas.catalog import ListOutputs, TagModels
from tests.catalog.asks.test_search import draw, names
from tests.catalog.conftest import Tell
from tests.catalog.facts import hashed, sha


@pytest.fixture
def index() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:")) as connection:
        tokenize = "unicode61 remove_diacritics 2"  # as in schema.sql
        connection.execute(f"CREATE VIRTUAL TABLE t USING fts5 (x, tokenize = '{tokenize}', prefix = '2 3')")
        yield connection


def finds(index: sqlite3.Connection, text: str, words: str) -> bool:
    index.execute("DELETE FROM t")
    index.execute("INSERT INTO t VALUES (?)", (searchable(text),))
    return bool(index.execute("SELECT 1 FROM t WHERE t MATCH ?", (expression(words),)).fetchall())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        *(
            ("🦊 fox", "🦊"),
            ("fox 😀", "😀"),
            ("foxy🦊model", "🦊"),
            ("foxy🦊model", "foxy🦊"),
            ("foxy🦊model", "model"),
        ),
        *(("foxy🦊model", "🦊mod"), ("🦊🐱", "🐱"), ("🦊🐱", "🦊 🐱"), ("newer than Python 🫩", "🫩")),
        *(("👍🏽", "👍"), ("👍", "👍🏽"), ("👩‍🚀 up", "👩‍🚀"), ("👩‍🚀", "🚀"), ("❤️", "❤"), ("❤", "❤️"), ("‼️", "‼")),
        *(("🇩🇪", "🇩🇪"), ("🇫🇷🇩🇪", "🇩🇪"), ("🏴󠁧󠁢󠁥󠁮󠁧󠁿", "🏴󠁧󠁢󠁥󠁮󠁧󠁿"), ("1️⃣", "1")),
        *(("press #️⃣ now", "#️⃣"), ("press #️⃣ now", "#\u20e3"), ("*\u20e3", "*️⃣"), ("#1 #️⃣", "1")),
        *(("★ best", "★"), ("♀", "♀️"), ("100€", "€"), ("a→b", "→"), ("™", "tm"), ("\ue0b0", "\ue0b0")),
        *(
            ("狐狸模型", "狸模"),
            ("狐狸模型v2", "模型v"),
            ("𠮷野家", "野"),
            ("𠮷野家", "𠮷"),
            ("きつねモデル", "モデル"),
        ),
        *(("ﾓﾃﾞﾙ", "モデ"), ("여우모델", "모델"), ("ภาพสวย", "สวย"), ("हिन्दी", "हि"), ("हिन्दी", "हिन्दी")),
        *(("Cafe\u0301", "café"), ("café", "cafe"), ("مُحَمَّد", "محمد"), ("שָׁלוֹם", "שלום"), ("TIẾNG", "tieng")),
        *(("ＬｏＲＡ", "lora"), ("𝓯𝓸𝔁", "fox"), ("ﬁlm", "film"), ("Straße", "STRASSE"), ("İzmir", "izmir")),
        *(("so\u00adft", "soft"), ("می\u200cخواهم", "میخواهم"), ("a\0b", "b"), ("é\0b", "b"), ("a\x07b", "b")),
    ],
)
def test_what_is_seen_as_a_word_is_found_by_it(index: sqlite3.Connection, text: str, words: str):
    assert finds(index, text, words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("🐱", "🦊"),
        ("🇸🇩🇪🇺", "🇩🇪"),
        ("🏴󠁧󠁢󠁥󠁮󠁧󠁿", "🏴󠁧󠁢󠁳󠁣󠁴󠁿"),
        ("हिन्दी", "हे"),
        ("模狸", "狸模"),
        ("x", "🏽"),
        ("a→b", "←"),
        ("a+b", "+"),
    ],
)
def test_nothing_else_is_found_by_it(index: sqlite3.Connection, text: str, words: str):
    assert not finds(index, text, words)


def test_all_texts_of_a_json_value_are_in_the_index():
    assert searchable_json(r'["a\u0000b", {"x": ["c", 5, null, {"y": "\ud800d"}]}]').split() == ["a", "b", "c", "d"]
    assert searchable_json('"🦊"') == searchable("🦊") != "🦊"
    assert searchable(None) == searchable_json(None) == searchable_json("null") == ""


async def test_names_titles_tags_descriptions_and_prompts_are_found_by_emoji(db: Database, tell: Tell):
    await tell(hashed("🦊 den.safetensors", "a"), hashed("plain.safetensors", "b"), hashed("other.safetensors", "c"))
    async with db.atomic() as sql:
        await put_layer(sql, sha("b"), "user", {"title": "Best ★", "description": "a 🐱", "trigger_words": ["🐉 x"]})
    await tag_models(db, TagModels(models=(sha("c"),), put=("🌙",)))
    assert await names(db, text="🦊") == ["🦊 den"]
    for words in ("★", "🐱", "🐉"):
        assert await names(db, text=words) == ["plain"], words
    assert await names(db, text="🌙") == ["other"]
    await draw(db, 1, 1.0, "a 🦊 in snow", "a cat")
    assert [one.infotext for one in (await list_outputs(db, ListOutputs(text="🦊"))).outputs] == ["a 🦊 in snow"]


async def test_words_behind_a_null_byte_are_found_wherever_it_stands(db: Database, tell: Tell):
    await tell(hashed("a.safetensors", "a"))
    said = {"title": "one\0two", "description": "é\0three", "notes": "\0four", "trigger_words": ["x\0five"]}
    async with db.atomic() as sql:
        await put_layer(sql, sha("a"), "user", said)
    await tag_models(db, TagModels(models=(sha("a"),), put=("tag\x01six",)))
    for word in ("one", "two", "three", "four", "five", "six"):
        assert await names(db, text=word) == ["a"], word
    await draw(db, 1, 1.0, "seven\0eight")
    assert len((await list_outputs(db, ListOutputs(text="eight"))).outputs) == 1


async def test_a_catalog_that_an_older_version_indexed_is_indexed_anew_once(tmp_path: Path):
    path = tmp_path / "catalog.db"
    async with Database.open(path, clock=Clock()) as db:
        await Tell(db)(hashed("🦊 den.safetensors", "a"))
        await draw(db, 1, 1.0, "a 🦊 in snow")
    with closing(sqlite3.connect(path)) as old:
        old.execute("DELETE FROM db_meta WHERE key = 'search_version'")
        old.execute("UPDATE search SET name = '🦊 den'")
        old.execute("UPDATE search_outputs SET infotext = 'a 🦊 in snow'")
        old.commit()
    for _ in range(2):
        async with Database.open(path, clock=Clock()) as db:
            assert await names(db, text="🦊 den") == ["🦊 den"]
            assert len((await list_outputs(db, ListOutputs(text="🦊"))).outputs) == 1
    with closing(sqlite3.connect(path)) as new:
        assert new.execute("SELECT count(*) FROM search").fetchone() == (1,)
        new.execute("UPDATE search SET name = 'untouched'")
        new.commit()
    async with Database.open(path, clock=Clock()) as db:
        assert await names(db, text="untouched") == ["🦊 den"]


def test_the_functions_of_statements_take_what_a_column_can_hold():
    with closing(sqlite3.connect(":memory:")) as connection:
        for name, function in functions().items():
            connection.create_function(name, 1, function, deterministic=True)
        assert connection.execute("SELECT searchable(NULL), searchable_json(NULL), loose(NULL)").fetchone() == ("",) * 3
