import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from agents.ingest import store
from agents.ingest.errors import WrongSchema
from agents.ingest.scanning.reconcile import Appeared, reconcile
from agents.ingest.scanning.scan import Candidate, scan
from agents.storage.paths import stat_of
from agents.storage.queries import migrations
from schemas import files
from schemas.files import FilePath, Identity, Stat
from tests.ingest.making import put
from tests.ingest.world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    for name in ("models", "loras"):
        (tmp_path / name).mkdir()
    return World(tmp_path / "files.sqlite3", {"models": tmp_path / "models", "loras": tmp_path / "loras"})


@pytest.fixture
def models(world: World) -> Path:
    return Path(world.folders["models"])


def kinds(said: list[store.Message]) -> list[str]:
    return [type(message).__name__ for message in said]


def at(rel: str, root: str = "models") -> FilePath:
    return FilePath(root=root, rel=rel)


def test_a_new_file_is_settled_hashed_and_then_known(world: World, models: Path) -> None:
    put(models / "a.ckpt", b"one")
    assert kinds(world.settle()) == ["Settled", "Hash"]
    assert world.settle() == [] and world.in_catalogue() == world.on_disk()


def test_a_renamed_file_is_one_moved_fact_and_no_hash(world: World, models: Path) -> None:
    put(models / "a.ckpt", b"one")
    world.settle()
    (models / "sub").mkdir()
    (models / "a.ckpt").rename(models / "sub" / "B.ckpt")
    (moved,) = world.settle()
    assert isinstance(moved, files.Moved) and (moved.old, moved.path) == (at("a.ckpt"), at("sub/B.ckpt"))
    assert moved.known is not None and world.in_catalogue() == world.on_disk()


def test_a_rename_in_case_only_is_a_move(world: World, models: Path) -> None:
    put(models / "a.ckpt", b"one")
    world.settle()
    (models / "a.ckpt").rename(models / "A.ckpt")
    assert kinds(world.settle()) == ["Moved"]


def test_a_moved_folder_is_many_moves_and_no_hash(world: World, models: Path) -> None:
    for number in range(5):
        put(models / "x" / f"{number}.ckpt", b"%d" % number)
    world.settle()
    (models / "x").rename(models / "y")
    assert kinds(world.settle()) == ["Moved"] * 5 and world.in_catalogue() == world.on_disk()


def test_a_move_to_another_root_is_a_move(world: World, models: Path) -> None:
    put(models / "a.ckpt", b"one")
    world.settle()
    (models / "a.ckpt").rename(Path(world.folders["loras"]) / "a.ckpt")
    assert kinds(world.settle()) == ["Moved"] and world.in_catalogue() == world.on_disk()


def test_two_files_that_swap_names_are_two_moves(world: World, models: Path) -> None:
    put(models / "a.ckpt", b"one")
    put(models / "b.ckpt", b"two")
    world.settle()
    (models / "a.ckpt").rename(models / "c")
    (models / "b.ckpt").rename(models / "a.ckpt")
    (models / "c").rename(models / "b.ckpt")
    assert kinds(world.settle()) == ["Moved"] * 2 and world.in_catalogue() == world.on_disk()


def test_a_file_renamed_over_another_takes_its_place(world: World, models: Path) -> None:
    put(models / "a.ckpt", b"one")
    put(models / "b.ckpt", b"two")
    world.settle()
    (models / "a.ckpt").rename(models / "b.ckpt")
    assert kinds(world.settle()) == ["Removed", "Moved"] and world.in_catalogue() == world.on_disk()


def test_a_browsers_rename_is_one_arrival(world: World, models: Path) -> None:
    put(models / "a.ckpt.crdownload", b"one")
    put(models / "a.ckpt", b"")
    assert world.settle() == []
    (models / "a.ckpt.crdownload").rename(models / "a.ckpt")
    assert kinds(world.settle()) == ["Settled", "Hash"]


