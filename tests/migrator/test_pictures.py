"""What lies beside a model, on a real bus: what others wrote of it is in the catalog, its picture is encoded."""

import functools
import io
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest
from PIL import Image

from agents import encoder, hasher
from agents.client import jobs
from agents.client.catalog import ask
from agents.migrator import agent as migrator
from agents.watcher import agent as watcher
from bus.client import Bus
from bus.subjects import FILE_DESCRIBED, MODEL_PICTURED
from schemas.catalog import DetailsEdit, EditModel, ModelReply, ShowModel, WholeModel
from schemas.files import Details
from schemas.models import Model
from schemas.settings import EncoderSettings, HasherSettings, WatcherSettings
from tests.conftest import running
from tests.ingest.making import model, put

CIVITAI = {
    "modelId": 7,
    "id": 9,
    "baseModel": "SD 1.5",
    "trainedWords": ["gpz style"],
    "model": {"name": "Golden Hour", "description": "<p>Warm light.</p>", "tags": ["Photo", "light"], "nsfw": False},
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data" / "models").mkdir(parents=True)
    return tmp_path / "data"


def agents(bus: Bus, data: Path, *, scan_interval: float = 0.5) -> Any:
    roots = {"models": str(data / "models")}
    return running(
        functools.partial(watcher.run, bus, data, roots, WatcherSettings(stable=0.2, scan_interval=scan_interval)),
        functools.partial(hasher.run, bus, roots, HasherSettings()),
        functools.partial(migrator.run, bus, data / "catalog.db", roots),
        functools.partial(encoder.run, bus, data, EncoderSettings()),
    )


def picture(colour: str = "red", size: tuple[int, int] = (300, 200)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


async def model_when(bus: Bus, is_so: Any) -> Model:
    """The only model, once something is so of it."""
    with anyio.fail_after(30):
        while True:
            for found in await jobs.models(bus):
                if is_so(found):
                    return found


async def shown(bus: Bus, sha256: str) -> WholeModel:
    return (await ask(bus, ShowModel(name=sha256), ModelReply)).model


def images(data: Path) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(data / "catalog.db")) as db:
        return db.execute("SELECT number, seq, state, width, height, error FROM images ORDER BY seq").fetchall()


async def test_what_lies_beside_a_model_is_in_the_catalog_and_its_picture_in_three_tiers(bus: Bus, data: Path):
    models = data / "models"
    put(models / "golden.civitai.info", json.dumps(CIVITAI).encode())
    put(models / "golden.preview.png", picture())
    put(models / "golden.safetensors", model())
    async with agents(bus, data):
        found = await model_when(bus, lambda one: one.pictures == 1)
    assert found.details.title == "Golden Hour" and found.details.description == "Warm light."
    assert found.details.trigger_words == ("gpz style",) and found.details.base_model == "SD 1.5"
    assert found.tags == ("light", "photo")
    assert images(data) == [(0, 0, "ready", 300, 200, "")]
    sizes = {}
    for tier in ("high", "medium", "low"):
        with Image.open(data / "images" / f"{found.sha256}_0_{tier}.webp") as file:
            sizes[tier] = file.size
    assert sizes == {"high": (300, 200), "medium": (198, 132), "low": (99, 66)}


async def test_sidecars_that_come_change_and_go_later_are_followed(bus: Bus, data: Path):
    models = data / "models"
    put(models / "golden.safetensors", model())
    async with agents(bus, data):
        await model_when(bus, lambda one: one.details == Details())
        put(models / "golden.json", json.dumps({"description": "first"}).encode())
        await model_when(bus, lambda one: one.details.description == "first")
        put(models / "golden.json", json.dumps({"description": "second", "notes": "mine"}).encode())
        await model_when(bus, lambda one: one.details == Details(description="second", notes="mine"))
        put(models / "golden.png", picture())
        await model_when(bus, lambda one: one.pictures == 1)
        (models / "golden.json").unlink()
        gone = await model_when(bus, lambda one: one.details == Details())
    assert gone.pictures == 1, "a picture that was shown stays"


async def test_what_comes_changes_and_goes_beside_a_model_waits_for_no_scan(bus: Bus, data: Path):
    deep = data / "models" / "deep"
    deep.mkdir()
    async with agents(bus, data, scan_interval=3600):
        put(deep / "golden.json", json.dumps({"description": "first"}).encode())
        put(deep / "golden.safetensors", model())
        await model_when(bus, lambda one: one.details.description == "first")
        put(deep / "golden.preview.PNG", picture())
        await model_when(bus, lambda one: one.pictures == 1)
        put(deep / "golden.json", json.dumps({"description": "second", "notes": "mine"}).encode())
        await model_when(bus, lambda one: one.details.description == "second")
        (deep / "golden.json").unlink()
        (deep / "golden.preview.PNG").unlink()
        await model_when(bus, lambda one: (one.details, one.pictures) == (Details(), 0))
        side = data / "new"
        put(side / "deeper" / "silver.safetensors", model(fill=3))
        put(side / "deeper" / "silver.json", json.dumps({"description": "third"}).encode())
        side.rename(data / "models" / "new")
        third = await model_when(bus, lambda one: one.details.description == "third")
    assert [path.rel for path in third.paths] == ["new/deeper/silver.safetensors"]


async def test_a_copy_that_goes_takes_its_picture_and_brings_it_again_though_no_original_was_kept(bus: Bus, data: Path):
    models = data / "models"
    for name in ("a", "b"):
        put(models / name / "golden.safetensors", model())
        put(models / name / "golden.json", json.dumps({"description": name, "notes": f"of {name}"}).encode())
    put(models / "a" / "golden.png", picture())
    async with agents(bus, data, scan_interval=3600):
        await model_when(bus, lambda one: (one.details.description, one.pictures) == ("a", 1))
        (models / "a").rename(data / "away")
        await model_when(bus, lambda one: (one.details.description, one.pictures) == ("b", 0))
        for blob in (data / "blobs").iterdir():
            blob.unlink()
        (data / "away").rename(models / "a")
        await model_when(bus, lambda one: (one.details.description, one.pictures) == ("a", 1))
        (models / "a" / "golden.safetensors").rename(data / "x.safetensors")
        await model_when(bus, lambda one: (one.details.description, one.pictures) == ("b", 0))
        (models / "a" / "golden.json").unlink()
        (data / "x.safetensors").rename(models / "a" / "golden.safetensors")
        back = await model_when(bus, lambda one: (one.details.description, one.pictures) == ("b", 1))
    assert [row[2:5] for row in images(data)] == [("ready", 300, 200)] and len(back.paths) == 2


async def test_a_model_that_moves_without_its_sidecars_leaves_their_words_and_keeps_what_the_user_wrote(
    bus: Bus, data: Path
):
    models = data / "models"
    put(models / "a" / "golden.safetensors", model())
    put(models / "a" / "golden.json", json.dumps({"description": "a", "notes": "of a"}).encode())
    put(models / "a" / "golden.png", picture())
    (models / "b").mkdir()
    async with agents(bus, data, scan_interval=3600):
        found = await model_when(bus, lambda one: (one.details.description, one.pictures) == ("a", 1))
        await ask(bus, EditModel(sha256=found.sha256, edit=DetailsEdit(description="mine")), ModelReply)
        (models / "a" / "golden.safetensors").rename(models / "b" / "silver.safetensors")
        await model_when(bus, lambda one: (one.details, one.pictures) == (Details(description="mine"), 0))
        (models / "b" / "silver.safetensors").rename(models / "a" / "golden.safetensors")
        back = Details(description="mine", notes="of a")
        await model_when(bus, lambda one: (one.details, one.pictures) == (back, 1))


async def test_a_linked_model_has_the_words_beside_the_link_and_none_from_out_of_the_roots(bus: Bus, data: Path):
    models, blobs = data / "models", data / "models" / ".cache" / "blobs"
    put(blobs / "0f3a", model())
    put(blobs / "words", json.dumps({"notes": "linked"}).encode())
    put(data / "secret", json.dumps({"model_name": "secret"}).encode())
    (models / "hub").mkdir()
    (models / "hub" / "golden.safetensors").symlink_to("../.cache/blobs/0f3a")
    (models / "hub" / "golden.json").symlink_to("../.cache/blobs/words")
    (models / "hub" / "golden.metadata.json").symlink_to(data / "secret")
    put(models / "hub" / "golden.civitai.info", json.dumps(CIVITAI).encode())
    put(models / "hub" / "golden.GIF", picture())
    async with agents(bus, data):
        found = await model_when(bus, lambda one: one.pictures == 1)
        reply = await shown(bus, found.sha256)
    assert (found.details.title, found.details.notes, found.tags) == ("Golden Hour", "linked", ("light", "photo"))
    [problem] = reply.sidecar_problems
    assert problem.path.rel == "hub/golden.safetensors"
    assert "golden.metadata.json" in problem.problem and "leads out of the roots" in problem.problem


async def test_a_picture_that_is_none_is_told_and_keeps_the_others_from_nothing(bus: Bus, data: Path):
    models = data / "models"
    put(models / "golden.safetensors", model())
    put(models / "golden.preview.png", picture()[:-40])
    put(models / "golden.png", picture("blue"))
    secret = put(data / "secret.png", picture("green"))
    (models / "golden.webp").symlink_to(secret)
    async with agents(bus, data):
        await model_when(bus, lambda one: one.pictures == 1)
        with anyio.fail_after(20):
            while [row[2] for row in images(data)] != ["failed", "ready"]:
                await anyio.lowlevel.checkpoint()
    assert "decoded" in images(data)[0][5]


async def test_rubbish_beside_a_model_is_a_problem_in_a_sentence(bus: Bus, data: Path):
    models = data / "models"
    put(models / "golden.civitai.info", b"{" * 100_000)
    put(models / "golden.json", b"[1]")
    put(models / "golden.safetensors", model())
    async with bus.listen(FILE_DESCRIBED.filter()) as heard, agents(bus, data):
        with anyio.fail_after(20):
            fact = FILE_DESCRIBED.decode((await heard.receive()).data)
        assert (await model_when(bus, lambda one: True)).details == Details()
    assert len(fact.problems) == 2 and fact.details == Details()


async def test_a_restart_tells_nothing_again_and_a_kill_of_the_encoder_loses_no_picture(bus: Bus, data: Path):
    models = data / "models"
    put(models / "golden.safetensors", model())
    put(models / "golden.png", picture())
    put(models / "golden.json", json.dumps({"description": "first"}).encode())
    roots = {"models": str(models)}
    async with running(
        functools.partial(watcher.run, bus, data, roots, WatcherSettings(stable=0.2, scan_interval=0.5)),
        functools.partial(hasher.run, bus, roots, HasherSettings()),
        functools.partial(migrator.run, bus, data / "catalog.db", roots),
    ):
        await model_when(bus, lambda one: one.details.description == "first")
    assert [row[2] for row in images(data)] == ["waiting"]
    async with bus.listen(MODEL_PICTURED.filter()) as heard, agents(bus, data):
        await model_when(bus, lambda one: one.pictures == 1)
        with anyio.fail_after(20):
            await heard.receive()
        assert sum((await bus.waiting("FILES", FILE_DESCRIBED.filter())).values()) == 1
