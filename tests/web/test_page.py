import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvicorn
from playwright.async_api import Route
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from tests.web.page_steps import (
    CHROMIUM,
    browser_page,
    fits,
    reads_the_infotext,
    sees_model_picture,
    sees_models,
    sees_refusal,
    sees_service,
)

WEB = Path(__file__).parents[2] / "agents" / "web"
HTML, SCRIPT = (WEB / "index.html").read_text(), (WEB / "app.js").read_text()

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


def test_the_page_runs_under_its_content_security_policy() -> None:
    assert not re.search(r"\sstyle=|<style|\son\w+=|<script(?![^>]*\ssrc=)|javascript:", HTML)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", HTML + SCRIPT)


def test_text_from_outside_never_becomes_markup() -> None:
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", SCRIPT)


def test_every_control_has_a_label() -> None:
    controls = set(re.findall(r'<(?:input|select|textarea) id="(\w+)"', HTML))
    labelled = set(re.findall(r'<label for="(\w+)"', HTML)) | set(
        re.findall(r'<label class="check"><input id="(\w+)"', HTML)
    )
    assert controls
    assert controls == labelled


def test_every_element_the_script_looks_up_exists() -> None:
    there = set(re.findall(r'\bid="(\w+)"', HTML)) | set(re.findall(r'\bid: "(\w+)"', SCRIPT))
    assert set(re.findall(r'\$\("(\w+)"\)', SCRIPT)) <= there


@asynccontextmanager
async def only_files() -> AsyncIterator[str]:
    """The page served by itself, without an API; its address."""
    app = Starlette(routes=[Mount("/", StaticFiles(directory=WEB, html=True))])
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
        task = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task


@needs_chromium
async def test_a_service_that_goes_away_is_noticed_and_the_settings_are_kept() -> None:
    async with only_files() as url, browser_page(url, expected="404|ERR_CONNECTION_REFUSED") as page:
        await sees_service(page, "wait")
        await page.get_by_label("Prompt", exact=True).fill("a fox")
        await page.route("**/readyz", lambda route: route.abort("connectionrefused"))
        await sees_service(page, "down")
        assert "can't be reached" in await page.locator("#down").inner_text()
        await page.reload()
        assert await page.get_by_label("Prompt", exact=True).input_value() == "a fox"


@needs_chromium
async def test_a_value_out_of_range_is_named_before_anything_is_sent() -> None:
    async with only_files() as url, browser_page(url, expected="404") as page:
        await sees_service(page, "wait")
        await page.evaluate("document.getElementById('generate').disabled = false")
        await page.get_by_label("Steps").fill("0")
        await page.keyboard.press("Control+Enter")
        await sees_refusal(page, "Steps")
        assert await page.get_by_label("Steps").get_attribute("aria-invalid") == "true"


@needs_chromium
async def test_the_page_fits_a_narrow_phone() -> None:
    async with only_files() as url, browser_page(url, width=360, expected="404") as page:
        await sees_service(page, "wait")
        await fits(page)


def checkpoint(sha256: str, **more: object) -> dict[str, object]:
    """A model as /api/models has it, as far as the page looks at it."""
    return {"sha256": sha256 * 64, "name": "x", "title": "", "unsafe": False, "problem": "", "pictures": 0, **more}


@needs_chromium
async def test_models_are_shown_with_their_title_and_first_picture_and_those_that_lie_nowhere_not_at_all() -> None:
    asked: list[str] = []
    models = [
        checkpoint("a", name="plain"),
        checkpoint("b", name="fox_v1", title="Red <b>Fox</b>", pictures=2),
        checkpoint("c", name="pickle", unsafe=True),
    ]

    async def fulfil(route: Route) -> None:
        asked.append(route.request.url)
        if "/api/images/" in route.request.url:
            await route.fulfill(content_type="image/svg+xml", body='<svg xmlns="http://www.w3.org/2000/svg"/>')
        else:
            await route.fulfill(json={"models": models, "next": ""})

    async with only_files() as url, browser_page(url, expected="404") as page:
        await page.route("**/api/models?*", fulfil)
        await page.route("**/api/images/**", fulfil)
        await page.reload()
        await sees_models(page, "plain", "Red <b>Fox</b> · fox_v1", "pickle (unsafe format)")
        assert "missing=no" in asked[0], "an imported catalog may know thousands that lie nowhere"
        await sees_model_picture(page, "")
        await page.get_by_label("Model").select_option("b" * 64)
        await sees_model_picture(page, f"/api/images/{'b' * 64}.webp?quality=low")
        await page.get_by_label("Model").select_option("a" * 64)
        await sees_model_picture(page, "")


@needs_chromium
async def test_the_infotext_shown_is_what_the_file_holds_and_is_read_when_it_is_opened() -> None:
    id, held = "a" * 32, "a <i>fox</i>\nSteps: 4, Sampler: Euler, Seed: 7, Version: of the file"
    image = {"url": f"/images/day/{id}-0.webp", "width": 8, "height": 8, "seed": 7}
    job = {"id": id, "status": "succeeded", "plan": {"prompt": "another"}, "result": {"images": [image]}}
    read: list[str] = []

    async def text(route: Route) -> None:
        read.append(route.request.url)
        await route.fulfill(content_type="text/plain", body=held)

    async with only_files() as url, browser_page(url, expected="404") as page:
        await page.route("**/api/jobs?*", lambda route: route.fulfill(json={"jobs": [job]}))
        await page.route(f"**{image['url']}.txt", text)
        await page.reload()
        await sees_service(page, "wait")
        await page.locator("#gallery li").first.wait_for()
        assert not read
        await reads_the_infotext(page, held)
    assert len(read) == 1


@needs_chromium
async def test_a_job_that_the_list_alone_still_knows_is_shown_and_hides_no_other() -> None:
    forgotten = {"id": "b" * 32, "status": "succeeded", "plan": None, "result": None}
    failed = {"id": "c" * 32, "status": "failed", "plan": {"prompt": "a fox"}, "result": {"images": [], "error": "no"}}
    async with only_files() as url, browser_page(url, expected="404") as page:
        await page.route("**/api/jobs?*", lambda route: route.fulfill(json={"jobs": [forgotten, failed]}))
        await page.reload()
        await page.locator("#gallery li").nth(1).wait_for()
        assert await page.locator("#gallery li").all_inner_texts() == ["Finished", "Failed"]
