"""The migrator on a real bus: facts about files come in, the catalog's history goes out, each once and in order."""

import contextlib
import functools
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from agents.catalog.database import Database
from agents.catalog.errors import CatalogTaken
from agents.catalog.facts import apply
from agents.catalog.ledger import FileFact
from agents.catalog.outbox import LARGEST_PAYLOAD, outgoing
from agents.migrator import agent as migrator
from agents.migrator import relay
from bus.client import Bus, connect, encode
from bus.clock import Clock
from bus.errors import NoAnswer
from bus.ids import digest_id
from bus.server import LocalServer, local_server
from bus.streams import MAX_MESSAGE
from bus.subjects import (
    ASK_HELLO,
    ASK_MODELS,
    ASK_RESOLVE,
    DEAD,
    FILE_HASHED,
    FILE_MOVED,
    FILE_REMOVED,
    FILE_SETTLED,
    MODEL_MISSING,
    MODEL_MOVED,
    MODEL_READY,
)
from bus.worker import sole
from schemas.asks import Hello, ListModels, ModelList, Nothing
from schemas.catalog import ResolveModel, ResolveReply
from schemas.files import Hashed, Identity, Moved, Removed, Settled
from schemas.models import Model
from tests.catalog.conftest import declined
from tests.catalog.facts import CHECKPOINT, hashed, moved, removed, sha, stat
from tests.conftest import QUICK, running

SAID: tuple[Any, ...] = (MODEL_READY, MODEL_MISSING, MODEL_MOVED)
ROWS: dict[type, Any] = {Hashed: FILE_HASHED, Settled: FILE_SETTLED, Moved: FILE_MOVED, Removed: FILE_REMOVED}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "catalog.db"


def migrating(bus: Bus, path: Path) -> functools.partial[Any]:
    return functools.partial(migrator.run, bus, path)


async def say(bus: Bus, *facts: FileFact) -> None:
    for fact in facts:
        await bus.publish(ROWS[type(fact)], fact, key=fact.key)


async def resolved(bus: Bus, name: str) -> ResolveReply:
    return await bus.ask(ASK_RESOLVE, ResolveModel(name=name), ResolveReply)


async def listed(bus: Bus, **which: Any) -> tuple[Model, ...]:
    return (await bus.ask(ASK_MODELS, ListModels(**which), ModelList)).models


async def history(bus: Bus, length: int) -> list[tuple[str, str]]:
    """What the CATALOG stream says of models, once it says `length` things: (ready, name), …"""
    await history_length(bus, length)
    return await stored(bus)


async def history_length(bus: Bus, length: int) -> None:
    with anyio.fail_after(30):
        while sum([sum((await bus.waiting("CATALOG", row.filter())).values()) for row in SAID]) < length:
            await anyio.lowlevel.checkpoint()


async def stored(bus: Bus) -> list[tuple[str, str]]:
    told = []
    for seq in range(1, (await bus.js.stream_info("CATALOG")).state.last_seq + 1):
        message = await bus.js.get_msg("CATALOG", seq)
        for row in SAID:
            if row.matches(message.subject or ""):
                fact: Any = row.decode(message.data or b"")
                told.append((row.template.split(".")[2], fact.model.name if row is MODEL_READY else fact.name))
    return told


@asynccontextmanager
async def second_bus(server: LocalServer) -> AsyncIterator[Bus]:
    async with connect(server.url, QUICK, name="second") as bus:
        yield bus


async def test_a_hashed_file_is_announced_listed_and_resolved(bus: Bus, path: Path):
    async with running(migrating(bus, path)):
        with declined("unknown-model"):
            await resolved(bus, "dream")
        await say(bus, hashed("sd/dream.safetensors", "dream", 12.0))
        assert await history(bus, 1) == [("ready", "dream")]
        ready = await bus.last(MODEL_READY, sha256=sha("dream"))
        assert ready is not None and ready.payload.model.sha256 == sha("dream")
        assert (await resolved(bus, "dream")).model == ready.payload.model
        assert await listed(bus) == (ready.payload.model,)
        assert await listed(bus, kind="lora") == ()


async def test_a_file_that_is_moved_and_removed_is_told_of_each_time(bus: Bus, path: Path):
    async with running(migrating(bus, path)):
        of = stat("dream")
        await say(
            bus,
            hashed("a.safetensors", "dream"),
            moved("a.safetensors", "b.safetensors", of),
            removed("b.safetensors", of),
        )
        assert await history(bus, 3) == [("ready", "a"), ("moved", "b"), ("missing", "b")]
        with declined("model-missing"):
            await resolved(bus, "b")
        assert [model.name for model in await listed(bus, missing=True)] == ["b"]


async def test_it_is_ready_only_when_what_was_said_before_is_applied(bus: Bus, path: Path):
    await say(bus, *(hashed(f"{n}.safetensors", f"content {n}") for n in range(700)))
    async with running(migrating(bus, path)):
        assert (await resolved(bus, "699")).model is not None
        assert len(await listed(bus)) == 700


