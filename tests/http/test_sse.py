"""Server-sent events: replay, going on, ticks, and an end that is never missed."""

import asyncio
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import anyio
import httpx
import pytest
from starlette.responses import Response
from structlog.testing import capture_logs

from agents.http import sse
from agents.http.server import GRACE_SECONDS, Server, base_url, bound
from agents.http.sse import Event, EventStream
from bus.client import Bus, connect
from bus.ids import new_id
from bus.server import local_server
from bus.subjects import PREPARE, RESULT, TICK_PREVIEW, TICK_STEP
from schemas.jobs import Result
from schemas.settings import HttpSettings
from schemas.ticks import PreviewTick, StepTick
from tests.conftest import QUICK
from tests.http.serving import listening, request, say_planned, say_released, say_started, serving, succeed

GET = {"type": "http", "method": "GET"}


async def test_a_comment_keeps_a_silent_stream_alive_and_a_client_that_leaves_ends_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sse, "COMMENT_SECONDS", 0.01)
    closed = anyio.Event()
    commented = anyio.Event()

    async def silent() -> AsyncGenerator[Event, None]:
        try:
            await anyio.sleep_forever()
            yield {}
        finally:
            closed.set()

    async def receive():
        await commented.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        if message.get("body", b"").startswith(b":"):
            commented.set()

    with anyio.fail_after(5):
        await EventStream(silent(), anyio.Event())(GET, receive, send)
    assert closed.is_set()


async def test_a_source_that_fails_ends_its_stream_in_good_order_and_leaves_no_task_behind():
    async def broken() -> AsyncGenerator[Event, None]:
        yield {"event": "planned", "data": "{}", "id": "7"}
        yield {"event": "step", "data": '{"a":1}'}
        raise ValueError

    sent = []

    async def send(message):
        sent.append(message)

    tasks = asyncio.all_tasks()
    with anyio.fail_after(5), capture_logs() as logs:
        await EventStream(broken(), anyio.Event())(GET, anyio.sleep_forever, send)
    body = b"".join(message.get("body", b"") for message in sent)
    assert body == b'retry: 1000\n\nid: 7\nevent: planned\ndata: {}\n\nevent: step\ndata: {"a":1}\n\n'
    assert sent[-1]["more_body"] is False and [log["event"] for log in logs] == ["event stream broke off"]
    assert asyncio.all_tasks() == tasks


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_stream_that_is_asked_for_while_the_server_stops_ends_once(method: str):
    async def silent() -> AsyncGenerator[Event, None]:
        await anyio.sleep_forever()
        yield {}

    sent, stopping = [], anyio.Event()
    stopping.set()

    async def send(message):
        sent.append(message)

    with anyio.fail_after(5):
        await EventStream(silent(), stopping)({**GET, "method": method}, anyio.sleep_forever, send)
    assert sent[0]["status"] == 200
    assert [message["more_body"] for message in sent[1:]].index(False) == len(sent) - 2, "nothing after the end"


async def test_of_a_reader_that_reads_nothing_only_a_buffer_is_kept_and_it_holds_up_nobody_else():
    made, stopping = 0, anyio.Event()

    async def endless() -> AsyncGenerator[Event, None]:
        nonlocal made
        while True:
            await anyio.lowlevel.checkpoint()
            made += 1
            yield {"event": "step", "data": "x" * 1_000_000}

    async def app(scope, receive, send) -> None:
        if scope["path"] == "/events":
            await EventStream(endless(), stopping)(scope, receive, send)
        else:
            await Response()(scope, receive, send)

    settings = HttpSettings(port=0)
    listener = bound(settings)
    server = Server(app, settings)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve_on, listener)
        await server.accepting.wait()
        http = httpx.AsyncClient(base_url=base_url(listener), timeout=20)
        async with http as client, client.stream("GET", "/events"):
            before = -1
            while made != before:  # until the buffers of both ends are full
                before = made
                for _ in range(20):
                    assert (await client.get("/")).status_code == 200
        stopping.set()
        server.end()
    assert 1 <= made < 30, "megabytes"


