"""A catalog made of its history alone is the live one, row for row and word for word, whatever was done to it."""

import sqlite3
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Literal

import anyio
import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents.catalog import history
from agents.catalog.asks import pictures as picturing
from agents.catalog.asks.model import edit_model
from agents.catalog.asks.pending import adopt_files, file_state, promote_chosen
from agents.catalog.asks.tags import drop_tag, put_tag, tag_models
from agents.catalog.database import Database
from agents.catalog.descriptions import picture_encoded, picture_refused
from agents.catalog.facts import apply
from agents.catalog.jobs import add_jobs, drop_jobs
from agents.catalog.legacy.importer import import_legacy
from agents.catalog.outbox import outgoing
from agents.catalog.outputs import add_outputs
from agents.catalog.promotion import drop_promoted, promote_present
from agents.catalog.rebuild import compare, read_only, rebuilt
from agents.catalog.verify import database_problems
from agents.storage.queries import sections
from bus.errors import Declined
from schemas.catalog import (
    AddPicture,
    AdoptFiles,
    DetailsEdit,
    DropPicture,
    DropTag,
    EditModel,
    FileState,
    OrderPictures,
    PutTag,
    Strategy,
    TagModels,
)
from schemas.files import Described, Details, Preview
from schemas.images import Encoded, Picture, PictureRefused
from schemas.imports import Import
from schemas.jobs import JobView, Request, Result
from schemas.models import Changed
from tests.catalog.conftest import clock
from tests.catalog.facts import CHECKPOINT, at_path, hashed, moved, removed, settled, sha, stat
from tests.catalog.legacy_making import make, model, odd, png, said
from tests.catalog.pending import add_pending
from tests.catalog.sql import execute
from tests.effort import examples

ROOTS = {"models": "/old"}
NAMES = st.sampled_from(["a", "Ünï"])
TEXTS = st.one_of(
    st.sampled_from(["", "x", "tag", "Tag", '"; DROP TABLE models; --', "%", "\0a\0"]), st.text(max_size=8)
)
TIMES = st.floats(0, 4e9) | st.sampled_from([0.1 + 0.2, 1763712345.678901234, 2.0**31, 5e-324])
NUMBERS = st.integers(0, 4)


def content(name: str, n: int) -> str:
    """One of the four contents that there are."""
    return sha(f"{name}{n % 2}")


