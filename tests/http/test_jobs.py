"""The native front door: what it takes, what it refuses, and what it shows."""

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import msgspec
import pytest

from agents.client.views import JobView
from agents.http.jobs import document
from bus.client import Bus, connect
from bus.ids import new_id
from bus.results import result_of
from bus.server import LocalServer
from bus.subjects import ASK_HELLO, ASK_SEARCH, PREPARE
from schemas.asks import Hello, Nothing
from schemas.catalog import ModelPage, SearchModels
from schemas.files import FilePath, Identity
from schemas.jobs import Request
from schemas.models import Model
from schemas.settings import BusSettings
from tests.http.door import raw, reason, request, say_planned, say_released, say_started, serving, succeed


@contextmanager
def frozen(server: LocalServer) -> Iterator[None]:
    """The server hears nothing and says nothing while the body runs."""
    server.process.send_signal(signal.SIGSTOP)
    os.waitpid(server.process.pid, os.WUNTRACED)  # it stops a moment later
    try:
        yield
    finally:
        server.process.send_signal(signal.SIGCONT)


JSON = {"Content-Type": "application/json"}


async def test_a_job_is_queued_as_asked_and_its_links_lead_to_it(bus: Bus, tmp_path: Path):
    async with serving(bus, tmp_path) as client:
        answer = await client.post("/api/jobs?lane=high", json={"prompt": "a cat", "seed": 5, "n": 2})
        assert answer.status_code == 202
        told = answer.json()
        assert re.fullmatch("[0-9a-f]{32}", told["id"]) and told["status"] == "queued"
        assert answer.headers["location"] == told["links"]["self"] == f"/api/jobs/{told['id']}"
        stored = await bus.last(PREPARE, lane="high", id=told["id"])
        assert stored is not None and stored.payload == Request(prompt="a cat", seed=5, n=2)
        job = (await client.get(told["links"]["self"])).json()
        assert job["status"] == "queued" and job["request"]["prompt"] == "a cat" and job["created_at"]


BAD_FIELDS = [
    (b'{"prompt": "x", "stepz": 20}', "$.stepz"),
    (b'{"prompt": 7}', "$.prompt"),
    (b'{"steps": 7}', "$.prompt"),
    (b'{"prompt": "x", "steps": "20"}', "$.steps"),
    (b'{"prompt": "x", "steps": 20.5}', "$.steps"),
    (b'{"prompt": "x", "steps": true}', "$.steps"),
    (b'{"prompt": "x", "n": null}', "$.n"),
    (b'{"prompt": "x", "cfg_scale": 1e999}', "$.cfg_scale"),
    (b'{"prompt": "x", "format": "gif"}', "$.format"),
    (b'{"prompt": "x", "lossless": 1}', "$.lossless"),
    (b'{"prompt": "x", "seed": {"$gt": 0}}', "$.seed"),
    (b"[]", "$"),
    (b"null", "$"),
    (b'{"prompt": "x", "deep": ' + b"[" * 20_000, "$.deep"),
]
BAD_JSON = [
    b"",
    b"nope",
    b'{"prompt": "x"',
    b'{"prompt": "\xff"}',
    b'{"prompt": "\\ud800"}',
    b'{"prompt": "x"} {}',
    b'{"prompt": "x", "cfg_scale": NaN}',
]


async def test_a_bad_body_is_refused_with_the_field_that_is_to_blame_and_nothing_is_queued(bus: Bus, tmp_path: Path):
    async with serving(bus, tmp_path) as client:
        for body, path in BAD_FIELDS:
            answer = await client.post("/api/jobs", content=body, headers=JSON)
            assert (answer.status_code, reason(answer)) == (422, "invalid"), body[:40]
            assert answer.json()["error"]["path"] == path and path in answer.json()["error"]["message"], body[:40]
        for body in BAD_JSON:
            answer = await client.post("/api/jobs", content=body, headers=JSON)
            assert (answer.status_code, reason(answer)) == (400, "bad-json"), body
        for query in ("lane=urgent", "lane=", "lane=high.%3E", "lanes=high", "lane=%2A"):
            answer = await client.post(f"/api/jobs?{query}", json={"prompt": "x"})
            assert (answer.status_code, reason(answer)) == (422, "invalid"), query
        answer = await client.post("/api/jobs", json={"prompt": "x"}, headers={"Idempotency-Key": "k" * 256})
        assert answer.status_code == 422
        assert await bus.waiting("PREPARE", "darkroom.v1.job.>") == {}


