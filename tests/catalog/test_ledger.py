"""Whatever is told, in whatever order: the history that is said leads to the catalog that is kept."""

import asyncio
import tempfile
import time
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents.catalog import facts as models
from agents.catalog.database import Database
from agents.catalog.facts import apply
from agents.catalog.ledger import Entry, FileFact, Ledger, LedgerRow, ModelFact
from agents.catalog.resolve import list_models
from schemas.files import FilePath, Stat
from schemas.models import Model, ModelMissing, ModelMoved, ModelReady
from tests.catalog.conftest import clock, said
from tests.catalog.facts import CHECKPOINT, hashed, key, moved, removed, settled, sha
from tests.effort import examples

rels = st.sampled_from(["a.safetensors", "b.safetensors", "sub/a.safetensors"])
contents = st.sampled_from(["one", "two", "six"])
maybe = st.none() | contents
times = st.integers(0, 5).map(float)
stats = st.builds(
    Stat, dev=st.just(1), ino=st.integers(1, 3), size=st.just(3), mtime_ns=st.integers(1, 2), ctime_ns=st.integers(1, 3)
)
facts = st.one_of(
    st.builds(lambda rel, content, at, stat: hashed(rel, content, at, stat=stat), rels, contents, times, stats),
    st.builds(lambda rel, stat, at, known: settled(rel, stat, at, content=known), rels, stats, times, maybe),
    st.builds(
        lambda old, rel, stat, at, known: moved(old, rel, stat, at, content=known), rels, rels, stats, times, maybe
    ),
    st.builds(removed, rels, stats, times),
)


def replayed(history: list[ModelFact]) -> dict[str, tuple[str, tuple[FilePath, ...]]]:
    """Name and paths of every model, by what was said alone; what is said has to be news."""
    models: dict[str, tuple[str, tuple[FilePath, ...]]] = {}
    for fact in history:
        match fact:
            case ModelReady(model=model):
                assert model.sha256 not in models or not models[model.sha256][1]
                models[model.sha256] = (model.name, model.paths)
            case ModelMissing():
                assert models[fact.sha256][1]
                models[fact.sha256] = (fact.name, ())
            case ModelMoved():
                assert models[fact.sha256][1] and models[fact.sha256][1] != fact.paths
                models[fact.sha256] = (fact.name, fact.paths)
    return models


def kept(models: tuple[Model, ...]) -> dict[str, tuple[str, tuple[FilePath, ...]]]:
    assert all(model.missing == (not model.paths) for model in models)
    return {model.sha256: (model.name, model.paths) for model in models}


async def history_of(told: list[tuple[str, FileFact]], sizes: list[int]) -> list[ModelFact]:
    """What the catalog publishes when these come in batches; replayed, it is the catalog."""
    with tempfile.TemporaryDirectory() as folder:
        async with Database.open(Path(folder) / "catalog.db", clock=clock) as db:
            rest = told
            for size in sizes:
                await apply(db, rest[:size], now=1.0)
                rest = rest[size:]
            await apply(db, rest, now=1.0)
            history = await said(db)
            assert replayed(history) == kept(await list_models(db, missing=True))
            assert await apply(db, told, now=1.0) == 0
            return history


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(facts, max_size=25), st.lists(st.integers(1, 7), max_size=6))
def test_the_history_replayed_is_the_catalog_and_batches_make_no_difference(told: list[FileFact], sizes: list[int]):
    facts = [(f"m{n}", fact) for n, fact in enumerate(told)]
    assert asyncio.run(history_of(facts, sizes)) == asyncio.run(history_of(facts, [1] * len(facts)))


@settings(max_examples=examples(60), deadline=None)
@given(st.permutations(range(5)))
def test_a_true_history_of_one_path_ends_the_same_in_any_order(order: list[int]):
    first, second = (
        Stat(dev=1, ino=1, size=3, mtime_ns=1, ctime_ns=1),
        Stat(dev=1, ino=2, size=3, mtime_ns=2, ctime_ns=2),
    )
    true: list[FileFact] = [
        settled("a.safetensors", first, 1.0, content="one"),
        hashed("a.safetensors", "one", 2.0, stat=first),
        removed("a.safetensors", first, 3.0),
        settled("a.safetensors", second, 4.0, content="two"),
        hashed("a.safetensors", "two", 5.0, stat=second),
    ]

    async def ends() -> set[tuple[str, bool]]:
        with tempfile.TemporaryDirectory() as folder:
            async with Database.open(Path(folder) / "catalog.db", clock=clock) as db:
                for n in order:
                    await apply(db, [(f"m{n}", true[n])], now=1.0)
                return {(model.sha256, model.missing) for model in await list_models(db)}

    assert asyncio.run(ends()) == {(sha("two"), False)}


async def test_a_file_of_many_links_does_not_keep_others_from_asking(db: Database):
    stat = Stat(dev=1, ino=1, size=3, mtime_ns=1, ctime_ns=1)
    told = [(f"{n}", settled(f"{n:05d} {'x' * 80}.safetensors", stat, 1.0, content="one")) for n in range(700)]
    gaps, done = [0.0], anyio.Event()

    async def others() -> None:
        while not done.is_set():
            began = time.monotonic()
            await anyio.lowlevel.checkpoint()
            gaps.append(time.monotonic() - began)

    began = time.monotonic()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(others)
        assert await apply(db, told, now=1.0) == 700
        done.set()
    assert max(gaps) < (time.monotonic() - began) / 4
    [model] = await list_models(db)
    assert len(model.paths) == 700


async def test_facts_that_take_long_are_applied_in_pieces_with_the_same_end(
    db: Database, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(models, "PIECE_SECONDS", 0.0)
    stat = Stat(dev=1, ino=1, size=3, mtime_ns=1, ctime_ns=1)
    told = [(f"{n}", settled(f"{n}.safetensors", stat, 1.0, content="one")) for n in (1, 2, 3)]
    assert await apply(db, [*told, told[0]], now=1.0, cursor={"FILES": 3}) == 3
    assert await apply(db, told, now=1.0) == 0
    assert replayed(await said(db)) == kept(await list_models(db))
    assert await db.committed.rows("applied_messages", ids='["1", "2", "3"]') == [("1",), ("2",), ("3",)]


def test_a_name_is_kept_while_one_file_has_it_however_its_path_is_spelled():
    stat = Stat(dev=1, ino=1, size=3, mtime_ns=1, ctime_ns=1)
    paths = [FilePath(root="models", rel=rel) for rel in ("a.safetensors", "100%25 fox.safetensors")]
    places = [
        LedgerRow(path=path, key=key(stat), stat=stat, sha256=sha("one"), present=True, seen_at=1.0) for path in paths
    ]
    entry = Entry(sha256=sha("one"), name="100% fox", size=3, identity=CHECKPOINT, created_at=1.0)
    [news] = Ledger(places, [entry]).apply(settled("b.safetensors", stat, 2.0))
    assert isinstance(news, ModelMoved) and (news.name, len(news.paths)) == ("100% fox", 3)
