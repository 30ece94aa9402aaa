"""A catalog's file held beside its history at start: whatever became of the file, it ends as the one never lost, or its
user is asked; and no file of the data directory is gone."""

import functools
import resource
import shutil
import signal
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from agents.catalog.asks.pictures import add_picture
from agents.catalog.database import Database
from agents.catalog.errors import CatalogApart, CatalogTooNew, CatalogUnusable
from agents.catalog.history import TABLES
from agents.catalog.outbox import outgoing
from agents.catalog.position import standing_of
from agents.images.model_pictures import picture_names
from agents.migrator import agent as migrator
from agents.migrator.relay import CatalogOutbox
from agents.migrator.replay import UNDER_WAY, prepare, transactions
from agents.storage import blobs, trash
from bus.client import Bus
from bus.errors import Retry
from bus.relay import relay
from bus.subjects import CATALOG_CHANGED
from bus.wakeup import Wakeup
from schemas.catalog import AddPicture
from tests.catalog.conftest import FixedClock, clock
from tests.catalog.facts import hashed, sha
from tests.catalog.pending import add_pending
from tests.catalog.sql import execute
from tests.catalog.test_history import Life
from tests.conftest import running

LIFE = (
    ("hash", "a", "", 0),
    ("hash", "Ünï", "", 1),
    ("describe", "a", "light", 0),
    ("add_picture", "a", "one", 0),
    ("encode", "a", "", 3),
    ("pend", "a", "old", 1),
    ("import_it", "a", "", 1),
    ("promote_present", "a", "", 1),
    ("tag", "a", "gold", 0),
    ("drop_tag", "a", "", 1),
)


async def published(bus: Bus, db: Database) -> None:
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(relay, bus, CatalogOutbox(bus, db), Wakeup())
            while await outgoing(db) or (await db.standing()).unsent:
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()


async def opened(bus: Bus, path: Path) -> None:
    """What a migrator does with the file before anything else."""
    opening = await prepare(bus, path, 100.0)
    async with Database.open(path, clock=clock, begin=opening.begin, after=opening.after) as db:
        await published(bus, db)


async def lived(bus: Bus, path: Path, points: int, operations: tuple[tuple[str, str, str, int], ...] = LIFE) -> None:
    """The first so many things that happen to a catalog, published; a copy of its file is left after each."""
    async with Database.open(path, clock=clock) as db:
        life = Life(db, path.parent)
        for point, (operation, name, text, n) in enumerate(operations[:points]):
            await getattr(life, operation)(name, text, n, 5.0 + point)
            await published(bus, db)
            copied(path, path.with_name(f"backup-{point}.db"))


def copied(path: Path, to: Path) -> None:
    with closing(sqlite3.connect(path)) as one, closing(sqlite3.connect(to)) as two:
        one.backup(two)


def content(path: Path) -> dict[str, list[Any]]:
    with closing(sqlite3.connect(path)) as db:
        names = {table: [name for _, name, *_ in db.execute(f"PRAGMA table_info({table})")] for table in TABLES}
        return {
            table: sorted(db.execute(f"SELECT {', '.join(columns)} FROM {table}").fetchall(), key=repr)
            for table, columns in names.items()
        }


def lose(path: Path) -> None:
    for file in path.parent.glob("catalog.db*"):
        file.unlink()


def lose_all_but_the_log(path: Path) -> None:
    lose(path)
    path.with_name("catalog.db-wal").write_bytes(b"what a kill left")


def restore_the_first_backup(path: Path) -> None:
    lose(path)
    shutil.copy(path.with_name("backup-0.db"), path)


def make_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(b"\xa5" * 4096 + data[4096:])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("points", range(1, len(LIFE) + 1))
async def test_whatever_becomes_of_the_file_the_catalog_is_the_one_never_lost(bus: Bus, tmp_path: Path, points: int):
    path = tmp_path / "catalog.db"
    await lived(bus, path, points)
    never_lost = content(path)
    spoil: Callable[[Path], None]
    for spoil in (lose, restore_the_first_backup, make_empty, damage, lose_all_but_the_log, cut):
        spoil(path)
        await opened(bus, path)
        assert content(path) == never_lost, spoil.__name__
    history = await bus.last(CATALOG_CHANGED)
    every = {number for _, number in await sequences(bus)}
    assert history is not None and history.payload.number == len(every), "no history was begun"


