"""Alive, ready, and what is missing."""

from pathlib import Path

import anyio

from bus.client import Bus
from bus.server import LocalServer
from bus.subjects import ASK_HELLO
from schemas.asks import Hello, Nothing
from tests.http.serving import frozen, serving


async def test_ready_says_what_is_missing_and_alive_does_not_care(bus: Bus, nats_server: LocalServer, tmp_path: Path):
    async def hello(_: Nothing) -> Hello:
        return Hello(instance="migrator-1")

    async with serving(bus, tmp_path) as client:
        answer = await client.get("/readyz")
        checks = answer.json()["checks"]
        assert answer.status_code == 503 and not answer.json()["ready"]
        assert {name for name, check in checks.items() if not check["ok"]} == {"catalog"}
        await bus.tasks.start(bus.answer, ASK_HELLO, hello)
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()["ready"]) == (200, True), answer.text
        assert set(checks) == {"bus", "catalog", "disk", "jetstream"}
        with frozen(nats_server), anyio.fail_after(5):
            answer = await client.get("/readyz")
            assert (await client.get("/livez")).status_code == 200
        assert answer.status_code == 503
        assert {name for name, check in answer.json()["checks"].items() if not check["ok"]} == {"catalog", "jetstream"}
