"""Promotion: what a pending record says becomes what is said of the model, once, and a conflict is only a real one."""

from typing import Any

import msgspec
import pytest

from agents.catalog.asks.pending import list_pending, promote_chosen
from agents.catalog.database import Database
from agents.catalog.descriptions import images_waiting, picture_encoded, picture_refused, put_layer
from agents.catalog.facts import apply
from agents.catalog.outbox import outgoing
from agents.catalog.promotion import drop_promoted, longest_common_suffix, promote_present, unused_originals
from agents.catalog.resolve import list_models
from schemas.catalog import Strategy
from schemas.images import Encoded, Picture, PictureRefused
from schemas.models import Model
from tests.catalog.conftest import Tell
from tests.catalog.facts import hashed, sha
from tests.catalog.pending import add_pending
from tests.catalog.sql import execute

SIZE = len("dream")


async def the_model(db: Database) -> Model:
    [found] = await list_models(db)
    return found


async def left(db: Database) -> dict[int, str]:
    return {record.id: record.state for record in await list_pending(db, after=0, limit=100)}


async def said(db: Database) -> list[str]:
    return [row.kind for row in await outgoing(db, limit=10_000) if row.kind != "catalog.changed"]


def encoded(sha256: str, number: int) -> Encoded:
    picture = Picture(index=number, seed=0, width=3, height=2, file="f", bytes=9, sha256=sha256, tiers={})
    return Encoded(id=f"{number:032x}", model=sha256, pictures=(picture,), seconds=0.1, at=2.0)


async def describe_by_hand(db: Database, **details: Any) -> None:
    async with db.atomic() as sql:
        await put_layer(sql, sha("dream"), "user", details)


async def test_a_hashed_file_promotes_the_record_of_its_path_with_all_that_it_says(db: Database, tell: Tell):
    await add_pending(
        db, 7, "/old/dream.safetensors", rel="dream.safetensors", details={"type": "lora"}, tags=("a", "b")
    )
    await tell(hashed("dream.safetensors", "dream"))
    found = await the_model(db)
    assert found.details.type == "lora" and found.tags == ("a", "b")
    assert await left(db) == {}
    assert await said(db) == ["model.ready", "model.tagged", "model.promoted", "pending.dropped"]


async def test_a_file_that_was_moved_is_found_by_its_name_and_size(db: Database, tell: Tell):
    await add_pending(db, 1, "/old/Dream.safetensors", size=SIZE)
    await add_pending(db, 2, "/old/dream.safetensors.bak", size=SIZE)
    await add_pending(db, 3, "/older/dream.safetensors", size=SIZE + 1)
    await tell(hashed("sub/dream.safetensors", "dream"))
    assert (await the_model(db)).details.title == "record 1"
    assert await left(db) == {2: "waiting", 3: "waiting"}


async def test_of_records_with_one_name_and_size_the_one_with_the_nearest_folders_is_meant(db: Database, tell: Tell):
    await add_pending(db, 1, "C:\\models\\sd15\\model.safetensors", size=SIZE)
    await add_pending(db, 2, "/models/sdxl/model.safetensors", size=SIZE)
    async with db.atomic():  # a Windows path has its name behind backslashes
        await execute(db, "UPDATE pending_import SET folded = 'model.safetensors'")
    await tell(hashed("SD15/model.safetensors", "dream"))
    assert (await the_model(db)).details.title == "record 1"


async def test_a_record_is_not_guessed_where_two_are_as_near(db: Database, tell: Tell):
    await add_pending(db, 1, "/a/model.safetensors", size=SIZE)
    await add_pending(db, 2, "/b/model.safetensors", size=SIZE)
    await tell(hashed("c/model.safetensors", "dream"))
    assert await left(db) == {1: "waiting", 2: "waiting"}


def test_a_common_suffix_counts_the_folders_from_the_file_up():
    assert longest_common_suffix([(1, "/x/a/m.pt"), (2, "/x/b/m.pt")], "deep/B/m.pt") == 2
    assert longest_common_suffix([(1, "/a/m.pt")], "elsewhere/m.pt") == 1
    assert longest_common_suffix([], "m.pt") is None


async def test_a_record_whose_own_file_is_there_is_not_given_to_another_of_that_name(db: Database, tell: Tell):
    await add_pending(db, 1, "/old/dream.safetensors", size=SIZE, rel="a/dream.safetensors")
    await tell(hashed("a/dream.safetensors", "other"))
    assert (await the_model(db)).sha256 == sha("other")
    await add_pending(db, 2, "/old/2/dream.safetensors", size=SIZE, rel="b/dream.safetensors")
    await tell(hashed("b/dream.safetensors", "third"), hashed("c/dream.safetensors", "dream"))
    titles = {model.sha256: model.details.title for model in await list_models(db)}
    assert titles == {sha("other"): "record 1", sha("third"): "record 2", sha("dream"): ""}


async def test_records_that_come_after_their_files_were_hashed_are_promoted_too(db: Database, tell: Tell):
    for n in range(300):
        await tell(hashed(f"{n}.safetensors", f"content {n:03}"))
        if n % 3 == 0:
            await add_pending(db, n + 1, f"/old/{n}.safetensors", size=len("content 000"))
    await add_pending(db, 1000, "/old/never.safetensors", size=1)
    assert await promote_present(db, "report", 2.0) == 100
    assert await left(db) == {1000: "waiting"}
    assert await promote_present(db, "report", 2.0) == 0