async def sequences(bus: Bus) -> list[tuple[int, int]]:
    """Of every transaction in the stream, its sequence and its number."""
    found = []
    for seq in range(1, (await bus.js.stream_info("CATALOG")).state.last_seq + 1):
        message = await bus.js.get_msg("CATALOG", seq)
        if CATALOG_CHANGED.matches(message.subject or ""):
            found.append((seq, CATALOG_CHANGED.decode(message.data or b"").number))
    return found


async def stays(bus: Bus, path: Path, before: dict[str, list[Any]]) -> None:
    """The catalog holds the same when it is opened, and once more when its file is lost then."""
    await opened(bus, path)
    assert content(path) == before
    lose(path)
    await opened(bus, path)
    assert content(path) == before


async def test_a_catalog_made_of_its_history_lives_on_as_if_nothing_had_been(bus: Bus, tmp_path: Path):
    path = tmp_path / "catalog.db"
    await lived(bus, path, 5)
    lose(path)
    await opened(bus, path)
    async with Database.open(path, clock=clock) as db:
        life = Life(db, tmp_path)
        life.told = 50
        await life.tag("a", "late", 0, 9.0)
        await published(bus, db)
    later = content(path)
    lose(path)
    await opened(bus, path)
    assert content(path) == later and ("late",) in [(row[1],) for row in later["tags"]]


async def test_a_file_that_is_replaced_by_its_history_is_kept_in_the_trash(bus: Bus, tmp_path: Path):
    path = tmp_path / "catalog.db"
    await lived(bus, path, 4)
    restore_the_first_backup(path)
    old = path.read_bytes()
    await opened(bus, path)
    [one] = [one for one in trash.listed(tmp_path) if one.file == "catalog.db"]
    assert (tmp_path / "trash" / one.name).read_bytes() == old
    assert not path.with_name(UNDER_WAY).exists()


async def test_a_backup_under_the_log_that_a_kill_left_is_no_mixture_of_both(bus: Bus, tmp_path: Path):
    path, log = tmp_path / "catalog.db", tmp_path / "catalog.db-wal"
    await lived(bus, path, 2)
    async with Database.open(path, clock=clock) as db:
        life = Life(db, tmp_path)
        life.told = 50
        for name in ("first", "second"):
            for n in range(40):
                await life.hash(f"{name}{n}", "", 0, 9.0)
            await published(bus, db)
            await execute(db, f"PRAGMA wal_checkpoint({'TRUNCATE' if name == 'first' else 'PASSIVE'})")
        left = log.read_bytes()
    never_lost = content(path)
    log.write_bytes(left)
    restore_the_first_backup(path)
    log.write_bytes(left)
    path.touch()
    await opened(bus, path)
    assert content(path) == never_lost


async def test_a_link_to_a_disk_that_is_away_is_not_replaced(bus: Bus, tmp_path: Path):
    path, disk = tmp_path / "catalog.db", tmp_path / "disk"
    disk.mkdir()
    path.symlink_to(disk / "catalog.db")
    await lived(bus, path, 4)
    disk.rename(tmp_path / "away")
    with pytest.raises(CatalogUnusable, match="mount its disk"):
        await prepare(bus, path, 100.0)
    (tmp_path / "away").rename(disk)
    assert not (await prepare(bus, path, 100.0)).begin and path.is_symlink()


async def test_a_catalog_of_a_newer_version_is_not_replaced_by_an_older_one(bus: Bus, tmp_path: Path):
    path = tmp_path / "catalog.db"
    await lived(bus, path, 4)
    restore_the_first_backup(path)
    with closing(sqlite3.connect(path)) as newer:
        newer.execute("INSERT INTO migrations (version, applied_at) VALUES (999, 0)")
        newer.commit()
    with pytest.raises(CatalogTooNew, match="has version 999"):
        await prepare(bus, path, 100.0)


