"""The native front door: what it takes, what it refuses, and what it shows."""

import functools
import re
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import anyio
import msgspec
import pytest

from agents.client.views import JobView
from agents.http.jobs import document
from agents.migrator import agent as migrator
from bus.client import Bus, connect
from bus.ids import new_id
from bus.results import result_of
from bus.server import LocalServer
from bus.subjects import PREPARE
from schemas.jobs import Request
from schemas.settings import BusSettings, MigratorSettings
from tests.conftest import running
from tests.http.serving import frozen, reason, request, say_planned, say_released, say_started, serving, succeed

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


def cataloguing(bus: Bus, tmp_path: Path) -> AbstractAsyncContextManager[None]:
    settings = MigratorSettings(jobs_days=0)
    return running(functools.partial(migrator.run, bus, tmp_path / "catalog.db", settings=settings))


async def test_the_list_is_newest_first_and_bounded(bus: Bus, tmp_path: Path):
    ids = [new_id(1_700_000_000 + n) for n in range(4)]
    await succeed(bus, ids[1])
    async with cataloguing(bus, tmp_path), serving(bus, tmp_path) as client:
        await say_planned(bus, ids[0])
        await bus.publish(PREPARE, request(), lane="low", tenant="t3", id=ids[3])
        await say_planned(bus, ids[2])
        with anyio.fail_after(20):
            while len((await client.get("/api/jobs")).json()["jobs"]) < 4:
                pass
        answer = (await client.get("/api/jobs?limit=3")).json()
        assert [(job["id"], job["status"]) for job in answer["jobs"]] == [
            (ids[3], "queued"),
            (ids[2], "planned"),
            (ids[1], "succeeded"),
        ]
        rest = (await client.get("/api/jobs", params={"before": answer["next"]})).json()
        assert [job["id"] for job in rest["jobs"]] == [ids[0]] and rest["next"] == ""
        ended = (await client.get("/api/jobs?status=succeeded")).json()["jobs"]
        assert ended == [(await client.get(f"/api/jobs/{ids[1]}")).json()], "an entry is the job's own document"
        assert [job["id"] for job in (await client.get("/api/jobs?q=CAT")).json()["jobs"]] == [ids[3], ids[2], ids[0]]
        for query, wanted in {
            "status=done": "invalid",
            "status=": "",
            "before=x": "bad-cursor",
            "q=" + "x" * 501: "invalid",
            "after=1": "invalid",
        }.items():
            answer = await client.get(f"/api/jobs?{query}")
            assert (answer.status_code, wanted) == (200, "") or (answer.status_code, reason(answer)) == (422, wanted), (
                query
            )
        refusal = (await client.get("/api/jobs?status=done")).json()["error"]["message"]
        assert refusal.startswith("status 'done': there are queued, planned, "), "no status is not one of the words"
        for limit in ("0", "501", "-1", "x", "", "1e2", "9999999999"):
            answer = await client.get(f"/api/jobs?limit={limit}")
            assert (answer.status_code, reason(answer)) == (422, "invalid"), limit


async def test_samplers_are_the_table(bus: Bus, tmp_path: Path):
    async with serving(bus, tmp_path) as client:
        told = (await client.get("/api/samplers")).json()
        assert {"id": "euler", "label": "Euler"}.items() <= told["samplers"][0].items()
        assert {"id": "karras", "label": "Karras"} in told["schedulers"]


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
