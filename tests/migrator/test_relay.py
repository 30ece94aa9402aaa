"""The relay on a real bus: the outbox comes into the stream in order and once, whatever the stream's end looks like."""

import functools
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import anyio
import pytest
from structlog.testing import capture_logs

from agents.catalog.asks.tags import put_tag
from agents.catalog.database import Database
from agents.catalog.descriptions import put_layer
from agents.catalog.errors import CatalogApart
from agents.catalog.facts import apply
from agents.catalog.outbox import outgoing
from agents.catalog.promotion import promote_present
from agents.cli.rebuild import rebuild_into
from agents.migrator.relay import SUBJECTS, CatalogOutbox
from agents.migrator.replay import UNFORGOTTEN, prepare
from bus.client import Bus
from bus.relay import relay
from bus.subjects import CATALOG_CHANGED, MODEL_READY, PENDING_CONFLICT, PENDING_DROPPED
from bus.wakeup import Wakeup
from schemas.catalog import PutTag, Strategy
from schemas.files import Identity
from tests.catalog.conftest import clock
from tests.catalog.facts import hashed, sha
from tests.catalog.pending import add_pending


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    """A catalog that has twenty things to say."""
    async with Database.open(tmp_path / "catalog.db", clock=clock) as db:
        for n in range(10):
            await apply(db, [(f"m{n}", hashed(f"{n}.safetensors", f"content {n}"))], now=1.0)
        yield db


async def relayed(bus: Bus, db: Database) -> None:
    """Run a relay until it has said everything."""
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(functools.partial(relay, bus, CatalogOutbox(bus, db), Wakeup()))
            while await outgoing(db) or (await db.standing()).unsent:
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()


async def stored(bus: Bus) -> list[str]:
    """The message ids in the stream, in order; empty for a message without one."""
    state = (await bus.js.stream_info("CATALOG")).state
    messages = [await bus.js.get_msg("CATALOG", seq) for seq in range(state.first_seq, state.last_seq + 1)]
    return [str((message.headers or {}).get("Nats-Msg-Id", "")) for message in messages]


async def said_before(bus: Bus, db: Database, count: int) -> None:
    """The first of them, stored by a relay that died before it could write that down."""
    for row in (await outgoing(db))[:count]:
        await bus.publish_raw(SUBJECTS[row.kind](**row.tokens), row.payload, msg_id=row.msg_id)


async def ids(db: Database) -> list[str]:
    return [row.msg_id for row in await outgoing(db)]


async def test_what_a_killed_relay_had_said_is_not_said_again_though_a_stranger_spoke_after_it(bus: Bus, db: Database):
    ours = await ids(db)
    await said_before(bus, db, 7)
    await bus.publish_raw(CATALOG_CHANGED(), b"{}", msg_id="stranger")
    await relayed(bus, db)
    assert await stored(bus) == [*ours[:7], "stranger", *ours[7:]]


async def test_a_stranger_between_two_of_ours_stops_nothing(bus: Bus, db: Database):
    ours = await ids(db)
    await said_before(bus, db, 3)
    await bus.js.publish(CATALOG_CHANGED(), b"{}")  # without an id, too
    for row in (await outgoing(db))[3:5]:
        await bus.publish_raw(SUBJECTS[row.kind](**row.tokens), row.payload, msg_id=row.msg_id)
    await relayed(bus, db)
    assert await stored(bus) == [*ours[:3], "", *ours[3:]]


async def test_messages_whose_ids_the_server_knows_already_are_no_bug_in_the_log(bus: Bus, db: Database):
    """A catalog begun anew gives what follows from the same facts the same ids."""
    for row in [row for row in await outgoing(db) if row.kind == "model.ready"][:5]:
        await bus.publish_raw(SUBJECTS[row.kind](**row.tokens), row.payload, msg_id=row.msg_id)
    with capture_logs() as logs:
        await relayed(bus, db)
    levels = {one["log_level"] for one in logs if "not published" in one["event"]}
    assert levels == {"warning"}


async def test_what_was_said_is_not_said_again_though_the_last_message_was_deleted(bus: Bus, db: Database):
    ours = await ids(db)
    await said_before(bus, db, 5)
    await bus.publish_raw(CATALOG_CHANGED(), b"{}", msg_id="stranger")
    await bus.js.delete_msg("CATALOG", 6)
    await relayed(bus, db)
    messages = [await bus.js.get_msg("CATALOG", seq) for seq in (1, 2, 3, 4, 5, *range(7, len(ours) + 2))]
    assert [(message.headers or {})["Nats-Msg-Id"] for message in messages] == ours