async def test_the_same_fact_said_three_times_is_told_of_once(bus: Bus, path: Path):
    async with running(migrating(bus, path)):
        await say(bus, *[hashed("a.safetensors", "dream")] * 3, hashed("b.safetensors", "two"))
        assert await history(bus, 2) == [("ready", "a"), ("ready", "b")]
        assert await stored(bus) == [("ready", "a"), ("ready", "b")]


async def test_what_was_committed_and_not_published_before_a_death_is_published_after_it(bus: Bus, path: Path):
    async with Database.open(path, clock=Clock()) as db:
        for n in range(3):
            await apply(db, [(f"m{n}", hashed(f"{n}.safetensors", f"content {n}"))], now=1.0)
        rows = await outgoing(db)
    for row in rows[:4]:  # published, and then the relay died before it could forget them
        await bus.publish_raw(relay.SUBJECTS[row.kind](**row.tokens), row.payload, msg_id=row.msg_id)
    async with bus.listen(MODEL_READY.filter()) as heard:  # a repeat would be heard here, known to the server or not
        async with running(migrating(bus, path)):
            assert await history(bus, 3) == [("ready", "0"), ("ready", "1"), ("ready", "2")]
        await bus.flush()
        assert [MODEL_READY.decode(heard.receive_nowait().data).model.name] == ["2"]
        with pytest.raises(anyio.WouldBlock):
            heard.receive_nowait()


MIGRATOR = """
import anyio, sys
from functools import partial
from pathlib import Path
from agents.migrator import agent as migrator
from bus.client import connect
from schemas.settings import BusSettings

async def main():
    # Leases of the ordinary length: what a killed one held must not be waited for.
    async with connect(sys.argv[1], BusSettings(), name="migrator") as bus, anyio.create_task_group() as tasks:
        await tasks.start(partial(migrator.run, bus, Path(sys.argv[2])))
        print("ready", flush=True)

anyio.run(main)
"""


@contextlib.contextmanager
def process(url: str, path: Path, log: Path) -> Iterator["subprocess.Popen[str]"]:
    """A migrator in a process of its own, killed without warning in the end."""
    with log.open("a") as errors:
        command = [sys.executable, "-c", MIGRATOR, url, str(path)]
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=Path(__file__).parents[2]
        )
        with child:
            try:
                yield child
            finally:
                child.send_signal(signal.SIGKILL)


async def test_kills_while_it_works_lose_nothing_and_repeat_nothing(bus: Bus, nats_server: LocalServer, path: Path):
    names = [f"{n:03}" for n in range(600)]
    facts = [hashed(f"{name}.safetensors", f"content {name}") for name in names]
    await say(bus, *facts[:300])
    for done in (1, 90, 250):
        with process(nats_server.url, path, path.with_suffix(".log")):
            await history_length(bus, done)
    await say(bus, *facts[300:], *facts[:50])
    with process(nats_server.url, path, path.with_suffix(".log")) as child:
        assert child.stdout is not None
        with anyio.fail_after(20):
            told = functools.partial(next, (line for line in child.stdout if line == "ready\n"), None)
            assert await anyio.to_thread.run_sync(told, abandon_on_cancel=True)
        assert await history(bus, 600) == [("ready", name) for name in names]
        assert len(await listed(bus)) == 600


async def test_a_second_migrator_refuses_and_the_first_goes_on(bus: Bus, nats_server: LocalServer, tmp_path: Path):
    async with running(migrating(bus, tmp_path / "one.db")), second_bus(nats_server) as other:
        first = await bus.ask(ASK_HELLO, Nothing(), Hello)
        with pytest.raises(CatalogTaken, match=f"only one: stop it first. It is instance {first.instance}"):
            await migrator.run(other, tmp_path / "two.db")
        assert not (tmp_path / "two.db").exists()
        assert await bus.ask(ASK_HELLO, Nothing(), Hello) == first


