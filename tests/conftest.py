"""The real parts that tests share: a nats-server of their own, a bus on it, a quick set of bus settings."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from bus.client import Bus, connect
from bus.server import LocalServer, local_server
from schemas.settings import BusSettings

os.environ.setdefault("HF_HUB_OFFLINE", "1")

QUICK = BusSettings(ack_wait=2.0, heartbeat=0.5, retry_delay=0.05, store_bytes=512 * 1024 * 1024)


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[LocalServer]:
    """A nats-server of this test's own, on a free port."""
    with local_server(tmp_path / "nats", port=0, store_bytes=1024**3) as server:
        yield server


@pytest.fixture
async def bus(nats_server: LocalServer) -> AsyncIterator[Bus]:
    """A connection to it, with the streams made. A task of its own holds it, since fixtures end in another one."""
    opened, closing = asyncio.get_running_loop().create_future(), asyncio.Event()

    async def hold() -> None:
        async with connect(nats_server.url, QUICK, name="test") as bus:
            opened.set_result(bus)
            await closing.wait()

    task = asyncio.create_task(hold())
    await asyncio.wait([opened, task], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
    yield opened.result()
    closing.set()
    await task


@asynccontextmanager
async def running(*agents: Callable[..., object]) -> AsyncIterator[None]:
    """Run agents (callables taking `task_status`) while the body runs; entered when each says it is ready."""
    async with anyio.create_task_group() as tasks:
        for agent in agents:
            await tasks.start(agent)  # type: ignore[arg-type]
        yield
        tasks.cancel_scope.cancel()
