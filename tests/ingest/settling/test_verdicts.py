from pathlib import Path

from schemas.files import FilePath, Moved
from tests.ingest.making import model, put
from tests.ingest.world import World


def test_a_known_file_renamed_over_one_that_waits_is_moved_and_not_hashed_again(tmp_path: Path) -> None:
    root = tmp_path / "models"
    old = put(root / "old.safetensors", model())
    world = World(tmp_path / "files.sqlite3", {"models": root})
    world.settle()
    waits = put(root / "new.safetensors", model(fill=2))
    world.look()
    old.rename(waits)
    assert len(world.judge()) == 1
    moved = [said for said in world.settle() if isinstance(said, Moved)]
    assert [(said.old.rel, said.path.rel) for said in moved] == [("old.safetensors", "new.safetensors")]
    assert world.hashed == [FilePath(root="models", rel="old.safetensors")]
    assert world.in_catalogue() == world.on_disk()


def test_an_unknown_file_renamed_over_one_that_waits_is_let_in_at_once(tmp_path: Path) -> None:
    root = tmp_path / "models"
    waits = put(root / "a.safetensors", b"")
    world = World(tmp_path / "files.sqlite3", {"models": root})
    world.look()
    put(root / "a.safetensors.part", model()).rename(waits)
    assert world.judge() == frozenset()
    world.publish()
    assert world.in_catalogue() == world.on_disk()
