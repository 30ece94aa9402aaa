"""The trash keeps what was swept, under its name, until it is restored, emptied or old."""

import os
from pathlib import Path

import pytest

from agents.cli import trash
from agents.storage.trash import NotInTrash, TrashBatch, empty, listed, restore
from bus.errors import UserError
from schemas.settings import Settings

DAY = 24 * 3600.0
NOON = 1_800_000_000.0


def put(data: Path, name: str, content: bytes = b"a picture") -> Path:
    path = data / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def swept(data: Path, *names: str, at: float = NOON) -> list[str]:
    """These files, moved to the trash in one sweep; what they are called there."""
    batch = TrashBatch(data, at)
    for name in names:
        put(data, name)
        assert batch.move(name)
    return [one.name for one in listed(data) if one.at == at]


def test_what_is_moved_is_listed_with_its_name_size_and_time(tmp_path: Path) -> None:
    batch = TrashBatch(tmp_path, NOON)
    put(tmp_path, "images/a.webp", b"12345")
    assert batch.move("images/a.webp") and not batch.move("images/none.webp") and batch.moved == 1
    [one] = listed(tmp_path)
    assert (one.name, one.file, one.bytes, one.at) == ("20270115T080000Z/images/a.webp", "images/a.webp", 5, NOON)
    assert not (tmp_path / "images" / "a.webp").exists()


def test_a_sweep_that_finds_nothing_makes_no_folder(tmp_path: Path) -> None:
    assert not TrashBatch(tmp_path, NOON).move("images/none.webp")
    assert list(tmp_path.iterdir()) == [] and listed(tmp_path) == []


def test_two_sweeps_of_one_second_keep_files_of_one_name_apart(tmp_path: Path) -> None:
    names = swept(tmp_path, "a.webp") + swept(tmp_path, "a.webp")
    assert sorted({*names}) == ["20270115T080000Z-2/a.webp", "20270115T080000Z/a.webp"]


def test_a_file_is_restored_to_where_it_was_and_its_folder_is_gone(tmp_path: Path) -> None:
    [name, other] = swept(tmp_path, "images/pending/1-0.png", "images/pending/1-1.png")
    assert restore(tmp_path, [name]) == [tmp_path / "images" / "pending" / "1-0.png"]
    assert [one.name for one in listed(tmp_path)] == [other]
    assert restore(tmp_path, [other.split("/")[0]]) == [tmp_path / "images" / "pending" / "1-1.png"]
    assert list((tmp_path / "trash").iterdir()) == []


def test_nothing_that_is_there_is_replaced(tmp_path: Path) -> None:
    [name] = swept(tmp_path, "a.webp")
    put(tmp_path, "a.webp", b"another")
    with pytest.raises(UserError, match="there already"):
        restore(tmp_path, [name])
    assert (tmp_path / "a.webp").read_bytes() == b"another"
    assert restore(tmp_path, [name], tmp_path / "kept") == [tmp_path / "kept" / "a.webp"]


@pytest.mark.parametrize("name", ["none", "../catalog.db", "", "20270115T080000Z/../../catalog.db", "/etc/passwd"])
def test_a_name_that_is_not_listed_restores_nothing(tmp_path: Path, name: str) -> None:
    put(tmp_path, "catalog.db")
    swept(tmp_path, "a.webp")
    with pytest.raises(NotInTrash, match="darkroom trash"):
        restore(tmp_path, [name])
    assert (tmp_path / "catalog.db").is_file()


def test_only_what_is_old_enough_is_removed(tmp_path: Path) -> None:
    swept(tmp_path, "old.webp", at=NOON - 31 * DAY)
    [young] = swept(tmp_path, "young.webp")
    assert empty(tmp_path, before=NOON - 30 * DAY) == (1, 9)
    assert [one.name for one in listed(tmp_path)] == [young]
    assert empty(tmp_path) == (1, 9) and empty(tmp_path) == (0, 0)


def test_what_somebody_else_put_into_the_trash_is_left_alone(tmp_path: Path) -> None:
    theirs = put(tmp_path, "trash/notes.txt")
    (tmp_path / "trash" / "99999999T999999Z").mkdir()
    outside = put(tmp_path, "outside/a.webp")
    (tmp_path / "trash" / "20270115T080000Z").symlink_to(outside.parent)
    assert listed(tmp_path) == [] and empty(tmp_path) == (0, 0)
    assert theirs.is_file() and outside.is_file()


def test_a_link_is_moved_and_removed_itself_and_not_what_it_leads_to(tmp_path: Path) -> None:
    target = put(tmp_path, "elsewhere/a.webp")
    (tmp_path / "a.webp").symlink_to(target)
    assert TrashBatch(tmp_path, NOON).move("a.webp")
    assert len(listed(tmp_path)) == 1 and empty(tmp_path)[0] == 1
    assert target.is_file() and not os.path.lexists(tmp_path / "a.webp")


def test_the_command_lists_restores_and_empties(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = swept(tmp_path, "a.webp", "b.webp")
    settings = Settings(data_dir=str(tmp_path))
    trash.list_trash(settings)
    out = capsys.readouterr().out
    assert first in out and "2 files of 18 bytes; each is kept for 30 days" in out
    trash.restore(settings, [first])
    assert capsys.readouterr().out == f"{tmp_path / 'a.webp'}\n"
    with pytest.raises(UserError, match="--all"):
        trash.restore(settings)
    trash.restore(settings, every=True, to=tmp_path / "kept")
    assert (tmp_path / "kept" / Path(second).name).is_file()
    swept(tmp_path, "c.webp")
    trash.empty(settings)
    assert capsys.readouterr().out.endswith("1 file of 9 bytes removed\n") and listed(tmp_path) == []