async def test_what_preprocess_would_reject_is_told_at_once(bus: Bus, tmp_path: Path):
    async with serving(bus, tmp_path) as client:
        for field, value, word in (
            ("prompt", " ", "empty-prompt"),
            ("steps", 0, "bad-steps"),
            ("steps", 10**30, "bad-steps"),
            ("width", 65, "bad-size"),
            ("height", -8, "bad-size"),
            ("seed", 2**63, "bad-seed"),
            ("sampler", "no such", "unknown-sampler"),
        ):
            answer = await client.post("/api/jobs", json={"prompt": "x", field: value})
            assert (answer.status_code, reason(answer)) == (422, word), (field, value)
        assert await bus.waiting("PREPARE", "darkroom.v1.job.>") == {}


async def test_the_same_idempotency_key_is_the_same_job_in_every_state_of_it(bus: Bus, tmp_path: Path):
    async with serving(bus, tmp_path) as client:
        key = {"Idempotency-Key": "order-17", "X-API-Key": "alice"}
        first = (await client.post("/api/jobs", json={"prompt": "x"}, headers=key)).json()
        again = (await client.post("/api/jobs?lane=high", json={"prompt": "x"}, headers=key)).json()
        assert again == first and len(await bus.waiting("PREPARE", "darkroom.v1.job.>")) == 1
        await succeed(bus, first["id"])
        late = (await client.post("/api/jobs", json={"prompt": "x"}, headers=key)).json()
        assert (late["id"], late["status"]) == (first["id"], "succeeded")
        other = {"Idempotency-Key": "order-17", "X-API-Key": "bob"}
        assert (await client.post("/api/jobs", json={"prompt": "x"}, headers=other)).json()["id"] != first["id"]


async def test_a_full_queue_is_429_with_a_time_to_come_back(nats_server: LocalServer, tmp_path: Path):
    small = BusSettings(prepare_queue=2, store_bytes=512 * 1024**2)
    async with connect(nats_server.url, small, name="small") as bus, serving(bus, tmp_path) as client:
        codes = [(await client.post("/api/jobs", json={"prompt": "x"})).status_code for _ in range(2)]
        assert codes == [202, 202]
        answer = await client.post("/api/jobs", json={"prompt": "x"})
        assert (answer.status_code, reason(answer)) == (429, "queue-full") and int(answer.headers["retry-after"]) > 0
        assert len(await bus.waiting("PREPARE", "darkroom.v1.job.>")) == 2


async def test_a_job_nobody_asked_for_is_404_and_gets_no_result_by_being_cancelled(bus: Bus, tmp_path: Path):
    async with serving(bus, tmp_path) as client:
        unknown = new_id()
        for id in (unknown, "x", unknown.upper(), unknown[:31], f"{unknown}0", "*", "%3E", "..%2f..", "a%00b"):
            for method, tail in (("GET", ""), ("GET", "/events"), ("POST", "/cancel")):
                answer = await client.request(method, f"/api/jobs/{id}{tail}")
                assert answer.status_code == 404 and reason(answer) in ("unknown-job", "not-found"), (id, tail)
        assert await bus.waiting("RESULTS", "darkroom.v1.>") == {}


async def test_cancelling_ends_a_job_once_and_a_finished_one_keeps_its_end(bus: Bus, tmp_path: Path):
    async with serving(bus, tmp_path) as client:
        id = (await client.post("/api/jobs", json={"prompt": "x"})).json()["id"]
        for body in ({"json": {}}, {}):
            answer = await client.post(f"/api/jobs/{id}/cancel", **body)
            assert answer.status_code == 200 and answer.json()["status"] == "cancelled"
        assert (await client.get(f"/api/jobs/{id}/cancel")).status_code == 405
        done = new_id()
        await succeed(bus, done)
        assert (await client.post(f"/api/jobs/{done}/cancel")).json()["status"] == "succeeded"
        found = await result_of(bus, done)
        assert found is not None and found.status == "succeeded"


async def test_a_job_is_told_by_its_stored_messages_at_every_stage(bus: Bus, tmp_path: Path):
    async with serving(bus, tmp_path) as client:
        id = new_id()
        await say_planned(bus, id)
        assert (await client.get(f"/api/jobs/{id}")).json()["status"] == "planned"
        await say_started(bus, id)
        assert (await client.get(f"/api/jobs/{id}")).json()["status"] == "running"
        await say_released(bus, id)
        assert (await client.get(f"/api/jobs/{id}")).json()["status"] == "planned"
        await say_started(bus, id)
        await succeed(bus, id)
        job = (await client.get(f"/api/jobs/{id}")).json()
        assert (job["status"], job["attempts"], job["plan"]["seeds"]) == ("succeeded", 1, [1])
        [image] = job["result"]["images"]
        assert image["url"] == f"/images/2027-01-15/{id}-0.webp"
        assert image["tiers"]["low"] == f"/images/2027-01-15/{id}-0_low.webp" and "plan" not in job["result"]


