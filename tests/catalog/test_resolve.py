"""A name means one usable checkpoint, or a sentence says why not. Nothing is ever substituted."""

import pytest

from agents.catalog.asks.model import show_model
from agents.catalog.database import Database
from agents.catalog.resolve import list_models, resolve
from bus.errors import Declined
from schemas.catalog import ShowModel
from tests.catalog.conftest import Tell
from tests.catalog.facts import BROKEN, LORA, PICKLE, hashed, removed, sha, stat


async def meant(db: Database, name: str) -> str:
    """The name of the model that is meant, or the reason why there is none."""
    try:
        return (await resolve(db, name)).name
    except Declined as error:
        return error.reason


async def why(db: Database, name: str) -> str:
    with pytest.raises(Declined) as raised:
        await resolve(db, name)
    return str(raised.value)


@pytest.fixture(autouse=True)
async def two_models(tell: Tell) -> None:
    await tell(hashed("sd/Dream.v1.safetensors", "dream"), hashed("other.safetensors", "other"))


@pytest.mark.parametrize(
    "name",
    [
        "Dream.v1",
        "Dream.v1.safetensors",
        "sd/Dream.v1.safetensors",
        "dream.V1",
        "DREAM.V1.SAFETENSORS",
        "SD/dream.v1.safetensors",
        "  Dream.v1\n",
        sha("dream")[:8],
        sha("dream"),
        sha("dream").upper()[:12],
        f"Dream.v1 [{sha('dream')[:10]}]",
        f"Dream.v1.safetensors [{sha('dream')[:10].upper()}]",
        f"what it was called then [{sha('dream')[:10]}]",
    ],
)
async def test_a_model_is_found_by_everything_it_is_called(db: Database, name: str):
    assert (await resolve(db, name)).sha256 == sha("dream")


@pytest.mark.parametrize("name", [" Dream.v1 ", "dream.v1\u00a0", "\ufeffDream.v1", "Dream.v1.safetensors\t"])
async def test_spaces_around_a_name_change_nothing(db: Database, name: str):
    assert await meant(db, name) == "Dream.v1"
    shown = (await show_model(db, ShowModel(name=name))).model
    assert shown.model.name == "Dream.v1"


@pytest.mark.parametrize(
    ("file", "names"),
    [
        ("two words .safetensors", ("two words ", "two words", " Two  Words", "two words .safetensors")),
        (" lead.safetensors", (" lead", "lead", "lead ")),
        ("a  b.safetensors", ("a  b", "a b", "A\u00a0b", "sub/a b.safetensors")),
        ("a\u00a0\u200bc.safetensors", ("a c", "a\u00a0c", "A  C.safetensors")),
    ],
)
async def test_a_name_with_odd_spaces_in_it_is_found_as_it_is_written_and_as_it_looks(
    db: Database, tell: Tell, file: str, names: tuple[str, ...]
):
    await tell(hashed(f"sub/{file}", "odd"))
    for name in names:
        assert (await resolve(db, name)).sha256 == sha("odd"), name
        shown = (await show_model(db, ShowModel(name=name))).model
        assert shown.model.sha256 == sha("odd"), name


async def test_of_two_names_that_differ_in_spaces_alone_the_exact_one_is_meant(db: Database, tell: Tell):
    await tell(hashed("fox.safetensors", "plain"), hashed("fox .safetensors", "odd"))
    assert (await meant(db, "fox "), await meant(db, "fox"), await meant(db, " fox")) == ("fox ", "fox", "fox")


@pytest.mark.parametrize(
    "name",
    [
        "Dream",
        "v1",
        "Dream.v1.ckpt",
        "Dream.v2",
        sha("dream")[:7],
        sha("nothing"),
        f"Dream.v1 [{sha('else')[:10]}]",
        "/",
        "%",
    ],
)
async def test_a_name_that_nothing_has_lists_what_there_is(db: Database, name: str):
    assert await meant(db, name) == "unknown-model"
    assert await why(db, name) == f'No model is called "{name}". Name one of these: Dream.v1, other.'


async def test_with_no_checkpoint_at_all_the_error_says_what_to_do(db: Database, tell: Tell):
    await tell(removed("sd/Dream.v1.safetensors", stat("dream")), removed("other.safetensors", stat("other")))
    for name in ("", "dream"):
        assert "drop one (.safetensors) into the models folder" in await why(db, name)
        assert await meant(db, name) == "unknown-model"


async def test_of_many_models_ten_are_listed(db: Database, tell: Tell):
    await tell(*(hashed(f"a{n:02}.safetensors", f"a{n}") for n in range(15)))
    assert await why(db, "nope") == (
        'No model is called "nope". Name one of these: ' + ", ".join(f"a{n:02}" for n in range(10)) + " and others."
    )


