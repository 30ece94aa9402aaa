"""The files of finished pictures: they, and nothing else."""

import os
from pathlib import Path

from PIL import Image

from agents.images import infotext
from bus.client import Bus
from tests.http.serving import raw, reason, serving

TRAVERSALS = [
    b"/images/../secret.png", b"/images/%2e%2e/secret.png", b"/images/..%2fsecret.png", b"/images/%2e%2e%2fsecret.png",
    b"/images/..%5csecret.png", b"/images/....//secret.png", b"/images//../secret.png", b"/images/./../secret.png",
    b"/images/day/../../secret.png", b"/images/day/%2e%2e/%2e%2e/secret.png", b"/images/%252e%252e/secret.png",
    b"/images//etc/hostname.png", b"/images/%2fetc/passwd", b"/images/secret.png%00.webp", b"/images/%00.png",
    b"/images/link.png", b"/images/out/secret.png", b"/images/day", b"/images/day/", b"/images/", b"/images",
    b"/images/day/.tmp.png", b"/images/.hidden/x.png", b"/images/day/notes.txt", b"/images/day/x.PNG",
    b"/images/dir.png", b"/images/pipe.png", b"/images/loop.png", b"/images/renamed.png", b"/images/%ff%fe.png",
    b"/images/" + b"a" * 5000 + b".png", b"/images/" + b"../" * 30 + b"etc/hosts.png",
    b"/images/%c0%ae%c0%ae/secret.png", b"/images/../secret.png.txt", b"/images/day/notes.txt.txt",
    b"/images/link.png.txt",
    b"/images/%2e%2e/secret.png.txt", b"/images/pipe.png.txt", b"/images/.txt", b"/images/day/.tmp.png.txt",
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


async def test_the_infotext_of_a_picture_is_what_its_file_holds(bus: Bus, tmp_path: Path):
    day = tmp_path / "outputs" / "day"
    day.mkdir(parents=True)
    text = "a rötes 🦊 <b>\nNegative prompt: x\nSteps: 4, Sampler: Euler, Seed: 1"
    picture = Image.new("RGB", (8, 8))
    picture.save(day / "a.webp", exif=infotext.exif(text))
    picture.save(day / "b.png", pnginfo=infotext.png_info(text))
    picture.save(day / "none.jpg")
    (day / "broken.webp").write_bytes((day / "a.webp").read_bytes()[:20])
    async with serving(bus, tmp_path) as client:
        for name, held in (("a.webp", text), ("b.png", text), ("none.jpg", "")):
            answer = await client.get(f"/images/day/{name}.txt")
            assert (answer.status_code, answer.text) == (200, held), name
            assert answer.headers["content-type"] == "text/plain; charset=utf-8"
            assert "immutable" in answer.headers["cache-control"]
        answer = await client.get("/images/day/broken.webp.txt")
        assert (answer.status_code, reason(answer)) == (422, "broken-picture")
        assert (await client.get("/images/day/gone.webp.txt")).status_code == 404