async def test_the_list_is_newest_first_and_bounded(bus: Bus, tmp_path: Path):
    async with serving(bus, tmp_path) as client:
        ids = [new_id(1_700_000_000 + n) for n in range(4)]
        await succeed(bus, ids[1])
        await say_planned(bus, ids[0])
        await bus.publish(PREPARE, request(), lane="low", tenant="t3", id=ids[3])
        await say_planned(bus, ids[2])
        jobs = (await client.get("/api/jobs?limit=3")).json()["jobs"]
        assert [(job["id"], job["status"]) for job in jobs] == [
            (ids[3], "queued"),
            (ids[2], "planned"),
            (ids[1], "succeeded"),
        ]
        for limit in ("0", "501", "-1", "x", "", "1e2", "9999999999"):
            answer = await client.get(f"/api/jobs?limit={limit}")
            assert (answer.status_code, reason(answer)) == (422, "invalid"), limit


async def test_models_come_from_the_catalog_and_say_what_is_wrong_with_them(bus: Bus, tmp_path: Path):
    paths = (FilePath(root="models", rel="a/b.ckpt"),)
    known = Identity(kind="checkpoint", family="sd15", unsafe=True)
    model = Model(sha256="c" * 64, name="b", size=9, identity=known, paths=paths, missing=False, created_at=1.0)

    async def answer(asked: SearchModels) -> ModelPage:
        assert asked == SearchModels(limit=1000), "all of them, those without a file too"
        return ModelPage(models=(model,))

    async with serving(bus, tmp_path) as client:
        nobody = await client.get("/api/models")
        assert (nobody.status_code, reason(nobody)) == (503, "no-answer") and "agent" in nobody.text
        await bus.tasks.start(bus.answer, ASK_SEARCH, answer)
        [shown] = (await client.get("/api/models")).json()["models"]
        assert shown == {
            "sha256": "c" * 64, "name": "b", "kind": "checkpoint", "family": "sd15", "variant": "", "size": 9,
            "missing": False, "unsafe": True, "problem": "", "paths": [{"root": "models", "rel": "a/b.ckpt"}],
            "created_at": 1.0, "title": "", "type": "", "tags": [], "pictures": 0,
        }  # fmt: skip


async def test_a_family_that_no_key_tells_comes_with_its_guess(bus: Bus, tmp_path: Path):
    known = Identity(kind="lora", family="flux2", edition="klein-4b", guess="its keys could be those of flux too")
    model = Model(sha256="c" * 64, name="b", size=9, identity=known, paths=(), missing=True, created_at=1.0)

    async def answer(asked: SearchModels) -> ModelPage:
        return ModelPage(models=(model,))

    async with serving(bus, tmp_path) as client:
        await bus.tasks.start(bus.answer, ASK_SEARCH, answer)
        [shown] = (await client.get("/api/models")).json()["models"]
        assert (shown["family"], shown["edition"], shown["guess"]) == (known.family, known.edition, known.guess)


async def test_samplers_are_the_table(bus: Bus, tmp_path: Path):
    async with serving(bus, tmp_path) as client:
        told = (await client.get("/api/samplers")).json()
        assert {"id": "euler", "label": "Euler"}.items() <= told["samplers"][0].items()
        assert {"id": "karras", "label": "Karras"} in told["schedulers"]


TRAVERSALS = [
    b"/images/../secret.png", b"/images/%2e%2e/secret.png", b"/images/..%2fsecret.png", b"/images/%2e%2e%2fsecret.png",
    b"/images/..%5csecret.png", b"/images/....//secret.png", b"/images//../secret.png", b"/images/./../secret.png",
    b"/images/day/../../secret.png", b"/images/day/%2e%2e/%2e%2e/secret.png", b"/images/%252e%252e/secret.png",
    b"/images//etc/hostname.png", b"/images/%2fetc/passwd", b"/images/secret.png%00.webp", b"/images/%00.png",
    b"/images/link.png", b"/images/out/secret.png", b"/images/day", b"/images/day/", b"/images/", b"/images",
    b"/images/day/.tmp.png", b"/images/.hidden/x.png", b"/images/day/notes.txt", b"/images/day/x.PNG",
    b"/images/dir.png", b"/images/pipe.png", b"/images/loop.png", b"/images/renamed.png", b"/images/%ff%fe.png",
    b"/images/" + b"a" * 5000 + b".png", b"/images/" + b"../" * 30 + b"etc/hosts.png",
    b"/images/%c0%ae%c0%ae/secret.png",
]  # fmt: skip


