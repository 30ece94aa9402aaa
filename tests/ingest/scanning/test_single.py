import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.ingest import store
from agents.ingest.scanning.scan import scan
from agents.ingest.scanning.single import admit_new, candidate_at
from agents.ingest.store import Store
from tests.ingest.making import model, put


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Store]:
    with store.opened(tmp_path / "files.sqlite3") as db:
        yield db


def admitted(db: Store, root: Path, *rels: str) -> bool:
    return admit_new([("models", rel) for rel in rels], {"models": str(root)}, db, 1.0)


def test_a_new_file_is_put_before_the_gate_as_a_scan_would_do_it(tmp_path: Path, db: Store) -> None:
    root = tmp_path / "models"
    put(root / "sub" / "a.safetensors", model())
    assert admitted(db, root, "sub/a.safetensors")
    [row] = db.waiting()
    found = scan("models", str(root)).candidates["sub/a.safetensors"]
    assert (row.path.rel, row.stat, row.links) == (found.rel, found.stat, found.links)
    assert admitted(db, root, "sub/a.safetensors")
    assert len(db.rows()) == 1


def test_what_may_have_a_history_is_left_to_the_scan(tmp_path: Path, db: Store) -> None:
    root = tmp_path / "models"
    path = put(root / "a.safetensors", model())
    assert admitted(db, root, "a.safetensors")
    path.rename(root / "b.safetensors")
    assert not admitted(db, root, "b.safetensors", "a.safetensors")
    assert not admitted(db, root, "nowhere.safetensors")
    assert [row.path.rel for row in db.rows()] == ["a.safetensors"]


def test_what_a_scan_would_not_find_is_not_admitted(tmp_path: Path) -> None:
    root = tmp_path / "models"
    (root / "real").mkdir(parents=True)
    (root / "linked").symlink_to(root / "real")
    for rel in ("real/a.safetensors", ".hidden/a.safetensors", "x.part/a.safetensors", "notes.txt", "a.pt.part"):
        put(root / rel, model())
    (root / "soft.pt").symlink_to(root / "real" / "a.safetensors")
    (root / "hard.pt").hardlink_to(root / "notes.txt")
    os.mkfifo(root / "pipe.pt")
    put(tmp_path / "outside.pt", model())
    taken = [
        *("linked/a.safetensors", ".hidden/a.safetensors", "x.part/a.safetensors", "notes.txt", "a.pt.part", "real"),
        *("soft.pt", "hard.pt", "pipe.pt", "../outside.pt", "%zz.pt"),
    ]
    assert [rel for rel in taken if candidate_at(str(root), rel) is not None] == []
    assert candidate_at(str(root), "real/a.safetensors") is not None
