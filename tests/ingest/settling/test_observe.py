import mmap
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agents.headers.errors import HeaderUnread
from agents.ingest.scanning import mounts
from agents.ingest.settling import gate, lengths, observe
from agents.storage.paths import encode
from schemas.settings import WatcherSettings
from tests.ingest.making import gguf, model, put


def look(root: Path, name: str, remote: bool = False) -> gate.Observation:
    return observe.observe(str(root), name, 1.0, remote=remote)


def verdict(seen: gate.Observation) -> gate.Verdict:
    return gate.decide(gate.follow(None, seen), WatcherSettings(), seen.at)


def test_a_whole_model_is_proven_at_the_first_look(tmp_path: Path) -> None:
    path = put(tmp_path / "a.safetensors", model())
    seen = look(tmp_path, "a.safetensors")
    assert (seen.lease, seen.holes, seen.header, seen.expected) == ("free", False, "whole", path.stat().st_size)
    assert verdict(seen) == gate.Admit(proof="complete")


def test_a_file_whose_header_a_busy_machine_cannot_read_has_to_hold_still_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(fd: int) -> int:
        raise HeaderUnread

    put(tmp_path / "a.safetensors", model())
    monkeypatch.setattr(lengths.sandbox, "expected_size", busy)
    seen = look(tmp_path, "a.safetensors")
    assert (seen.header, seen.expected) == ("none", None)
    assert isinstance(verdict(seen), gate.Wait)


def test_an_open_writer_holds_a_file_back_until_it_closes(tmp_path: Path) -> None:
    path = put(tmp_path / "a.safetensors", model())
    with path.open("r+b"):
        assert look(tmp_path, "a.safetensors").lease == "held"
    assert look(tmp_path, "a.safetensors").lease == "free"


def test_a_writer_that_only_has_it_mapped_holds_it_back_too(tmp_path: Path) -> None:
    path = put(tmp_path / "a.safetensors", model())
    with path.open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
    with mapped:
        assert look(tmp_path, "a.safetensors").lease == "held"
    assert look(tmp_path, "a.safetensors").lease == "free"


def test_a_writer_of_another_process_holds_it_back(tmp_path: Path) -> None:
    path = put(tmp_path / "a.safetensors", model())
    program = "import sys; f = open(sys.argv[1], 'r+b'); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"open\n"
        assert look(tmp_path, "a.safetensors").lease == "held"
        assert writer.stdin is not None
        writer.stdin.close()
        writer.wait()
    assert look(tmp_path, "a.safetensors").lease == "free"


def test_a_writer_that_comes_during_the_probe_kills_nobody(tmp_path: Path) -> None:
    path = put(tmp_path / "a.safetensors", model())
    assert signal.getsignal(signal.SIGIO) == signal.SIG_DFL
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            os.close(os.open(path, os.O_WRONLY))

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    try:
        for _ in range(3000):
            seen.add(look(tmp_path, "a.safetensors").lease)
    finally:
        done.set()
        writer.join()
    assert seen <= {"free", "held"}


def test_where_others_write_unseen_a_lease_proves_nothing(tmp_path: Path) -> None:
    put(tmp_path / "a.safetensors", model())
    seen = look(tmp_path, "a.safetensors", remote=True)
    assert seen.lease == "unknown" and isinstance(verdict(seen), gate.Wait)


def test_a_preallocated_file_has_holes_until_it_is_written(tmp_path: Path) -> None:
    content = model({"model.diffusion_model.x": (1 << 20,)})
    path = put(tmp_path / "a.safetensors", content[:4096])
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, len(content))
    seen = look(tmp_path, "a.safetensors")
    assert seen.holes and seen.expected == len(content) and isinstance(verdict(seen), gate.Wait)
    with path.open("r+b") as file:
        file.write(content)
    assert verdict(look(tmp_path, "a.safetensors")) == gate.Admit(proof="complete")


def test_a_sparse_copy_has_holes(tmp_path: Path) -> None:
    path = put(tmp_path / "a.ckpt", b"PK")
    os.truncate(path, 1 << 20)
    assert look(tmp_path, "a.ckpt").holes


@pytest.mark.parametrize("suffix", [".aria2", ".part", ".crdownload", ".!qB"])
def test_a_control_file_beside_it_holds_it_back(tmp_path: Path, suffix: str) -> None:
    put(tmp_path / "a.safetensors", model())
    control = put(tmp_path / f"a.safetensors{suffix}", b"")
    seen = look(tmp_path, "a.safetensors")
    assert seen.control == control.name and isinstance(verdict(seen), gate.Wait)
    control.unlink()
    assert verdict(look(tmp_path, "a.safetensors")) == gate.Admit(proof="complete")


BIG = model({"model.diffusion_model.x": (1 << 20,)})
"""Of two pieces and some."""


