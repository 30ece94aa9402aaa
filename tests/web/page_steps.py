"""What a person does on the page, in real Chromium, against any service at a base URL.

A browser page here fails on everything a person would not see but a console shows: script errors, refused resources,
violations of the content security policy.
"""

import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from playwright.async_api import ConsoleMessage, Page, async_playwright, expect

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WAIT_MS = 20_000
CHROMIUM = shutil.which("chromium")


@asynccontextmanager
async def browser_page(base_url: str, *, width: int = 1280, expected: str = "$^") -> AsyncIterator[Page]:
    """The page at `base_url`, open in a window `width` px wide. At the end, raises AssertionError when the console
    showed an error that does not match the pattern `expected`."""
    errors: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type == "error":
            errors.append(message.text)

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = await browser.new_page(viewport={"width": width, "height": 900})
        page.set_default_timeout(WAIT_MS)
        page.on("console", note)
        page.on("pageerror", lambda error: errors.append(str(error)))
        await page.goto(base_url)
        yield page
        await browser.close()
    unexpected = [error for error in errors if not re.search(expected, error)]
    assert not unexpected, unexpected


async def sees_how_to_begin(page: Page) -> None:
    """No checkpoint yet: the page says what to do and can't generate."""
    await expect(page.locator("#stage")).to_contain_text(".safetensors", timeout=WAIT_MS)
    await expect(page.get_by_role("button", name="Generate", exact=True)).to_be_disabled()


async def sees_model(page: Page, name: str) -> None:
    """A checkpoint is chosen without a reload."""
    await expect(page.get_by_label("Model").locator("option:checked")).to_have_text(name, timeout=WAIT_MS)
    await expect(page.get_by_role("button", name="Generate", exact=True)).to_be_enabled()


async def asks(page: Page, prompt: str, **fields: str | int) -> None:
    """Fill in the form (fields by their request names) and press Ctrl+Enter."""
    for name, value in fields.items():
        field = page.locator(f"#{name}")
        if name == "seed":
            await page.get_by_label("Random").uncheck()
        if await field.evaluate("field => field.tagName") == "SELECT":
            await field.select_option(str(value))
        else:
            await field.fill(str(value))
    await page.get_by_label("Prompt", exact=True).fill(prompt)
    await page.keyboard.press("Control+Enter")


async def sees_progress(page: Page, *, preview: bool = True) -> None:
    """The job runs: a step count, and a live preview unless the service sends none."""
    await expect(page.locator("#numbers")).to_have_text(re.compile(r"step \d+ of \d+"), timeout=WAIT_MS)
    if preview:
        await expect(page.get_by_role("img", name="Preview")).to_be_visible(timeout=WAIT_MS)


async def sees_pictures(page: Page, count: int, prompt: str) -> list[str]:
    """The finished pictures of the job with that prompt, really decoded by the browser; their addresses."""
    pictures = page.locator("#stage figure img")
    await expect(page.locator("#stage .status")).to_contain_text("Finished", timeout=WAIT_MS)
    await expect(page.locator("#stage .prompt")).to_have_text(prompt)
    await expect(pictures).to_have_count(count)
    addresses = []
    for index in range(count):
        await expect(pictures.nth(index)).not_to_have_js_property("naturalWidth", 0, timeout=WAIT_MS)
        addresses.append(str(await pictures.nth(index).get_attribute("src")))
    return addresses


async def reuses_the_seed(page: Page) -> int:
    """Press Reuse seed on the first picture: the form holds its seed, and no longer draws one."""
    seed = int(re.sub(r"\D", "", await page.locator("figcaption span").first.inner_text()))
    await page.get_by_role("button", name="Reuse seed").first.click()
    await expect(page.get_by_label("Seed", exact=True)).to_have_value(str(seed))
    await expect(page.get_by_label("Random")).not_to_be_checked()
    return seed


async def reads_the_infotext(page: Page, *parts: str) -> None:
    """Open the infotext of the picture shown; it holds each of `parts`."""
    await page.get_by_text("Infotext").click()
    for part in parts:
        await expect(page.locator("#stage pre").first).to_contain_text(part)


async def reloads(page: Page, *, status: str, jobs: int) -> None:
    """After a reload the gallery has as many jobs, and the one that was shown is shown with that status."""
    await page.reload()
    await expect(page.locator("#gallery li")).to_have_count(jobs, timeout=WAIT_MS)
    await expect(page.locator("#stage .status")).to_contain_text(status, timeout=WAIT_MS)


async def cancels(page: Page) -> None:
    """Cancel the job that is shown; the page says that it is over."""
    await page.get_by_role("button", name="Cancel", exact=True).click()
    await expect(page.locator("#stage .status")).to_contain_text("Cancelled", timeout=WAIT_MS)
    await expect(page.get_by_role("button", name="Cancel", exact=True)).to_be_disabled()


async def sees_models(page: Page, *names: str) -> None:
    """These can be chosen from, or are listed with why not."""
    await expect(page.get_by_label("Model").locator("option")).to_have_text(list(names), timeout=WAIT_MS)


async def sees_model_picture(page: Page, address: str) -> None:
    """The chosen model's picture from this address, or (empty) none."""
    if address:
        await expect(page.locator("#model-picture")).to_be_visible(timeout=WAIT_MS)
        await expect(page.locator("#model-picture")).to_have_attribute("src", address)
    else:
        await expect(page.locator("#model-picture")).to_be_hidden(timeout=WAIT_MS)


async def sees_refusal(page: Page, words: str) -> None:
    """The service's own words about what it refused, next to the form."""
    await expect(page.locator("#error")).to_contain_text(words, timeout=WAIT_MS)


async def sees_service(page: Page, state: str) -> None:
    """The service's state: ready, wait (not ready) or down."""
    await expect(page.locator("#service")).to_have_attribute("data-state", state, timeout=WAIT_MS)


async def fits(page: Page) -> None:
    """Nothing has to be scrolled sideways."""
    assert await page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


async def first_visit(base_url: str, *, model: str, preview: bool = True) -> None:
    """A whole visit to a ready service with the checkpoint `model`: make two pictures, look, reload, reuse the seed,
    meet a refusal. The service must know the sampler euler and refuse 100,000 steps or the page has to."""
    prompt = 'a <b>red</b> fox & its "shadow"'
    async with browser_page(base_url) as page:
        await sees_service(page, "ready")
        await sees_model(page, model)
        await asks(page, prompt, steps=8, n=2, width=64, height=64)
        await sees_progress(page, preview=preview)
        addresses = await sees_pictures(page, 2, prompt)
        assert len(set(addresses)) == 2
        seed = await reuses_the_seed(page)
        await reads_the_infotext(page, prompt, f"Seed: {seed}", "Size: 64x64")
        jobs = await page.locator("#gallery li").count()
        await reloads(page, status="Finished", jobs=jobs)
        assert await sees_pictures(page, 2, prompt) == addresses
        await asks(page, prompt, steps=100_000)
        await sees_refusal(page, "Steps")
        await fits(page)
