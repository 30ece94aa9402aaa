"""Facts about files become facts about models: each once, whatever comes twice, late or out of order."""

import random

import msgspec

from agents.catalog.database import Database
from agents.catalog.facts import apply, forget_messages
from agents.catalog.ledger import Entry
from agents.catalog.outbox import LARGEST_PAYLOAD, fitted, outgoing, published
from agents.catalog.resolve import list_models
from schemas.files import FilePath, Hashed, HashFailed, Identity, Refused
from schemas.models import ModelMissing, ModelMoved, ModelPictured, ModelReady, ModelTagged
from tests.catalog.conftest import Tell, brief, clock, said
from tests.catalog.facts import CHECKPOINT, LORA, at_path, hashed, key, moved, removed, settled, sha, stat


async def test_a_new_model_is_ready_under_its_file_name(db: Database, tell: Tell):
    [ready] = await tell(hashed("sd/dream v1.5.safetensors", "dream", 12.5))
    assert isinstance(ready, ModelReady)
    assert (ready.at, ready.model.sha256, ready.model.name) == (12.5, sha("dream"), "dream v1.5")
    assert (ready.model.size, ready.model.identity, ready.model.created_at) == (len("dream"), CHECKPOINT, 12.5)
    assert (ready.model.paths, ready.model.missing) == ((at_path("sd/dream v1.5.safetensors"),), False)
    assert await list_models(db) == (ready.model,)


async def test_the_same_content_at_another_path_is_the_same_model_with_two_paths(db: Database, tell: Tell):
    await tell(hashed("b.safetensors", "dream"))
    [fact] = await tell(hashed("a.safetensors", "dream", stat=stat("dream", ino=2)))
    assert fact == ModelMoved(
        sha256=sha("dream"), name="b", paths=(at_path("a.safetensors"), at_path("b.safetensors")), at=10.0
    )


async def test_content_replaced_in_place_makes_the_old_model_missing_and_the_new_one_ready(db: Database, tell: Tell):
    await tell(hashed("dream.safetensors", "old"))
    facts = await tell(hashed("dream.safetensors", "new", 11.0, stat=stat("new", version=2)))
    assert [type(fact) for fact in facts] == [ModelMissing, ModelReady]
    assert facts[0] == ModelMissing(sha256=sha("old"), name="dream", at=11.0)
    assert [model.missing for model in await list_models(db, missing=True)] == [
        model.sha256 == sha("old") for model in await list_models(db, missing=True)
    ]


async def test_content_replaced_in_place_leaves_the_old_model_where_else_it_is(tell: Tell):
    await tell(hashed("a.safetensors", "old"), hashed("b.safetensors", "old", stat=stat("old", ino=2)))
    facts = await tell(hashed("a.safetensors", "new", 11.0, stat=stat("new", version=2)))
    assert brief(facts) == [("moved", "b"), ("ready", "a")]


async def test_a_model_answers_for_no_bytes_that_nobody_has_hashed(tell: Tell):
    await tell(
        settled("dream.safetensors", stat("old", ino=1), 5.0),
        hashed("dream.safetensors", "old", stat=stat("old", ino=1)),
    )
    written = stat("brand new", ino=1, version=2)
    assert brief(await tell(settled("dream.safetensors", written, 11.0))) == [("missing", "dream")]
    assert brief(await tell(hashed("dream.safetensors", "brand new", 12.0, stat=written))) == [("ready", "dream")]


async def test_a_changed_mode_or_a_new_link_does_not_take_a_model_away_while_it_is_hashed_again(tell: Tell):
    await tell(hashed("dream.safetensors", "dream", stat=stat("dream", version=1)))
    touched = stat("dream", version=2, mtime=1)
    assert await tell(settled("dream.safetensors", touched, 11.0)) == []
    assert await tell(hashed("dream.safetensors", "dream", 12.0, stat=touched)) == []


async def test_a_restored_modification_time_does_not_hide_another_content(tell: Tell):
    await tell(hashed("dream.safetensors", "dream", stat=stat("dream", ino=1)))
    forged = stat("dreaM", ino=1, version=2, mtime=1)
    facts = await tell(
        settled("dream.safetensors", forged, 11.0), hashed("dream.safetensors", "dreaM", 12.0, stat=forged)
    )
    assert brief(facts) == [("missing", "dream"), ("ready", "dream")]


