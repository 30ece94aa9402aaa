"""A catalog in a real file, and what it said."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from agents.catalog.database import Database
from agents.catalog.facts import apply
from agents.catalog.ledger import FileFact, ModelFact
from agents.catalog.outbox import outgoing
from bus.clock import Clock
from bus.errors import Declined
from schemas.models import ModelMissing, ModelMoved, ModelReady

TYPES = {"model.ready": ModelReady, "model.missing": ModelMissing, "model.moved": ModelMoved}


class FixedClock(Clock):
    """One whose time stands still; its ids differ all the same."""

    def __init__(self, at: float) -> None:
        self._at = at

    def now(self) -> float:
        return self._at


clock = FixedClock(1.0)


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    async with Database.open(tmp_path / "catalog.db", clock=clock) as db:
        yield db


@contextmanager
def declined(reason: str, text: str = "") -> Iterator[None]:
    """What is asked in the body is declined for this reason, with `text` in the message."""
    with pytest.raises(Declined) as raised:
        yield
    assert raised.value.reason == reason and text in str(raised.value)


async def said(db: Database) -> list[ModelFact]:
    """What the outbox says of models and their files, in order."""
    told = await outgoing(db, limit=100_000)
    return [msgspec.json.decode(row.payload, type=TYPES[row.kind]) for row in told if row.kind in TYPES]


class Tell:
    """Applies facts one after the other, each under a message id of its own; gives what the catalog said to each."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.told = 0

    async def __call__(self, *facts: FileFact) -> list[ModelFact]:
        before = len(await said(self.db))
        for fact in facts:
            self.told += 1
            await apply(self.db, [(f"m{self.told}", fact)], now=1.0)
        return (await said(self.db))[before:]


@pytest.fixture
def tell(db: Database) -> Tell:
    return Tell(db)


def brief(facts: list[ModelFact]) -> list[tuple[str, str]]:
    """What was said, in short: (ready, name), …"""
    return [
        (
            type(fact).__name__.removeprefix("Model").lower(),
            fact.model.name if isinstance(fact, ModelReady) else fact.name,
        )
        for fact in facts
    ]
