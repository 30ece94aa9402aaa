"""`darkroom verify` looks at every file that the catalog refers to, and names what differs."""

import hashlib
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from agents.catalog.asks.tags import put_tag
from agents.catalog.database import Database
from agents.catalog.descriptions import add_picture, picture_encoded
from agents.catalog.facts import apply
from agents.catalog.outputs import add_outputs
from agents.cli.rebuild import new_history, rebuild
from agents.cli.verify import verify
from agents.images.model_pictures import encode_picture, picture_names
from agents.storage.database import owned
from agents.storage.paths import file_key, stat_of
from agents.storage.trash import listed
from bus.clock import Clock
from bus.errors import UserError
from bus.worker import sole
from schemas.catalog import PutTag
from schemas.files import FilePath, Hashed
from schemas.images import Encoded, EncodePicture, Picture
from schemas.settings import Settings
from tests.catalog.facts import CHECKPOINT
from tests.catalog.pending import add_pending
from tests.ingest.making import model, put
from tests.migrator.test_pictures import picture
from tests.migrator.test_replay import content


@pytest.fixture
async def settings(tmp_path: Path) -> Settings:
    """A data directory with one of everything, all of it as it should be."""
    data, models = tmp_path / "data", tmp_path / "models"
    file = put(models / "50%ü.safetensors", model())
    sha256 = hashlib.sha256(model()).hexdigest()
    stat = stat_of(file.stat())
    fact = Hashed(
        key=file_key("models", stat.dev, stat.ino),
        path=FilePath(root="models", rel="50%25ü.safetensors"),
        stat=stat,
        sha256=sha256,
        identity=CHECKPOINT,
        seconds=0.1,
        at=10.0,
    )
    source = hashlib.sha256(picture()).hexdigest()
    put(data / "blobs" / source, picture())
    output = put(data / "outputs" / "2026-01-01" / "a.webp", b"a picture")
    async with Database.open(data / "catalog.db", clock=Clock()) as db:
        await apply(db, [("m", fact)], now=1.0)
        job = EncodePicture(id="1" * 32, sha256=sha256, number=0, original=f"blobs/{source}", source=source)
        async with db.atomic() as sql:
            await add_picture(sql, sha256, source, job.original, "upload", 1.0)
            made = encode_picture(job, data)
            await picture_encoded(sql, Encoded(id=job.id, model=sha256, pictures=(made,), seconds=0.1, at=1.0))
            one = Picture(
                index=0,
                seed=1,
                width=8,
                height=8,
                file="outputs/2026-01-01/a.webp",
                bytes=9,
                sha256=hashlib.sha256(output.read_bytes()).hexdigest(),
                tiers={},
            )
            await add_outputs(sql, Encoded(id="2" * 32, pictures=(one,), seconds=0.1, at=1.0), "", ["text"])
        await add_pending(db, 7, "/old/x.safetensors", images=(b"one",), data=data)
    return Settings(data_dir=str(data), roots={"models": str(models)})


async def problems(
    settings: Settings, capsys: pytest.CaptureFixture[str], *, quick: bool = False, **more: int
) -> set[str]:
    """What is printed: about and error of each problem, in short."""
    status = await verify(settings, quick, True)
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert status == (1 if found["problems"] else 0)
    assert found["counts"] == {"model": 1, "picture": 1, "original": 1, "output": 1, **more}
    return {f"{one['about']}: {one['error']}" for one in found["problems"]}


async def test_a_catalog_that_is_as_the_disk_has_no_problem(settings: Settings, capsys: pytest.CaptureFixture[str]):
    assert await problems(settings, capsys) == set()
    assert await verify(settings, False, False) == 0
    assert capsys.readouterr().out == "1 model, 1 original, 1 output, 1 picture: 0 problems\n"


async def test_files_of_the_history_are_counted_in_words_that_are_some(
    settings: Settings, capsys: pytest.CaptureFixture[str]
):
    for text in (b"one", b"two"):
        put(Path(settings.data_dir) / "history" / f"{hashlib.sha256(text).hexdigest()}.json.gz", text)
    assert await verify(settings, True, False) == 0
    assert capsys.readouterr().out == "2 history files, 1 model, 1 original, 1 output, 1 picture: 0 problems\n"


async def test_another_content_of_the_same_length_is_found_unless_it_should_be_quick(
    settings: Settings, capsys: pytest.CaptureFixture[str]
):
    file = Path(settings.roots["models"]) / "50%ü.safetensors"
    file.write_bytes(model(fill=2))
    assert await problems(settings, capsys, quick=True) == set()
    [problem] = await problems(settings, capsys)
    assert problem.startswith("model: its SHA-256 is")