async def test_a_removed_path_makes_the_model_missing_only_when_it_was_the_last(db: Database, tell: Tell):
    await tell(hashed("a.safetensors", "dream"), hashed("b.safetensors", "dream", stat=stat("dream", ino=2)))
    assert brief(await tell(removed("a.safetensors", stat("dream")))) == [("moved", "b")]
    assert brief(await tell(removed("b.safetensors", stat("dream", ino=2)))) == [("missing", "b")]
    assert await list_models(db) == ()
    [model] = await list_models(db, missing=True)
    assert (model.sha256, model.missing, model.paths) == (sha("dream"), True, ())


async def test_a_missing_model_that_returns_is_ready_again(tell: Tell):
    await tell(hashed("a.safetensors", "dream"), removed("a.safetensors", stat("dream"), 20.0))
    assert brief(await tell(hashed("z/b.safetensors", "dream", 30.0))) == [("ready", "b")]


async def test_a_missing_model_whose_root_is_mounted_again_is_ready_by_the_hash_cache_alone(tell: Tell):
    of = stat("dream")
    await tell(hashed("a.safetensors", "dream"), removed("a.safetensors", of, 20.0))
    assert brief(await tell(settled("a.safetensors", of, 30.0, content="dream"))) == [("ready", "a")]


async def test_settled_with_a_known_hash_is_as_good_as_hashed(db: Database, tell: Tell):
    of = stat("dream")
    [ready] = await tell(settled("a.safetensors", of, content="dream"))
    assert isinstance(ready, ModelReady) and ready.model.identity == CHECKPOINT
    assert await tell(hashed("a.safetensors", "dream", 11.0)) == []


async def test_a_move_changes_the_path_and_the_name_and_reads_nothing(db: Database, tell: Tell):
    await tell(hashed("in/dream.safetensors", "dream"))
    [fact] = await tell(moved("in/dream.safetensors", "sd/vision.safetensors", stat("dream", version=2, mtime=1)))
    assert fact == ModelMoved(sha256=sha("dream"), name="vision", paths=(at_path("sd/vision.safetensors"),), at=20.0)
    assert [model.name for model in await list_models(db)] == ["vision"]


async def test_a_move_over_another_model_makes_that_one_missing(tell: Tell):
    await tell(hashed("a.safetensors", "one"), hashed("b.safetensors", "two"))
    facts = await tell(moved("a.safetensors", "b.safetensors", stat("one", version=2, mtime=1)))
    assert brief(facts) == [("missing", "b"), ("moved", "b")]


async def test_two_files_that_change_places_are_both_there_afterwards(db: Database, tell: Tell):
    await tell(hashed("a.safetensors", "one"), hashed("b.safetensors", "two"))
    await tell(
        moved("a.safetensors", "b.safetensors", stat("one", version=2, mtime=1), content="one"),
        moved("b.safetensors", "a.safetensors", stat("two", version=2, mtime=1), content="two"),
    )
    assert {(model.sha256, model.name) for model in await list_models(db)} == {(sha("one"), "b"), (sha("two"), "a")}


async def test_a_moved_file_that_nobody_had_hashed_waits_for_its_hash(tell: Tell):
    of = stat("dream")
    assert await tell(settled("a.safetensors", of, 5.0), moved("a.safetensors", "b.safetensors", of, 6.0)) == []
    assert brief(await tell(hashed("b.safetensors", "dream", 7.0))) == [("ready", "b")]


async def test_hard_links_are_one_model_with_many_paths_and_one_hash(db: Database, tell: Tell):
    of = stat("dream")
    await tell(settled("a.safetensors", of, 5.0), settled("b.safetensors", of, 5.0))
    [ready] = await tell(hashed("a.safetensors", "dream", 6.0))
    assert isinstance(ready, ModelReady)
    assert ready.model.paths == (at_path("a.safetensors"), at_path("b.safetensors"))
    assert brief(await tell(settled("c.safetensors", of, 7.0))) == [("moved", "a")]


async def test_a_refused_file_leaves_nothing_of_the_model_that_was_there(tell: Tell):
    await tell(hashed("a.safetensors", "dream"))
    cut = Refused(key=key(stat("cut")), path=at_path("a.safetensors"), reason="truncated", error="Cut short.", at=11.0)
    assert brief(await tell(cut)) == [("missing", "a")]


async def test_a_failed_hash_changes_nothing(db: Database, tell: Tell):
    of = stat("dream")
    path = at_path("a.safetensors")
    failed = HashFailed(key=key(of), path=path, stat=of, reason="changed", error="It was written.", at=11.0)
    assert await tell(hashed("a.safetensors", "dream"), failed) != []
    assert len(await list_models(db)) == 1