async def test_another_catalog_in_its_place_is_refused_with_the_commands_that_go_on(bus: Bus, tmp_path: Path):
    path, other = tmp_path / "catalog.db", tmp_path / "other" / "catalog.db"
    other.parent.mkdir()
    await lived(bus, path, 4)
    async with Database.open(other, clock=clock) as db:
        await Life(db, other.parent).hash("b", "", 0, 1.0)
    shutil.copy(other, path)
    before = path.read_bytes()
    with pytest.raises(CatalogApart, match=r"another history.*`darkroom rebuild --replace`.*`darkroom new-history`"):
        await prepare(bus, path, 100.0)
    assert path.read_bytes() == before


async def test_a_backup_that_was_changed_elsewhere_is_refused(bus: Bus, tmp_path: Path):
    path = tmp_path / "catalog.db"
    await lived(bus, path, 4)
    restore_the_first_backup(path)
    async with Database.open(path, clock=clock) as db:
        life = Life(db, tmp_path)
        life.told = 50
        await life.hash("other", "", 3, 1.0)
    with pytest.raises(CatalogApart, match="changed elsewhere"):
        await prepare(bus, path, 100.0)


async def test_a_copy_that_went_further_than_the_history_is_no_history_that_lost_its_end(bus: Bus, tmp_path: Path):
    path, copy = tmp_path / "catalog.db", tmp_path / "copy" / "catalog.db"
    copy.parent.mkdir()
    await lived(bus, path, 4)
    copied(path, copy)
    for file, tags in ((path, ("only here",)), (copy, ("one", "two", "three"))):
        async with Database.open(file, clock=clock) as db:
            for tag in tags:
                await Life(db, tmp_path).put_tag(tag, "", 0, 9.0)
            if file == path:
                await published(bus, db)
            else:
                await execute(db, "DELETE FROM outbox")
    lose(path)
    shutil.copy(copy, path)
    with pytest.raises(CatalogApart, match="changed elsewhere"):
        await prepare(bus, path, 100.0)


async def test_a_catalog_that_was_rebuilt_knows_what_it_went_through(bus: Bus, tmp_path: Path):
    path = tmp_path / "catalog.db"
    await lived(bus, path, 4)
    never_lost = standing_of(path)
    lose(path)
    await opened(bus, path)
    rebuilt = standing_of(path)
    assert never_lost and rebuilt and rebuilt.passed == never_lost.passed and len(rebuilt.passed) == 4


async def test_a_backup_from_before_a_new_beginning_is_refused(bus: Bus, tmp_path: Path):
    path = tmp_path / "catalog.db"
    await lived(bus, path, 4)
    lose(path)
    end = (await bus.last(CATALOG_CHANGED)).payload.id  # type: ignore[union-attr]
    async with Database.open(path, clock=clock, begin=True, after=end) as db:
        await published(bus, db)
    begun = content(path)
    assert not any(begun.values())
    lose(path)
    await opened(bus, path)
    assert content(path) == begun, "the history before is not mixed with the new one"
    restore_the_first_backup(path)
    with pytest.raises(CatalogApart, match="a new history was begun"):
        await prepare(bus, path, 100.0)


async def test_a_backup_from_before_a_history_that_went_on_is_made_todays(bus: Bus, tmp_path: Path):
    path = tmp_path / "catalog.db"
    await lived(bus, path, 4)
    async with Database.open(path, clock=clock) as db:
        await db.begin_history((await bus.last(CATALOG_CHANGED)).payload.id)  # type: ignore[union-attr]
        await Life(db, tmp_path).tag("a", "late", 0, 9.0)
        await published(bus, db)
    today = content(path)
    for _ in range(2):
        restore_the_first_backup(path)
        await opened(bus, path)
        assert content(path) == today


async def test_a_bus_that_lost_its_history_gets_one_with_all_there_is(bus: Bus, tmp_path: Path):
    path = tmp_path / "catalog.db"
    await lived(bus, path, 6)
    before = content(path)
    await bus.js.delete_stream("CATALOG")
    await bus.mend()
    await stays(bus, path, before)


