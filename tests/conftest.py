"""The real parts that tests share: a nats-server of their own, a bus on it, a quick set of bus settings."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from hypothesis import settings

from bus.client import Bus, connect
from bus.server import LocalServer, local_server
from schemas.settings import BusSettings
from tests.effort import HEADER, examples

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's threads of two workers would wait for each other

settings.register_profile("effort", max_examples=examples(100), deadline=None)
settings.load_profile("effort")

QUICK = BusSettings(ack_wait=2.0, heartbeat=0.5, retry_delay=0.05, store_bytes=512 * 1024 * 1024)


def pytest_report_header() -> str:
    return HEADER


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of the whole pipeline first, half of them at the start of each half: two workers begin with the long
    ones, and share what is left of the short ones (`--dist worksteal`)."""
    long = [item for item in items if "pipeline" in item.path.parts]
    short = [item for item in items if "pipeline" not in item.path.parts]
    first, second = long[::2], long[1::2]
    middle = max(0, len(items) // 2 - len(first))
    items[:] = [*first, *short[:middle], *second, *short[middle:]]


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