async def test_no_name_means_the_only_checkpoint_there_is(db: Database, tell: Tell):
    assert await meant(db, "") == "ambiguous-model"
    assert await why(db, " ") == "No model was named. Name one of these: Dream.v1, other."
    await tell(removed("other.safetensors", stat("other")), hashed("style.safetensors", "style", identity=LORA))
    assert await meant(db, "") == "Dream.v1"


async def test_two_models_of_one_name_are_listed_and_either_can_be_named_as_listed(db: Database, tell: Tell):
    await tell(hashed("sdxl/other.safetensors", "another"))
    assert await meant(db, "other") == "ambiguous-model"
    listed = [f"other.safetensors [{sha('other')[:10]}]", f"sdxl/other.safetensors [{sha('another')[:10]}]"]
    told = await why(db, "other")
    assert all(one in told for one in listed)
    assert [(await resolve(db, one)).sha256 for one in listed] == [sha("other"), sha("another")]
    assert await meant(db, "sdxl/other.safetensors") == "other"


async def test_the_exact_spelling_goes_before_another_case(db: Database, tell: Tell):
    await tell(hashed("OTHER.safetensors", "loud"))
    assert (await resolve(db, "OTHER")).sha256 == sha("loud")
    assert (await resolve(db, "other")).sha256 == sha("other")
    assert await meant(db, "Other") == "ambiguous-model"


async def test_accents_are_the_same_however_they_are_composed(db: Database, tell: Tell):
    await tell(hashed("caf\u00e9.safetensors", "coffee"))
    assert await meant(db, "CAFE\u0301") == "caf\u00e9"


async def test_a_name_with_brackets_of_its_own_is_a_name(db: Database, tell: Tell):
    await tell(hashed("mix [deadbeef].safetensors", "mix"))
    assert await meant(db, "mix [deadbeef]") == "mix [deadbeef]"


async def test_a_missing_model_is_never_replaced_by_one_of_a_similar_name(db: Database, tell: Tell):
    await tell(hashed("OTHER.safetensors", "loud"), removed("other.safetensors", stat("other")))
    assert await meant(db, "other") == "model-missing"
    assert "last seen at other.safetensors" in await why(db, "other")
    assert await meant(db, sha("other")[:8]) == "model-missing"


async def test_a_file_that_was_replaced_is_meant_by_its_name_and_the_old_content_by_its_hash(db: Database, tell: Tell):
    await tell(hashed("other.safetensors", "newer", 11.0, stat=stat("newer", version=2)))
    assert (await resolve(db, "other")).sha256 == sha("newer")
    assert await meant(db, sha("other")) == "model-missing"


async def test_a_path_that_a_model_has_left_no_longer_means_it(db: Database, tell: Tell):
    await tell(
        hashed("copy.safetensors", "other", stat=stat("other", ino=9)), removed("other.safetensors", stat("other"))
    )
    assert await meant(db, "other.safetensors") == "unknown-model"
    assert await meant(db, "copy") == "copy"


async def test_a_pickle_is_named_unsafe_and_never_resolved(db: Database, tell: Tell):
    await tell(hashed("evil.ckpt", "evil", identity=PICKLE))
    assert await meant(db, "evil") == await meant(db, sha("evil")) == "unsafe-model"


async def test_what_is_no_checkpoint_says_what_it_is(db: Database, tell: Tell):
    await tell(
        hashed("style.safetensors", "style", identity=LORA),
        hashed("odd.safetensors", "odd", identity=BROKEN),
    )
    assert await meant(db, "style") == await meant(db, "odd") == "not-a-checkpoint"
    assert await why(db, "style") == '"style" is no checkpoint: it is of kind lora.'
    assert await why(db, "odd") == '"odd" is no usable checkpoint: The file is encrypted.'


async def test_a_checkpoint_goes_before_a_lora_of_the_same_name(db: Database, tell: Tell):
    await tell(hashed("lora/other.safetensors", "style", identity=LORA))
    assert (await resolve(db, "other")).sha256 == sha("other")


async def test_models_are_listed_by_name_and_kind_and_the_missing_only_when_asked_for(db: Database, tell: Tell):
    await tell(hashed("Style.safetensors", "style", identity=LORA), removed("other.safetensors", stat("other")))

    async def names(**which) -> list[str]:
        return [model.name for model in await list_models(db, **which)]

    assert await names() == ["Dream.v1", "Style"]
    assert await names(missing=True) == ["Dream.v1", "other", "Style"]
    assert await names(kind="lora") == ["Style"]
    assert await names(kind="checkpoint", missing=True) == ["Dream.v1", "other"]
    assert await names(kind="vae") == []
