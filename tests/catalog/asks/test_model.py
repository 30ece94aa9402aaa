"""Editing a model: the user goes over what files and imports hold, even when it is empty, and can be taken back."""

import msgspec
import pytest

from agents.catalog.asks.model import edit_model
from agents.catalog.asks.search import search_models
from agents.catalog.database import Database
from agents.catalog.descriptions import put_layer
from agents.catalog.outbox import outgoing
from schemas.catalog import DetailsEdit, EditModel, SearchModels, WholeModel
from schemas.files import Details
from tests.catalog.conftest import Tell, declined
from tests.catalog.facts import hashed, sha

A = sha("a")


@pytest.fixture(autouse=True)
async def model(db: Database, tell: Tell) -> None:
    """A model of which its files say something."""
    await tell(hashed("a.safetensors", "a"))
    async with db.atomic() as sql:
        await put_layer(sql, A, "sidecar", {"description": "from a file", "type": "LORA", "trigger_words": ["x"]})


async def edited(db: Database, **fields: object) -> WholeModel:
    reply = await edit_model(db, EditModel(sha256=A, edit=DetailsEdit(**fields)))
    assert reply.model is not None
    return reply.model


async def test_a_users_word_goes_over_the_others_also_when_it_is_empty(db: Database):
    whole = await edited(db, description="", title="Mine", trigger_words=("y", "z"), nsfw=False)
    assert whole.model.details == Details(title="Mine", type="LORA", trigger_words=("y", "z"), nsfw=False)
    assert whole.layers["user"] == {"description": "", "title": "Mine", "trigger_words": ["y", "z"], "nsfw": False}
    assert whole.layers["sidecar"]["description"] == "from a file"


async def test_what_is_not_in_an_edit_stays_and_null_takes_the_users_word_back(db: Database):
    await edited(db, description="mine", title="Mine")
    whole = await edited(db, description=None)
    assert whole.model.details.description == "from a file" and whole.model.details.title == "Mine"
    whole = await edited(db, title=None, notes=None)
    assert "user" not in whole.layers and whole.model.details.title == ""


async def test_an_edit_is_published_once_and_one_that_changes_nothing_is_not(db: Database):
    async def described() -> int:
        return [row.kind for row in await outgoing(db, limit=100)].count("model.described")

    await edited(db, title="Mine")
    await edited(db, title="Mine")
    await edited(db)
    assert await described() == 1
    await edited(db, title=None)
    assert await described() == 2


async def test_an_edit_is_found_at_once(db: Database):
    await edited(db, notes="Übergröße")
    found = await search_models(db, SearchModels(text="uber"))
    assert [model.sha256 for model in found.models] == [A]
    await edited(db, notes=None)
    assert (await search_models(db, SearchModels(text="uber"))).models == ()


async def test_a_model_nobody_knows_can_not_be_edited(db: Database):
    with declined("unknown-model"):
        await edit_model(db, EditModel(sha256="0" * 64, edit=DetailsEdit(title="x")))


@pytest.mark.parametrize(
    "bad",
    [
        {"title": "x" * 501},
        {"notes": "x" * 20_001},
        {"trigger_words": ["x"] * 201},
        {"source_url": "javascript:alert(1)"},
        {"source_url": "https://x/ y"},
        {"nsfw": "yes"},
        {"title": 7},
    ],
)
def test_what_is_too_long_or_no_value_of_its_field_is_no_edit(bad: dict[str, object]):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(bad, DetailsEdit)
