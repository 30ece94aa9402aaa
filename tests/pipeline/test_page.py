"""The page in a real browser against the real service: from an empty models folder to finished pictures."""

from pathlib import Path

from agents.diffusion.tiny_checkpoint import write_tiny_checkpoint
from tests.pipeline.test_up import up
from tests.web.page_steps import (
    asks,
    browser_page,
    cancels,
    first_visit,
    sees_how_to_begin,
    sees_model,
    sees_progress,
    sees_service,
)


async def test_a_newcomer_drops_a_checkpoint_and_makes_pictures_on_the_page(tmp_path: Path):
    models = tmp_path / "data" / "models"
    with up(tmp_path / "data") as (_, http, _):
        async with browser_page(http) as page:
            await sees_service(page, "ready")
            await sees_how_to_begin(page)
            write_tiny_checkpoint(models / "tiny.safetensors")
            await sees_model(page, "tiny")
            await asks(page, "a long job", steps=150, width=256, height=256, seed=3)
            await sees_progress(page)
            await cancels(page)
        await first_visit(http, model="tiny", preview=False)
