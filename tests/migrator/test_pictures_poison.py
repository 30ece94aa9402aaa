"""Facts about pictures that no true encoder says: each becomes a dead letter, and those after it are written down."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from PIL import Image

from agents.catalog.database import Database
from agents.catalog.descriptions import Waiting, add_picture
from agents.catalog.facts import apply
from agents.images import infotext
from agents.images.tiers import webp
from agents.migrator.pictures import ModelPictures, job_id
from bus.client import Bus
from bus.followers import Fact
from bus.subjects import DEAD, IMAGE_ENCODED, IMAGE_REFUSED, JOB_PLANNED, Subject
from schemas.images import Encoded, Picture, PictureRefused
from tests.catalog.conftest import clock
from tests.catalog.facts import hashed, sha
from tests.catalog.sql import execute

JOB = "a" * 32
GENERATED = Picture(index=0, seed=1, width=8, height=8, file="f.webp", bytes=9, sha256=sha("p"), tiers={})
GOOD = Encoded(id="b" * 32, pictures=(GENERATED,), seconds=0.1, at=5.0)


def with_picture(fact: Encoded, **fields: Any) -> Encoded:
    return msgspec.structs.replace(fact, pictures=(msgspec.structs.replace(fact.pictures[0], **fields),))


OF_A_MODEL = msgspec.structs.replace(
    GOOD, id=job_id(Waiting(sha256=sha("dream"), number=0, original="", source=sha("p"))), model=sha("dream")
)
OTHER = msgspec.structs.replace(GOOD, id=JOB)


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    """A catalog with two models, each with a picture that waits."""
    async with Database.open(tmp_path / "catalog.db", clock=clock) as db:
        for name in ("dream", "other"):
            await apply(db, [(name, hashed(f"{name}.safetensors", name))], now=1.0)
            async with db.atomic() as sql:
                await add_picture(sql, sha(name), sha("p"), f"blobs/{sha('p')}", "upload", 1.0)
        yield db


def fact(payload: Encoded | PictureRefused, seq: int = 1) -> Fact:
    row: Subject[Any] = IMAGE_ENCODED if isinstance(payload, Encoded) else IMAGE_REFUSED
    return Fact(row, payload, seq)


POISON = {
    "no width": with_picture(OTHER, width=0),
    "a digest that is none": with_picture(OTHER, sha256="x"),
    "a seed over 63 bits": with_picture(OTHER, seed=1 << 64),
    "a negative index": with_picture(OTHER, index=-1),
    "an id that is none": msgspec.structs.replace(OTHER, id="../x"),
    "an id that is a pattern": msgspec.structs.replace(OTHER, id=">"),
    "a model's picture without bytes": with_picture(OF_A_MODEL, bytes=0),
    "a model's picture with a number over 63 bits": with_picture(OF_A_MODEL, index=1 << 64),
    "a refusal with a number over 63 bits": PictureRefused(
        id=JOB, sha256=sha("dream"), number=1 << 64, error="no", at=1.0
    ),
}


@pytest.mark.parametrize("poison", POISON.values(), ids=POISON.keys())
async def test_a_fact_that_no_row_can_hold_is_a_dead_letter_and_stops_no_other(
    bus: Bus, db: Database, tmp_path: Path, poison: Encoded | PictureRefused
):
    images = ModelPictures(bus, db, tmp_path)
    with anyio.fail_after(10):
        await images.write_down([fact(poison, 1), fact(GOOD, 2)])
    assert [job for (job,) in await execute(db, "SELECT job FROM outputs")] == [GOOD.id]
    assert sum((await bus.waiting("DLQ", DEAD.filter(kind="fact", reason="impossible"))).values()) == 1


async def test_a_job_said_of_two_models_stops_no_other(bus: Bus, db: Database, tmp_path: Path):
    images = ModelPictures(bus, db, tmp_path)
    twice = msgspec.structs.replace(OF_A_MODEL, model=sha("other"))
    with anyio.fail_after(10):
        await images.write_down([fact(OF_A_MODEL, 1), fact(twice, 2), fact(GOOD, 3)])
    assert [job for (job,) in await execute(db, "SELECT job FROM outputs")] == [GOOD.id]


async def test_a_picture_whose_plan_can_not_be_read_is_in_the_gallery_all_the_same(
    bus: Bus, db: Database, tmp_path: Path
):
    await bus.publish_raw(JOB_PLANNED(id=GOOD.id), b"{}")
    images = ModelPictures(bus, db, tmp_path)
    with anyio.fail_after(10):
        await images.write_down([fact(GOOD)])
    assert [job for (job,) in await execute(db, "SELECT job FROM outputs")] == [GOOD.id]


@pytest.mark.parametrize("file", ["outputs/2027-01-15/gone.webp", "../secret.webp", "outputs/../secret.webp"])
async def test_a_picture_whose_file_is_gone_or_elsewhere_is_in_the_gallery_without_its_text(
    bus: Bus, db: Database, tmp_path: Path, file: str
):
    secret = webp(Image.new("RGB", (8, 8)), quality=80, exif=infotext.exif("a secret"))
    (tmp_path / "data" / "outputs").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "data"):
        (folder / "secret.webp").write_bytes(secret)
    images = ModelPictures(bus, db, tmp_path / "data")
    with anyio.fail_after(10):
        await images.write_down([fact(with_picture(GOOD, file=file))])
    assert [tuple(row) for row in await execute(db, "SELECT job, infotext FROM outputs")] == [(GOOD.id, "")]


@pytest.mark.parametrize(
    "harmless",
    [
        msgspec.structs.replace(OF_A_MODEL, model="no hash"),
        msgspec.structs.replace(OF_A_MODEL, model=sha("unknown")),
        with_picture(OF_A_MODEL, index=-1),
        with_picture(OF_A_MODEL, index=7),
        PictureRefused(id="\n", sha256="none", number=-1, error="", at=1.0),
        msgspec.structs.replace(OF_A_MODEL, pictures=()),
        msgspec.structs.replace(OTHER, pictures=()),
    ],
)
async def test_a_fact_about_what_is_not_there_changes_nothing(
    bus: Bus, db: Database, tmp_path: Path, harmless: Encoded | PictureRefused
):
    images = ModelPictures(bus, db, tmp_path)
    await images.write_down([fact(harmless)])
    rows = await execute(db, "SELECT state FROM images")
    assert {state for (state,) in rows} == {"waiting"}
