"""The guard: who may ask, from where, and how much."""

import base64
from collections.abc import AsyncIterator
from pathlib import Path

from agents.http.security import MAX_BODY_BYTES, host_of, is_loopback
from bus.client import Bus
from tests.http.serving import payload, raw, reason, serving


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def test_only_this_machine_counts_as_loopback():
    assert all(is_loopback(name) for name in ("localhost", "LOCALHOST.", "127.0.0.1", "127.1.2.3", "::1", "[::1]"))
    assert not any(
        is_loopback(name) for name in ("", "0.0.0.0", "192.168.0.1", "localhost.evil.example", "::", "2130706433")
    )
    assert host_of("LocalHost:7860") == "localhost" and host_of("[::1]:80") == "::1"
    assert [host_of(bad) for bad in ("a b", "evil@localhost", "localhost:port", "", "a/b", "[::1")] == [""] * 6


async def test_another_host_name_is_misdirected_whatever_is_asked(bus: Bus, tmp_path: Path):
    async with serving(bus, tmp_path, hosts=("pictures.example",)) as client:
        for host in (
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evil@localhost",
            "10.0.0.1:7860",
        ):
            for path in ("/", "/api/jobs", "/livez", "/images/x.png"):
                answer = await client.get(path, headers={"Host": host})
                assert (answer.status_code, reason(answer)) == (421, "unknown-host"), (host, path)
        for host in (
            "localhost",
            "LOCALHOST:1",
            "127.0.0.1:9",
            "[::1]:7860",
            "pictures.example",
            "Pictures.Example:443",
        ):
            assert (await client.get("/livez", headers={"Host": host})).status_code == 200, host
        assert (await raw(client, b"GET /livez HTTP/1.0\r\n\r\n"))[0] == 421


async def test_other_peoples_pages_may_not_ask(bus: Bus, tmp_path: Path):
    async with serving(bus, tmp_path, origins=("https://studio.example",)) as client:
        for origin in (
            "https://evil.example",
            "null",
            "file://",
            "https://localhost.evil.example",
            "chrome-extension://x",
        ):
            for method, path in (("GET", "/api/jobs"), ("POST", "/api/jobs"), ("OPTIONS", "/api/jobs")):
                answer = await client.request(method, path, headers={"Origin": origin}, json={"prompt": "x"})
                assert (answer.status_code, reason(answer)) == (403, "foreign-origin"), (origin, method)
                assert "access-control-allow-origin" not in answer.headers
        own = str(client.base_url)
        for origin in (own.rstrip("/"), "http://localhost:3000", "https://studio.example"):
            answer = await client.post("/api/jobs", headers={"Origin": origin}, json={"prompt": "x"})
            assert answer.status_code == 202, origin
        assert answer.headers["access-control-allow-origin"] == "https://studio.example"
        ahead = {"Origin": "https://studio.example", "Access-Control-Request-Method": "POST"}
        answer = await client.options("/api/jobs", headers=ahead)
        assert answer.status_code == 204 and "Content-Type" in answer.headers["access-control-allow-headers"]


async def test_a_body_that_is_not_json_by_its_own_account_is_refused(bus: Bus, tmp_path: Path):
    async with serving(bus, tmp_path) as client:
        for kind in (
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "application/json; charset=utf-16",
            "application/jsonp",
            "",
        ):
            answer = await client.post("/api/jobs", content=payload(), headers={"Content-Type": kind})
            assert (answer.status_code, reason(answer)) == (415, "not-json"), kind
        answer = await client.post("/api/jobs", content=payload())
        assert answer.status_code == 415, "a body without a type"
        for kind in ("application/json", "Application/JSON; charset=UTF-8"):
            answer = await client.post("/api/jobs", content=payload(), headers={"Content-Type": kind})
            assert answer.status_code == 202, kind


async def test_a_body_over_the_cap_is_refused_before_it_is_read_or_decoded(bus: Bus, tmp_path: Path):
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b" " * (MAX_BODY_BYTES // 2)

    async with serving(bus, tmp_path) as client:
        head = b"POST /api/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
        for length in (b"%d" % (MAX_BODY_BYTES + 1), b"9" * 30):
            status, answer = await raw(client, head + b"Content-Length: " + length + b"\r\n\r\n")
            assert (status in (413, 400) and b"too-large" in answer) or b"Invalid" in answer, length
        json = {"Content-Type": "application/json"}
        answer = await client.post("/api/jobs", content=chunks(), headers=json)
        assert (answer.status_code, reason(answer)) == (413, "too-large")
        full = payload(prompt="x" * MAX_BODY_BYTES)[:MAX_BODY_BYTES]
        assert (await client.post("/api/jobs", content=full, headers=json)).status_code == 400
        answer = await client.post("/api/jobs", content=payload(retry_of="x" * (MAX_BODY_BYTES - 100)), headers=json)
        assert (answer.status_code, reason(answer)) == (413, "too-large"), (
            "with the defaults it is too large for the bus"
        )


async def test_with_a_key_everything_but_health_needs_it_in_one_of_three_forms(bus: Bus, tmp_path: Path):
    async with serving(bus, tmp_path, api_key="sésame") as client:
        wrong = [{}, {"X-API-Key": "sesame"}, {"Authorization": "Bearer"}, {"Authorization": "Bearer other"}]
        wrong += [basic("sésame", ""), basic("", "x"), {"Authorization": "Basic %%%"}, {"Authorization": "Digest x"}]
        for headers in wrong:
            for path in ("/", "/api/jobs", "/images/x.png", "/metrics"):
                answer = await client.get(path, headers=headers)
                assert (answer.status_code, reason(answer)) == (401, "unauthorized"), (headers, path)
                assert answer.headers["www-authenticate"].startswith("Basic")
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/readyz")).status_code == 503, "answered, not refused"
        key = "sésame".encode()
        for headers in (
            [("X-API-Key", key)],
            [("Authorization", b"Bearer " + key)],
            list(basic("me", "sésame").items()),
        ):
            assert (await client.get("/api/samplers", headers=headers)).status_code == 200, headers


async def test_without_a_key_credentials_are_no_obstacle_and_name_the_tenant(bus: Bus, tmp_path: Path):
    async with serving(bus, tmp_path) as client:
        for headers in (basic("", ""), {"Authorization": "Bearer a"}, {"X-API-Key": "a"}, basic("u", "a"), {}):
            assert (await client.post("/api/jobs", json={"prompt": "x"}, headers=headers)).status_code == 202
        tenants = sorted(subject.split(".")[5] for subject in await bus.waiting("PREPARE", "darkroom.v1.job.prepare.>"))
        assert tenants.count("t0") == 2 and len(set(tenants)) == 2


async def test_every_answer_carries_the_strict_headers(bus: Bus, tmp_path: Path):
    async with serving(bus, tmp_path) as client:
        for path, headers in (("/", {}), ("/api/jobs", {}), ("/nope", {}), ("/", {"Host": "evil.example"})):
            answer = await client.get(path, headers=headers)
            assert answer.headers["x-content-type-options"] == "nosniff"
            policy = answer.headers["content-security-policy"]
            assert "default-src 'self'" in policy and "img-src 'self' data: blob:" in policy
            assert "server" not in answer.headers