def test_a_hard_link_is_a_second_path_without_a_hash(world: World, models: Path) -> None:
    put(models / "a.ckpt", b"one")
    world.settle()
    (models / "b.ckpt").hardlink_to(models / "a.ckpt")
    (linked,) = world.settle()
    assert isinstance(linked, files.Settled) and linked.known is not None and linked.path == at("b.ckpt")
    (models / "a.ckpt").unlink()
    assert kinds(world.settle()) == ["Removed"] and world.in_catalogue() == world.on_disk()
    assert world.hashed == [at("a.ckpt")]


def test_a_file_that_is_linked_while_its_hash_is_still_to_come_is_asked_for_again(world: World, models: Path) -> None:
    put(models / "a.ckpt", b"one")
    world.look()
    world.judge()
    (models / "b.ckpt").hardlink_to(models / "a.ckpt")
    world.settle()
    assert world.in_catalogue() == world.on_disk()


def test_a_copy_is_hashed_for_itself(world: World, models: Path) -> None:
    put(models / "a.ckpt", b"one")
    put(models / "b.ckpt", b"one")
    assert kinds(world.settle()) == ["Settled", "Hash"] * 2


def test_content_replaced_in_place_is_settled_again(world: World, models: Path) -> None:
    put(models / "a.ckpt", b"one")
    world.settle()
    put(models / "a.ckpt", b"other")
    assert kinds(world.settle()) == ["Settled", "Hash"] and world.in_catalogue() == world.on_disk()