async def test_a_bus_that_lost_the_end_of_its_history_loses_nothing_of_the_catalog(bus: Bus, tmp_path: Path):
    path = tmp_path / "catalog.db"
    await lived(bus, path, 6)
    before = content(path)
    last = (await bus.js.stream_info("CATALOG")).state.last_seq
    for seq in range(last - 3, last + 1):
        await bus.js.delete_msg("CATALOG", seq)
    await stays(bus, path, before)


async def test_a_history_with_a_hole_is_refused_and_nothing_is_begun(bus: Bus, tmp_path: Path):
    path = tmp_path / "catalog.db"
    await lived(bus, path, 6)
    third = [fact for fact in await sequences(bus) if fact[1] == 3]
    await bus.js.delete_msg("CATALOG", third[0][0])
    lose(path)
    with pytest.raises(CatalogApart, match=r"transaction 3 is missing.*rebuild --replace.*new-history --empty"):
        await prepare(bus, path, 100.0)
    assert not path.exists()


def unnamed(path: Path) -> None:
    """The catalog as it was left by a Darkroom from before histories had names."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("DELETE FROM db_meta WHERE key = 'position'")
        db.execute("UPDATE outbox SET payload = json_remove(payload, '$.history', '$.number', '$.after', '$.begun')")
        db.commit()


@pytest.fixture
async def from_before(bus: Bus, tmp_path: Path) -> AsyncIterator[Path]:
    """A catalog and its history from before histories had names."""
    path = tmp_path / "catalog.db"
    async with Database.open(path, clock=clock) as db:
        life = Life(db, path.parent)
        for operation, name, text, n in LIFE[:6]:
            await getattr(life, operation)(name, text, n, 5.0)
    await published_unnamed(bus, path)
    yield path


async def published_unnamed(bus: Bus, path: Path, position: str = "") -> None:
    """As an older Darkroom left it, which knows of no position: one that is there stays as it was."""
    unnamed(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("INSERT INTO db_meta (key, value) SELECT 'position', ?1 WHERE ?1 <> ''", (position,))
        db.commit()
    with closing(sqlite3.connect(path)) as db_then:
        rows = db_then.execute("SELECT kind, payload, msg_id FROM outbox ORDER BY id").fetchall()
        subject = CATALOG_CHANGED()
        for kind, payload, msg_id in rows:
            name = subject if kind == "catalog.changed" else f"{subject.rsplit('.', 2)[0]}.model.ready.{'0' * 64}"
            await bus.publish_raw(name, payload.encode(), msg_id=msg_id)
        db_then.execute("DELETE FROM outbox")
        db_then.commit()


async def test_a_catalog_from_before_histories_had_names_goes_on_in_one(bus: Bus, from_before: Path):
    before, old = content(from_before), from_before.read_bytes()
    await opened(bus, from_before)
    assert content(from_before) == before
    lose(from_before)
    await opened(bus, from_before)
    assert content(from_before) == before
    lose(from_before)
    from_before.write_bytes(old)
    await opened(bus, from_before)
    assert content(from_before) == before


async def test_a_catalog_from_before_histories_had_names_that_is_lost_is_made_of_them(bus: Bus, from_before: Path):
    before = content(from_before)
    lose(from_before)
    await opened(bus, from_before)
    assert content(from_before) == before
    assert (await bus.last(CATALOG_CHANGED)).payload.number == 1  # type: ignore[union-attr]


async def two_from_before(bus: Bus, path: Path) -> None:
    """A catalog that a Darkroom from before histories had names began with nothing when the one before was lost: the
    same ids are of other things."""
    for name, tag, at in (("a", "gold", 1.0), ("b", "silver", 2.0)):
        lose(path)
        async with Database.open(path, clock=FixedClock(at)) as db:
            life = Life(db, path.parent)
            life.told = int(at) * 10
            await life.hash(name, "", 0, 5.0)
            await life.tag(name, tag, 0, 5.0)
        await published_unnamed(bus, path)


async def test_a_catalog_begun_when_another_was_lost_goes_on_and_is_not_mixed_with_it(bus: Bus, tmp_path: Path):
    path = tmp_path / "catalog.db"
    await two_from_before(bus, path)
    before = content(path)
    assert [(name, id) for id, name, *_ in before["tags"]] == [("silver", 1)]
    await stays(bus, path, before)


async def test_the_histories_of_two_catalogs_without_names_are_not_made_one_catalog(bus: Bus, tmp_path: Path):
    path = tmp_path / "catalog.db"
    await two_from_before(bus, path)
    lose(path)
    with pytest.raises(CatalogApart, match=r"of another catalog.*rebuild --replace.*new-history --empty"):
        await prepare(bus, path, 100.0)
    assert not path.exists()


async def test_a_disk_that_is_full_while_a_catalog_is_made_of_its_history_is_named(bus: Bus, tmp_path: Path):
    path = tmp_path / "catalog.db"
    await lived(bus, path, 9)
    async with Database.open(path, clock=clock) as db:
        await Life(db, tmp_path).edit("a", "many words " * 50_000, 0, 9.0)
        await published(bus, db)
    never_lost, size = content(path), path.stat().st_size
    lose(path)
    for most in (1000, 300_000, size - 2**19):
        with files_no_longer_than(most), pytest.raises(CatalogUnusable, match=r"full|make room"):
            await prepare(bus, path, 100.0)
        assert not [*tmp_path.glob("catalog.*db*")], "what is half done takes no room"
    await opened(bus, path)
    assert content(path) == never_lost


@contextmanager
def files_no_longer_than(most: int) -> Iterator[None]:
    """As on a disk that gets full."""
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, kept[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)
        signal.signal(signal.SIGXFSZ, handler)


async def test_a_bus_that_goes_away_while_its_history_is_read_is_no_broken_history(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("agents.migrator.replay._FETCHED", 1)
    await lived(bus, tmp_path / "catalog.db", 4)
    with pytest.raises(Retry, match="could not be read to its end"):
        async for _ in transactions(bus):
            for consumer in await bus.js.consumers_info("CATALOG"):
                await bus.js.delete_consumer("CATALOG", consumer.name)


async def test_what_an_older_darkroom_did_to_a_catalog_is_part_of_its_history(bus: Bus, tmp_path: Path):
    path = tmp_path / "catalog.db"
    await lived(bus, path, 6)
    with closing(sqlite3.connect(path)) as db_then:
        [(position,)] = db_then.execute("SELECT value FROM db_meta WHERE key = 'position'").fetchall()
    copied(path, tmp_path / "backup.db")
    async with Database.open(path, clock=clock) as db:
        life = Life(db, tmp_path)
        life.told = 50
        await life.tag("a", "later", 0, 9.0)
    await published_unnamed(bus, path, position)
    older, end = content(path), (await bus.js.stream_info("CATALOG")).state.last_seq
    lefts = {"as it was left": path.read_bytes(), "lost": b"", "before that": (tmp_path / "backup.db").read_bytes()}
    for how, left in lefts.items():
        lose(path)
        path.write_bytes(left)
        for _ in range(2):
            await opened(bus, path)
            assert content(path) == older, how
        async with Database.open(path, clock=clock) as db:
            await Life(db, tmp_path).put_tag("latest", "", 0, 9.0)
            await published(bus, db)
        latest = content(path)
        lose(path)
        await opened(bus, path)
        assert content(path) == latest, how
        begun, end = end, (await bus.js.stream_info("CATALOG")).state.last_seq
        for seq in range(begun + 1, end + 1):
            await bus.js.delete_msg("CATALOG", seq)


async def test_pictures_and_pending_originals_outlive_their_catalogs_file(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """All files are older than an hour, so that a sweep may take them."""
    monkeypatch.setattr("agents.images.model_pictures.KEEP_LOOSE", -3600.0)
    monkeypatch.setattr("agents.images.model_pictures.KEEP_BLOBS", -3600.0)
    path = tmp_path / "catalog.db"
    async with Database.open(path, clock=clock) as db:
        await Life(db, tmp_path).hash("a", "", 0, 1.0)
        blob = blobs.put(tmp_path, b"a picture that waits")
        await add_picture(db, AddPicture(sha256=sha("a0"), blob=blob))
        async with db.atomic() as sql:
            await sql.rows("image_ready", sha256=sha("a0"), number=0, width=1, height=1, bytes=1)
            await sql.rows("next_number", sha256=sha("a0"))
        await add_pending(db, 7, "/old/x.safetensors", images=(b"one",), data=tmp_path)
        waits = blobs.put(tmp_path, b"another")
        await add_picture(db, AddPicture(sha256=sha("a0"), blob=waits))
    for name in (*picture_names(sha("a0"), 0).values(), *picture_names(sha("a0"), 9).values()):
        (tmp_path / name).write_bytes(b"WebP")
    async with running(functools.partial(migrator.run, bus, path)):
        await quiet(path)
    lose(path)
    for _ in range(2):
        async with running(functools.partial(migrator.run, bus, path)):
            await quiet(path)
            await trashed(tmp_path, 4)
    here = {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file()}
    assert {*picture_names(sha("a0"), 0).values(), "images/pending/7-0.png", f"blobs/{waits}"} <= here
    moved = {one.file for one in trash.listed(tmp_path)}
    assert moved == {*picture_names(sha("a0"), 9).values(), f"blobs/{blob}"}, "what nothing needs is in the trash"


async def trashed(data: Path, count: int) -> None:
    with anyio.fail_after(20):
        while len(trash.listed(data)) < count:
            await anyio.lowlevel.checkpoint()


async def quiet(path: Path) -> None:
    with anyio.fail_after(20), closing(sqlite3.connect(path)) as db:
        while db.execute("SELECT count(*) FROM outbox").fetchone() != (0,):
            await anyio.lowlevel.checkpoint()


async def test_files_from_before_an_empty_catalog_began_are_left_alone(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("agents.images.model_pictures.KEEP_LOOSE", -3600.0)
    lost = tmp_path / "images" / "pending" / "1-0.png"
    lost.parent.mkdir(parents=True)
    lost.write_bytes(b"of a catalog that is lost with its history")
    async with running(functools.partial(migrator.run, bus, tmp_path / "catalog.db")):
        swept = tmp_path / "images" / "pending" / "2-0.png"
        swept.write_bytes(b"of nothing")
    async with running(functools.partial(migrator.run, bus, tmp_path / "catalog.db")):
        await trashed(tmp_path, 1)
    assert lost.is_file() and not swept.exists()


async def test_facts_that_a_lost_catalog_had_not_published_are_applied_again(bus: Bus, tmp_path: Path):
    """A rebuilt catalog reads the facts about files on from where its history is, not from where its durable was."""
    from bus.subjects import FILE_HASHED

    path = tmp_path / "catalog.db"
    first, second = hashed("1.safetensors", "1"), hashed("2.safetensors", "2")
    async with running(functools.partial(migrator.run, bus, path)):
        await bus.publish(FILE_HASHED, first, key=first.key)
        await models_are(path, 1)
        await quiet(path)
        backup = tmp_path / "backup.db"
        copied(path, backup)
        await bus.publish(FILE_HASHED, second, key=second.key)
        await models_are(path, 2)
        await quiet(path)
    both = content(path)
    info = await bus.js.stream_info("CATALOG")
    while (await bus.last(CATALOG_CHANGED)).payload.number > 1:  # type: ignore[union-attr]
        await bus.js.delete_msg("CATALOG", (await bus.last(CATALOG_CHANGED)).seq)  # type: ignore[union-attr]
    assert info.state.messages > 2
    lose(path)
    async with running(functools.partial(migrator.run, bus, path)):
        await models_are(path, 2)
        await quiet(path)
    assert content(path) == both


async def models_are(path: Path, count: int) -> None:
    with anyio.fail_after(20), closing(sqlite3.connect(path)) as db:
        while db.execute("SELECT count(*) FROM models").fetchone() != (count,):
            await anyio.lowlevel.checkpoint()


def test_what_older_darkrooms_published_is_read(tmp_path: Path):
    fact = CATALOG_CHANGED.decode(b'{"id":"a","changes":[],"file":"","at":1.0}')
    assert (fact.history, fact.number, fact.cursors) == ("", 0, {})
    assert msgspec.json.decode(msgspec.json.encode(fact)) is not None
