"""Migration over HTTP: a legacy catalog from an allowed folder only, its records when their files come, and the hash of
a file in the roots only."""

from pathlib import Path

import anyio
import httpx
import pytest

from bus.client import Bus
from bus.subjects import ASK_FILE
from tests.catalog import legacy_making
from tests.catalog.legacy_making import said
from tests.http.catalogued import catalogued
from tests.http.serving import reason
from tests.ingest.making import model, put

LEGACY = "/api/migration/migrate_legacy_db"


@pytest.fixture
def legacy(tmp_path: Path) -> Path:
    """A legacy catalog of one hashed model and one that is not, with a picture."""
    folder = tmp_path / "old"
    put(folder / "images" / "p.png", legacy_making.png(1))
    rows = [
        legacy_making.model(7, "/nas/known.safetensors", legacy_making.sha("known")),
        legacy_making.model(8, "/nas/later.safetensors", size_bytes=len(model()), extra_json=said(images=["p.png"])),
    ]
    legacy_making.make(folder / "catalog.db", rows, [(3, "photo", "#ff0000", 0)], [(8, 3)])
    return folder


def asked(legacy: Path, **more: object) -> dict[str, object]:
    return {"legacy_db_path": str(legacy / "catalog.db"), "legacy_images_dir": str(legacy / "images"), **more}


async def test_a_legacy_catalog_is_taken_over_and_a_record_promoted_when_its_file_comes(
    bus: Bus, tmp_path: Path, legacy: Path
):
    async with catalogued(bus, tmp_path / "data", drawing=True, import_roots=(str(tmp_path / "old"),)) as here:
        tried = (await here.client.post(LEGACY, json=asked(legacy, dry_run=True))).json()
        assert tried["state"] == "done" and (await here.get("/api/migration/pending"))["pending"] == []
        answer = await here.client.post(LEGACY, json=asked(legacy))
        assert answer.status_code == 200, answer.text
        done = answer.json()
        assert done["report"]["tables"] == tried["report"]["tables"]
        assert done["report"]["tables"]["models"]["inserted"] == 1
        assert done["report"]["images_found"] == 1
        assert await here.get(answer.headers["location"]) == done
        [record] = (await here.get("/api/migration/pending"))["pending"]
        assert (record["id"], record["tags"], record["images"], record["state"]) == (8, ["photo"], 1, "waiting")
        waiting = await here.client.post("/api/migration/import_models", json={"id": [8, 99, 8]})
        assert [one["outcome"] for one in waiting.json()["outcomes"]] == ["waiting", "unknown"]
        control = put(here.models / "later.safetensors.aria2", b"")  # holds the file back until it is asked for
        path = put(here.models / "later.safetensors", model())
        answers: list[httpx.Response] = []

        async def ask() -> None:
            answers.append(await here.client.post("/api/models/sha256", json={"path": str(path)}))

        async with bus.listen(ASK_FILE()) as questions, anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            for _ in range(2):  # the first is answered when the second is asked
                await questions.receive()
            control.unlink()
        found = answers[0].json()
        assert found["migrated"] is True
        again = (await here.client.post("/api/models/sha256", json={"path": str(path)})).json()
        assert again == {"sha256": found["sha256"], "migrated": False}
        await here.pictures(found["sha256"], ready=1)
        assert await here.names("tag=photo") == ["later"]


async def test_an_import_that_can_not_be_done_or_is_not_done_in_time_says_so(bus: Bus, tmp_path: Path, legacy: Path):
    put(tmp_path / "old" / "notes.txt", b"not a database")
    async with catalogued(bus, tmp_path / "data", import_roots=(str(tmp_path / "old"),)) as here:
        body = {"legacy_db_path": str(legacy / "notes.txt")}
        failed = await here.client.post(LEGACY, json=body)
        assert (failed.status_code, reason(failed)) == (422, "import-failed")
        later = await here.client.post(LEGACY, json=asked(legacy, wait=0))
        assert later.status_code in (200, 202) and later.headers["location"].startswith("/api/migration/imports/")
        for id in ("0" * 32, "x", "..%2f..", "0" * 31):
            unknown = await here.client.get(f"/api/migration/imports/{id}")
            assert unknown.status_code == 404, id