class Life:
    """What can be done to a catalog. Each operation takes a name, a text, a number and a time, and makes of them what
    it needs."""

    def __init__(self, db: Database, data: Path) -> None:
        self.db, self.data, self.told, self.now = db, data, 0, 1.0

    async def _apply(self, *facts: Any) -> None:
        told = [(f"m{self.told + n}", fact) for n, fact in enumerate(facts)]
        self.told += len(facts)
        await apply(self.db, told, now=self.now, strategy="merge")

    async def hash(self, name: str, text: str, n: int, at: float) -> None:
        """A file, another content for every number."""
        of = stat(f"{name}{n % 2}", ino=n, version=n + 1)
        await self._apply(hashed(f"{name}.safetensors", f"{name}{n % 2}", at, stat=of))

    async def settle(self, name: str, text: str, n: int, at: float) -> None:
        await self._apply(settled(f"{name}{text}.safetensors", stat(f"{name}{n}", ino=n, version=n + 2), at))

    async def move(self, name: str, text: str, n: int, at: float) -> None:
        of = stat(f"{name}{n}", ino=n, version=n + 1)
        await self._apply(moved(f"{name}.safetensors", f"{text or 'x'}/{name}.safetensors", of, at))

    async def remove(self, name: str, text: str, n: int, at: float) -> None:
        gone = removed(f"{name}.safetensors", stat(f"{name}{n}", ino=n, version=n + 1), at)
        await self._apply(msgspec.structs.replace(gone, unmounted=n > 2))

    async def describe(self, name: str, text: str, n: int, at: float) -> None:
        fact = Described(
            key="k",
            path=at_path(f"{name}.safetensors"),
            sha256=content(name, n),
            details=Details(title=text, trigger_words=(text,), extra={text: [1.5, None, {"a": text}]}),
            tags=(text, name),
            previews=(Preview(name="p.png", blob=sha(text)),),
            at=at,
        )
        await self._apply(fact)

    async def edit(self, name: str, text: str, n: int, at: float) -> None:
        edit = DetailsEdit(description=text, title=None if n else name)
        await edit_model(self.db, EditModel(sha256=content(name, n), edit=edit))

    async def put_tag(self, name: str, text: str, n: int, at: float) -> None:
        await put_tag(self.db, PutTag(id=n or None, name=text or name, color="#abcdef" if n else None))

    async def drop_tag(self, name: str, text: str, n: int, at: float) -> None:
        await drop_tag(self.db, DropTag(id=n))

    async def tag(self, name: str, text: str, n: int, at: float) -> None:
        take = (name,) if n % 2 else ()
        await tag_models(self.db, TagModels(models=(content(name, n),), put=(text or name,), take=take))

    async def add_picture(self, name: str, text: str, n: int, at: float) -> None:
        await picturing.add_picture(self.db, AddPicture(sha256=content(name, n), blob=sha(text)))

    async def drop_picture(self, name: str, text: str, n: int, at: float) -> None:
        await picturing.drop_picture(self.db, DropPicture(sha256=content(name, n), seq=len(text) % 3))

    async def order_pictures(self, name: str, text: str, n: int, at: float) -> None:
        pictures = await picturing.pictures_of(self.db.committed, content(name, n))
        numbers = tuple(one.number for one in reversed(pictures))
        await picturing.order_pictures(self.db, OrderPictures(sha256=content(name, n), numbers=numbers))

    async def encode(self, name: str, text: str, n: int, at: float) -> None:
        """The encoder has done what waits for it, or can't."""
        for sha256, number in await execute(self.db, "SELECT sha256, number FROM images WHERE state = 'waiting'"):
            self.told += 1
            id = f"{self.told:032x}"
            async with self.db.atomic() as sql:
                if n:
                    picture = Picture(
                        index=number, seed=0, width=n, height=2, file="f", bytes=3, sha256=sha("f"), tiers={}
                    )
                    await picture_encoded(sql, Encoded(id=id, model=sha256, pictures=(picture,), seconds=1.0, at=at))
                else:
                    taken = len(text) % 2 == 1
                    fact = PictureRefused(id=id, sha256=sha256, number=number, error=text, at=at, taken=taken)
                    await picture_refused(sql, fact)
                await drop_promoted(sql, [sha256], at)

    async def generate(self, name: str, text: str, n: int, at: float) -> None:
        self.told += 1
        file = f"{self.told}.webp"
        picture = Picture(index=n, seed=2**63 - 1, width=8, height=8, file=file, bytes=9, sha256=sha(text), tiers={})
        async with self.db.atomic() as sql:
            await add_outputs(
                sql, Encoded(id=f"{n:032x}", pictures=(picture,), seconds=0.1, at=at), sha(f"{name}{n}"), [text]
            )

    async def end_job(self, name: str, text: str, n: int, at: float) -> None:
        asked, result = Request(prompt=text, model=name), Result(status="failed", ended_at=at, error=text)
        view = JobView(id=f"{n:032x}", status="failed", ended_at=at, request=asked, result=result)
        async with self.db.atomic() as sql:
            await add_jobs(sql, [(at, view)])

    async def drop_jobs(self, name: str, text: str, n: int, at: float) -> None:
        await drop_jobs(self.db, before=at)

    async def pend(self, name: str, text: str, n: int, at: float) -> None:
        self.told += 1
        size = len(f"{name}{n}")
        await add_pending(
            self.db,
            self.told,
            f"/old/{text}/{self.told}/{name}.safetensors",
            size=size,
            rel=f"{name}.safetensors" if n % 2 else None,
            details={"title": text, "extra": {text: text}},
            tags=(name,),
            images=(text.encode(),),
        )

    async def import_it(self, name: str, text: str, n: int, at: float) -> None:
        self.told += 1
        source = self.data / f"{self.told}.sqlite"
        if n == 0:
            odd(source, self.data / "pictures", seed=len(text), count=20)
        else:
            rows = [model(k, f"/old/{name}{k}.safetensors", sha(f"{name}{k}") if k % 2 else "") for k in range(1, 5)]
            picture = self.data / "pictures" / "one.png"
            picture.parent.mkdir(exist_ok=True)
            picture.write_bytes(png(n))
            rows.append(model(9, f"/old/{text.replace(chr(0), '')}/x.pt", extra_json=said(text, images="one.png")))
            make(source, rows, [(n, name), (n + 1, "tag")], [(1, n), (2, n + 1), (9, n)])
        job = Import(id=f"{self.told:032x}", database=str(source), images=str(self.data / "pictures"))
        await import_legacy(self.db, job, self.data, ROOTS)

    async def adopt(self, name: str, text: str, n: int, at: float) -> None:
        await adopt_files(self.db, ROOTS, AdoptFiles())

    async def promote(self, name: str, text: str, n: int, at: float) -> None:
        strategies: tuple[Strategy, ...] = ("report", "override", "merge", "ignore", "delete")
        ids = [id for (id,) in await execute(self.db, "SELECT id FROM pending_import")]
        await promote_chosen(self.db, ids[:3], strategies[n], at)

    async def promote_present(self, name: str, text: str, n: int, at: float) -> None:
        await promote_present(self.db, "merge" if n else "report", at)

    async def ask_of_file(self, name: str, text: str, n: int, at: float) -> None:
        await file_state(self.db, "override", FileState(places=(at_path(f"{name}.safetensors"),), size=2, promote=True))


