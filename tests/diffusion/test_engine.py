import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from agents.diffusion.samplers import resolve
from agents.diffusion.tiny_checkpoint import checkpoint_bytes, tiny_tensors
from tests.diffusion.conftest import Tiny
from tests.diffusion.plain import plain_picture
from tests.later import Later

torch, drawing = Later("torch"), Later("agents.diffusion.engine")
sampling, weights = Later("agents.diffusion.sampling"), Later("agents.diffusion.weights")

Make = Callable[..., Any]


@pytest.mark.parametrize(
    ("sampler", "fields"),
    [
        ("euler", {}),
        ("euler_a", {}),
        ("dpmpp_2m karras", {"steps": 7}),
        ("dpmpp_2m_sde", {}),
        ("ddim", {"steps": 6}),
        ("heun", {}),
        ("plms", {}),
        ("uni_pc", {}),
        ("lcm", {"cfg_scale": 1.0}),
        ("tcd", {"cfg_scale": 0.0}),
        ("euler", {"width": 96, "height": 40}),
        ("euler", {"prompt": "", "negative_prompt": ""}),
    ],
)
def test_pictures_equal_those_of_plain_diffusers(
    sampler: str, fields: dict[str, Any], plan: Make, pictures: Make, pipeline: Any
) -> None:
    asked = plan(sampler, seeds=(1234,), **fields)
    ours, theirs = pictures(asked)[0].astype(int), plain_picture(pipeline, asked, 1234).astype(int)
    assert ours.shape == (asked.height, asked.width, 3)
    assert np.abs(ours - theirs).max() <= 1


def test_the_same_plan_twice_gives_the_same_bytes(plan: Make, tiny: Tiny, pictures: Make) -> None:
    asked = plan("euler_a", seeds=(5, 6))
    fresh = drawing.Engine(torch.device("cpu")).generate(asked, tiny.path, lambda progress: None, lambda: False)
    assert [picture.tobytes() for picture in pictures(asked)] == [picture.tobytes() for picture in fresh]


def test_a_picture_does_not_depend_on_its_neighbours(plan: Make, pictures: Make) -> None:
    alone = pictures(plan("dpmpp_2m_sde", seeds=(9,)))[0]
    among = pictures(plan("dpmpp_2m_sde", seeds=(3, 9, 4)))
    assert among[1].tobytes() == alone.tobytes()
    assert among[0].tobytes() != alone.tobytes()


def test_an_earlier_request_leaves_nothing_in_the_scheduler_of_the_next(plan: Make, pictures: Make) -> None:
    before = pictures(plan("dpmpp_2m"))[0]
    pictures(plan("dpmpp_2m_sde", "karras"))
    assert pictures(plan("dpmpp_2m"))[0].tobytes() == before.tobytes()


def test_prompt_seed_guidance_and_negative_prompt_all_matter(plan: Make, pictures: Make) -> None:
    asked = [
        plan(),
        plan(prompt="a blue sea"),
        plan(seeds=(2,)),
        plan(cfg_scale=3.0),
        plan(negative_prompt="a dog"),
        plan(prompt="word " * 200),
    ]
    assert len({pictures(one)[0].tobytes() for one in asked}) == len(asked)


def test_without_guidance_the_negative_prompt_does_not_matter(plan: Make, pictures: Make) -> None:
    one, other = (pictures(plan(cfg_scale=1.0, negative_prompt=text))[0] for text in ("", "a dog"))
    assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm2", "plms", "lcm"])
def test_progress_counts_the_steps_that_were_asked_for(sampler: str, plan: Make, tiny: Tiny, engine: Any) -> None:
    reported: list[Any] = []
    engine.generate(plan(sampler, seeds=(1, 2), steps=5), tiny.path, reported.append, lambda: False)
    for image in (0, 1):
        steps = [one.step for one in reported if one.image == image and one.stage == "denoising"]
        assert sorted(set(steps)) == [0, 1, 2, 3, 4, 5]
        assert steps == sorted(steps)
    assert {(one.steps, one.images) for one in reported} == {(5, 2)}
    assert [one.stage for one in reported][-1] == "decoding"