def month_old(path: Path) -> Path:
    then = time.time() - 30 * 24 * 3600
    os.utime(path, (then, then))
    return path


def late_verdict(root: Path, name: str) -> gate.Verdict:
    """What the gate says when the file has held still."""
    settings = WatcherSettings()
    seen = observe.observe(str(root), name, 1.0, stale_control=settings.stale_control)
    again = observe.observe(str(root), name, 100.0, stale_control=settings.stale_control, previous=seen)
    return gate.decide(gate.follow(gate.follow(None, seen), again), settings, 100.0)


@pytest.mark.parametrize("content", [model(), BIG, gguf(b"flux")], ids=["small", "big", "gguf"])
@pytest.mark.parametrize("suffix", [".aria2", ".part", ".crdownload", ".download", ".incomplete", ".tmp", ".!qB"])
def test_an_old_control_file_beside_a_whole_file_holds_it_back_no_longer(
    tmp_path: Path, suffix: str, content: bytes
) -> None:
    name = "a.gguf" if content.startswith(b"GGUF") else "a.safetensors"
    put(tmp_path / name, content)
    month_old(put(tmp_path / f"{name}{suffix}", b"state"))
    assert late_verdict(tmp_path, name) == gate.Admit(proof="complete")


def test_a_small_file_of_zeros_is_whole_and_a_large_one_is_doubted(tmp_path: Path) -> None:
    for name, length in (("small", 1000), ("large", 1 << 20)):
        put(tmp_path / f"{name}.safetensors", model({"model.diffusion_model.x": (length,)}, fill=0))
        month_old(put(tmp_path / f"{name}.safetensors.aria2", b"state"))
    assert late_verdict(tmp_path, "small.safetensors") == gate.Admit(proof="complete")
    assert isinstance(late_verdict(tmp_path, "large.safetensors"), gate.Wait)


def test_a_fresh_control_file_and_one_from_the_future_hold_it_back(tmp_path: Path) -> None:
    put(tmp_path / "a.safetensors", model())
    control = put(tmp_path / "a.safetensors.aria2", b"state")
    assert isinstance(late_verdict(tmp_path, "a.safetensors"), gate.Wait)
    os.utime(control, (time.time() + 1e9, time.time() + 1e9))  # its last change counts: that is now
    assert isinstance(late_verdict(tmp_path, "a.safetensors"), gate.Wait)
    month_old(control)
    put(tmp_path / "a.safetensors.part", b"")
    verdict = late_verdict(tmp_path, "a.safetensors")
    assert isinstance(verdict, gate.Wait) and "a.safetensors.part marks it" in verdict.why


def reserved(path: Path) -> None:
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, len(BIG))


def zeros(path: Path) -> None:
    path.write_bytes(path.read_bytes().ljust(len(BIG), b"\0"))


def sparse(path: Path) -> None:
    os.truncate(path, len(BIG))


def middle(path: Path) -> None:
    path.write_bytes(BIG[: 1 << 19] + bytes(1 << 19) + BIG[1 << 20 :])


@pytest.mark.parametrize("left", [reserved, zeros, sparse, middle])
def test_a_download_given_up_long_ago_is_not_taken_for_complete(tmp_path: Path, left: Callable[[Path], None]) -> None:
    path = put(tmp_path / "a.safetensors", BIG[: 1 << 20])
    left(path)
    month_old(path)
    month_old(put(tmp_path / "a.safetensors.aria2", b"state"))
    verdict = late_verdict(tmp_path, "a.safetensors")
    assert isinstance(verdict, gate.Wait) and "a.safetensors.aria2" in verdict.why


def test_an_old_pickle_proves_nothing_so_its_control_file_is_named(tmp_path: Path) -> None:
    month_old(put(tmp_path / "a.ckpt", b"an old pickle"))
    month_old(put(tmp_path / "a.ckpt.aria2", b"state"))
    verdict = late_verdict(tmp_path, "a.ckpt")
    assert isinstance(verdict, gate.Wait) and "delete a.ckpt.aria2 if it is" in verdict.why


@pytest.mark.parametrize(
    ("content", "header"),
    [
        (b"", "partial"),
        (model()[:7], "partial"),
        (model()[:50], "partial"),
        (bytes(4096), "partial"),
        (b"<!DOCTYPE html><title>Log in</title>", "foreign"),
        (b"PK\x03\x04 a zip by another name", "foreign"),
        (b"\xff" * 100, "foreign"),
        (model()[:-1], "whole"),
    ],
)
def test_a_header_is_whole_or_partial_or_foreign(tmp_path: Path, content: bytes, header: str) -> None:
    put(tmp_path / "a.safetensors", content)
    assert look(tmp_path, "a.safetensors").header == header


