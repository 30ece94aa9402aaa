"""When the sidecars of a model are new: of the folder that was looked at last, what was seen then."""

import os
from pathlib import Path

import anyio

from agents.ingest import store
from agents.ingest.scanning.scan import Scan, marks_in, names_in, scan
from agents.ingest.sidecars.watch import SidecarMarks, SidecarWatch
from bus.clock import Clock
from schemas.files import Described
from tests.ingest.making import put
from tests.ingest.world import World


def marks(sidecars: SidecarMarks) -> dict[str, str]:
    return {rel: mark for rel, (mark, _) in sidecars.marks["models"].items()}


def test_a_scan_that_began_before_a_folder_was_looked_at_overtakes_nothing():
    sidecars = SidecarMarks(stable=2.0)
    assert sidecars.update([Scan(root="models", state="present", marks={"x/a": "1", "b": "1"})], now=1.0, began=0.5)
    assert sidecars.update_folder("models", "x", {"x/a": "2"}, now=2.0)
    assert not sidecars.update_folder("models", "x", {"x/a": "2"}, now=2.5)
    late = Scan(root="models", state="present", marks={"x/a": "1", "b": "1"})
    assert not sidecars.update([late], now=3.0, began=1.5)
    assert marks(sidecars) == {"x/a": "2", "b": "1"}
    assert sidecars.settles_at(3.0) == 4.0
    assert sidecars.update([late], now=4.0, began=3.5) and marks(sidecars) == {"x/a": "1", "b": "1"}
    assert sidecars.update_folder("models", "x", {}, now=5.0) and marks(sidecars) == {"b": "1"}


def test_a_folder_by_itself_has_the_marks_that_a_scan_finds(tmp_path: Path):
    for name in ("a.safetensors", "a.json", "a.preview.PNG", "x/100% é.ckpt", "x/100% é.metadata.json", "x/b.ckpt"):
        put(tmp_path / name, b"1")
    put(tmp_path / os.fsdecode(b"\xff.ckpt"), b"1")
    put(tmp_path / os.fsdecode(b"\xff.Civitai.Info"), b"1")
    (tmp_path / "x" / "link.ckpt").symlink_to("b.ckpt")
    (tmp_path / "x" / "link.json").symlink_to("../a.json")
    (tmp_path / "x" / "link.png").symlink_to("nowhere")
    found = scan("models", str(tmp_path)).marks
    top = bytes(tmp_path)
    assert {**marks_in(top, ""), **marks_in(top, "x")} == found
    assert {rel: names_in(mark) for rel, mark in found.items()} == {
        "a.safetensors": [b"a.json", b"a.preview.PNG"],
        "%FF.ckpt": [b"\xff.Civitai.Info"],
        "x/100%25 é.ckpt": ["100% é.metadata.json".encode()],
        "x/link.ckpt": [b"link.json"],
    }


def test_what_a_linked_sidecar_leads_to_is_in_the_mark(tmp_path: Path):
    put(tmp_path / "a.ckpt", b"1")
    put(tmp_path / "words", b"1")
    (tmp_path / "a.json").symlink_to("words")
    before = scan("models", str(tmp_path)).marks
    (tmp_path / "words").write_bytes(b"others")
    assert scan("models", str(tmp_path)).marks != before


def test_a_sidecar_that_got_its_date_back_or_can_be_read_now_has_another_mark(tmp_path: Path):
    put(tmp_path / "a.ckpt", b"1")
    words = put(tmp_path / "a.json", b"{}")
    before, status = marks_in(os.fsencode(tmp_path), ""), words.stat()
    words.write_bytes(b"[]")
    words.chmod(0o400)
    while words.stat().st_ctime_ns == status.st_ctime_ns:  # the clock of some file systems goes in steps
        os.utime(words, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert marks_in(os.fsencode(tmp_path), "") != before


def test_a_model_that_moved_is_described_anew_once_its_sidecars_had_their_time_to_follow(tmp_path: Path):
    folder, sidecars = tmp_path / "models", SidecarMarks(stable=2.0)
    world = World(tmp_path / "files.sqlite3", {"models": folder})

    def due(now: float) -> list[tuple[str, bool]]:
        """Which models are to be described after a scan, and whether there are sidecars."""
        sidecars.update([scan("models", str(folder))], now, now)
        with store.opened(world.table) as db:
            found = sidecars.due(db, now)
            for one in found:
                fact = Described(key=one.model.key, path=one.model.path, sha256=one.model.sha256, at=now)
                db.describe(fact, one.mark)
        return [(one.model.path.rel, bool(one.mark)) for one in found]

    put(folder / "a.ckpt", b"1")
    put(folder / "a.json", b"{}")
    put(folder / "other.ckpt", b"2")
    world.settle()
    assert (due(10.0), due(12.0), due(20.0)) == ([], [("a.ckpt", True)], [])
    (folder / "a.ckpt").rename(folder / "b.ckpt")
    world.settle()
    assert (due(30.0), sidecars.settles_at(30.0)) == ([], 32.0)
    (folder / "a.json").rename(folder / "b.json")
    assert (due(31.0), due(33.0), due(40.0)) == ([], [("b.ckpt", True)], [])
    (folder / "b.ckpt").rename(folder / "c.ckpt")
    world.settle()
    assert (due(50.0), due(52.0), due(60.0)) == ([], [("c.ckpt", False)], [])
    (folder / "b.ckpt").write_bytes((folder / "c.ckpt").read_bytes())
    world.settle()
    assert (due(70.0), due(72.0)) == ([], [("b.ckpt", True)])
    (folder / "b.ckpt").unlink()
    world.settle()
    put(folder / "x" / "d.ckpt", b"1")
    world.settle()
    assert (due(80.0), due(82.0), due(90.0)) == ([], [("x/d.ckpt", False)], []), "the content came without sidecars"


async def test_what_comes_to_rest_while_others_are_described_is_described_after_them(tmp_path: Path):
    roots, stable, clock = {"models": tmp_path / "models"}, 0.05, Clock()
    world = World(tmp_path / "files.sqlite3", roots)
    for name in ("a.ckpt", "b.ckpt", "a.json", "b.json"):
        put(tmp_path / "models" / name, name.encode())
    world.settle()
    found, done = marks_in(os.fsencode(tmp_path / "models"), ""), anyio.Event()

    def wake() -> None:
        """Called when something was described: that is when the other one comes to rest."""
        if "b.ckpt" in marks(watch.marks):
            done.set()
        watch.marks.update_folder("models", "", found, clock.steady() - stable)

    async with store.open_table(tmp_path / "files.sqlite3") as table, anyio.create_task_group() as tasks:
        watch = SidecarWatch(table, {"models": str(tmp_path / "models")}, tmp_path, stable, clock, wake)
        watch.marks.update_folder("models", "", {"a.ckpt": found["a.ckpt"]}, clock.steady() - stable)
        tasks.start_soon(watch.keep)
        with anyio.fail_after(5):
            await done.wait()
        unsent = await table.do(lambda db: db.unsent(store.ALL))
        tasks.cancel_scope.cancel()
    assert [one.message.path.rel for one in unsent if one.kind == "described"] == ["a.ckpt", "b.ckpt"]
