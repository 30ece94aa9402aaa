"""Fitting: whatever an item holds, it fits into its message, what was cut says so, and nothing loops for ever."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.catalog.outbox import LARGEST_PAYLOAD
from agents.catalog.outbox import fitted as said
from agents.migrator.agent import listing
from schemas.asks import ModelList
from schemas.catalog import Output, PendingRecord
from schemas.files import Details, FilePath, Identity, Known, ListedFile, Stat
from schemas.fitting import ANSWER_BYTES, ITEM_BYTES, MARK, cut, fitted
from schemas.models import Model, ModelPromoted, ModelTagged
from tests.catalog.facts import CHECKPOINT, sha

LONG = "word " * 190_000


def model(n: int = 0, **fields: object) -> Model:
    plain = Model(sha256=sha(str(n)), name=f"{n}", size=1, identity=CHECKPOINT, paths=(), missing=True, created_at=1.0)
    return msgspec.structs.replace(plain, **fields)


@pytest.mark.parametrize(
    ("field", "item"),
    [
        ("details.description", model(details=Details(description=LONG))),
        ("details.notes", model(details=Details(description="a", notes="\x01" * 500_000))),
        ("details.title", model(details=Details(title="🦊" * 300_000))),
        ("details.trigger_words", model(details=Details(trigger_words=tuple(f"word {n}" for n in range(50_000))))),
        ("details.trigger_words", model(details=Details(trigger_words=(LONG,)))),
        ("details.extra", model(details=Details(extra={f"{n}": LONG[:20_000] for n in range(9)}))),
        ("tags", model(tags=tuple(f"{n:0200}" for n in range(5_000)))),
        ("paths", model(paths=tuple(FilePath(root="models", rel=f"{n:0200}") for n in range(5_000)))),
        ("identity.metadata", model(identity=Identity(metadata={f"{n}": "x" * 100 for n in range(10_000)}))),
        ("identity.problem", model(identity=Identity(problem=LONG))),
        ("name", model(name=LONG)),
        ("details.description", PendingRecord(id=1, path="/a", name="a", details=Details(description=LONG),
                                              origin="import", state="waiting")),
        ("path", PendingRecord(id=1, path="/" + "a" * 10**6, name="a", origin="import", state="waiting")),
        ("infotext", Output(job="a" * 32, n=0, file="f", digest="", width=1, height=1, bytes=1, seed=1, model="",
                            infotext=LONG, created_at=1.0)),
    ],
)  # fmt: skip
def test_one_item_that_is_too_large_loses_the_end_of_its_long_field_and_says_which(field: str, item: msgspec.Struct):
    [short] = fitted([item])
    assert ITEM_BYTES // 2 < len(msgspec.json.encode(short)) <= ITEM_BYTES
    assert short.cut == (field,)  # type: ignore[attr-defined]
    assert fitted([msgspec.structs.replace(short, cut=())]) == (msgspec.structs.replace(short, cut=()),)


def test_a_text_that_was_cut_ends_in_a_mark_and_begins_as_it_was():
    text = cut(model(details=Details(description=LONG)), ITEM_BYTES).details.description
    assert text.endswith(MARK) and LONG.startswith(text.removesuffix(MARK)) and len(text) > 30_000


def test_items_that_fit_are_as_they_were_and_a_page_takes_as_many_as_it_has_room_for():
    models = [model(n, details=Details(description="x" * 20_000)) for n in range(100)]
    page = fitted(models)
    assert 40 <= len(page) < 50 and list(page) == models[: len(page)]
    assert len(msgspec.json.encode(page)) <= ANSWER_BYTES
    assert fitted([]) == ()


@settings(deadline=None)
@given(
    texts=st.lists(st.text(max_size=300), max_size=6),
    count=st.integers(0, 300),
    room=st.integers(0, 4_000),
)
def test_cutting_ends_whatever_there_is_to_cut(texts: list[str], count: int, room: int):
    words = tuple((texts or [""])[n % max(1, len(texts))] for n in range(count))
    whole = model(tags=words, details=Details(trigger_words=words, extra=dict.fromkeys(texts, words)))
    short = cut(whole, room)
    assert len(msgspec.json.encode(short)) <= max(room, 3_000)
    assert bool(short.cut) == (short != whole)


def test_the_list_of_models_is_one_answer_though_one_of_them_is_larger_than_that():
    models = (model(1, details=Details(description=LONG)), model(2))
    page = msgspec.json.decode(bytes(listing(models, 1000, ANSWER_BYTES)), type=ModelList)
    assert [one.name for one in page.models] == ["1", "2"] and not page.more
    assert page.models[0].cut == ("details.description",) and page.models[1] == models[1]


def test_a_page_of_files_is_never_empty():
    known = Known(sha256=sha("a"), identity=Identity(kind="checkpoint", problem="p" * 5_000))
    stat = Stat(dev=1, ino=1, size=1, mtime_ns=1, ctime_ns=1)
    files = [ListedFile(path=FilePath(root="m", rel=f"{n}"), key="k", stat=stat, known=known) for n in range(3)]
    assert len(fitted(files, 1_000, 1_000)) == 1


def test_a_fact_of_a_model_with_an_endless_name_rides_the_bus():
    name = "\x01" * 32_000  # six bytes each in JSON
    for fact in (
        ModelTagged(sha256=sha("a"), name=name, tags=("x",), at=1.0),
        ModelPromoted(sha256=sha("a"), name=name, pending_id=1, strategy="", at=1.0),
    ):
        assert len(said(fact)) <= LARGEST_PAYLOAD
