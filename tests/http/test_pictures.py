"""Pictures over HTTP: what comes in is decoded as an attack would be, and nothing but pictures goes out."""

import io
from pathlib import Path

import anyio
import httpx
from PIL import Image

from agents.images import infotext
from agents.images.tiers import webp
from bus.client import Bus
from bus.subjects import IMAGE_ENCODED
from schemas.images import Encoded, Picture
from tests.http.catalogued import Catalogued, catalogued
from tests.http.serving import raw, reason, say_planned
from tests.ingest.making import put

NOBODY = "0" * 64
NAMES = ["..", "../", "../catalog.db", "..%2fcatalog.db", "%2e%2e/catalog.db", "%2e%2e%2fcatalog.db", "..\\catalog.db"]
NAMES += ["%5c..%5ccatalog.db", "/etc/passwd", "%2fetc%2fpasswd", "//etc/passwd", "catalog.db", "catalog.db%00.webp"]
NAMES += [
    "%00",
    "a%00b",
    "．．／catalog.db",
    "%c0%ae%c0%ae%2fcatalog.db",
    "∕etc∕passwd",
    "x" * 5000,
    "~",
    "CON",
    "*",
    ".",
]
NAMES += [
    "A" * 64,
    "g" * 64,
    "0" * 63,
    "0" * 65,
    "０" * 64,
    f"{NOBODY}_0_high",
    f"{NOBODY}/../../catalog.db",
    "-1",
    " ",
]
"""What could be a file's name, and is no SHA-256 of a model."""


def picture(colour: str = "red", size: tuple[int, int] = (300, 200), form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, form)
    return file.getvalue()


async def upload(here: Catalogued, sha256: str, content: bytes, kind: str = "image/png") -> httpx.Response:
    return await here.client.post(f"/api/images/{sha256}", content=content, headers={"Content-Type": kind})


async def test_a_picture_is_uploaded_encoded_served_in_three_tiers_and_not_sent_twice(bus: Bus, tmp_path: Path):
    async with catalogued(bus, tmp_path, drawing=True) as here:
        sha256 = await here.drop("a.safetensors")
        made = await upload(here, sha256, picture())
        assert made.status_code == 201 and (made.json()["seq"], made.json()["number"]) == (0, 0)
        assert (await upload(here, sha256, picture())).status_code == 200, "it is there already"
        form = await here.client.post(
            f"/api/images/{sha256}", files={"file": ("../../x.jpg", picture("blue", form="JPEG"))}
        )
        assert form.status_code == 201 and form.json()["seq"] == 1
        [first, second] = await here.pictures(sha256, ready=2)
        assert (first["width"], first["height"], second["seq"], first["origin"]) == (300, 200, 1, "upload")
        sizes = []
        for address in first["urls"].values():
            answer = await here.client.get(address)
            assert answer.headers["content-type"] == "image/webp" and "immutable" in answer.headers["cache-control"]
            sizes.append(Image.open(io.BytesIO(answer.content)).size)
        assert sizes == [(300, 200), (198, 132), (99, 66)]
        by_place = await here.client.get(f"/api/images/{sha256}.webp?seq=1&quality=low")
        assert by_place.status_code == 200 and "immutable" not in by_place.headers["cache-control"]
        etag = {"If-None-Match": f'"x", W/{by_place.headers["etag"]}'}
        same = await here.client.get(f"/api/images/{sha256}.webp?seq=1&quality=low", headers=etag)
        assert (same.status_code, same.content) == (304, b"")
        any = await here.client.get(f"/api/images/{sha256}.webp?seq=1", headers={"If-None-Match": "*"})
        assert (any.status_code, any.content) == (304, b"")
        other = await here.client.get(f"/api/images/{sha256}.webp?seq=0&quality=low", headers=etag)
        assert other.status_code == 200


