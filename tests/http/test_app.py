"""What every address does the same way: its errors."""

from pathlib import Path

from bus.client import Bus
from bus.errors import Declined
from bus.subjects import ASK_TAGS
from schemas.catalog import ListTags, TagPage
from tests.http.serving import reason, serving


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


async def test_a_method_refused_at_one_of_several_routes_of_an_address_names_the_methods_of_all(
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


async def test_what_the_catalog_declines_has_its_own_status_and_a_bug_there_is_500_not_absence(
    bus: Bus, tmp_path: Path
):
    async def answer(asked: ListTags) -> TagPage:
        if asked.after == "x":
            raise Declined("unknown-tag", "no “x”\nhere")
        raise ZeroDivisionError

    async with serving(bus, tmp_path) as client:
        absent = await client.get("/api/tags")
        assert (absent.status_code, reason(absent)) == (503, "no-answer") and "agent" in absent.text
        await bus.tasks.start(bus.answer, ASK_TAGS, answer)
        declined = await client.get("/api/tags?after=x")
        assert (declined.status_code, reason(declined)) == (404, "unknown-tag")
        assert declined.json()["error"]["message"] == "no “x”\nhere"
        broken = await client.get("/api/tags")
        assert (broken.status_code, reason(broken)) == (500, "internal") and "ZeroDivision" not in broken.text
