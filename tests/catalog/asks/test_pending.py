"""Adopting: what lies in the roots and nobody has hashed becomes pending, once; and what waits for a file is found."""

from typing import get_args

import pytest

from agents.catalog.asks.model import edit_model
from agents.catalog.asks.pending import FIRST_ID, adopt_files, file_state, list_pending
from agents.catalog.asks.search import search_models
from agents.catalog.asks.tags import tag_models
from agents.catalog.database import Database
from agents.catalog.facts import apply
from agents.catalog.outbox import outgoing
from schemas.catalog import (
    Adopted,
    AdoptFiles,
    DetailsEdit,
    EditModel,
    FileReply,
    FileState,
    PendingRecord,
    SearchModels,
    Strategy,
    TagModels,
)
from tests.catalog.conftest import Tell
from tests.catalog.facts import at_path, hashed, removed, settled, sha, stat

ROOTS = {"models": "/srv/models/"}
NOW = AdoptFiles()


async def pending(db: Database) -> tuple[PendingRecord, ...]:
    return await list_pending(db, after=0, limit=100)


async def test_a_file_that_is_there_and_not_hashed_becomes_pending_once(db: Database, tell: Tell):
    await tell(
        settled("sub/Unknown%25.safetensors", stat("u")),
        hashed("known.safetensors", "k"),
        settled("gone.safetensors", stat("g")),
        removed("gone.safetensors", stat("g")),
    )
    assert await adopt_files(db, ROOTS, NOW) == Adopted(added=1, pending=1)
    [record] = await pending(db)
    assert (record.id, record.origin, record.state, record.size) == (FIRST_ID, "scan", "waiting", 1)
    assert (record.path, record.name) == ("/srv/models/sub/Unknown%.safetensors", "Unknown%")
    assert record.place == at_path("sub/Unknown%25.safetensors")
    assert await adopt_files(db, ROOTS, NOW) == Adopted(added=0, pending=1)
    assert [row.kind for row in await outgoing(db, limit=100)].count("pending.added") == 1


async def test_files_of_roots_that_are_not_configured_are_left_alone(db: Database, tell: Tell):
    await tell(settled("a.safetensors", stat("a")))
    assert await adopt_files(db, {"loras": "/srv/loras"}, NOW) == Adopted(added=0, pending=0)


async def test_many_files_are_adopted_in_several_answers_with_ids_of_their_own(db: Database):
    facts = [settled(f"{n}.safetensors", stat(str(n))) for n in range(1500)]
    await apply(db, [(str(n), fact) for n, fact in enumerate(facts)], now=1.0)
    first = await adopt_files(db, ROOTS, NOW)
    assert (first.added, first.pending, first.more) == (1000, 1000, True)
    assert await adopt_files(db, ROOTS, NOW) == Adopted(added=500, pending=1500)
    rows = await list_pending(db, after=0, limit=2000)
    assert [record.id for record in rows] == list(range(FIRST_ID, FIRST_ID + 1500))


async def test_an_adopted_file_is_promoted_when_it_is_hashed(db: Database, tell: Tell):
    await tell(settled("a.safetensors", stat("a")))
    await adopt_files(db, ROOTS, NOW)
    waiting = await file_state(db, "report", FileState(places=(at_path("a.safetensors"),)))
    assert waiting == FileReply(known=True, waiting=(FIRST_ID,))
    await tell(hashed("a.safetensors", "a", at=11.0))
    assert await pending(db) == ()
    done = await file_state(db, "report", FileState(places=(at_path("a.safetensors"),), asked=waiting.waiting))
    assert done == FileReply(known=True, sha256=sha("a"), promoted=(FIRST_ID,))


async def test_a_record_that_came_after_its_file_is_promoted_only_when_that_is_asked_for(db: Database, tell: Tell):
    await tell(settled("a.safetensors", stat("a")))
    await adopt_files(db, ROOTS, NOW)
    async with db.atomic() as sql:  # as an import that wrote its record after the hash
        [record] = await pending(db)
        await sql.rows("drop_pending", id=record.id)
    await tell(hashed("a.safetensors", "a", at=11.0))
    async with db.atomic() as sql:
        values = {"id": 7, "path": "/old/a.safetensors", "root": "models", "rel": "a.safetensors", "name": "a"}
        await sql.rows("adopt", **values, folded="a.safetensors", size=1, created_at=1.0)
    place = (at_path("nothing.safetensors"), at_path("a.safetensors"))
    ignored = await file_state(db, "report", FileState(places=place))
    assert ignored == FileReply(known=True, sha256=sha("a"), waiting=(7,))
    promoted = await file_state(db, "report", FileState(places=place, promote=True))
    assert promoted == FileReply(known=True, sha256=sha("a"), promoted=(7,))
    assert await file_state(db, "report", FileState(places=place, promote=True)) == FileReply(
        known=True, sha256=sha("a")
    )


async def test_of_a_place_without_a_file_nothing_is_known(db: Database, tell: Tell):
    await tell(hashed("a.safetensors", "a"), removed("a.safetensors", stat("a")))
    for places in ((), (at_path("a.safetensors"),), (at_path("../catalog.db"),)):
        assert await file_state(db, "report", FileState(places=places)) == FileReply()


async def test_a_file_that_no_fact_is_about_is_waited_for_by_its_name_and_size(db: Database):
    async with db.atomic() as sql:
        values = {"id": 7, "path": "/old/a.safetensors", "root": None, "rel": None, "name": "a", "size": 1}
        await sql.rows("adopt", **values, folded="a.safetensors", created_at=1.0)
    place = (at_path("new/A.safetensors"),)
    assert await file_state(db, "report", FileState(places=place, size=1)) == FileReply(waiting=(7,))
    assert await file_state(db, "report", FileState(places=place, size=2)) == FileReply()


@pytest.mark.parametrize("strategy", get_args(Strategy))
async def test_a_record_that_says_nothing_is_no_conflict_with_what_is_said_of_the_model(
    db: Database, tell: Tell, strategy: Strategy
):
    await tell(hashed("first.safetensors", "a"), settled("copy.safetensors", stat("a", ino=7)))
    await edit_model(db, EditModel(sha256=sha("a"), edit=DetailsEdit(title="Mine")))
    await tag_models(db, TagModels(models=(sha("a"),), put=("photo",)))
    await adopt_files(db, ROOTS, NOW)
    await apply(
        db, [("h", hashed("copy.safetensors", "a", at=11.0, stat=stat("a", ino=7)))], now=1.0, strategy=strategy
    )
    assert await pending(db) == ()
    [model] = (await search_models(db, SearchModels())).models
    assert (model.details.title, model.tags) == ("Mine", ("photo",))