def test_a_date_put_back_after_writing_fools_nobody(world: World, models: Path) -> None:
    path = put(models / "a.ckpt", b"one")
    stat = path.stat()
    world.settle()
    path.write_bytes(b"two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert kinds(world.settle()) == ["Settled", "Hash"] and world.in_catalogue() == world.on_disk()


def test_a_file_written_dated_back_and_renamed_fools_nobody(world: World, models: Path) -> None:
    path = put(models / "a.ckpt", b"one")
    stat = path.stat()
    world.settle()
    path.write_bytes(b"two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    path.rename(models / "b.ckpt")
    assert kinds(world.settle()) == ["Removed", "Settled", "Hash"] and world.in_catalogue() == world.on_disk()


def test_an_unmounted_root_is_missing_and_returns_by_itself(world: World, models: Path) -> None:
    put(models / "a.ckpt", b"one")
    world.settle()
    models.rename(models.with_name("away"))
    (removed,) = world.settle()
    assert isinstance(removed, files.Removed) and removed.unmounted
    assert world.settle() == []
    models.with_name("away").rename(models)
    (back,) = world.settle()
    assert isinstance(back, files.Settled) and back.known is not None and world.in_catalogue() == world.on_disk()


def test_a_file_that_was_deleted_while_its_disk_was_away_is_told_as_removed_when_the_disk_is_back(
    world: World, models: Path
) -> None:
    put(models / "a.ckpt", b"1")
    put(models / "b.ckpt", b"2")
    world.settle()
    models.rename(models.with_name("away"))
    assert all(isinstance(fact, files.Removed) and fact.unmounted for fact in world.settle())
    assert world.settle() == []
    (models.with_name("away") / "a.ckpt").unlink()
    models.with_name("away").rename(models)
    said = world.settle()
    assert [(type(fact), fact.path.rel) for fact in said] == [(files.Removed, "a.ckpt"), (files.Settled, "b.ckpt")]
    assert isinstance(said[0], files.Removed) and not said[0].unmounted
    assert world.settle() == []


def test_a_deleted_file_is_removed_and_not_unmounted(world: World, models: Path) -> None:
    put(models / "a.ckpt", b"one").with_name("a.ckpt")
    world.settle()
    (models / "a.ckpt").unlink()
    (removed,) = world.settle()
    assert isinstance(removed, files.Removed) and not removed.unmounted


def test_a_file_refused_is_told_once_and_judged_again_when_it_changes(world: World, models: Path) -> None:
    path = put(models / "a.safetensors", b"")
    (refused,) = world.settle()
    assert isinstance(refused, files.Refused) and refused.reason == "empty" and "again" in refused.error
    assert world.settle() == []
    put(path, b"not a model, but a file")
    assert kinds(world.settle()) == ["Settled", "Hash"]
    path.unlink()
    assert kinds(world.settle()) == ["Removed"]


def test_a_file_nobody_was_told_of_goes_without_a_word(world: World, models: Path) -> None:
    put(models / "a.ckpt", b"one")
    world.look()
    (models / "a.ckpt").unlink()
    assert world.settle() == []


def test_a_kill_between_commit_and_publish_loses_nothing(world: World, models: Path) -> None:
    put(models / "a.ckpt", b"one")
    world.look()
    world.judge()
    with store.opened(world.table) as db:
        first = db.unsent()
    with store.opened(world.table) as db:
        assert db.unsent() == first and len(first) == 2
    assert kinds(world.publish()) == ["Settled", "Hash"] and world.publish() == []


def test_a_kill_in_the_middle_of_a_transaction_leaves_no_half(world: World, models: Path) -> None:
    put(models / "a.ckpt", b"one")
    world.look()
    with store.opened(world.table) as db:
        (row,) = db.waiting()
        with pytest.raises(RuntimeError), db.atomic():
            db.settle(row, row.stat, "stable", fingerprint="", now=1.0)
            raise RuntimeError
        assert db.waiting() == [row] and db.unsent() == []


def test_a_verdict_on_a_row_that_changed_meanwhile_is_void(world: World, models: Path) -> None:
    path = put(models / "a.ckpt", b"one")
    world.look()
    with store.opened(world.table) as db:
        (stale,) = db.waiting()
    put(path, b"other")
    world.look()
    with store.opened(world.table) as db:
        assert not db.settle(stale, stale.stat, "stable", fingerprint="", now=1.0)
        assert not db.refuse(stale, stale.stat, reason="empty", error="", now=1.0)
        assert db.unsent() == []


def test_a_hash_is_known_only_after_a_later_look(world: World, models: Path) -> None:
    path = put(models / "a.ckpt", b"one")
    world.settle()
    stat = stat_of(path.stat())
    with store.opened(world.table) as db:
        assert db.known(stat) is None
        db.apply([], roots=["models"], looked_at=world.now + 1.9, now=world.now + 1.9)
        assert db.known(stat) is None
        db.apply([], roots=["models"], looked_at=world.now + 2.1, now=world.now + 2.1)
        assert db.known(stat) is not None


def test_a_lost_hash_can_be_asked_for_again(world: World, models: Path) -> None:
    put(models / "a.ckpt", b"one")
    world.look()
    world.judge()
    with store.opened(world.table) as db:
        (row,) = db.unhashed()
        db.judge_again(row, now=1.0)
        assert [row.path for row in db.waiting()] == [at("a.ckpt")]


def test_numbers_of_64_bits_survive(tmp_path: Path) -> None:
    stat = Stat(dev=(1 << 64) - 1, ino=1 << 63, size=1, mtime_ns=-5, ctime_ns=7)
    with store.opened(tmp_path / "f.sqlite3") as db:
        db.remember(stat, "0" * 64, Identity(), hashed_at=1.0)
        (row,) = db.sql.connection.execute("SELECT dev, ino, mtime_ns FROM hash").fetchall()
        assert tuple(row) == (-1, -(1 << 63), -5)


def test_two_tables_never_share_message_ids(tmp_path: Path) -> None:
    with store.opened(tmp_path / "a") as one, store.opened(tmp_path / "b") as other:
        assert one.instance != other.instance
    with store.opened(tmp_path / "a") as again:
        assert again.instance == one.instance


def test_a_table_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    with store.opened(tmp_path / "a") as db:
        db.sql.connection.execute("PRAGMA user_version = 99")
    with pytest.raises(WrongSchema, match="newer"), store.opened(tmp_path / "a"):
        pass


def test_what_is_long_gone_is_forgotten_and_what_is_unmounted_is_not(world: World, models: Path) -> None:
    put(models / "a.ckpt", b"one")
    put(Path(world.folders["loras"]) / "b.ckpt", b"two")
    world.settle()
    (models / "a.ckpt").unlink()
    Path(world.folders["loras"]).rename(models.with_name("away"))
    world.settle()
    with store.opened(world.table) as db:
        db.prune(before=world.now + 1)
        assert [row.path for row in db.rows()] == [at("b.ckpt", "loras")]
        assert db.sql.connection.execute("SELECT count(*) FROM hash").fetchone()[0] == 1


def test_the_table_is_written_so_that_power_loss_loses_nothing(tmp_path: Path) -> None:
    with store.opened(tmp_path / "a") as db:
        pragmas = {
            name: db.sql.connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
        assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
        with pytest.raises(sqlite3.IntegrityError):
            db.sql.connection.execute("INSERT INTO outbox (kind, message_id, payload) VALUES ('gossip', '', '')")


def test_every_query_is_valid_and_used_and_every_name_used_exists(tmp_path: Path) -> None:
    used = set(re.findall(r'(?:_run|rows)\(\s*"(\w+)"', Path(store.__file__).read_text()))
    with store.opened(tmp_path / "a") as db:
        assert used == set(db.sql.queries)
        for query in db.sql.queries.values():
            db.sql.execute(f"EXPLAIN {query}", dict.fromkeys(re.findall(r":(\w+)", query)))


def test_a_table_of_the_first_version_is_migrated_and_keeps_what_it_had(tmp_path: Path) -> None:
    first = migrations("agents.ingest")[1]
    with closing(sqlite3.connect(tmp_path / "a", isolation_level=None)) as old:
        old.executescript(f"{first}; PRAGMA user_version = 1; INSERT INTO meta VALUES ('{'1' * 32}')")
        old.execute("INSERT INTO outbox (kind, message_id, payload) VALUES ('removed', 'm', ?)", [b"{}".decode()])
    with store.opened(tmp_path / "a") as db:
        assert db.instance == "1" * 32 and db.sql.execute("PRAGMA user_version")[0][0] == 2
        assert [tuple(row) for row in db.sql.execute("SELECT kind, message_id FROM outbox")] == [("removed", "m")]
        assert not db.has_described()


def test_a_row_comes_back_with_the_very_times_it_was_written_with(world: World, models: Path) -> None:
    path = put(models / "a.ckpt", b"one")
    os.utime(path, ns=(0, 9_300_000_000 * 10**9 + 5))
    seen = stat_of(path.stat())
    world.look()
    with store.opened(world.table) as db:
        (row,) = db.rows()
        assert row.stat == seen
        db.remember(seen, "a" * 64, Identity(), hashed_at=0.0)
        db.apply([], roots=["models"], looked_at=100.0, now=100.0)
        assert db.known(seen) is not None
    assert world.look() == [], "it did not change"


def test_numbers_without_a_sign_come_back_as_they_are(world: World) -> None:
    stat = Stat(dev=2**64 - 1, ino=2**63, size=2**62, mtime_ns=-(2**63), ctime_ns=2**63 - 1)
    with store.opened(world.table) as db:
        candidate = Candidate("a.ckpt", stat, 1)
        db.apply([Appeared(path=at("a.ckpt"), candidate=candidate)], roots=(), looked_at=1.0, now=1.0)
        assert [row.stat for row in db.rows()] == [stat] and db.has_inode(stat)


def test_a_file_renamed_without_end_goes_before_the_gate_instead_of_being_hashed(world: World, models: Path) -> None:
    path = put(models / "a.ckpt", b"one")
    world.look()
    with store.opened(world.table) as db:
        (row,) = db.waiting()
        db.settle(row, row.stat, "stable", fingerprint="", now=1.0)
        for number in range(20):
            path = path.rename(models / f"{number}.ckpt")
            changes = reconcile(db.rows(), [scan("models", str(models))])
            db.apply(changes, roots=(), looked_at=1.0, now=1.0)
        assert len([one for one in db.unsent() if isinstance(one.message, files.Hash)]) == 3
        (row,) = db.waiting()
        assert row.path.rel == "19.ckpt"
        assert db.attempts.ready_at(row.path, row.key, db.attempts.clock()) > db.attempts.clock()
