"""When what lies beside a model is new: of the folder that was looked at last, what was seen then."""

import os
import time
from pathlib import Path

import anyio

from agents.ingest import table
from agents.ingest.beside import Beside, Describer
from agents.ingest.scan import Scan, marks_in, names_in, scan
from tests.ingest.making import put
from tests.ingest.world import World


def marks(beside: Beside) -> dict[str, str]:
    return {rel: mark for rel, (mark, _) in beside.marks["models"].items()}


def test_a_scan_that_began_before_a_folder_was_looked_at_overtakes_nothing():
    beside = Beside(stable=2.0)
    assert beside.look([Scan(root="models", state="present", marks={"x/a": "1", "b": "1"})], now=1.0, began=0.5)
    assert beside.update_folder("models", "x", {"x/a": "2"}, now=2.0)
    assert not beside.update_folder("models", "x", {"x/a": "2"}, now=2.5)
    late = Scan(root="models", state="present", marks={"x/a": "1", "b": "1"})
    assert not beside.look([late], now=3.0, began=1.5)
    assert marks(beside) == {"x/a": "2", "b": "1"}
    assert beside.settles_at(3.0) == 4.0
    assert beside.look([late], now=4.0, began=3.5) and marks(beside) == {"x/a": "1", "b": "1"}
    assert beside.update_folder("models", "x", {}, now=5.0) and marks(beside) == {"b": "1"}


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


async def test_what_comes_to_rest_while_others_are_told_is_told_after_them(tmp_path: Path):
    roots, told, stable = {"models": tmp_path / "models"}, anyio.Event(), 0.05
    world = World(tmp_path / "files.sqlite3", roots)
    for name in ("a.ckpt", "b.ckpt", "a.json", "b.json"):
        put(tmp_path / "models" / name, name.encode())
    world.settle()
    found = marks_in(os.fsencode(tmp_path / "models"), "")

    def say() -> None:
        """Called when something was told."""
        if "b.ckpt" in marks(describer.beside):
            told.set()
        describer.beside.update_folder("models", "", found, time.monotonic() - stable)

    async with table.opened(tmp_path / "files.sqlite3") as opened, anyio.create_task_group() as tasks:
        describer = Describer(opened, {"models": str(tmp_path / "models")}, tmp_path, stable, say)
        describer.beside.update_folder("models", "", {"a.ckpt": found["a.ckpt"]}, time.monotonic() - stable)
        tasks.start_soon(describer.keep)
        with anyio.fail_after(5):
            await told.wait()
        tasks.cancel_scope.cancel()
