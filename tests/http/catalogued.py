"""A bridge and a real catalog: files dropped into a folder are models, pictures are encoded."""

import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx

from agents import encoder, hasher
from agents.migrator import agent as migrator
from agents.watcher import agent as watcher
from bus.client import Bus
from schemas.settings import EncoderSettings, HasherSettings, WatcherSettings
from tests.conftest import running
from tests.http.serving import serving
from tests.ingest.making import model, put


@dataclass
class Catalogued:
    """The service's client, and its data directory."""

    client: httpx.AsyncClient
    data: Path

    @property
    def models(self) -> Path:
        """The one root."""
        return self.data / "models"

    async def drop(self, name: str, fill: int = 1) -> str:
        """Drop a model's file; its SHA-256 when it is catalogued."""
        path = put(self.models / name, model(fill=fill))
        answer = await self.client.post("/api/models/sha256", json={"path": str(path)})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["sha256"])

    async def get(self, path: str) -> Any:
        """The JSON at an address."""
        answer = await self.client.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def names(self, query: str = "") -> list[str]:
        """The names of the models that a query finds."""
        return [found["name"] for found in (await self.get(f"/api/models?{query}"))["models"]]

    async def pictures(self, sha256: str, *, ready: int) -> list[dict[str, Any]]:
        """A model's pictures, once so many are ready."""
        with anyio.fail_after(30):
            while True:
                found = (await self.get(f"/api/images/{sha256}"))["pictures"]
                if sum(one["state"] == "ready" for one in found) == ready:
                    return list(found)


@asynccontextmanager
async def catalogued(bus: Bus, data: Path, *, drawing: bool = False, **http: Any) -> AsyncIterator[Catalogued]:
    """The service on a data directory; with `drawing`, the encoder too."""
    roots = {"models": str(data / "models")}
    (data / "models").mkdir(parents=True, exist_ok=True)
    agents: list[Any] = [
        functools.partial(watcher.run, bus, data, roots, WatcherSettings(stable=0.2, scan_interval=0.5)),
        functools.partial(hasher.run, bus, roots, HasherSettings()),
        functools.partial(migrator.run, bus, data / "catalog.db", roots),
    ]
    if drawing:
        agents.append(functools.partial(encoder.run, bus, data, EncoderSettings()))
    async with running(*agents), serving(bus, data, roots=roots, **http) as client:
        yield Catalogued(client, data)