async def test_a_job_is_followed_from_its_queue_to_its_end_with_ticks_in_between(bus: Bus, tmp_path: Path):
    async with serving(bus, tmp_path) as client:
        id = (await client.post("/api/jobs", json={"prompt": "x"})).json()["id"]
        async with listening(client, id) as stream:
            planned = await say_planned(bus, id)
            event = await stream.next()
            assert (event.name, event.id, event.data["prompt"]) == ("planned", planned, "a cat")
            started = await say_started(bus, id)
            assert ((event := await stream.next()).name, event.id) == ("started", started)
            await bus.tick(TICK_STEP, StepTick(job=id, step=1, steps=4, image=0, images=1, rate=2.0, eta=1.5), id=id)
            event = await stream.next()
            assert (event.name, event.id, event.data["step"]) == ("step", None, 1)
            await bus.tick(TICK_PREVIEW, PreviewTick(job=id, step=1, image=0, jpeg=b"\xff\xd8"), id=id)
            event = await stream.next()
            assert (event.name, event.id, event.data["jpeg"]) == ("preview", None, "/9g=")
            await say_released(bus, id)
            assert (await stream.next()).name == "released"
            await succeed(bus, id)
            event = await stream.next()
            assert (event.name, event.data["status"]) == ("finished", "succeeded") and event.id > started
            assert event.data["result"]["images"][0]["url"].startswith("/images/")
            assert await stream.next() is None


async def test_replay_goes_on_after_the_last_id_and_a_client_that_got_the_end_stays_away(bus: Bus, tmp_path: Path):
    async with serving(bus, tmp_path) as client:
        id, other = new_id(), new_id()
        planned = await say_planned(bus, id)
        await say_planned(bus, other)
        started = await say_started(bus, id)
        await succeed(bus, id)
        async with listening(client, id) as stream:
            everything = await stream.rest()
        assert [event.name for event in everything] == ["planned", "started", "finished"]
        assert [event.id for event in everything][:2] == [planned, started]
        async with listening(client, id, last=planned) as stream:
            assert await stream.rest() == everything[1:]
        answer = await client.get(f"/api/jobs/{id}/events", headers={"Last-Event-ID": str(everything[-1].id)})
        assert answer.status_code == 204
        for bad in ("x", "-1", "1.5", "9" * 40):
            answer = await client.get(f"/api/jobs/{id}/events", headers={"Last-Event-ID": bad})
            assert answer.status_code == 400, bad


async def test_the_end_is_sent_when_its_fact_was_never_published_or_is_forgotten(bus: Bus, tmp_path: Path):
    async with serving(bus, tmp_path) as client:
        silent, forgotten = new_id(), new_id()
        await bus.publish(RESULT, Result(id=silent, status="failed", ended_at=1.0, error="no"), id=silent)
        await succeed(bus, forgotten)
        await bus.js.purge_stream("EVENTS")
        for id, status in ((silent, "failed"), (forgotten, "succeeded")):
            async with listening(client, id, last=3) as stream:
                [end] = await stream.rest()
            assert (end.name, end.id, end.data["status"]) == ("finished", None, status)


async def test_a_result_without_its_fact_ends_a_stream_that_is_open(bus: Bus, tmp_path: Path):
    async with serving(bus, tmp_path) as client:
        id = new_id()
        await say_planned(bus, id)
        async with listening(client, id) as stream:
            assert (await stream.next()).name == "planned"
            await bus.publish(RESULT, Result(id=id, status="failed", ended_at=1.0), id=id)
            assert (await stream.next()).name == "finished"


async def test_a_bridge_that_stops_ends_its_streams_at_once_and_the_next_one_goes_on_from_there(
    bus: Bus, tmp_path: Path
):
    id = new_id()
    first = await say_planned(bus, id)
    async with httpx.AsyncClient(timeout=20) as outlasting:
        async with serving(bus, tmp_path) as client:
            outlasting.base_url = client.base_url
            opened = listening(outlasting, id)
            stream = await opened.__aenter__()
            assert (await stream.next()).id == first
            leaving = time.monotonic()
        assert time.monotonic() - leaving < GRACE_SECONDS / 2, "the client was still there"
        assert await stream.next() is None, "an end, not a broken connection"
        await opened.__aexit__(None, None, None)
    await say_started(bus, id)
    async with serving(bus, tmp_path) as client, listening(client, id, last=first) as stream:
        assert (await stream.next()).name == "started"
        await succeed(bus, id)
        assert [event.name for event in await stream.rest()] == ["finished"]


async def test_a_stream_outlives_a_restart_of_the_nats_server_and_misses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("bus.client._API_TIMEOUT", 0.5)
    id = new_id()
    with local_server(tmp_path / "nats", port=0, store_bytes=1024**3) as server:
        port = int(server.url.rsplit(":", 1)[1])
        async with connect(server.url, QUICK, name="test") as bus, serving(bus, tmp_path) as client:
            await bus.publish(PREPARE, request(), lane="normal", tenant="t0", id=id)
            async with listening(client, id) as stream:
                planned = await say_planned(bus, id)
                assert (await stream.next()).id == planned
                server.process.kill()
                server.process.wait()
                with local_server(tmp_path / "nats", port=port, store_bytes=1024**3):
                    await say_started(bus, id)
                    await succeed(bus, id)
                    assert [event.name for event in await stream.rest()] == ["started", "finished"]
