"""Tags by hand: one name is one tag, whatever way it is written, and nothing of a change that can't be done stays."""

import pytest

from agents.catalog.asks.tags import TAGS_OF_A_MODEL, drop_tag, list_tags, put_tag, tag_models
from agents.catalog.database import Database
from agents.catalog.outbox import outgoing
from schemas.catalog import DropTag, ListTags, PutTag, TagModels
from schemas.models import Tag
from tests.catalog.conftest import Tell, declined
from tests.catalog.facts import hashed, sha

A, B = sha("a"), sha("b")


@pytest.fixture
async def models(tell: Tell) -> None:
    await tell(hashed("a.safetensors", "a"), hashed("b.safetensors", "b"))


async def kinds(db: Database) -> list[str]:
    """What the outbox has of tags, in order."""
    return [row.kind for row in await outgoing(db, limit=1000) if "tag" in row.kind]


async def everything(db: Database) -> tuple[object, ...]:
    return (await list_tags(db, ListTags())).tags


async def test_a_tag_is_kept_folded_with_its_colour_and_is_published(db: Database):
    made = await put_tag(db, PutTag(name="  Réa\u0301listic   PHOTO ", color="#FFaa00"))
    assert made.tag == Tag(id=1, name="réálistic photo", color="#ffaa00")
    assert await everything(db) == (made.tag,)
    assert await kinds(db) == ["tag.put"]


async def test_renaming_onto_an_existing_name_is_a_conflict_that_names_it(db: Database):
    await put_tag(db, PutTag(name="anime"))
    other = (await put_tag(db, PutTag(name="photo"))).tag
    for again in (PutTag(id=other.id, name="ANIME "), PutTag(name="Anime")):
        with declined("tag-exists", "'anime' already: it has the id 1"):
            await put_tag(db, again)
    assert [tag.name for tag in await everything(db)] == ["anime", "photo"]


async def test_a_tag_can_be_renamed_to_what_it_is_called_and_that_is_no_fact(db: Database):
    await put_tag(db, PutTag(name="anime", color="#000000"))
    assert (await put_tag(db, PutTag(id=1, name="Anime"))).tag == Tag(id=1, name="anime", color="#000000")
    assert await kinds(db) == ["tag.put"]


async def test_a_name_or_a_colour_that_can_be_none_is_refused(db: Database):
    for bad in (
        *(PutTag(name=name) for name in ("", "   ", "x" * 201)),
        *(PutTag(name="x", color=color) for color in ("red", "#fff", "#gggggg", "#ffffff\n", "url(//x)")),
        PutTag(color="#ffffff"),
    ):
        with declined("bad-tag"):
            await put_tag(db, bad)
    with declined("unknown-tag"):
        await put_tag(db, PutTag(id=7, name="x"))
    for id in (7, 2**70):
        with declined("unknown-tag"):
            await drop_tag(db, DropTag(id=id))
    assert await everything(db) == () and await kinds(db) == []


@pytest.mark.usefixtures("models")
async def test_models_are_tagged_in_bulk_and_only_those_that_changed_are_published(db: Database):
    first = await tag_models(db, TagModels(models=(A,), put=("Photo",)))
    assert (first.changed, first.tags) == (1, (("photo",),))
    both = await tag_models(db, TagModels(models=(A, B, A), put=("photo", "PHOTO", "light")))
    assert (both.changed, both.tags) == (2, (("light", "photo"), ("light", "photo")))
    again = await tag_models(db, TagModels(models=(A, B), put=("light",), take=("photo",)))
    assert (again.changed, again.tags) == (2, (("light",), ("light",)))
    assert (await tag_models(db, TagModels(models=(A, B), put=("light",)))).changed == 0
    tagged = "model.tagged"
    assert await kinds(db) == ["tag.put", tagged, "tag.put", tagged, tagged, tagged, tagged]
    assert [(tag.name, tag.models) for tag in await everything(db)] == [("light", 2), ("photo", 0)]


@pytest.mark.usefixtures("models")
async def test_of_a_change_that_can_not_be_done_whole_nothing_is_done(db: Database):
    many = tuple(f"tag {n}" for n in range(TAGS_OF_A_MODEL))
    for ask, reason in (
        (TagModels(models=(A, "0" * 64), put=("new",)), "unknown-model"),
        (TagModels(models=(A,), put=("new",), take=("no such",)), "unknown-tag"),
        (TagModels(models=(A,), put=("new", "")), "bad-tag"),
        (TagModels(models=(A,), put=(*many, "one more")), "too-many"),
    ):
        with declined(reason):
            await tag_models(db, ask)
    await tag_models(db, TagModels(models=(A,), put=many))
    with declined("too-many"):
        await tag_models(db, TagModels(models=(A,), put=("one more",)))
    assert len(await everything(db)) == TAGS_OF_A_MODEL


@pytest.mark.usefixtures("models")
async def test_a_deleted_tag_is_off_every_model_and_its_id_is_published(db: Database):
    await tag_models(db, TagModels(models=(A, B), put=("photo", "light")))
    dropped = await drop_tag(db, DropTag(id=1))
    assert dropped.tag == Tag(id=1, name="photo", models=2)
    assert (await tag_models(db, TagModels(models=(A, B)))).tags == (("light",), ("light",))
    assert (await kinds(db))[-1] == "tag.dropped"


async def test_tags_come_in_pages_by_name(db: Database):
    for name in "cbdae":
        await put_tag(db, PutTag(name=name))
    seen, after, more = [], "", True
    while more:
        page = await list_tags(db, ListTags(after=after, limit=2))
        seen += [tag.name for tag in page.tags]
        after, more = seen[-1], page.more
    assert seen == [*"abcde"]


async def test_a_tag_with_a_nul_in_its_name_is_one_tag_however_often_it_is_put(db: Database, tell: Tell):
    await tell(hashed("a.safetensors", "dream"))
    for _ in range(2):
        reply = await tag_models(db, TagModels(models=(sha("dream"),), put=("\0red\0fox\0",)))
        assert reply.tags == (("red fox",),)
    with declined("bad-tag"):
        await put_tag(db, PutTag(name="\0"))
