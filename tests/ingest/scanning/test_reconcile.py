import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from agents.ingest.scanning.reconcile import Appeared, Linked, Lost, Row, Touched, WasMoved, reconcile, without
from agents.ingest.scanning.scan import Candidate, Scan
from schemas.files import FilePath, Refused, Stat
from tests.effort import examples
from tests.ingest.world import World

NAMES = st.sampled_from(("a.ckpt", "b.ckpt", "x/a.ckpt", "x/y/100%.ckpt", "c.part"))
ROOTS = st.sampled_from(("models", "loras"))


class Folders(RuleBasedStateMachine):
    """Everything people do to folders, in any order; whenever the watcher has caught up, the catalogue is right."""

    @initialize()
    def begin(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="folders-"))
        self.roots = {name: self.home / name for name in ("models", "loras")}
        for folder in self.roots.values():
            folder.mkdir()
        self.world = World(self.home / "files.sqlite3", self.roots)
        self.counter = 0
        for name in ("a.ckpt", "b.ckpt", "x/a.ckpt"):
            self.write("models", name)
        self.world.settle()

    def teardown(self) -> None:
        if hasattr(self, "home"):
            shutil.rmtree(self.home)

    def content(self) -> bytes:
        self.counter += 1
        return b"x" * self.counter  # sizes differ, so that no clock's grain hides a change

    def place(self, root: str, name: str) -> Path | None:
        """Where to put a file, unless the root is away."""
        if not self.roots[root].exists():
            return None
        path = self.roots[root] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @rule(root=ROOTS, name=NAMES)
    def rewrite(self, root: str, name: str) -> None:
        self.write(root, name)

    def write(self, root: str, name: str) -> None:
        if path := self.place(root, name):
            path.write_bytes(self.content())

    @rule(root=ROOTS, name=NAMES)
    def grow(self, root: str, name: str) -> None:
        if (path := self.place(root, name)) and path.exists():
            with path.open("ab") as file:
                file.write(self.content())

    @rule(root=ROOTS, name=NAMES)
    def replace(self, root: str, name: str) -> None:
        if path := self.place(root, name):
            temporary = path.with_name("new.tmp")
            temporary.write_bytes(self.content())
            temporary.rename(path)

    @rule(root=ROOTS, name=NAMES, other_root=ROOTS, other=NAMES)
    def rename(self, root: str, name: str, other_root: str, other: str) -> None:
        source, target = self.place(root, name), self.place(other_root, other)
        if source and target and source.exists():
            source.rename(target)

    @rule(root=ROOTS, name=NAMES, other_root=ROOTS, other=NAMES)
    def swap(self, root: str, name: str, other_root: str, other: str) -> None:
        source, target = self.place(root, name), self.place(other_root, other)
        if source and target and source.exists() and target.exists() and not source.samefile(target):
            source.rename(self.home / "between")
            target.rename(source)
            (self.home / "between").rename(target)

    @rule(root=ROOTS, name=NAMES, other_root=ROOTS, other=NAMES)
    def link(self, root: str, name: str, other_root: str, other: str) -> None:
        source, target = self.place(root, name), self.place(other_root, other)
        if source and target and source.exists() and not target.exists():
            target.hardlink_to(source)

    @rule(root=ROOTS, name=NAMES, other=NAMES)
    def copy(self, root: str, name: str, other: str) -> None:
        source, target = self.place(root, name), self.place(root, other)
        if source and target and source.exists() and not target.exists():
            shutil.copy2(source, target)

    @rule(root=ROOTS, name=NAMES)
    def delete(self, root: str, name: str) -> None:
        (self.roots[root] / name).unlink(missing_ok=True)

    @rule(root=ROOTS)
    def move_folder(self, root: str) -> None:
        folder, target = self.roots[root] / "x", self.roots[root] / "z"
        if folder.exists() and not target.exists():
            folder.rename(target)

    @rule(root=ROOTS)
    def unmount(self, root: str) -> None:
        if self.roots[root].exists():
            self.roots[root].rename(self.home / f"{root}-away")

    @rule(root=ROOTS)
    def mount(self, root: str) -> None:
        if (self.home / f"{root}-away").exists():
            (self.home / f"{root}-away").rename(self.roots[root])

    @rule()
    def scan_and_be_killed(self) -> None:
        self.world.look()

    @rule()
    def judge_and_be_killed(self) -> None:
        self.world.look()
        self.world.judge()

    @rule()
    def catch_up(self) -> None:
        self.world.settle()
        assert self.world.in_catalogue() == self.world.on_disk()
        assert self.world.settle() == [], "nothing changed, and yet something was said"