async def test_what_is_gone_or_changed_is_named(settings: Settings, capsys: pytest.CaptureFixture[str]):
    data, [file] = Path(settings.data_dir), Path(settings.roots["models"]).iterdir()
    file.unlink()
    sha256 = hashlib.sha256(model()).hexdigest()
    (data / picture_names(sha256, 0)["medium"]).unlink()
    (data / picture_names(sha256, 0)["low"]).write_bytes(b"")
    (data / "images" / "pending" / "7-0.png").write_bytes(b"two")
    (data / "outputs" / "2026-01-01" / "a.webp").write_bytes(b"b picture")
    put(data / "history" / f"{sha256}.json.gz", b"not what it was")
    assert await problems(settings, capsys, history=1) == {
        "history: its bytes are not those that were written",
        "model: it can't be read (No such file or directory)",
        "picture: it can't be read (No such file or directory)",
        "picture: it is empty",
        "original: its bytes are not those that were written",
        "output: its bytes are not those that were written",
    }


async def test_a_damaged_database_and_gaps_in_the_order_of_pictures_are_named(
    settings: Settings, capsys: pytest.CaptureFixture[str]
):
    with closing(sqlite3.connect(Path(settings.data_dir) / "catalog.db")) as db:
        db.execute("UPDATE images SET seq = 3")
        db.execute("INSERT INTO pending_model_tags VALUES (7, 99)")
        db.execute("DELETE FROM searched")
        db.commit()
    assert await problems(settings, capsys) == {
        "picture: its pictures are not numbered 0, 1, 2 and so on",
        "database: row None refers to a row of tags that is not there",
        "database: 1 models can't be found by a search",
    }


async def test_a_root_that_is_not_known_here_is_a_problem_and_no_catalog_an_error(
    settings: Settings, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    elsewhere = Settings(data_dir=settings.data_dir, roots={"other": str(tmp_path)})
    [problem] = await problems(elsewhere, capsys)
    assert problem == "model: its root 'models' is not among those known here (other)"
    with pytest.raises(UserError, match="is not there"):
        await verify(Settings(data_dir=str(tmp_path / "none")), False, False)
    put(tmp_path / "rubbish" / "catalog.db", b"no database" * 1000)
    with pytest.raises(UserError, match="can't be read as a catalog"):
        await verify(Settings(data_dir=str(tmp_path / "rubbish")), False, False)


async def test_rebuilding_next_to_a_damaged_catalog_is_refused_with_what_to_do(settings: Settings):
    data = Path(settings.data_dir)
    (data / "nats").mkdir()
    put(data / "catalog.db", b"no database" * 1000)
    with pytest.raises(BaseException) as raised:
        await rebuild(settings)
    error = sole(raised.value)
    assert isinstance(error, UserError) and "rebuild --replace" in str(error)
    assert not (data / "catalog.rebuilt.db").exists()


async def test_rebuilding_in_a_folder_without_a_history_is_an_error_and_makes_nothing(tmp_path: Path):
    with pytest.raises(UserError, match="no history"):
        await rebuild(Settings(data_dir=str(tmp_path / "mistyped")))
    assert not (tmp_path / "mistyped").exists()


async def test_a_new_history_holds_what_the_catalog_holds_and_the_catalog_can_be_put_back_from_it(
    settings: Settings, capsys: pytest.CaptureFixture[str]
):
    data = Path(settings.data_dir)
    (data / "nats").mkdir()
    await new_history(settings, empty=False)
    assert "a new history begins with all that it holds" in capsys.readouterr().out
    before = content(data / "catalog.db")
    (data / "catalog.db").write_bytes(b"no database" * 1000)
    assert await rebuild(settings, replace=True) == 0
    assert "made of 1 transactions" in capsys.readouterr().out
    assert content(data / "catalog.db") == before
    assert [one.file for one in listed(data) if one.file == "catalog.db"] == ["catalog.db"]


async def test_a_new_history_with_nothing_puts_the_catalog_into_the_trash(settings: Settings):
    data = Path(settings.data_dir)
    (data / "nats").mkdir()
    pictures = {file: file.read_bytes() for file in (data / "images").glob("*.webp")}
    await new_history(settings, empty=False)
    await new_history(settings, empty=True)
    assert not any(content(data / "catalog.db").values())
    assert "catalog.db" in {one.file for one in listed(data)}
    assert await rebuild(settings, data / "again.db") == 0
    assert {file: file.read_bytes() for file in (data / "images").glob("*.webp")} == pictures


async def test_a_catalog_that_has_changes_to_publish_is_not_replaced_without_them(settings: Settings):
    data = Path(settings.data_dir)
    (data / "nats").mkdir()
    await new_history(settings, empty=False)
    async with Database.open(data / "catalog.db", clock=Clock()) as db:
        await put_tag(db, PutTag(name="late"))
    before = content(data / "catalog.db")
    with pytest.raises(BaseException) as raised:
        await rebuild(settings, replace=True)
    assert "start Darkroom once" in str(sole(raised.value))
    assert content(data / "catalog.db") == before


async def test_a_catalog_in_use_is_not_replaced_and_without_a_history_nothing_is(settings: Settings):
    data = Path(settings.data_dir)
    (data / "nats").mkdir()
    with owned(data / "catalog.db"):
        for command in (new_history(settings, empty=True), rebuild(settings, replace=True)):
            with pytest.raises(BaseException) as raised:
                await command
            assert "is in use by another darkroom" in str(sole(raised.value))
    with pytest.raises(BaseException) as raised:
        await rebuild(settings, replace=True)
    assert "has no history" in str(sole(raised.value))
