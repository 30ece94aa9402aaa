import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from agents.storage.atomic import place, sweep


def test_a_file_and_its_folders_appear_whole(tmp_path: Path) -> None:
    final = tmp_path / "a" / "b" / "c.webp"
    assert place(final, b"bytes")
    assert final.read_bytes() == b"bytes"
    assert [path.name for path in final.parent.iterdir()] == ["c.webp"]


def test_a_final_name_is_never_replaced(tmp_path: Path) -> None:
    final = tmp_path / "c.webp"
    place(final, b"first")
    assert not place(final, b"second")
    assert final.read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["c.webp"]


def test_of_many_writers_one_wins_and_nothing_is_left_behind(tmp_path: Path) -> None:
    final = tmp_path / "new" / "c.webp"
    wins: list[int] = []
    start = threading.Barrier(8)

    def write(number: int) -> None:
        start.wait()
        if place(final, bytes([number]) * 100_000):
            wins.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert final.read_bytes() == bytes(wins) * 100_000
    assert [path.name for path in final.parent.iterdir()] == ["c.webp"]


def test_a_write_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            place(tmp_path / "c.webp", bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


FULL_DISK = """
import errno, subprocess, sys
from pathlib import Path
from agents.storage.atomic import place
disk = Path(sys.argv[1])
if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], capture_output=True).returncode:
    sys.exit(77)
place(disk / "small", b"kept")
try:
    place(disk / "large", bytes(1 << 20))
except OSError as error:
    print(error.errno == errno.ENOSPC, [path.name for path in disk.iterdir()])
"""


def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path: Path) -> None:
    command = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", FULL_DISK, str(tmp_path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=Path(__file__).parents[2])
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("no file system can be mounted here")
    assert done.stdout.strip() == "True ['small']", done.stderr


def test_the_sweep_takes_old_temporary_files_and_nothing_else(tmp_path: Path) -> None:
    old, new = tmp_path / f".{'a' * 32}.writing", tmp_path / f".{'b' * 32}.writing"
    others = [tmp_path / name for name in (".hidden", "x.writing", "picture.webp", f".{'c' * 31}.writing")]
    for path in (old, new, *others):
        path.write_bytes(b"")
        os.utime(path, (100, 100))
    os.utime(new, (200, 200))
    assert sweep(tmp_path, before=150) == 1
    assert not old.exists()
    assert all(path.exists() for path in (new, *others))
    assert sweep(tmp_path / "none", before=150) == 0


def test_a_writer_killed_before_the_link_leaves_only_what_the_sweep_takes(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from agents.storage import atomic\n"
        "atomic.os.link = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "atomic.place(Path(sys.argv[1]) / 'c.webp', b'bytes')"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == -9
    (left,) = tmp_path.iterdir()
    assert left.name != "c.webp"
    assert sweep(tmp_path, before=left.stat().st_mtime + 1) == 1
    assert place(tmp_path / "c.webp", b"bytes")
