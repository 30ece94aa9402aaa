import os
from pathlib import Path

import anyio
import pytest

from agents.ingest.hashing.disks import DiskTurns, Rotational, rotational_disk


class Tree:
    """A /sys with block devices, as the kernel lays it out."""

    def __init__(self, folder: Path) -> None:
        self.sysfs = folder / "sys"
        self.numbers = self.sysfs / "dev" / "block"
        self.numbers.mkdir(parents=True)

    def disk(self, name: str, dev: int, flag: str, *, driver: str = "scsi") -> Path:
        """A whole disk."""
        disk = self.block(self.sysfs / "devices" / "host0" / "block" / name, dev, flag)
        (disk / "device").mkdir()
        (disk / "device" / "subsystem").symlink_to(self.sysfs / "bus" / driver)
        return disk

    def partition(self, disk: Path, name: str, dev: int) -> Path:
        """Has no queue of its own."""
        (disk / name).mkdir()
        (disk / name / "partition").write_text("1\n")
        return self.numbered(disk / name, dev)

    def mapped(self, name: str, dev: int, *below: Path) -> Path:
        """LVM, RAID or an encrypted disk. What its own flag says depends on the kernel's age."""
        device = self.block(self.sysfs / "devices" / "virtual" / "block" / name, dev, "0")
        for one in below:
            (device / "slaves" / one.name).symlink_to(one)
        return device

    def block(self, device: Path, dev: int, flag: str) -> Path:
        (device / "queue").mkdir(parents=True)
        (device / "slaves").mkdir()
        (device / "queue" / "rotational").write_text(flag + "\n")
        return self.numbered(device, dev)

    def numbered(self, device: Path, dev: int) -> Path:
        (self.numbers / f"{os.major(dev)}:{os.minor(dev)}").symlink_to(device)
        return device


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_a_disk_says_itself_whether_it_spins(tree: Tree) -> None:
    tree.disk("sda", os.makedev(8, 0), "1")
    tree.disk("nvme0n1", os.makedev(259, 0), "0", driver="nvme")
    assert rotational_disk(os.makedev(8, 0), tree.sysfs) == "sda"
    assert rotational_disk(os.makedev(259, 0), tree.sysfs) == ""


def test_partitions_share_their_disk(tree: Tree) -> None:
    sda = tree.disk("sda", os.makedev(8, 0), "1")
    for number in (1, 2):
        tree.partition(sda, f"sda{number}", os.makedev(8, number))
    assert {rotational_disk(os.makedev(8, number), tree.sysfs) for number in range(3)} == {"sda"}


def test_what_is_mapped_onto_a_spinning_disk_spins(tree: Tree) -> None:
    fast, slow = tree.disk("nvme0n1", os.makedev(259, 0), "0"), tree.disk("sdb", os.makedev(8, 16), "1")
    tree.mapped("dm-0", os.makedev(252, 0), fast)
    crypt = tree.mapped("dm-1", os.makedev(252, 1), tree.partition(slow, "sdb1", os.makedev(8, 17)))
    tree.mapped("dm-2", os.makedev(252, 2), fast, crypt)
    found = [rotational_disk(os.makedev(252, number), tree.sysfs) for number in range(3)]
    assert found == ["", "sdb", "sdb"]


@pytest.mark.parametrize("driver", ["virtio", "xen"])
def test_a_virtual_disk_is_not_believed(tree: Tree, driver: str) -> None:
    tree.disk("vda", os.makedev(254, 0), "1", driver=driver)
    assert rotational_disk(os.makedev(254, 0), tree.sysfs) == ""


def test_a_file_system_without_a_disk_does_not_spin(tree: Tree) -> None:
    assert rotational_disk(os.makedev(0, 57), tree.sysfs) == ""
    assert rotational_disk(os.makedev(0, 57), tree.sysfs / "no such folder") == ""


async def most_at_once(turns: DiskTurns, paths: list[Path], places: list[tuple[str, int]]) -> int:
    """How many of ten files for each place were read at the same time, at most."""
    now, most = 0, 0

    async def read(path: Path, place: tuple[str, int]) -> None:
        nonlocal now, most
        async with turns.turn(place, lambda: os.fsencode(path)):
            now += 1
            most = max(most, now)
            for _ in range(20):
                await anyio.lowlevel.checkpoint()
            now -= 1

    async with anyio.create_task_group() as tasks:
        for path, place in zip(paths, places, strict=True):
            for _ in range(10):
                tasks.start_soon(read, path, place)
    return most


@pytest.mark.parametrize(
    ("rotational", "flag", "most"),
    [("auto", "1", 1), ("auto", "0", 20), ("yes", "0", 1), ("yes", "1", 1), ("no", "1", 20)],
)
async def test_files_of_one_spinning_disk_are_read_one_at_a_time(
    tree: Tree, tmp_path: Path, rotational: Rotational, flag: str, most: int
) -> None:
    tree.disk("sda", tmp_path.stat().st_dev, flag)
    turns = DiskTurns(rotational, tree.sysfs)
    places = [("models", 1), ("loras", 1)]  # two roots on one disk
    await most_at_once(turns, [tmp_path, tmp_path], places)  # each place is looked up by then
    assert await most_at_once(turns, [tmp_path, tmp_path], places) == most


async def test_a_file_that_is_gone_waits_for_nobody(tree: Tree, tmp_path: Path) -> None:
    tree.disk("sda", tmp_path.stat().st_dev, "1")
    turns = DiskTurns("auto", tree.sysfs)
    gone = tmp_path / "gone"
    async with turns.turn(("models", 1), lambda: os.fsencode(gone)):
        with anyio.fail_after(5):
            async with turns.turn(("models", 1), lambda: os.fsencode(gone)):
                pass
    assert await most_at_once(turns, [tmp_path], [("models", 1)]) == 1  # the next file is looked up again