async def test_deleting_and_ordering_move_places_and_remove_files(bus: Bus, tmp_path: Path):
    async with catalogued(bus, tmp_path, drawing=True) as here:
        sha256 = await here.drop("a.safetensors")
        for colour in ("red", "green", "blue"):
            await upload(here, sha256, picture(colour))
        await here.pictures(sha256, ready=3)
        order = await here.client.put(f"/api/images/{sha256}/order", json={"numbers": [2, 0, 1]})
        assert [one["number"] for one in order.json()["pictures"]] == [2, 0, 1]
        stale = await here.client.put(f"/api/images/{sha256}/order", json={"numbers": [0, 1]})
        assert (stale.status_code, reason(stale)) == (409, "stale-order")
        left = await here.client.delete(f"/api/images/{sha256}?seq=1")
        assert [(one["seq"], one["number"]) for one in left.json()["pictures"]] == [(0, 2), (1, 1)]
        assert sorted({file.name.split("_")[1] for file in (here.data / "images").glob("*.webp")}) == ["1", "2"]
        gone = await here.client.get(f"/api/images/{sha256}.webp?number=0")
        assert (gone.status_code, reason(gone)) == (404, "unknown-picture")
        assert (await here.client.get(f"/api/images/{sha256}.webp?number=1")).status_code == 200
        for path in (f"?seq={n}" for n in (2, 999)):
            answer = await here.client.delete(f"/api/images/{sha256}{path}")
            assert (answer.status_code, reason(answer)) == (404, "unknown-picture")
        for path in ("", "?seq=-1", "?seq=1e3", "?number=1"):
            answer = await here.client.delete(f"/api/images/{sha256}{path}")
            assert (answer.status_code, reason(answer)) == (422, "invalid"), path


async def test_a_picture_that_waits_is_not_there_yet_and_says_so(bus: Bus, tmp_path: Path):
    async with catalogued(bus, tmp_path) as here:
        sha256 = await here.drop("a.safetensors")
        assert (await upload(here, sha256, picture())).json()["state"] == "waiting"
        answer = await here.client.get(f"/api/images/{sha256}.webp")
        assert (answer.status_code, reason(answer)) == (404, "unknown-picture") and "encoded" in answer.text


async def test_a_preview_that_is_no_picture_hides_no_good_one_and_goes_when_it_is_replaced(bus: Bus, tmp_path: Path):
    async with catalogued(bus, tmp_path, drawing=True) as here:
        put(here.models / "a.preview.png", b"<html>404</html>")
        put(here.models / "a.png", picture("blue"))
        sha256 = await here.drop("a.safetensors")
        found = await here.pictures(sha256, ready=1)
        with anyio.fail_after(30):
            while [one["state"] for one in found] != ["failed", "ready"]:
                found = await here.pictures(sha256, ready=1)
        shown = await here.client.get(f"/api/images/{sha256}.webp?quality=low")
        assert (shown.status_code, shown.headers["etag"]) == (200, f'"{sha256[:16]}-{found[1]["number"]}-low"')
        first = await here.client.get(f"/api/images/{sha256}.webp?seq=0")
        assert (first.status_code, reason(first)) == (404, "unknown-picture"), "that very one is not there"
        put(here.models / "a.preview.png", picture("green"))
        [one, other] = await here.pictures(sha256, ready=2)
        assert (one["number"], other["number"]) == (2, found[1]["number"])