async def test_legacy_catalogs_come_from_allowed_folders_only(bus: Bus, tmp_path: Path, legacy: Path):
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link.db").symlink_to(legacy / "catalog.db")
    (inside / "folder").symlink_to(legacy)
    put(inside / "catalog.db", b"")
    outside = [str(legacy / "catalog.db"), "/etc/passwd", f"{inside}/../old/catalog.db", f"{inside}/link.db"]
    outside += [f"{inside}/folder/catalog.db", f"{inside}x/catalog.db", str(tmp_path), f"{inside}/no/../../nothing"]
    async with catalogued(bus, tmp_path / "data", import_roots=(str(inside),)) as here:
        for path in outside:
            answer = await here.client.post(LEGACY, json={"legacy_db_path": path})
            assert (answer.status_code, reason(answer)) == (403, "outside-import-roots"), path
            assert "http.import_roots" in answer.text
        body = {"legacy_db_path": f"{inside}/catalog.db", "legacy_images_dir": str(legacy / "images")}
        answer = await here.client.post(LEGACY, json=body)
        assert (answer.status_code, answer.json()["error"]["path"]) == (403, "legacy_images_dir")
        for bad in (
            {},
            {"legacy_db_path": "catalog.db"},
            {"legacy_db_path": ""},
            {"legacy_db_path": "/x\0"},
            {"wait": 1},
        ):
            answer = await here.client.post(LEGACY, json=bad)
            assert (answer.status_code, reason(answer)) == (422, "invalid"), bad
        answer = await here.client.post(LEGACY, json={"legacy_db_path": "/x", "images": ""})
        assert answer.json()["error"]["path"] == "$.images"


async def test_without_allowed_folders_nothing_is_imported_over_http(bus: Bus, tmp_path: Path, legacy: Path):
    async with catalogued(bus, tmp_path / "data") as here:
        answer = await here.client.post(LEGACY, json=asked(legacy))
        assert (answer.status_code, reason(answer)) == (403, "outside-import-roots")


async def test_the_hash_of_a_file_is_given_for_files_in_the_roots_only(bus: Bus, tmp_path: Path):
    async with catalogued(bus, tmp_path) as here:
        sha256 = await here.drop("sub/a.safetensors")
        put(tmp_path / "secret.safetensors", b"secret")
        (here.models / "link.safetensors").symlink_to(tmp_path / "secret.safetensors")
        for path, expected in (
            (str(tmp_path / "secret.safetensors"), (403, "outside-roots")),
            (str(here.models / "link.safetensors"), (403, "outside-roots")),
            (f"{here.models}/../catalog.db", (403, "outside-roots")),
            ("/etc/passwd", (403, "outside-roots")),
            (str(here.models), (422, "not-a-model")),
            (f"{here.models}/", (422, "not-a-model")),
            (str(here.models / "nothing.safetensors"), (404, "unknown-file")),
            (str(here.models / "sub"), (422, "not-a-model")),
            (str(here.models / "notes.txt"), (422, "not-a-model")),
            ("models/sub/a.safetensors", (422, "invalid")),
            ("/a\0b", (422, "invalid")),
            ("/" + "x" * 4096, (422, "invalid")),
        ):
            answer = await here.client.post("/api/models/sha256", json={"path": path})
            assert (answer.status_code, reason(answer)) == expected, path
        winding = f"{here.models}/sub/../sub/./a.safetensors"
        body = {"path": winding, "pending_status": "ignore", "wait": 0}
        assert (await here.client.post("/api/models/sha256", json=body)).json() == {
            "sha256": sha256,
            "migrated": False,
        }
        put(here.models / "half.safetensors", model()[:-1])
        later = await here.client.post(
            "/api/models/sha256", json={"path": str(here.models / "half.safetensors"), "wait": 0}
        )
        assert (later.status_code, later.json()) == (202, {"sha256": None, "migrated": False})


async def test_what_lies_in_the_roots_unhashed_becomes_pending(bus: Bus, tmp_path: Path):
    async with catalogued(bus, tmp_path) as here:
        await here.drop("a.safetensors")
        for body in (b"", b"{}"):
            answer = await here.client.post(
                "/api/migration/scan", content=body, headers={"Content-Type": "application/json"}
            )
            assert answer.json() == {"added": 0, "pending": 0}
        wrong = await here.client.post("/api/migration/scan", json={"deep": True})
        assert (wrong.status_code, reason(wrong)) == (422, "invalid")


async def test_a_choice_that_is_none_is_refused(bus: Bus, tmp_path: Path):
    async with catalogued(bus, tmp_path) as here:
        for bad in (
            {},
            {"id": 7},
            {"id": [0]},
            {"id": [2**63]},
            {"id": ["7"]},
            {"id": [1] * 1001},
            {"id": [1], "conflict_strategy": "win"},
        ):
            answer = await here.client.post("/api/migration/import_models", json=bad)
            assert (answer.status_code, reason(answer)) == (422, "invalid"), bad
        for query in ("after=-1", "limit=0", "limit=1001", "page=1"):
            assert (await here.client.get(f"/api/migration/pending?{query}")).status_code == 422, query