OPERATIONS = sorted(name for name in vars(Life) if not name.startswith("_"))
LIVES = st.lists(st.tuples(st.sampled_from(OPERATIONS), NAMES, TEXTS, NUMBERS, TIMES), min_size=10, max_size=60)


async def lived(db: Database, data: Path, life: list[tuple[str, str, str, int, float]]) -> None:
    doing = Life(db, data)
    for name in ("a", "Ünï"):
        await doing.hash(name, "", 0, 1.0)
        await doing.hash(name, "", 1, 2.0)
    for operation, name, text, n, at in life:
        do: Callable[..., Awaitable[None]] = getattr(doing, operation)
        with suppress(sqlite3.IntegrityError, Declined):  # nothing stays of what can't be
            await do(name, text, n, at)


async def remade(db: Database, path: Path) -> None:
    """A new catalog at `path`, of the history alone."""
    async with Database.open(path, clock=clock):
        pass
    facts = [
        msgspec.json.decode(row.payload, type=Changed)
        for row in await outgoing(db, limit=1_000_000)
        if row.kind == "catalog.changed"
    ]
    with rebuilt(path) as new:
        for fact in facts:
            new.replay(history.changes_of(fact, db.path.parent / "history"))
        new.make_searchable()


def words(path: Path, table: Literal["search", "search_outputs", "search_jobs"]) -> list[tuple[Any, ...]]:
    """What is searched, by what it belongs to; the index itself is checked."""
    if table == "search_jobs":
        with closing(sqlite3.connect(path)) as db:
            db.execute("INSERT INTO search_jobs (search_jobs) VALUES ('integrity-check')")
            return sorted(db.execute("SELECT id, words FROM search_jobs").fetchall())
    which = "searched" if table == "search" else "searched_outputs"
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"INSERT INTO {table} ({table}) VALUES ('integrity-check')")
        rows = db.execute(f"SELECT * FROM {table} JOIN {which} ON id = {table}.rowid").fetchall()
        assert db.execute(f"SELECT count(*) FROM {table}").fetchone() == (len(rows),)
        return sorted(tuple(value for n, value in enumerate(row) if n != at_of_id(table)) for row in rows)


def at_of_id(table: str) -> int:
    """Which column of `words` is the row's number, which may differ."""
    return 4 if table == "search" else 1


async def differences(life: list[tuple[str, str, str, int, float]]) -> list[object]:
    """What differs between the catalog of a life and the one made of its history, and what is wrong in the first."""
    with tempfile.TemporaryDirectory() as folder:
        path, other = Path(folder) / "catalog.db", Path(folder) / "new.db"
        async with Database.open(path, clock=clock) as db:
            await lived(db, Path(folder), life)
            await remade(db, other)
        with read_only(path) as live, read_only(other) as new:
            wrong: list[object] = [table for table in compare(live, new) if not table.same]
            wrong += database_problems(live)
        tables: tuple[Any, ...] = ("search", "search_outputs", "search_jobs")
        return wrong + [table for table in tables if words(path, table) != words(other, table)]


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(life=LIVES)
def test_a_catalog_made_of_its_history_is_the_live_one_whatever_was_done_to_it(life: list[Any]):
    assert anyio.run(differences, life) == []


async def test_a_catalog_of_version_1_with_models_in_it_is_migrated_searched_and_told(tmp_path: Path):
    path, other = tmp_path / "catalog.db", tmp_path / "new.db"
    identity = msgspec.json.encode(CHECKPOINT).decode()
    with closing(sqlite3.connect(path)) as old:
        old.executescript(sections("agents.catalog", "schema.sql", "version")["1"])
        old.execute("INSERT INTO migrations VALUES (1, 1.0)")
        for n in range(5000):  # more than one piece of the history
            values = (sha(f"{n}"), f"dream {n}", f"dream {n}", n, identity, 0.1 + n / 7)
            old.execute(
                "INSERT INTO models (sha256, name, folded, size, identity, created_at) VALUES (?,?,?,?,?,?)", values
            )
        place = ("models", "dream 1.safetensors", "dream 1", "k", sha("1"), "1", "2", 1, 1, 1, 1, 2.5)
        old.execute(f"INSERT INTO paths VALUES ({', '.join('?' * len(place))})", place)
        old.commit()
    async with Database.open(path, clock=clock) as db:
        await remade(db, other)
    with read_only(path) as live, read_only(other) as new:
        assert [table for table in compare(live, new) if not table.same] == []
        assert live.execute("SELECT count(*) FROM search WHERE search MATCH 'dream'").fetchone() == (5000,)
    assert words(path, "search") == words(other, "search")
