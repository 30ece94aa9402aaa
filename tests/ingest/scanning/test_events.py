import threading
from pathlib import Path
from typing import Any

import pytest
from watchfiles import Change

from agents.ingest.errors import EventsLost
from agents.ingest.scanning import events, mounts
from agents.ingest.scanning.events import Events, listen, sift
from tests.ingest.making import model, put

ADDED, MODIFIED, DELETED = Change.added, Change.modified, Change.deleted


def sifted(root: Path, *changes: tuple[Change, str], excluded: frozenset[bytes] = frozenset()) -> Events:
    return sift(bytes(root), [(change, str(root / rel)) for change, rel in changes], excluded)


def test_a_download_that_grows_under_a_temporary_name_concerns_nobody(tmp_path: Path) -> None:
    assert sifted(tmp_path, (ADDED, "a.safetensors.part"), (MODIFIED, "a.safetensors.part")) == Events()
    assert sifted(tmp_path, (MODIFIED, "train.log"), (MODIFIED, ".cache/a.safetensors")) == Events()


def test_a_model_or_what_may_have_been_a_folder_is_reported_in_the_form_of_the_bus(tmp_path: Path) -> None:
    seen = sifted(tmp_path, (MODIFIED, "sub/100%.safetensors"), (DELETED, "gone"))
    assert seen == Events(rels=frozenset({"sub/100%25.safetensors", "gone"}))


def test_a_folder_that_came_is_reported_as_one(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    assert sifted(tmp_path, (ADDED, "new")) == Events(rels=frozenset({"new"}), folders=True)


def test_what_happens_in_another_root_is_left_to_it(tmp_path: Path) -> None:
    excluded = frozenset({bytes(tmp_path / "loras")})
    assert sifted(tmp_path, (ADDED, "loras/a.safetensors"), excluded=excluded) == Events()


def test_of_very_many_changes_some_may_be_missing(tmp_path: Path) -> None:
    assert sifted(tmp_path, *((ADDED, f"{number}.txt") for number in range(events.MANY))).unknown


def test_listening_ends_when_another_folder_is_at_the_path(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    seen: list[Events] = []
    first = threading.Event()

    def report(what: Events) -> None:
        seen.append(what)
        first.set()

    thread = threading.Thread(target=listen, args=(str(root), frozenset(), report, threading.Event()))
    thread.start()
    assert first.wait(5)
    root.rename(tmp_path / "away")
    thread.join(5)
    assert not thread.is_alive()
    assert seen[0] == Events(unknown=True)


def test_listening_ends_when_another_disk_is_mounted_below_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = put(tmp_path / "mountinfo", b"1 0 8:1 / / rw - ext4 /dev/a rw\n")
    monkeypatch.setattr(mounts, "_MOUNTINFO", table)
    monkeypatch.setattr(events, "_MOUNTS_SECONDS", 0.0)
    root = tmp_path / "root"
    root.mkdir()

    def report(what: Events) -> None:
        table.write_bytes(table.read_bytes() + b"2 1 8:2 / " + bytes(root / "disk") + b" rw - ext4 /dev/b rw\n")

    listen(str(root), frozenset(), report, threading.Event())
    assert len(mounts.mounts_below(root)) == 1
    assert mounts.mounts_below(tmp_path / "roo") == frozenset()


def test_the_end_of_a_control_file_is_news_of_the_file_that_it_held_back(tmp_path: Path) -> None:
    seen = sifted(tmp_path, (DELETED, "x/a.safetensors.aria2"))
    assert seen == Events(rels=frozenset({"x/a.safetensors.aria2", "x/a.safetensors"}))


def test_a_folder_that_cannot_be_watched_is_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(EventsLost):
        listen(str(tmp_path / "nowhere"), frozenset(), lambda what: None, threading.Event())


def test_events_are_reported_until_they_are_stopped(tmp_path: Path) -> None:
    stop, seen = threading.Event(), set()

    def report(what: Events) -> None:
        if what.unknown:
            put(tmp_path / "a.safetensors", model())
        seen.update(what.rels)
        if what.rels:
            stop.set()

    listen(str(tmp_path), frozenset(), report, stop)
    assert seen == {"a.safetensors"}


def test_a_folder_that_may_not_be_read_does_not_keep_the_others_from_being_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, stop, seen = events.watch, threading.Event(), []

    def strict(*paths: str, ignore_permission_denied: bool, **others: Any) -> Any:
        if not ignore_permission_denied:
            raise PermissionError(13, "Permission denied")
        return real(*paths, ignore_permission_denied=True, **others)

    def report(what: Events) -> None:
        seen.append(what)
        stop.set()

    monkeypatch.setattr(events, "watch", strict)
    listen(str(tmp_path), frozenset(), report, stop)
    assert seen == [Events(unknown=True)]