async def test_nothing_but_finished_pictures_can_be_had_from_the_picture_route(bus: Bus, tmp_path: Path):
    outputs = tmp_path / "data" / "outputs"
    (outputs / "day").mkdir(parents=True)
    (outputs / ".hidden").mkdir()
    (outputs / "dir.png").mkdir()
    secret = tmp_path / "data" / "secret.png"
    for file in (secret, outputs / "day" / ".tmp.png", outputs / ".hidden" / "x.png", outputs / "day" / "x.PNG"):
        file.write_bytes(b"SECRET")
    (outputs / "day" / "notes.txt").write_bytes(b"SECRET")
    (outputs / "link.png").symlink_to(secret)
    (outputs / "out").symlink_to(tmp_path / "data")
    (outputs / "loop.png").symlink_to("loop.png")
    (outputs / "renamed.png").symlink_to(outputs / "day" / "notes.txt")
    os.mkfifo(outputs / "pipe.png")
    (outputs / "day" / "x.png").write_bytes(b"0123456789")
    async with serving(bus, tmp_path / "data") as client:
        for path in TRAVERSALS:
            status, answer = await raw(
                client, b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            )
            assert status == 404 and b"SECRET" not in answer and b'{"error"' in answer, path
        good = await client.get("/images/day/x.png")
        assert (good.status_code, good.content, good.headers["content-type"]) == (200, b"0123456789", "image/png")
        assert "immutable" in good.headers["cache-control"] and good.headers["x-content-type-options"] == "nosniff"
        part = await client.get("/images/day/x.png", headers={"Range": "bytes=2-4"})
        assert (part.status_code, part.content) == (206, b"234")
        assert (await client.head("/images/day/x.png")).headers["content-length"] == "10"
        assert (await client.post("/images/day/x.png")).status_code == 405


async def test_errors_are_json_everywhere(bus: Bus, tmp_path: Path):
    async with serving(bus, tmp_path) as client:
        for method, path, code in (
            ("GET", "/nope", 404), ("GET", "/api/nope", 404), ("GET", "/api/", 404), ("DELETE", "/api/jobs", 405),
            ("PUT", "/api/models", 405), ("POST", "/livez", 405), ("POST", "/", 405), ("GET", "/../bus/client.py", 404),
            ("GET", "/%2e%2e/bridge.py", 404), ("GET", "/..%2fbridge.py", 404),
        ):  # fmt: skip
            answer = await client.request(method, path)
            assert answer.status_code == code and reason(answer), (method, path)
        assert set((await client.delete("/api/jobs")).headers["allow"].split(", ")) == {"GET", "HEAD", "POST"}
        assert (await client.post("/livez", json={})).headers["allow"] in ("GET, HEAD", "HEAD, GET")


async def test_a_method_refused_at_one_of_several_routes_of_an_address_is_told_the_methods_of_all(
    bus: Bus, tmp_path: Path
):
    async with serving(bus, tmp_path) as client:
        for path, methods in (
            ("/api/models/x", "GET, HEAD, PATCH"),
            ("/api/models/x/tags", "DELETE, POST"),
            ("/api/tags", "GET, HEAD, POST"),
            ("/api/tags/1", "DELETE, PATCH"),
            ("/api/images/x", "DELETE, GET, HEAD, POST"),
        ):
            assert (await client.put(path, json={})).headers["allow"] == methods, path


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


async def test_with_the_bus_away_a_job_is_refused_with_a_time_to_come_back(
    bus: Bus, nats_server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("agents.client.jobs.SUBMIT_SECONDS", 0.5)
    monkeypatch.setattr("bus.client._API_TIMEOUT", 0.3)
    bus.js._timeout = 0.3
    async with serving(bus, tmp_path) as client:
        with frozen(nats_server):
            for method, path in (("POST", "/api/jobs"), ("GET", "/api/jobs"), ("GET", f"/api/jobs/{new_id()}")):
                answer = await client.request(method, path, **({"json": {"prompt": "x"}} if method == "POST" else {}))
                assert (answer.status_code, reason(answer)) == (503, "bus-away"), path
                assert int(answer.headers["retry-after"]) > 0


def test_a_document_is_json_whatever_is_unknown():
    made = document(JobView(id="0" * 32, status="failed"))
    assert msgspec.json.decode(msgspec.json.encode(made))["result"] is None