async def test_of_many_that_start_at_once_exactly_one_stays(nats_server: LocalServer, tmp_path: Path):
    ends: list[str] = []
    all_ended, connected = anyio.Event(), anyio.Event()

    def ended(how: str) -> None:
        ends.append(how)
        if len(ends) == 4:
            all_ended.set()

    async def start(n: int, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        try:
            async with second_bus(nats_server) as own:
                task_status.started()
                await connected.wait()
                async with running(migrating(own, tmp_path / f"{n}.db")):
                    ended("ready")
                    await anyio.sleep_forever()
        except Exception as error:
            assert isinstance(sole(error), CatalogTaken)
            ended("refused")

    async with anyio.create_task_group() as tasks:
        for n in range(4):
            await tasks.start(functools.partial(start, n))
        connected.set()
        with anyio.fail_after(30):
            await all_ended.wait()
        assert sorted(ends) == ["ready", "refused", "refused", "refused"]
        tasks.cancel_scope.cancel()


async def test_one_that_ended_leaves_its_place_to_the_next(bus: Bus, path: Path):
    async with running(migrating(bus, path)):
        await say(bus, hashed("a.safetensors", "dream"))
        await history(bus, 1)
    with pytest.raises(NoAnswer):
        await resolved(bus, "a")
    async with running(migrating(bus, path)):
        assert (await resolved(bus, "a")).model is not None
    assert await stored(bus) == [("ready", "a")]


async def test_a_migrator_that_hangs_is_not_taken_for_gone(bus: Bus, path: Path):
    async with bus.listen(ASK_HELLO.filter()):  # listens and never answers
        with pytest.raises(CatalogTaken, match="does not answer"):
            await migrator.run(bus, path)


async def test_an_impossible_fact_is_a_dead_letter_and_the_others_go_on(bus: Bus, path: Path):
    evil = hashed("../../etc/passwd", "evil")
    short = msgspec.structs.replace(hashed("short.safetensors", "short"), sha256="abc")
    huge = msgspec.structs.replace(
        hashed("huge.safetensors", "huge"), stat=msgspec.structs.replace(stat("huge"), size=2**63)
    )
    await say(bus, hashed("a.safetensors", "one"), evil, short, huge, hashed("b.safetensors", "two"))
    async with running(migrating(bus, path)):
        assert await history(bus, 2) == [("ready", "a"), ("ready", "b")]
        for fact in (evil, short, huge):
            id = digest_id(FILE_HASHED.template, encode(fact))
            letter = await bus.last(DEAD, kind="fact", reason="impossible", id=id)
            assert letter is not None and msgspec.json.decode(bytes(letter.payload), type=Hashed) == fact
        assert [model.name for model in await listed(bus, missing=True)] == ["a", "b"]


async def test_a_catalog_that_was_deleted_is_made_again_from_the_facts(bus: Bus, path: Path):
    for _ in range(2):
        async with running(migrating(bus, path)):
            if not await listed(bus):
                await say(bus, hashed("a.safetensors", "dream"), hashed("b.safetensors", "two"))
                await history(bus, 2)
            assert [model.name for model in await listed(bus)] == ["a", "b"]
        for file in path.parent.glob("catalog.db*"):
            file.unlink()


async def test_a_bus_that_was_away_hears_the_rest_of_the_history(tmp_path: Path, path: Path):
    with contextlib.ExitStack() as servers:
        first = servers.enter_context(local_server(tmp_path / "store", port=0, store_bytes=1024**3))
        port = int(first.url.rsplit(":", 1)[1])
        async with connect(first.url, QUICK, name="test") as bus, running(migrating(bus, path)):
            await say(bus, hashed("a.safetensors", "dream"))
            await history(bus, 1)
            first.process.kill()
            first.process.wait()
            async with Database.open(path, clock=Clock()) as db:  # as if a fact had come through just before
                await apply(db, [("m", hashed("b.safetensors", "two"))], now=1.0)
            servers.enter_context(local_server(tmp_path / "store", port=port, store_bytes=1024**3))
            async with connect(first.url, QUICK, name="watcher") as other:
                await say(other, hashed("c.safetensors", "three"))
                assert await history(other, 3) == [("ready", "a"), ("ready", "b"), ("ready", "c")]
                assert (await resolved(other, "c")).model is not None


def test_the_largest_fact_of_the_catalog_is_what_the_bus_takes():
    assert LARGEST_PAYLOAD == MAX_MESSAGE


def test_a_list_leaves_out_the_metadata_of_headers_and_is_never_too_long_to_be_sent():
    wordy = msgspec.structs.replace(CHECKPOINT, metadata={"tags": "x" * 30_000}, trigger_words=("cat",))
    models = tuple(model(n, wordy) for n in range(500))
    page = msgspec.json.decode(bytes(migrator.listing(models, 1000, 1_000_000)), type=ModelList)
    assert [one.name for one in page.models] == [one.name for one in models] and not page.more
    assert page.models[0].identity == msgspec.structs.replace(wordy, metadata={})
    cut = bytes(migrator.listing(models, 1000, 20_000))
    assert 5_000 < len(cut) <= 20_000
    first = msgspec.json.decode(cut, type=ModelList)
    assert first.models == page.models[: len(first.models)] and first.more


async def test_every_page_together_is_the_whole_catalog(bus: Bus, tmp_path: Path):
    async with running(functools.partial(migrator.run, bus, tmp_path / "catalog.db")):
        for n in range(25):
            await say(bus, hashed(f"{n % 3}/{n}.safetensors", str(n)))
        await history(bus, 25)
        whole = await bus.ask(ASK_MODELS, ListModels(), ModelList)
        seen: list[Model] = []
        more = True
        while more:
            after = seen[-1].sha256 if seen else ""
            page = await bus.ask(ASK_MODELS, ListModels(after=after, limit=7), ModelList)
            seen, more = [*seen, *page.models], page.more
        assert tuple(seen) == whole.models and len(seen) == 25 and not whole.more


def model(n: int, identity: Identity) -> Model:
    return Model(sha256=sha(str(n)), name=f"{n}", size=1, identity=identity, paths=(), missing=True, created_at=1.0)