async def test_a_stream_that_was_purged_or_made_again_gets_a_history_of_all_there_is(bus: Bus, db: Database):
    await relayed(bus, db)
    for name, lose in (("more", bus.js.purge_stream), ("again", bus.js.delete_stream)):
        await lose("CATALOG")
        await apply(db, [(name, hashed(f"{name}.safetensors", name))], now=1.0)
        ready = [one for one in await ids(db) if one.startswith(name)]
        await relayed(bus, db)
        fact = (await bus.last(CATALOG_CHANGED)).payload  # type: ignore[union-attr]
        assert await stored(bus) == [*ready, fact.id]
        assert fact.number == 1 and len(fact.lineage) == {"more": 1, "again": 2}[name]
        assert (await rebuild_into(bus, db.path, db.path.with_name(f"{name}.rebuilt.db"))).same


async def test_a_history_whose_beginning_was_purged_begins_again(bus: Bus, db: Database):
    await apply(db, [("more", hashed("more.safetensors", "more"))], now=1.0)
    await relayed(bus, db)
    await bus.js.purge_stream("CATALOG", keep=1)
    opening = await prepare(bus, db.path, 1.0)
    assert opening.begin
    await db.begin_history(opening.after)
    await relayed(bus, db)
    assert (await bus.last(CATALOG_CHANGED)).payload.number == 1  # type: ignore[union-attr]
    assert (await rebuild_into(bus, db.path, db.path.with_name("rebuilt.db"))).same


async def test_a_relay_never_publishes_behind_another_catalogs_history(bus: Bus, db: Database, tmp_path: Path):
    await relayed(bus, db)
    before = await stored(bus)
    async with Database.open(tmp_path / "other.db", clock=clock) as other:
        await apply(other, [("other", hashed("other.safetensors", "other"))], now=1.0)
        with pytest.raises(CatalogApart, match=r"rebuild --replace.*new-history"):
            await relay(bus, CatalogOutbox(bus, other), Wakeup())
    assert await stored(bus) == before


@pytest.mark.parametrize(
    "path", ["/old/" + "%FF" * 32_000 + "/x.safetensors", "/old/" + '"' * 32_000 + "/x.safetensors"]
)
@pytest.mark.parametrize("strategy", ["report", "delete"])
async def test_a_record_whose_path_is_longer_than_a_message_is_told_of(
    bus: Bus, db: Database, path: str, strategy: Strategy
):
    async with db.atomic() as sql:
        await put_layer(sql, sha("content 1"), "user", {"title": "mine"})
    await add_pending(db, 1, path, rel="1.safetensors")
    await promote_present(db, strategy, 1.0)
    await relayed(bus, db)
    row = PENDING_CONFLICT if strategy == "report" else PENDING_DROPPED
    assert await bus.waiting("CATALOG", row.filter()) == {row(number="1"): 1}


async def test_a_model_longer_than_a_message_is_cut_and_published(bus: Bus, db: Database):
    await apply(db, [("long", hashed("x" * 65_500, "long"))], now=1.0)
    identity = Identity(kind="checkpoint", components={f"part {n}": n for n in range(10_000)})
    await apply(db, [("many", hashed("many.safetensors", "many", identity=identity))], now=1.0)
    await relayed(bus, db)
    long, many = [await bus.last(MODEL_READY, sha256=sha(name)) for name in ("long", "many")]
    assert long is not None and many is not None
    assert long.payload.model.name.endswith("…") and len(many.payload.model.identity.components) < 10_000


async def test_a_backup_whose_outbox_was_published_since_publishes_none_of_it_twice(
    bus: Bus, db: Database, tmp_path: Path
):
    for n in range(100):
        await put_tag(db, PutTag(name=f"tag {n}"))
    with closing(sqlite3.connect(db.path)) as live, closing(sqlite3.connect(tmp_path / "backup.db")) as copy:
        live.backup(copy)
    await relayed(bus, db)
    before = await stored(bus)
    async with Database.open(tmp_path / "backup.db", clock=clock) as backup:
        await relayed(bus, backup)
    assert await stored(bus) == before and len(before) > 2 * UNFORGOTTEN - 50
