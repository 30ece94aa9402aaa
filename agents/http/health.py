"""Is the service alive, is it ready, and what does it measure?

GET  /livez      it is
GET  /readyz     what readiness depends on, by name; 503 where something is missing
GET  /metrics    Prometheus text
"""

import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import nats.errors
from nats.js.errors import NotFoundError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agents.http import parsing
from bus.client import Bus
from bus.errors import DarkroomError
from bus.subjects import ASK_HELLO, ASK_METRICS, PREPARE
from schemas.asks import Hello, Metrics, Nothing

CHECK_SECONDS = 1.5
LOW_DISK_BYTES = 512 * 1024**2


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that has to work before the service does, and what is known of it."""

    ok: bool
    detail: str = ""


def routes(bus: Bus, data: Path) -> list[Route]:
    """The routes of health and metrics; `data` is the data directory."""
    health = _Health(bus, data)
    return [Route("/livez", _alive), Route("/readyz", health.ready), Route("/metrics", health.metrics)]


async def _alive(request: Request) -> Response:
    return parsing.json({"alive": True})


@dataclass(frozen=True)
class _Health:
    bus: Bus
    data: Path

    async def ready(self, request: Request) -> Response:
        checks = await self.checks()
        ready = all(check.ok for check in checks.values())
        return parsing.json({"ready": ready, "checks": checks}, 200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        text = (await self.bus.ask(ASK_METRICS, Nothing(), Metrics)).text
        return Response(text, media_type="text/plain; version=0.0.4")

    async def checks(self) -> dict[str, Check]:
        found: dict[str, Check] = {}

        async def one(name: str, looked: Callable[[], Awaitable[Check]]) -> None:
            found[name] = Check(ok=False, detail=f"no answer within {CHECK_SECONDS:g} s")
            with anyio.move_on_after(CHECK_SECONDS):
                found[name] = await looked()

        async with anyio.create_task_group() as tasks:
            for name, looked in (
                ("bus", self._connected),
                ("jetstream", self._streams),
                ("catalog", self._catalog),
                ("disk", self._disk),
            ):
                tasks.start_soon(one, name, looked)
        return dict(sorted(found.items()))

    async def _connected(self) -> Check:
        up = self.bus.nc.is_connected
        return Check(ok=up, detail="connected" if up else "not connected to the NATS server")

    async def _streams(self) -> Check:
        try:
            queued = len(await self.bus.waiting("PREPARE", PREPARE.filter()))
        except NotFoundError:
            return Check(ok=False, detail="the streams are gone; restart Darkroom to make them again")
        except (DarkroomError, nats.errors.Error) as error:
            return Check(ok=False, detail=str(error))
        return Check(ok=True, detail=f"{queued} job{'s' * (queued != 1)} queued")

    async def _catalog(self) -> Check:
        try:
            hello = await self.bus.ask(ASK_HELLO, Nothing(), Hello, timeout=CHECK_SECONDS)
        except DarkroomError as error:
            return Check(ok=False, detail=str(error))
        return Check(ok=True, detail=hello.instance)

    async def _disk(self) -> Check:
        try:
            free = (await anyio.to_thread.run_sync(shutil.disk_usage, self.data)).free
        except OSError as error:
            return Check(ok=False, detail=f"the data directory can't be read: {error.strerror}")
        return Check(ok=free >= LOW_DISK_BYTES, detail=f"{free:,} bytes free in the data directory")
