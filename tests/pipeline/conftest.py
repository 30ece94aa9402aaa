"""The whole pipeline with real processes: a bus, agents that can be killed one by one, tiny checkpoints."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import pytest

from agents.client import jobs
from agents.diffusion.tiny_checkpoint import write_tiny_checkpoint
from bus.client import Bus, connect
from bus.server import LocalServer
from bus.subjects import MODEL_READY
from schemas.jobs import Request, Result
from schemas.settings import BusSettings

BUS = BusSettings(ack_wait=2.0, heartbeat=0.5, retry_delay=0.1, store_bytes=512 * 1024 * 1024)


@dataclass
class Agents:
    """Agents as processes of their own on one bus and one data directory."""

    url: str
    data: Path
    bus_settings: BusSettings = BUS
    processes: list["subprocess.Popen[str]"] = field(default_factory=list)

    def start(self, *names: str) -> "subprocess.Popen[str]":
        """Start agents in one process; returns when each has said that it is ready."""
        environment = os.environ | {
            "DARKROOM_BUS__ACK_WAIT": str(self.bus_settings.ack_wait),
            "DARKROOM_BUS__HEARTBEAT": str(self.bus_settings.heartbeat),
            "DARKROOM_BUS__RETRY_DELAY": str(self.bus_settings.retry_delay),
            "DARKROOM_BUS__GENERATE_QUEUE": str(self.bus_settings.generate_queue),
            "DARKROOM_BUS__STORE_BYTES": str(self.bus_settings.store_bytes),
            "DARKROOM_GENERATOR__THREADS": "1",
            "DARKROOM_HTTP__PORT": "0",
            "HF_HUB_OFFLINE": "1",
        }
        command = [sys.executable, "-m", "agents.cli.app", "run", *names, "--nats", self.url, "--data", str(self.data)]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        self.processes.append(process)
        assert process.stdout
        for name in names:
            line = process.stdout.readline()
            assert line.startswith(f"ready {name}"), f"{name} did not become ready: {line!r}"
        return process

    def stop(self) -> None:
        """Stop what still runs."""
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout:
                process.stdout.close()


@pytest.fixture
def agents(nats_server: LocalServer, tmp_path: Path) -> Iterator[Agents]:
    """Nothing started yet; everything stopped at the end."""
    data = tmp_path / "data"
    (data / "models").mkdir(parents=True)
    started = Agents(nats_server.url, data)
    yield started
    started.stop()


def kill(process: "subprocess.Popen[str]") -> None:
    """SIGKILL, and wait for the end."""
    process.send_signal(signal.SIGKILL)
    process.wait()


@asynccontextmanager
async def bus_of(agents: Agents) -> AsyncIterator[Bus]:
    """A connection of the test's own."""
    async with connect(agents.url, agents.bus_settings, name="test") as bus:
        yield bus


async def drop(bus: Bus, agents: Agents, name: str = "tiny", seed: int = 0) -> str:
    """Drop a tiny checkpoint into the models folder; returns its SHA-256 when it is ready."""
    async with bus.listen(MODEL_READY.filter()) as heard:
        write_tiny_checkpoint(agents.data / "models" / f"{name}.safetensors", seed=seed)
        with anyio.fail_after(30):
            while True:
                fact = MODEL_READY.decode((await heard.receive()).data)
                if fact.model.name == name:
                    return fact.model.sha256


async def ask(bus: Bus, prompt: str = "a red fox", *, id: str | None = None, **fields: object) -> str:
    """Publish a small request; returns its id."""
    settings: dict[str, object] = {"steps": 4, "width": 64, "height": 64, **fields}
    return await jobs.submit(bus, Request(prompt=prompt, **settings), lane="normal", tenant="t0", id=id)


async def result(bus: Bus, id: str, *, seconds: float = 90) -> Result:
    """A job's result, when it is there."""
    with anyio.fail_after(seconds):
        async for event in jobs.events(bus, id):
            last = event
    assert last.name == "finished" and last.data.result is not None
    return last.data.result