async def test_pictures_of_a_record_become_the_models_and_the_record_goes_when_the_last_is_there(
    db: Database, tell: Tell
):
    await add_pending(db, 5, "/old/dream.safetensors", size=SIZE, images=(b"one", b"two", b"three"))
    await tell(hashed("dream.safetensors", "dream"))
    assert await left(db) == {5: "promoting"}
    waiting = await images_waiting(db, limit=10)
    assert [(one.number, one.original) for one in waiting] == [(n, f"images/pending/5-{n}.png") for n in range(3)]
    originals = []
    for number in (1, 0):
        async with db.atomic() as sql:
            originals += await picture_encoded(sql, encoded(sha("dream"), number))
            originals += await drop_promoted(sql, [sha("dream")], 2.0)
    assert await left(db) == {5: "promoting"}
    assert await unused_originals(db.committed, originals) == []
    async with db.atomic() as sql:
        refused = PictureRefused(id="0" * 32, sha256=sha("dream"), number=2, error="It is damaged.", at=2.0)
        await picture_refused(sql, refused)
        originals += await drop_promoted(sql, [sha("dream")], 2.0)
    assert await left(db) == {}
    unused = sorted(await unused_originals(db.committed, originals))
    assert set(unused) == {"images/pending/5-0.png", "images/pending/5-1.png"}, "a refused picture keeps its original"


@pytest.mark.parametrize(
    ("strategy", "outcome", "title", "notes", "tags"),
    [
        ("report", "conflict", "mine", "", ("mine",)),
        ("ignore", "ignored", "mine", "", ("mine",)),
        ("delete", "deleted", "mine", "", ("mine",)),
        ("merge", "promoted", "mine", "theirs", ("mine", "theirs")),
        ("override", "promoted", "theirs", "theirs", ("theirs",)),
    ],
)
async def test_a_strategy_decides_where_the_model_is_described_already(
    db: Database, tell: Tell, strategy: Strategy, outcome: str, title: str, notes: str, tags: tuple[str, ...]
):
    await tell(hashed("dream.safetensors", "dream"))
    await add_pending(db, 1, "/a", tags=("mine",), rel="dream.safetensors", details={"title": "mine"})
    await promote_present(db, "report", 2.0)
    theirs = {"title": "theirs", "notes": "theirs"}
    await add_pending(db, 2, "/b", tags=("theirs",), rel="dream.safetensors", details=theirs)
    [(outcome_now)], _ = await promote_chosen(db, [2], strategy, 3.0)
    found = await the_model(db)
    assert (outcome_now.outcome, outcome_now.sha256) == (outcome, sha("dream"))
    assert (found.details.title, found.details.notes, found.tags) == (title, notes, tags)
    records = {"report": {2: "conflict"}, "ignore": {2: "waiting"}}
    assert await left(db) == records.get(strategy, {})


@pytest.mark.parametrize("strategy", ["report", "override", "merge", "ignore", "delete"])
async def test_without_a_conflict_every_strategy_promotes(db: Database, tell: Tell, strategy: Strategy):
    await tell(hashed("dream.safetensors", "dream"))
    await add_pending(db, 1, "/a", rel="dream.safetensors")
    (outcome,), _ = await promote_chosen(db, [1], strategy, 3.0)
    assert outcome.outcome == "promoted" and await left(db) == {}


async def test_what_a_user_wrote_goes_over_a_merged_record_and_gives_way_to_an_overriding_one(db: Database, tell: Tell):
    await tell(hashed("dream.safetensors", "dream"))
    await describe_by_hand(db, title="by hand", positive="keep")
    await add_pending(db, 1, "/a", rel="dream.safetensors", details={"title": "theirs", "notes": "n"})
    await promote_chosen(db, [1], "merge", 3.0)
    assert (await the_model(db)).details.title == "by hand"
    await add_pending(db, 2, "/b", rel="dream.safetensors", details={"title": "theirs"})
    await promote_chosen(db, [2], "override", 3.0)
    details = (await the_model(db)).details
    assert (details.title, details.positive, details.notes) == ("theirs", "keep", "n")


async def test_a_conflict_is_told_once_and_can_be_solved_later(db: Database, tell: Tell):
    await describe_twice(db, tell)
    before = (await said(db)).count("pending.conflict")
    await tell(hashed("copy.safetensors", "dream"))
    assert before == 1 and (await said(db)).count("pending.conflict") == 1
    (outcome,), _ = await promote_chosen(db, [2], "merge", 4.0)
    assert outcome.outcome == "promoted" and await left(db) == {}


async def describe_twice(db: Database, tell: Tell) -> None:
    """Two records of one content: the first is promoted, the second is a conflict."""
    await add_pending(db, 1, "/a", rel="dream.safetensors")
    await tell(hashed("dream.safetensors", "dream"))
    await add_pending(db, 2, "/b", rel="copy.safetensors")
    await tell(hashed("copy.safetensors", "dream"))
    assert await left(db) == {2: "conflict"}


async def test_a_record_whose_file_nobody_has_hashed_waits_and_an_unknown_id_is_unknown(db: Database):
    await add_pending(db, 1, "/a", rel="dream.safetensors")
    (waiting, unknown, absurd), _ = await promote_chosen(db, [1, 99, 1 << 70], "merge", 1.0)
    assert (waiting.outcome, unknown.outcome, absurd.outcome) == ("waiting", "unknown", "unknown")
    assert waiting.error and unknown.error and await left(db) == {1: "waiting"}


async def test_the_same_fact_twice_promotes_once(db: Database):
    await add_pending(db, 1, "/a", rel="dream.safetensors", images=(b"one",))
    fact = hashed("dream.safetensors", "dream")
    for _ in range(2):
        await apply(db, [("m1", fact)], now=1.0)
    again = msgspec.structs.replace(fact, at=11.0)
    await apply(db, [("m2", again)], now=1.0)
    assert (await said(db)).count("model.promoted") == 1
    assert len(await images_waiting(db, limit=10)) == 1