def test_links_within_the_root_are_followed_and_others_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    real = put(root / "blobs" / "a", model())
    (root / "a.safetensors").symlink_to(real)
    put(tmp_path / "b", model())
    (root / "b.safetensors").symlink_to(tmp_path / "b")
    (root / "c.safetensors").symlink_to("c.safetensors")
    (root / "d.safetensors").symlink_to("nowhere")
    assert look(root, "a.safetensors").stat == look(root, "blobs/a").stat
    assert look(root, "b.safetensors").nature == "outside"
    assert look(root, "c.safetensors").nature in ("special", "gone")
    assert look(root, "d.safetensors").nature == "gone"


def test_a_link_is_judged_by_its_own_name_wherever_it_leads(tmp_path: Path) -> None:
    whole, part = put(tmp_path / "blobs" / "aa", model()), put(tmp_path / "blobs" / "bb", model()[:-1])
    (tmp_path / "a.safetensors").symlink_to(whole)
    (tmp_path / "b.safetensors").symlink_to(part)
    assert verdict(look(tmp_path, "a.safetensors")) == gate.Admit(proof="complete")
    assert look(tmp_path, "b.safetensors").expected == len(model())
    put(tmp_path / "a.safetensors.aria2", b"")
    assert look(tmp_path, "a.safetensors").control == "a.safetensors.aria2"


def test_pipes_and_folders_are_named_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").mkdir()
    assert "pipe" in look(tmp_path, "a.safetensors").error
    assert "folder" in look(tmp_path, "b.safetensors").error


@pytest.mark.parametrize(
    "name",
    [b"a\nb.safetensors", b">.safetensors", b"$JS.API.safetensors", b"\xff.safetensors", b"x" * 243 + b".safetensors"],
)
def test_any_name_can_be_looked_at(tmp_path: Path, name: bytes) -> None:
    (tmp_path / os.fsdecode(name)).write_bytes(model())
    assert verdict(look(tmp_path, encode(name))) == gate.Admit(proof="complete")


def test_what_is_not_there_is_gone(tmp_path: Path) -> None:
    assert look(tmp_path, "a.safetensors").nature == "gone"
    assert look(tmp_path / "nowhere", "b/a.safetensors").nature == "gone"


def test_an_unchanged_header_is_not_read_again(tmp_path: Path) -> None:
    put(tmp_path / "a.safetensors", model())
    first = look(tmp_path, "a.safetensors")
    odd = gate.Observation(at=0.0, nature="file", stat=first.stat, lease="free", header="whole", expected=7)
    assert observe.observe(str(tmp_path), "a.safetensors", 2.0, previous=odd).expected == 7


def test_the_mount_that_lies_deepest_tells_the_file_system() -> None:
    table = (
        b"1 0 8:1 / / rw - ext4 /dev/a rw\n"
        b"2 1 0:5 / /mnt/my\\040nas rw shared:1 - nfs4 nas:/x rw\n"
        b"3 1 0:6 / /mnt/my\\040nas/win rw - fuse.sshfs h: rw\n"
        b"garbage\n"
    )
    assert mounts.find_type(table, b"/mnt/my nas/models") == "nfs4"
    assert mounts.find_type(table, b"/mnt/my nas/win") == "fuse.sshfs"
    assert mounts.find_type(table, b"/mnt/my nasty") == "ext4"


def test_a_local_folder_is_not_remote(tmp_path: Path) -> None:
    assert not mounts.is_remote(str(tmp_path))


def test_the_time_of_birth_is_what_the_system_gives_and_nothing_where_it_gives_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "a.safetensors", model())

    def statx(fd: int, path: bytes, flags: int, mask: int, found: Any) -> int:
        struct.pack_into("=I", found, 0, mask)
        struct.pack_into("=qI", found, 80, 1_700_000_000, 5)
        return 0

    for call, born in ((statx, 1_700_000_000 * 10**9 + 5), (lambda *_: -1, None), (None, None)):
        monkeypatch.setattr(observe, "_statx", lambda call=call: call)
        assert look(tmp_path, "a.safetensors").born == born


def test_a_file_keeps_the_time_of_its_birth_and_a_new_one_has_another(tmp_path: Path) -> None:
    path = put(tmp_path / "a.safetensors", model())
    born = look(tmp_path, "a.safetensors").born
    path.write_bytes(model(fill=2))
    os.utime(path, (1, 1))
    assert look(tmp_path, "a.safetensors").born == born
    put(tmp_path / "b", model()).replace(path)
    anew = look(tmp_path, "a.safetensors").born
    # A system that does not know gives none of them; the test above has what is made of those that do.
    assert (born, anew) == (None, None) or (born != anew and abs((born or 0) / 1e9 - time.time()) < 60)
