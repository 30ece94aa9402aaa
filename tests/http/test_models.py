"""Models and tags over HTTP: found, shown, described and tagged, and nothing taken that is not understood."""

from pathlib import Path

from bus.client import Bus
from bus.subjects import ASK_SEARCH
from schemas.catalog import ModelPage, SearchModels
from schemas.files import FilePath, Identity
from schemas.models import Model
from tests.catalog import legacy_making
from tests.http.catalogued import catalogued
from tests.http.serving import reason, serving

NOBODY = "0" * 64


async def test_models_are_found_by_words_filters_and_in_pages(bus: Bus, tmp_path: Path):
    async with catalogued(bus, tmp_path) as here:
        golden = await here.drop("Golden Hour.safetensors", 1)
        await here.drop("red fox.safetensors", 2)
        await here.drop("old.safetensors", 3)
        await here.client.post(f"/api/models/{golden}/tags", json={"tags": ["Warm"]})
        assert await here.names() == ["Golden Hour", "old", "red fox"]
        assert await here.names("q=gol") == await here.names("tag=warm") == ["Golden Hour"]
        assert await here.names("not_tag=warm&not_tag=x&kind=checkpoint&type=checkpoint&family=sd15") == [
            "old",
            "red fox",
        ]
        assert await here.names("q=%22%27*(&tag=warm") == []
        first = await here.get("/api/models?limit=2&sort=name")
        last = await here.get(f"/api/models?limit=2&cursor={first['next']}")
        assert [one["name"] for one in (*first["models"], *last["models"])] == ["Golden Hour", "old", "red fox"]
        assert last["next"] == "" and first["models"][0]["tags"] == ["warm"]


async def test_one_model_is_shown_with_all_that_hangs_on_it(bus: Bus, tmp_path: Path):
    async with catalogued(bus, tmp_path) as here:
        sha256 = await here.drop("a.safetensors")
        edit = {"title": "A", "trigger_words": ["x"], "nsfw": True, "description": ""}
        edited = await here.client.patch(f"/api/models/{sha256}", json=edit)
        shown = await here.get(f"/api/models/{sha256}")
        assert edited.json() == shown
        assert shown["details"] == {"title": "A", "trigger_words": ["x"], "nsfw": True}
        assert shown["layers"]["user"] == edit
        assert shown["paths"] == [{"root": "models", "rel": "a.safetensors", "present": True}]
        assert shown["identity"]["components"] and shown["pictures"] == [] and shown["tags"] == []
        back = (await here.client.patch(f"/api/models/{sha256}", json=dict.fromkeys(edit))).json()
        assert "user" not in back["layers"] and back["title"] == ""
        for bad, status in (
            ({"titel": "x"}, 422),
            ({"title": 7}, 422),
            ({"title": "x" * 501}, 422),
            ({"extra": {}}, 422),
            ({"source_url": "javascript:x"}, 422),
            ([], 422),
        ):
            answer = await here.client.patch(f"/api/models/{sha256}", json=bad)
            assert (answer.status_code, reason(answer)) == (status, "invalid"), bad
        answer = await here.client.patch(f"/api/models/{NOBODY}", json={"title": "x"})
        assert (answer.status_code, reason(answer)) == (404, "unknown-model")


async def test_tags_are_made_renamed_coloured_deleted_and_put_on_models(bus: Bus, tmp_path: Path):
    async with catalogued(bus, tmp_path) as here:
        client, sha256 = here.client, await here.drop("a.safetensors")
        made = await client.post("/api/tags", json={"name": "Photo", "color": "#FF0000"})
        assert made.status_code == 201 and made.headers["location"] == "/api/tags/1"
        assert made.json() == {"id": 1, "name": "photo", "color": "#ff0000", "models": 0}
        put = await client.post(f"/api/models/{sha256}/tags", json={"tags": ["photo", "Light", "PHOTO"]})
        assert put.json() == {"tags": ["light", "photo"], "changed": True}
        conflict = await client.patch("/api/tags/2", json={"name": "Photo"})
        assert (conflict.status_code, reason(conflict)) == (409, "tag-exists")
        renamed = await client.patch("/api/tags/2", json={"name": "bright", "color": "#00ff00"})
        assert renamed.json() == {"id": 2, "name": "bright", "color": "#00ff00", "models": 1}
        page = await here.get("/api/tags?limit=1")
        assert [tag["name"] for tag in page["tags"]] == ["bright"] == [page["next"]]
        rest = await here.get("/api/tags?after=bright")
        assert [tag["name"] for tag in rest["tags"]] == ["photo"] and rest["next"] == ""
        assert await here.names("q=bri") == ["a"]
        took = await client.delete(f"/api/models/{sha256}/tags?tag=Photo")
        assert took.json() == {"tags": ["bright"], "changed": True}
        gone = await client.delete("/api/tags/2")
        assert gone.json()["name"] == "bright" and (await here.get(f"/api/models/{sha256}"))["tags"] == []
        again = await client.delete("/api/tags/2")
        assert (again.status_code, reason(again)) == (404, "unknown-tag")


