"""The bridge as a process part: where it listens, when it is ready, how it stops."""

import functools
import signal
import sys
import time
from pathlib import Path

import anyio
import httpx
import pytest

from agents import bridge
from agents.http.server import GRACE_SECONDS
from bus.client import Bus
from schemas.settings import HttpSettings, Settings
from tests.http.serving import serving


async def test_ready_means_that_connections_are_accepted(bus: Bus, tmp_path: Path):
    settings = Settings(data_dir=str(tmp_path), http=HttpSettings(port=0))
    async with anyio.create_task_group() as tasks:
        url = await tasks.start(functools.partial(bridge.run, bus, settings))
        assert url.startswith("http://127.0.0.1:")
        assert (await anyio.to_thread.run_sync(httpx.get, url + "/livez")).status_code == 200
        tasks.cancel_scope.cancel()
    with pytest.raises(httpx.ConnectError):
        await anyio.to_thread.run_sync(httpx.get, url + "/livez")


async def test_it_leaves_signals_to_the_program_it_runs_in(bus: Bus, tmp_path: Path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    async with serving(bus, tmp_path):
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


async def test_a_request_under_way_is_answered_before_it_stops_and_a_stuck_one_does_not_hold_it(
    bus: Bus, tmp_path: Path
):
    async with serving(bus, tmp_path) as client:
        url = client.base_url
        async with await anyio.connect_tcp(url.host, url.port or 0) as stuck:
            await stuck.send(b"POST /api/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
            await stuck.send(b"Content-Length: 100\r\n\r\n{")
            assert (await client.get("/livez")).status_code == 200
            leaving = time.monotonic()
    assert time.monotonic() - leaving < GRACE_SECONDS + 2


async def test_the_bridge_imports_no_torch():
    code = "import sys, agents.bridge, agents.telemetry.agent; "
    code += "sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert (await anyio.run_process([sys.executable, "-c", code], check=False)).returncode == 0
