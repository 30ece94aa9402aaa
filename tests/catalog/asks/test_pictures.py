"""Pictures by hand: places without gaps whatever goes, numbers that are never given twice."""

import hashlib

import pytest

from agents.catalog.asks.pictures import add_picture, drop_picture, list_pictures, order_pictures
from agents.catalog.database import Database
from agents.catalog.descriptions import picture_encoded
from agents.catalog.outbox import outgoing
from schemas.catalog import AddPicture, DropPicture, ListPictures, ModelPicture, OrderPictures
from schemas.images import Encoded, Picture
from tests.catalog.conftest import Tell, declined
from tests.catalog.facts import hashed, sha

A = sha("a")


@pytest.fixture(autouse=True)
async def model(tell: Tell) -> None:
    await tell(hashed("a.safetensors", "a"))


def blob(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


async def add(db: Database, *names: str) -> None:
    for name in names:
        assert (await add_picture(db, AddPicture(sha256=A, blob=blob(name)))).added


async def ready(db: Database, *numbers: int) -> None:
    for n in numbers:
        one = Picture(index=n, seed=0, width=8, height=6, file=f"images/{n}", bytes=3, sha256=blob("x"), tiers={})
        async with db.atomic() as sql:
            await picture_encoded(sql, Encoded(id=f"{n:032x}", model=A, pictures=(one,), seconds=0.1, at=1.0))


async def listed(db: Database) -> tuple[ModelPicture, ...]:
    return (await list_pictures(db, ListPictures(sha256=A))).pictures


async def numbers(db: Database) -> list[int]:
    pictures = await listed(db)
    assert [one.seq for one in pictures] == list(range(len(pictures))), "places have no gaps"
    return [one.number for one in pictures]


async def pictured(db: Database) -> int:
    return [row.kind for row in await outgoing(db, limit=1000)].count("model.pictured")


async def test_an_added_picture_is_the_last_one_waits_and_is_there_once(db: Database):
    await add(db, "x", "y")
    again = await add_picture(db, AddPicture(sha256=A, blob=blob("x")))
    assert (again.added, again.number, len(again.pictures)) == (False, 0, 2)
    first = (await listed(db))[0]
    assert (first.state, first.origin, first.source, first.width) == ("waiting", "upload", blob("x"), 0)
    await ready(db, 0)
    first = (await listed(db))[0]
    assert (first.state, first.width, first.height, first.bytes) == ("ready", 8, 6, 3)


async def test_deleting_closes_the_gap_and_the_number_is_never_given_again(db: Database):
    await add(db, *"abcdefghijkl")
    await ready(db, 1)
    reply, originals = await drop_picture(db, DropPicture(sha256=A, seq=1))
    assert reply.number == 1 and originals == [], "its original was done with when it was encoded"
    assert await numbers(db) == [0, *range(2, 12)] and await pictured(db) == 2
    reply, originals = await drop_picture(db, DropPicture(sha256=A, seq=9))
    assert reply.number == 10 and originals == [f"blobs/{blob('k')}"]
    await add(db, "new")
    assert await numbers(db) == [0, *range(2, 10), 11, 12], "10 comes after 9, and is not given twice"


async def test_an_encoding_that_comes_late_does_not_bring_a_deleted_picture_back(db: Database):
    await add(db, "x")
    await drop_picture(db, DropPicture(sha256=A, seq=0))
    await ready(db, 0)
    assert await numbers(db) == []


async def test_pictures_are_put_into_another_order_by_their_numbers(db: Database):
    await add(db, *"abc")
    await ready(db, 0, 1, 2)
    before = await pictured(db)
    assert [one.number for one in (await order_pictures(db, OrderPictures(sha256=A, numbers=(2, 0, 1)))).pictures] == [
        2,
        0,
        1,
    ]
    assert await numbers(db) == [2, 0, 1] and await pictured(db) == before + 1
    await order_pictures(db, OrderPictures(sha256=A, numbers=(2, 0, 1)))
    assert await pictured(db) == before + 1, "the same order again is no news"
    for wrong in ((), (0, 1), (0, 1, 2, 3), (0, 1, 1), (0, 0, 1, 2)):
        with declined("stale-order"):
            await order_pictures(db, OrderPictures(sha256=A, numbers=wrong))
    assert await numbers(db) == [2, 0, 1]


async def test_pictures_of_nobody_and_places_that_hold_none_are_refused(db: Database):
    with declined("unknown-model"):
        await list_pictures(db, ListPictures(sha256="0" * 64))
    with declined("unknown-model"):
        await add_picture(db, AddPicture(sha256="../catalog.db", blob=blob("x")))
    with declined("unknown-model"):
        await order_pictures(db, OrderPictures(sha256="", numbers=()))
    for key in ("", "../../etc/passwd", "A" * 64, blob("x") + "/"):
        with declined("bad-picture"):
            await add_picture(db, AddPicture(sha256=A, blob=key))
    for seq in (-1, 0, 2**70):
        with declined("unknown-picture", "it has none"):
            await drop_picture(db, DropPicture(sha256=A, seq=seq))


async def test_ten_and_more_pictures_are_in_the_order_of_their_numbers_not_of_their_digits(db: Database):
    await add(db, *"abcdefghijkl")
    assert await numbers(db) == list(range(12))