async def test_an_unknown_parameter_where_none_is_taken_is_refused_in_a_whole_sentence(bus: Bus, tmp_path: Path):
    async with serving(bus, tmp_path) as client:
        message = (await client.get(f"/api/models/{NOBODY}?x=1")).json()["error"]["message"]
        assert message == "unknown parameter 'x'; this address takes none"


async def test_what_is_not_understood_is_refused_in_one_form(bus: Bus, tmp_path: Path):
    async with catalogued(bus, tmp_path) as here:
        sha256 = await here.drop("a.safetensors")
        for method, path, body, expected in (
            ("GET", "/api/models?knd=lora", None, (422, "invalid")),
            ("GET", "/api/models?limit=0", None, (422, "invalid")),
            ("GET", "/api/models?limit=%D9%A1", None, (422, "invalid")),
            ("GET", "/api/models?sort=size", None, (422, "invalid")),
            ("GET", "/api/models?missing=maybe", None, (422, "invalid")),
            ("GET", "/api/models?cursor=x", None, (422, "bad-cursor")),
            ("GET", "/api/models?q=" + "x" * 501, None, (422, "invalid")),
            ("GET", "/api/models?q=" + "x+" * 40, None, (422, "bad-query")),
            ("POST", "/api/tags", {"name": " "}, (422, "bad-tag")),
            ("POST", "/api/tags", {"name": "x", "color": "red"}, (422, "bad-tag")),
            ("POST", "/api/tags", {"name": "x", "colour": "#ffffff"}, (422, "invalid")),
            ("POST", "/api/tags", {}, (422, "invalid")),
            ("PATCH", "/api/tags/1", {"name": "x"}, (404, "unknown-tag")),
            ("PATCH", "/api/tags/0", {"name": "x"}, (404, "unknown-tag")),
            ("DELETE", "/api/tags/99999999999999999999", None, (404, "unknown-tag")),
            ("POST", f"/api/models/{sha256}/tags", {"tags": "photo"}, (422, "invalid")),
            ("POST", f"/api/models/{sha256}/tags", {"tags": [""]}, (422, "bad-tag")),
            ("POST", f"/api/models/{NOBODY}/tags", {"tags": ["x"]}, (404, "unknown-model")),
            ("DELETE", f"/api/models/{sha256}/tags", None, (422, "invalid")),
            ("DELETE", f"/api/models/{sha256}/tags?tag=nosuch", None, (404, "unknown-tag")),
            ("PUT", f"/api/models/{sha256}", {}, (405, "method-not-allowed")),
            ("DELETE", f"/api/models/{sha256}", None, (405, "method-not-allowed")),
        ):
            answer = await here.client.request(method, path, json=body)
            assert (answer.status_code, reason(answer)) == expected, (method, path, body)
        for method, path in (("PATCH", f"/api/models/{sha256}"), ("PATCH", "/api/tags/1"), ("POST", "/api/tags")):
            answer = await here.client.request(method, path, content=b"{}", headers={"Content-Type": "text/plain"})
            assert (answer.status_code, reason(answer)) == (415, "not-json"), "a foreign page's form could send that"
        assert (await here.get("/api/tags"))["tags"] == []


async def test_a_description_as_long_as_an_import_allows_is_found_shown_and_edited(bus: Bus, tmp_path: Path):
    long, longer = "wordy " * 160_000, "\\u0001" * 170_000  # as text, the second is of one byte each
    extra = [legacy_making.said(long), legacy_making.said("short"), f'{{"description": "{longer}"}}']
    rows = [
        legacy_making.model(n, f"/old/{n}.safetensors", legacy_making.sha(n), extra_json=said, meta_json=more)
        for n, (said, more) in enumerate(zip(extra, (None, None, f'{{"rest": "{longer}"}}'), strict=True))
    ]
    legacy = legacy_making.make(tmp_path / "legacy.db", rows)
    async with catalogued(bus, tmp_path / "data", import_roots=(str(tmp_path),)) as here:
        done = await here.client.post("/api/migration/migrate_legacy_db", json={"legacy_db_path": str(legacy)})
        assert done.status_code == 200, done.text
        listed = (await here.get("/api/models"))["models"]
        assert [one["name"] for one in listed] == ["0", "1", "2"]
        assert [one.get("cut", []) for one in listed] == [["details.description"], [], ["details.description"]]
        assert await here.names("q=wordy") == ["0"] and await here.names("q=short") == ["1"]
        for n, text in ((0, long), (2, "\x01" * 170_000)):
            address = f"/api/models/{legacy_making.sha(n)}"
            whole = await here.get(address)
            assert whole["details"]["description"] == whole["layers"]["import"]["description"] == text
            edited = await here.client.patch(address, json={"title": "T"})
            assert edited.status_code == 200 and edited.json()["details"]["description"] == text
            assert (await here.get(address))["title"] == "T"


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
