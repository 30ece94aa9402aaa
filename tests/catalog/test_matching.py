"""Matching: a record finds the one file that it is of, or says why it does not."""

from pathlib import Path

import pytest

from agents.catalog import matching
from agents.catalog.asks.pending import list_pending, promote_chosen
from agents.catalog.database import Database
from agents.catalog.matching import Files, Match, MatchedFile, Wanted
from agents.catalog.promotion import promote_present
from agents.catalog.resolve import list_models
from schemas.files import FilePath
from tests.catalog.conftest import Tell
from tests.catalog.facts import hashed, removed, settled, sha, stat
from tests.catalog.legacy.test_importer import Take, images, take
from tests.catalog.legacy_making import make, model
from tests.catalog.pending import add_pending

__all__ = ["images", "take"]

WINDOWS = [
    "C:\\models\\x.safetensors",
    "d:/models\\sub/x.safetensors",
    "\\\\server\\share\\x.safetensors",
    "//server/share\\x.safetensors",
    "\\\\?\\C:\\models\\x.safetensors",
    "models\\lora\\x.safetensors",
    "C:x.safetensors",
    "/nas/x.safetensors",
    "x.safetensors",
]


async def reasons(db: Database) -> dict[int, str]:
    return {record.id: record.reason for record in await list_pending(db, after=0, limit=100)}


@pytest.mark.parametrize("path", WINDOWS)
@pytest.mark.parametrize("size", [None, "large"])
async def test_a_record_without_a_size_is_of_the_only_file_of_its_name_whatever_its_path_is_written_like(
    db: Database, tell: Tell, take: Take, tmp_path: Path, path: str, size: object
):
    rows = [model(1, path, "", name="Mine", size_bytes=size)]
    await take(make(tmp_path / "legacy.db", rows))
    assert await reasons(db) == {1: matching.NO_FILE}
    await tell(hashed("sub/X.safetensors", "dream"))
    [found] = await list_models(db)
    assert found.details.title == "Mine" and await reasons(db) == {}


async def test_a_record_that_comes_after_its_file_is_matched_too(db: Database, tell: Tell):
    await tell(hashed("sub/x.safetensors", "dream"))
    await add_pending(db, 1, "/old/x.safetensors")
    await add_pending(db, 2, "/old/x.ckpt")
    assert await promote_present(db, "report", 2.0) == 1
    assert await reasons(db) == {2: matching.NO_FILE}


async def test_a_slash_backwards_in_a_name_under_a_slash_is_part_of_the_name(
    db: Database, tell: Tell, take: Take, tmp_path: Path
):
    await take(make(tmp_path / "legacy.db", [model(1, "/old/a\\x.safetensors", "", size_bytes=None)]))
    await tell(hashed("x.safetensors", "dream"))
    assert await reasons(db) == {1: matching.NO_FILE}


async def test_of_several_files_of_its_name_none_is_guessed_and_copies_are_one(db: Database, tell: Tell):
    await add_pending(db, 1, "/old/model.safetensors")
    await tell(settled("a/model.safetensors", stat("one"), 5.0), hashed("b/model.safetensors", "two"))
    assert await reasons(db) == {1: matching.MANY_OF_ITS_NAME}
    (outcome,), _ = await promote_chosen(db, [1], "report", 3.0)
    assert (outcome.outcome, outcome.error) == ("waiting", matching.MANY_OF_ITS_NAME)
    await tell(removed("a/model.safetensors", stat("one"), 6.0))
    await tell(hashed("c/model.safetensors", "two", stat=stat("two", ino=77)))
    assert await reasons(db) == {}


async def test_a_record_with_the_size_of_a_file_goes_before_one_without(db: Database, tell: Tell):
    await add_pending(db, 1, "/old/dream.safetensors")
    await add_pending(db, 2, "/old/2/dream.safetensors", size=len("dream"))
    await tell(hashed("dream.safetensors", "dream"))
    [found] = await list_models(db)
    assert found.details.title == "record 2" and await reasons(db) == {1: matching.RIVALS}


async def test_of_two_records_without_a_size_the_one_with_the_nearest_folders_is_meant(db: Database, tell: Tell):
    await add_pending(db, 1, "/x/a/m.safetensors")
    await add_pending(db, 2, "/x/b/m.safetensors")
    await add_pending(db, 3, "/x/1/n.safetensors")
    await add_pending(db, 4, "/x/2/n.safetensors")
    await tell(hashed("B/m.safetensors", "m"), hashed("n.safetensors", "n"))
    assert await reasons(db) == {1: matching.RIVALS, 3: matching.RIVALS, 4: matching.RIVALS}
    (outcome,), _ = await promote_chosen(db, [4], "report", 3.0)
    assert (outcome.outcome, outcome.sha256) == ("promoted", sha("n"))


async def test_every_pending_record_says_why_it_is(db: Database, tell: Tell):
    await tell(hashed("hashed.safetensors", "hashed"), settled("coming.safetensors", stat("coming"), 5.0))
    await add_pending(db, 1, "/old/nowhere.safetensors", size=5)
    await add_pending(db, 2, "/old/hashed.safetensors", size=12345)
    await add_pending(db, 3, "/old/coming.safetensors", size=len("coming"))
    await add_pending(db, 4, "/old/elsewhere.safetensors", rel="coming.safetensors")
    await add_pending(db, 5, "/old/a", rel="hashed.safetensors", images=(b"one",))
    await add_pending(db, 6, "/old/b", rel="hashed.safetensors")
    await promote_present(db, "report", 2.0)
    told = await reasons(db)
    assert (told[1], told[2], told[3], told[4]) == (
        matching.NO_FILE,
        matching.OTHER_SIZE,
        matching.UNHASHED,
        matching.UNHASHED,
    )
    assert {told[5], told[6]} == {
        "Its pictures are being encoded.",
        "The model is described already: choose merge, override, ignore or delete.",
    }


def test_a_match_is_the_file_at_the_place_before_any_other():
    here, there = (MatchedFile(FilePath(root="m", rel=rel), 5, sha(rel)) for rel in ("a/x.pt", "b/x.pt"))
    files = Files([here, there])
    assert files.match(Wanted(there.path, "x.pt", 9)) == Match(there.sha256, "")
    assert files.match(Wanted(None, "x.pt", 5)) == Match(None, matching.MANY_OF_ITS_SIZE)
    assert files.match(Wanted(FilePath(root="m", rel="gone.pt"), "x.pt", 6)) == Match(None, matching.OTHER_SIZE)
    assert Files([here]).match(Wanted(None, "x.pt", None)) == Match(here.sha256, "")
