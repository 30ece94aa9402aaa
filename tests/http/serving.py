"""The real bridge on a real bus; jobs are played by publishing what the other agents would."""

import functools
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx
import msgspec

from agents import bridge
from bus.client import Bus
from bus.results import finish
from bus.server import LocalServer
from bus.subjects import JOB_PLANNED, JOB_RELEASED, JOB_STARTED
from schemas.images import Picture
from schemas.jobs import Released, Request, Result, Started
from schemas.settings import HttpSettings, Settings
from tests.plans import plan


@asynccontextmanager
async def serving(
    bus: Bus, data: Path, *, roots: dict[str, str] | None = None, **http: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """The bridge on a free port, and a client for it."""
    settings = Settings(data_dir=str(data), roots=roots or {}, http=HttpSettings(port=0, **http))
    async with anyio.create_task_group() as tasks:
        url = await tasks.start(functools.partial(bridge.run, bus, settings))
        async with httpx.AsyncClient(base_url=url, timeout=20) as client:
            yield client
        tasks.cancel_scope.cancel()


@contextmanager
def frozen(server: LocalServer) -> Iterator[None]:
    """The NATS server does nothing while the body runs."""
    server.process.send_signal(signal.SIGSTOP)
    os.waitpid(server.process.pid, os.WUNTRACED)  # it stops a moment later
    try:
        yield
    finally:
        server.process.send_signal(signal.SIGCONT)


def picture(id: str) -> Picture:
    name = f"outputs/2027-01-15/{id}-0"
    tiers = {tier: f"{name}_{tier}.webp" for tier in ("high", "medium", "low")}
    return Picture(index=0, seed=1, width=64, height=64, file=f"{name}.webp", bytes=3, sha256="b" * 64, tiers=tiers)


async def say_planned(bus: Bus, id: str) -> int:
    return await bus.publish(JOB_PLANNED, plan(id), first=True, id=id)


async def say_started(bus: Bus, id: str) -> int:
    return await bus.publish(JOB_STARTED, Started(id=id, attempt=1, worker="w", at=time.time()), id=id)


async def say_released(bus: Bus, id: str) -> int:
    return await bus.publish(JOB_RELEASED, Released(id=id, worker="w", why="shutdown", at=time.time()), id=id)


async def succeed(bus: Bus, id: str) -> Result:
    done = Result(id=id, status="succeeded", ended_at=time.time(), images=(picture(id),))
    return await finish(bus, done)


def request(prompt: str = "a cat", **fields: Any) -> Request:
    return Request(prompt=prompt, **fields)


@dataclass
class Event:
    name: str
    id: int | None
    data: Any


class Events:
    """The events of one open stream."""

    def __init__(self, response: httpx.Response) -> None:
        self.response, self.lines = response, response.aiter_lines()

    async def next(self) -> Event | None:
        """The next event; None when the stream is over."""
        name, id, data = "", None, None
        with anyio.fail_after(20):
            async for line in self.lines:
                field, _, value = line.partition(": ")
                match field:
                    case "event":
                        name = value
                    case "id":
                        id = int(value)
                    case "data":
                        data = json.loads(value)
                    case "" if name:
                        return Event(name, id, data)
        return None

    async def rest(self) -> list[Event]:
        found = []
        while (event := await self.next()) is not None:
            found.append(event)
        return found


@asynccontextmanager
async def listening(client: httpx.AsyncClient, id: str, last: int | None = None) -> AsyncIterator[Events]:
    headers = {} if last is None else {"Last-Event-ID": str(last)}
    async with client.stream("GET", f"/api/jobs/{id}/events", headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-accel-buffering"] == "no"
        yield Events(response)


async def raw(client: httpx.AsyncClient, data: bytes) -> tuple[int, bytes]:
    """Status and answer to bytes sent as they are (a client library would mend them)."""
    where = urlsplit(str(client.base_url))
    async with await anyio.connect_tcp(where.hostname or "", where.port or 0) as stream:
        await stream.send(data)
        answer = b""
        with anyio.fail_after(10):
            while True:
                try:
                    answer += await stream.receive()
                except anyio.EndOfStream:
                    return int(answer.split(b" ", 2)[1]), answer


def reason(response: httpx.Response) -> str:
    """The stable word of an error, in the one form that all have."""
    error = response.json()["error"]
    assert set(error) <= {"reason", "message", "path"} and error["message"]
    return str(error["reason"])


def payload(**fields: Any) -> bytes:
    return msgspec.json.encode({"prompt": "a cat", **fields})