async def test_what_is_no_picture_is_refused_and_nothing_of_it_is_kept(bus: Bus, tmp_path: Path):
    async with catalogued(bus, tmp_path) as here:
        sha256 = await here.drop("a.safetensors")
        form = b'--B\r\nContent-Disposition: form-data; name="f"; filename="x.png"\r\n\r\n'
        twice = form + b"x\r\n" + form + b"x\r\n--B--\r\n"
        for content, kind, expected in (
            (b"not a picture", "image/png", (415, "not-a-picture")),
            (b"", "image/png", (415, "not-a-picture")),
            (b"<svg onload='x'/>", "image/webp", (415, "not-a-picture")),
            (b"<svg/>", "image/svg+xml", (415, "not-a-picture")),
            (picture(), "text/plain", (415, "not-a-picture")),
            (b'{"url": "http://x"}', "application/json", (415, "not-a-picture")),
            (picture()[:100], "image/png", (422, "broken-picture")),
            (picture(size=(17_000, 1)), "image/png", (413, "too-large")),
            (twice, "multipart/form-data; boundary=B", (422, "bad-form")),
            (form + picture(), "multipart/form-data; boundary=B", (400, "bad-form")),
            (form + picture(), "multipart/form-data", (400, "bad-form")),
        ):
            answer = await upload(here, sha256, content, kind)
            assert (answer.status_code, reason(answer)) == expected, (content[:20], kind)
        answer = await upload(here, NOBODY, picture())
        assert (answer.status_code, reason(answer)) == (404, "unknown-model")
        head = f"POST /api/images/{sha256} HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n".encode()
        status, answer = await raw(here.client, head + b"Content-Length: 99999999\r\nConnection: close\r\n\r\n")
        assert status == 413 and b"too-large" in answer
        assert (await here.get(f"/api/images/{sha256}"))["pictures"] == [] and not (here.data / "blobs").exists()


async def test_no_name_leads_out_of_the_pictures(bus: Bus, tmp_path: Path):
    async with catalogued(bus, tmp_path) as here:
        secret = (here.data / "catalog.db").read_bytes()[:16]
        for name in NAMES:
            for method, path in (
                ("GET", f"/api/images/{name}.webp"),
                ("GET", f"/api/images/{name}"),
                ("GET", f"/api/models/{name}"),
                ("GET", f"/images/{name}"),
                ("DELETE", f"/api/images/{name}?seq=0"),
            ):
                line = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                status, answer = await raw(here.client, line.encode())
                assert 400 <= status < 500, (method, path, answer[:200])
                assert secret not in answer and b"root:" not in answer, (method, path)
            if name.isascii() and name.isprintable() and " " not in name:
                answer = await upload(here, name.removeprefix("/"), picture())
                assert 400 <= answer.status_code < 500, name
        for query in ("seq=../0", "seq=%00", "quality=../high", "quality=high%00", "number=0/../1", "quality=ultra"):
            answer = await here.client.get(f"/api/images/{NOBODY}.webp?{query}")
            assert (answer.status_code, reason(answer)) == (422, "invalid"), query
        files = {"../../evil": ("../../../evil.png", picture(), "image/png")}
        answer = await here.client.post(f"/api/images/{await here.drop('a.safetensors')}", files=files)
        assert answer.status_code == 201 and not list(tmp_path.parent.rglob("evil*")), "a form's names name nothing"


async def test_generated_pictures_are_in_the_gallery_with_the_text_that_made_them(bus: Bus, tmp_path: Path):
    async with catalogued(bus, tmp_path) as here:
        id = "a" * 32
        await say_planned(bus, id)
        one = Picture(index=0, seed=1, width=8, height=8, file="outputs/d/a b.webp", bytes=1, sha256="b" * 64, tiers={})
        content = webp(Image.new("RGB", (8, 8)), quality=80, exif=infotext.exif("a cat\nSteps: 4, Seed: 1, Size: 8x8"))
        put(tmp_path / one.file, content)
        await bus.publish(IMAGE_ENCODED, Encoded(id=id, pictures=(one,), seconds=0.1, at=5.0), id=id)
        with anyio.fail_after(10):
            while not (await here.get("/api/outputs"))["outputs"]:
                pass
        [shown] = (await here.get("/api/outputs?q=cat"))["outputs"]
        assert shown["url"] == "/images/d/a%20b.webp" and shown["infotext"].startswith("a cat\nSteps: 4")
        assert (await here.get(f"/api/outputs?model={'a' * 8}"))["next"] == ""
        assert (await here.get("/api/outputs?q=dog"))["outputs"] == []
        for query in ("model=x", "limit=0", "q=" + "x" * 501, "page=2", "cursor=!"):
            assert (await here.client.get(f"/api/outputs?{query}")).status_code == 422, query