async def test_a_hash_of_an_older_version_changes_nothing(db: Database, tell: Tell):
    new = stat("new", version=2)
    await tell(settled("a.safetensors", new, 11.0), hashed("a.safetensors", "new", 12.0, stat=new))
    assert await tell(hashed("a.safetensors", "old", 13.0, stat=stat("old", version=1))) == []
    assert [model.sha256 for model in await list_models(db, missing=True)] == [sha("new")]


async def test_a_hash_that_was_overtaken_by_the_removal_brings_nothing_back(db: Database, tell: Tell):
    of = stat("dream")
    assert (
        await tell(
            settled("a.safetensors", of, 5.0), removed("a.safetensors", of, 7.0), hashed("a.safetensors", "dream", 6.0)
        )
        == []
    )
    assert await list_models(db, missing=True) == ()


async def test_a_late_removal_does_not_take_a_file_away_that_came_back(tell: Tell):
    of = stat("dream")
    await tell(settled("a.safetensors", of, 9.0, content="dream"))
    assert await tell(removed("a.safetensors", of, 8.0)) == []


async def test_the_removal_of_the_file_that_was_there_before_leaves_the_new_one_alone(tell: Tell):
    await tell(
        settled("a.safetensors", stat("old"), 5.0, content="old"),
        settled("a.safetensors", stat("new"), 9.0, content="new"),
    )
    assert await tell(removed("a.safetensors", stat("old"), 9.0)) == []


async def test_a_file_replaced_by_another_and_removed_before_it_was_complete_is_gone(tell: Tell):
    await tell(settled("a.safetensors", stat("old"), 5.0, content="old"))
    assert brief(await tell(removed("a.safetensors", stat("half written"), 9.0))) == [("missing", "a")]


async def test_a_clock_that_was_put_back_does_not_make_facts_late(tell: Tell):
    of = stat("dream")
    await tell(settled("a.safetensors", of, 9_000.0, content="dream"))
    assert brief(await tell(removed("a.safetensors", of, 1_800.0))) == [("missing", "a")]
    assert brief(await tell(settled("a.safetensors", of, 1_900.0, content="dream"))) == [("ready", "a")]


async def test_a_hash_that_comes_before_the_word_that_its_file_settled_counts(tell: Tell):
    of = stat("dream")
    assert brief(await tell(hashed("a.safetensors", "dream", 10.0, stat=of))) == [("ready", "a")]
    assert await tell(settled("a.safetensors", of, 9.9)) == []


async def test_a_hasher_whose_clock_is_ahead_does_not_deafen_the_catalog_for_the_watcher(tell: Tell):
    of = stat("dream")
    await tell(settled("a.safetensors", of, 10.0), hashed("a.safetensors", "dream", 99_999.0, stat=of))
    assert brief(await tell(removed("a.safetensors", of, 20.0))) == [("missing", "a")]


async def test_a_repeated_message_changes_nothing(db: Database):
    facts = [("m1", hashed("a.safetensors", "dream"))]
    assert [await apply(db, facts, now=1.0) for _ in range(3)] == [1, 0, 0]
    assert await apply(db, [*facts, ("m2", hashed("b.safetensors", "two")), *facts], now=1.0) == 1


async def test_a_repeated_state_is_no_second_fact_even_when_the_inbox_forgot_the_message(db: Database):
    facts = [("m1", hashed("a.safetensors", "dream")), ("m2", removed("a.safetensors", stat("dream")))]
    assert await apply(db, facts, now=1.0) == 2
    await forget_messages(db, before=2.0)
    assert await apply(db, facts, now=3.0) == 0


async def test_a_hash_that_reads_more_from_the_header_than_was_known_says_so(db: Database, tell: Tell):
    await tell(hashed("a.safetensors", "dream", identity=Identity()))
    [ready] = await tell(hashed("a.safetensors", "dream", 11.0, identity=LORA))
    assert isinstance(ready, ModelReady) and ready.model.identity == LORA
    assert await tell(settled("a.safetensors", stat("dream"), 12.0, content="dream")) == []
    assert [model.identity for model in await list_models(db, kind="lora")] == [LORA]


async def test_numbers_of_64_bits_and_names_that_are_no_ascii_survive(db: Database, tell: Tell):
    big = msgspec.structs.replace(stat("dream"), ino=2**64 - 1, dev=2**64 - 2, mtime_ns=-1)
    await tell(settled("Ünï 50%25 %FF.safetensors", big, 5.0))
    [ready] = await tell(hashed("Ünï 50%25 %FF.safetensors", "dream", stat=big))
    assert isinstance(ready, ModelReady) and ready.model.name == "Ünï 50% %FF"


