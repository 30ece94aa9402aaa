"""What waits, over HTTP: named with its reason, in pages, and nothing taken that is not understood."""

import os
import time
from pathlib import Path

import anyio

from bus.client import Bus
from tests.http.catalogued import catalogued
from tests.http.serving import reason, serving
from tests.ingest.making import model, put


async def test_files_that_wait_are_named_with_why_and_since_when_in_pages(bus: Bus, tmp_path: Path):
    async with catalogued(bus, tmp_path) as here:
        then = time.time() - 30 * 24 * 3600
        for number in range(3):
            os.utime(put(here.models / f"{number}.safetensors.aria2", b""), (then, then))
            put(here.models / f"{number}.safetensors", model()[:-1])
        with anyio.fail_after(20):
            while (page := await here.get("/api/files/waiting?limit=2"))["waiting"] < 3 or "just come" in str(page):
                pass  # the watcher goes on meanwhile
        assert [file["path"]["rel"] for file in page["files"]] == ["0.safetensors", "1.safetensors"]
        assert all("0.safetensors.aria2" in file["why"] for file in page["files"][:1])
        assert all(abs(file["since"] - time.time()) < 20 for file in page["files"])
        last = await here.get(f"/api/files/waiting?limit=2&cursor={page['next']}")
        assert [file["path"] for file in last["files"]] == [{"root": "models", "rel": "2.safetensors"}]
        assert (last["next"], last["waiting"], last["unknown"]) == ("", 3, [])


async def test_a_root_without_a_watcher_is_named_and_odd_questions_are_refused(bus: Bus, tmp_path: Path):
    async with serving(bus, tmp_path, roots={"models": str(tmp_path)}) as client:
        answer = await client.get("/api/files/waiting")
        assert answer.json() == {"files": [], "waiting": 0, "next": "", "unknown": ["models"]}
        for query in ("limit=0", "limit=1001", "limit=x", "sort=name", "cursor=" + "x" * 20_000):
            answer = await client.get(f"/api/files/waiting?{query}")
            assert (answer.status_code, reason(answer)) == (422, "invalid"), query
        assert (await client.get("/api/files/waiting?cursor=nowhere")).status_code == 200