def test_loading_is_reported_once_and_only_when_the_model_is_not_there(plan: Make, tiny: Tiny) -> None:
    engine, reported = drawing.Engine(torch.device("cpu")), []
    for _ in range(2):
        engine.generate(plan(steps=1), tiny.path, lambda progress: reported.append(progress.stage), lambda: False)
    assert reported.count("loading") == 1
    assert reported[:2] == ["loading", "encoding prompt"]
    assert engine.loaded == tiny.sha256
    engine.unload()
    assert engine.loaded == ""


def test_previews_are_small_jpegs_that_come_to_resemble_each_other(plan: Make, tiny: Tiny, engine: Any) -> None:
    previews: list[bytes] = []
    engine.generate(plan(steps=6), tiny.path, lambda one: previews.append(one.preview()), lambda: False)
    shown = [np.asarray(Image.open(io.BytesIO(jpeg))).astype(int) for jpeg in previews if jpeg]
    assert len(shown) == 6
    assert all(len(jpeg) < 64 * 1024 for jpeg in previews)
    assert {picture.shape for picture in shown} == {(64, 64, 3)}
    assert all(picture.std() > 5 for picture in shown)
    assert np.abs(shown[-1] - shown[-2]).mean() < np.abs(shown[-1] - shown[0]).mean()


def test_a_stop_is_heard_between_two_steps_and_the_engine_goes_on_living(
    plan: Make, tiny: Tiny, engine: Any, pictures: Make
) -> None:
    reported: list[Any] = []
    with pytest.raises(sampling.Stopped):
        engine.generate(plan(steps=20), tiny.path, reported.append, lambda: bool(reported) and reported[-1].step == 3)
    assert max(one.step for one in reported) == 3
    assert pictures(plan())[0].shape == (64, 64, 3)


def test_a_model_that_makes_nan_is_a_failure_and_no_black_picture(plan: Make, tmp_path: Path) -> None:
    tensors = tiny_tensors(0)
    tensors["first_stage_model.decoder.conv_out.bias"][0] = np.nan
    path = tmp_path / "broken.safetensors"
    path.write_bytes(b"".join(checkpoint_bytes(tensors, {})))
    with pytest.raises(sampling.BrokenPicture, match="NaN"):
        _generate_whatever(path, plan(steps=1))


def test_a_file_with_other_content_is_not_taken_for_the_plans_model(plan: Make, tiny: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(b"".join(checkpoint_bytes(tiny_tensors(1), {})))
    engine = drawing.Engine(torch.device("cpu"))
    with pytest.raises(weights.ContentChanged):
        engine.generate(plan(), path, lambda progress: None, lambda: False)
    with pytest.raises(weights.FileGone):
        engine.generate(plan(), tmp_path / "gone", lambda progress: None, lambda: False)
    assert engine.loaded == ""
    assert engine.generate(plan(steps=1), tiny.path, lambda progress: None, lambda: False)[0].any()


@pytest.mark.parametrize("fields", [{"steps": 0}, {"steps": 1001}, {"width": 60}, {"height": 0}])
def test_what_cannot_be_sampled_is_an_error(fields: dict[str, int], plan: Make, pictures: Make) -> None:
    with pytest.raises(sampling.CannotSample):
        pictures(plan("ddim", **fields))


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m_karras", "heun", "ddim", "uni_pc", "dpmpp_2s"])
@pytest.mark.parametrize("steps", [1, 2])
def test_very_few_steps_work(sampler: str, steps: int, plan: Make, pictures: Make) -> None:
    assert pictures(plan(resolve(sampler).sampler, resolve(sampler).scheduler, steps=steps))[0].std() > 5


def _generate_whatever(path: Path, asked: Any) -> None:
    """A model without the catalog's word for it: the digest is the file's own."""
    model = msgspec.structs.replace(asked.model, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    engine = drawing.Engine(torch.device("cpu"))
    engine.generate(msgspec.structs.replace(asked, model=model), path, lambda progress: None, lambda: False)