async def test_the_outbox_tells_in_order_where_each_message_goes(db: Database):
    await apply(
        db,
        [
            ("m1", hashed("a.safetensors", "old")),
            ("m2", hashed("a.safetensors", "new", 11.0, stat=stat("new", version=2))),
        ],
        now=1.0,
    )
    rows = await outgoing(db)
    assert [(row.kind, row.tokens["sha256"], row.msg_id) for row in rows[:3]] == [
        ("model.ready", sha("old"), "m1.0"),
        ("model.missing", sha("old"), "m2.0"),
        ("model.ready", sha("new"), "m2.1"),
    ]
    assert [row.kind for row in rows[3:]] == ["catalog.changed"]
    await published(db, rows[0].id)
    assert [row.id for row in await outgoing(db, limit=1)] == [rows[1].id]
    await published(db, rows[2].id)
    assert [row.id for row in await outgoing(db)] == [rows[3].id]
    await apply(db, [("m3", hashed("c.safetensors", "third"))], now=1.0)
    assert (await outgoing(db))[0].id > rows[2].id


def test_a_model_with_more_tags_or_pictures_than_fit_is_told_of_with_those_that_do():
    tags = tuple(f"{n:0200}" for n in range(1000))
    for fact in (
        ModelTagged(sha256=sha("dream"), name="dream", tags=tags, at=1.0),
        ModelPictured(sha256=sha("dream"), name="dream", numbers=tuple(range(10**12, 10**12 + 9000)), at=1.0),
    ):
        assert LARGEST_PAYLOAD // 2 < len(fitted(fact)) <= LARGEST_PAYLOAD


def test_a_fact_too_large_for_the_bus_is_said_with_what_fits():
    paths = tuple(FilePath(root="models", rel=f"{n:05}/{'x' * 60}.safetensors") for n in range(2_000))
    large = Identity(kind="checkpoint", metadata={"tags": "y" * 200_000})
    entry = Entry(sha256=sha("dream"), name="dream", size=1, identity=large, created_at=1.0)
    alone = msgspec.json.decode(fitted(ModelReady(model=entry.at(paths[:1]), at=1.0)), type=ModelReady)
    assert (alone.model.paths, alone.model.identity) == (paths[:1], Identity(kind="checkpoint"))
    moved = fitted(ModelMoved(sha256=sha("dream"), name="dream", paths=paths, at=1.0))
    assert LARGEST_PAYLOAD // 2 < len(moved) <= LARGEST_PAYLOAD
    assert paths[:100] == msgspec.json.decode(moved, type=ModelMoved).paths[:100]
    assert len(fitted(ModelReady(model=entry.at(paths), at=1.0))) <= LARGEST_PAYLOAD


async def test_batches_of_any_size_say_the_same_in_the_same_order(db: Database, tmp_path):
    order = random.Random(7)
    facts: list[tuple[str, Hashed]] = []
    for n in range(200):
        content = f"content {order.randrange(20)}"
        of = stat(content, ino=order.randrange(30), version=n)
        facts.append((f"m{n}", hashed(f"{order.randrange(15)}.safetensors", content, float(n), stat=of)))
    for start in range(0, 200, 37):
        await apply(db, facts[start : start + 37], now=1.0)
    async with Database.open(tmp_path / "other.db", clock=clock) as other:
        for fact in facts:
            await apply(other, [fact], now=1.0)
        assert await said(other) == await said(db)
        assert await list_models(other, missing=True) == await list_models(db, missing=True)


async def test_a_copy_under_a_pickles_name_makes_no_good_model_unsafe(db: Database, tell: Tell):
    await tell(hashed("a.safetensors", "dream"))
    unsafe = Identity(unsafe=True, problem="A pickle.")
    await tell(msgspec.structs.replace(hashed("z.ckpt", "dream"), identity=unsafe))
    (model,) = await list_models(db)
    assert not model.identity.unsafe and len(model.paths) == 2


async def test_what_an_import_guessed_of_a_model_gives_way_to_what_the_hash_cache_knows(db: Database, tell: Tell):
    await tell(hashed("elsewhere.safetensors", "dream", identity=Identity(kind="checkpoint")))
    [ready] = await tell(settled("a.safetensors", stat("dream"), 12.0, content="dream", identity=CHECKPOINT))
    assert isinstance(ready, ModelReady) and ready.model.identity == CHECKPOINT
