"""The SQLite layer: transactions within transactions, schemas in versions, and the thread that owns a connection."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from agents.storage.database import Sql, in_thread, opened

QUERIES = {"put": "INSERT INTO words (word) VALUES (:word)", "words": "SELECT word FROM words ORDER BY rowid"}


@pytest.fixture
def sql(tmp_path: Path) -> Iterator[Sql]:
    with opened(tmp_path / "a.db", QUERIES) as sql:
        sql.execute("CREATE TABLE words (word TEXT NOT NULL UNIQUE)")
        yield sql


def words(sql: Sql) -> list[str]:
    return [word for (word,) in sql.rows("words")]


def test_a_transaction_that_raises_leaves_nothing(sql: Sql) -> None:
    with pytest.raises(KeyError), sql.atomic():
        sql.rows("put", word="a")
        raise KeyError
    assert words(sql) == [] and not sql.connection.in_transaction


def test_a_transaction_within_another_is_undone_by_itself_and_kept_with_the_other(sql: Sql) -> None:
    with sql.atomic():
        sql.rows("put", word="a")
        with pytest.raises(sqlite3.IntegrityError), sql.atomic():
            sql.many("put", [{"word": "b"}, {"word": "a"}])
        with sql.atomic(), sql.atomic():
            sql.rows("put", word="c")
    assert words(sql) == ["a", "c"]
    with pytest.raises(KeyError), sql.atomic():
        with sql.atomic():
            sql.rows("put", word="d")
        raise KeyError
    assert words(sql) == ["a", "c"]


def test_an_error_that_ends_every_transaction_is_told_as_itself(tmp_path: Path, sql: Sql) -> None:
    sql.execute("PRAGMA max_page_count = 4")
    with pytest.raises(sqlite3.OperationalError, match="full"), sql.atomic():
        sql.rows("put", word="a")
        with sql.atomic():
            sql.rows("put", word="b" * 100_000)
    assert words(sql) == []
    with sql.atomic():
        sql.rows("put", word="c")
    assert words(sql) == ["c"]


def test_a_schema_is_brought_up_to_date_version_by_version(sql: Sql) -> None:
    def record(version: int) -> str:
        return f"PRAGMA user_version = {version}"

    one, two = "CREATE TABLE one (a)", "CREATE TABLE two (a); INSERT INTO two VALUES (1)"
    scripts = {1: one, 2: two, 3: one}
    with pytest.raises(sqlite3.OperationalError, match="already exists"):
        sql.migrate(scripts, 0, record)
    assert sql.execute("PRAGMA user_version") == [(2,)] and not sql.connection.in_transaction
    sql.migrate({**scripts, 3: "INSERT INTO two VALUES (2)"}, 2, record)
    assert sql.execute("SELECT a FROM two") == [(1,), (2,)] and sql.execute("PRAGMA user_version") == [(3,)]


def test_what_is_committed_survives_a_loss_of_power(sql: Sql) -> None:
    assert sql.write_ahead()
    assert [sql.execute(f"PRAGMA {name}") for name in ("journal_mode", "synchronous", "foreign_keys")] == [
        [("wal",)],
        [(2,)],
        [(1,)],
    ]


async def test_all_work_is_done_in_one_thread_in_turn_and_cancelling_leaves_no_half(tmp_path: Path) -> None:
    threads, running, go = set[int](), threading.Event(), threading.Event()

    def write(sql: Sql) -> None:
        threads.add(threading.get_ident())
        with sql.atomic():
            sql.rows("put", word="a")
            running.set()
            go.wait(5)

    async with in_thread(lambda: opened(tmp_path / "a.db", QUERIES), "words") as words_thread:
        await words_thread.do(lambda sql: sql.execute("CREATE TABLE words (word TEXT)"))
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(words_thread.do, write)
                await anyio.to_thread.run_sync(running.wait)
                scope.cancel()
        go.set()
        assert await words_thread.do(words) == ["a"]
        threads.add(await words_thread.do(lambda _: threading.get_ident()))
    assert len(threads) == 1 and threading.get_ident() not in threads


async def test_what_can_not_be_made_leaves_no_thread(tmp_path: Path) -> None:
    @contextmanager
    def broken() -> Iterator[None]:
        raise sqlite3.OperationalError("no")
        yield

    with pytest.raises(sqlite3.OperationalError):
        async with in_thread(broken, "broken"):
            pass
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("broken")]