Folders.TestCase.settings = settings(
    max_examples=examples(100), stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
test_after_any_history_the_catalogue_is_what_the_disk_is = Folders.TestCase


def test_a_link_out_of_its_root_is_refused_once_though_it_leads_to_a_model_of_another_root(tmp_path: Path) -> None:
    roots = {name: tmp_path / name for name in ("models", "loras")}
    for folder in roots.values():
        folder.mkdir()
    (roots["models"] / "a.ckpt").write_bytes(b"1234")
    world = World(tmp_path / "files.sqlite3", roots)
    world.settle()
    (roots["loras"] / "b.ckpt").symlink_to(roots["models"] / "a.ckpt")
    assert [said.path.rel for said in world.settle() if isinstance(said, Refused)] == ["b.ckpt"]
    assert list(world.in_catalogue()) == [FilePath(root="models", rel="a.ckpt")]
    assert world.settle() == []


def stat(ino: int = 1, **fields: int) -> Stat:
    return Stat(**{"dev": 1, "ino": ino, "size": 5, "mtime_ns": 7, "ctime_ns": 9, **fields})


def row(rel: str, of: Stat, **fields: object) -> Row:
    base = {"id": 1, "path": FilePath(root="models", rel=rel), "key": "k", "stat": of, "links": 1, "state": "settled"}
    return Row(**{**base, "published": True, **fields})  # type: ignore[arg-type]


def seen(*candidates: Candidate, **fields: object) -> Scan:
    found = {candidate.rel: candidate for candidate in candidates}
    return Scan(**{"root": "models", "state": "present", "candidates": found, "devices": frozenset((1,)), **fields})  # type: ignore[arg-type]


def test_what_a_scan_could_not_read_is_not_called_gone() -> None:
    rows = [row("shut/a.ckpt", stat(1)), row("shutter/b.ckpt", stat(2), id=2)]
    assert reconcile(rows, [seen(unread=("shut",))]) == [Lost(row=rows[1], unmounted=False)]
    assert reconcile(rows, [seen(state="unreadable")]) == []


def test_a_disk_mounted_below_the_root_that_is_away_is_unmounted() -> None:
    gone = row("big/a.ckpt", stat(dev=2))
    assert reconcile([gone], [seen()]) == [Lost(row=gone, unmounted=True)]


def test_a_disk_that_comes_back_under_another_number_is_the_same() -> None:
    here = row("a.ckpt", stat())
    again = Candidate("a.ckpt", stat(dev=2), 1)
    assert reconcile([here], [seen(again, devices=frozenset((2,)))]) == [Touched(row=here, candidate=again)]


def test_roots_that_were_not_scanned_are_left_alone() -> None:
    other = row("a.ckpt", stat(), path=FilePath(root="loras", rel="a.ckpt"))
    assert reconcile([other], [seen()]) == []


def test_a_reused_inode_of_another_size_is_a_new_file() -> None:
    old = row("a.ckpt", stat())
    new = Candidate("b.ckpt", stat(size=6, mtime_ns=8), 1)
    assert reconcile([old], [seen(new)]) == [
        Lost(row=old, unmounted=False),
        Appeared(path=FilePath(root="models", rel="b.ckpt"), candidate=new),
    ]


def test_a_lost_file_is_known_at_another_path_and_judged_anew_at_its_own() -> None:
    lost = row("a.ckpt", stat(), gone=True)
    elsewhere, back = Candidate("b.ckpt", stat(ctime_ns=10), 1), Candidate("a.ckpt", stat(ctime_ns=10), 1)
    assert reconcile([lost], [seen(elsewhere)]) == [
        Linked(source=lost, path=FilePath(root="models", rel="b.ckpt"), candidate=elsewhere)
    ]
    assert reconcile([lost], [seen(back)]) == [Appeared(path=lost.path, candidate=back, row=lost)]


def test_only_a_disk_that_was_away_may_have_another_number() -> None:
    elsewhere = Candidate("b.ckpt", stat(dev=2, ctime_ns=10), 1)
    for unmounted, kind in ((True, Linked), (False, Appeared)):
        lost = row("a.ckpt", stat(), gone=True, unmounted=unmounted)
        [change] = reconcile([lost], [seen(elsewhere, devices=frozenset((2,)))])
        assert isinstance(change, kind)


def test_nothing_goes_to_a_place_that_is_still_taken_by_what_is_left_for_later() -> None:
    one, two, three = (row(f"{n}.ckpt", stat(n), id=n) for n in (1, 2, 3))
    turned = [Candidate(f"{n % 3 + 1}.ckpt", stat(n, ctime_ns=10), 1) for n in (1, 2, 3)]
    added = Candidate("4.ckpt", stat(4), 1)
    changes = reconcile([one, two, three], [seen(*turned, added)])
    assert len([change for change in changes if isinstance(change, WasMoved)]) == 3
    assert without(changes, ()) == changes
    assert [change.path.rel for change in without(changes, {2}) if isinstance(change, Appeared)] == ["4.ckpt"]
    assert len(without(changes, {2})) == 1


def test_a_file_renamed_while_its_disk_was_away_is_not_hashed_again(tmp_path: Path) -> None:
    root, away = tmp_path / "models", tmp_path / "away"
    root.mkdir()
    (root / "a.ckpt").write_bytes(b"1234")
    (root / "b.ckpt").write_bytes(b"12345")
    world = World(tmp_path / "files.sqlite3", {"models": root})
    world.settle()
    root.rename(away)
    world.settle()
    (away / "a.ckpt").rename(away / "new.ckpt")
    before = (away / "b.ckpt").stat()
    (away / "b.ckpt").write_bytes(b"54321")
    os.utime(away / "b.ckpt", ns=(before.st_atime_ns, before.st_mtime_ns))
    (away / "b.ckpt").rename(away / "written.ckpt")
    away.rename(root)
    world.hashed.clear()
    world.settle()
    assert world.hashed == [FilePath(root="models", rel="written.ckpt")]
    assert world.in_catalogue() == world.on_disk()
