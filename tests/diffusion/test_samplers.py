import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from agents.diffusion.families.table import load_family
from agents.diffusion.samplers import SAMPLERS, SCHEDULES, UnknownSampler, normalised, pairs, resolve
from schemas.jobs import SchedulerSpec
from tests.later import Later

sampling = Later("agents.diffusion.sampling")


@pytest.mark.parametrize(
    ("sampler", "scheduler", "expected"),
    [
        ("euler", "normal", ("euler", "normal")),
        ("Euler", "", ("euler", "normal")),
        ("Euler a", "Automatic", ("euler_a", "normal")),
        ("euler_ancestral", "simple", ("euler_a", "normal")),
        ("DPM++ 2M Karras", "normal", ("dpmpp_2m", "karras")),
        ("DPM++ 2M", "Karras", ("dpmpp_2m", "karras")),
        ("dpmpp_2m_karras", "karras", ("dpmpp_2m", "karras")),
        ("dpm_pp_2m_karras", "normal", ("dpmpp_2m", "karras")),
        ("dpmpp_2m", "dpm_pp_2m_karras", ("dpmpp_2m", "karras")),
        ("DPM++ 2M SDE Exponential", "normal", ("dpmpp_2m_sde", "exponential")),
        ("dpmpp_2m_sde_gpu", "dpm_pp_2m_sde_karras", ("dpmpp_2m_sde", "karras")),
        ("DPM++ 3M SDE", "exponential", ("dpmpp_3m_sde", "exponential")),
        ("DPM2 a Karras", "normal", ("dpm2_a", "karras")),
        ("uni_pc", "normal", ("uni_pc", "normal")),
        ("UniPC", "sgm_uniform", ("uni_pc", "sgm_uniform")),
        ("euler", "SGM Uniform", ("euler", "sgm_uniform")),
        ("euler", "ddim_uniform", ("euler", "ddim_uniform")),
        ("karras", "normal", ("dpmpp_2m", "karras")),
        ("exponential", "normal", ("dpmpp_2m", "exponential")),
        ("ddim", "normal", ("ddim", "normal")),
        ("PLMS", "normal", ("plms", "normal")),
    ],
)
def test_names_users_know_are_understood(sampler: str, scheduler: str, expected: tuple[str, str]) -> None:
    resolved = resolve(sampler, scheduler)
    assert (resolved.sampler, resolved.scheduler) == expected


@pytest.mark.parametrize("name", ["", "nope", "restart", "LMS", "dpmpp_sde", "DPM++ 2S a", "euler cubed", "eulerr"])
def test_a_sampler_nobody_knows_is_an_error_that_lists_what_exists(name: str) -> None:
    with pytest.raises(UnknownSampler, match=r"there are: euler, euler_a.*tcd"):
        resolve(name, "normal")


def test_a_schedule_nobody_knows_is_an_error_that_lists_what_exists() -> None:
    with pytest.raises(UnknownSampler, match=r"there are: normal, karras"):
        resolve("euler", "beta")


def test_a_pair_the_class_cannot_run_is_an_error_that_lists_what_it_can() -> None:
    with pytest.raises(UnknownSampler, match="normal, sgm_uniform"):
        resolve("ddim", "karras")
    with pytest.raises(UnknownSampler, match="normal, sgm_uniform"):
        resolve("Euler a Karras")


def test_a_schedule_that_contradicts_the_samplers_own_name_is_an_error() -> None:
    with pytest.raises(UnknownSampler):
        resolve("DPM++ 2M Karras", "exponential")
    with pytest.raises(UnknownSampler):
        resolve("euler", "dpm_pp_2m_karras")


def test_no_name_means_two_things() -> None:
    for table in (SAMPLERS, SCHEDULES):
        names = [(normalised(name), row.id) for row in table for name in {row.id, row.label, *row.aliases}]
        meanings: dict[str, set[str]] = {}
        for name, row in names:
            meanings.setdefault(name, set()).add(row)
        assert all(len(rows) == 1 for rows in meanings.values())


def test_every_advertised_name_resolves_to_itself() -> None:
    for sampler, schedule in pairs():
        for first, second in ((sampler.id, schedule.id), (sampler.label, schedule.label)):
            resolved = resolve(first, second)
            assert (resolved.sampler, resolved.scheduler) == (sampler.id, schedule.id)
        assert resolve(f"{sampler.label} {schedule.label}").scheduler == schedule.id


def test_euler_normal_is_linspace_over_the_familys_own_betas() -> None:
    config = sampling.build_scheduler(load_family("sd15"), resolve("euler", "normal").spec).config
    expected = ("linspace", 0.00085, 0.012, "scaled_linear", 1, False)
    assert expected == (
        config.timestep_spacing,
        config.beta_start,
        config.beta_end,
        config.beta_schedule,
        config.steps_offset,
        config.use_karras_sigmas,
    )


@pytest.mark.parametrize(
    "spec",
    [
        SchedulerSpec(class_name="UNet2DConditionModel"),
        SchedulerSpec(class_name="__init__"),
        SchedulerSpec(class_name="EulerDiscreteScheduler", args={"no_such": 1}),
        SchedulerSpec(class_name="EulerDiscreteScheduler", args={"use_beta_sigmas": True}),
    ],
)
def test_a_plan_cannot_name_a_class_or_an_argument_that_is_not_there(spec: SchedulerSpec) -> None:
    with pytest.raises(sampling.CannotSample):
        sampling.build_scheduler(load_family("sd15"), spec)


def test_every_pair_runs_and_no_two_of_them_draw_the_same_picture(
    plan: Callable[..., Any], pictures: Callable[..., Any]
) -> None:
    drawn: dict[bytes, str] = {}
    for sampler, schedule in pairs():
        name = f"{sampler.id} {schedule.id}"
        picture = pictures(plan(sampler.id, schedule.id, steps=5, cfg_scale=1.0))[0]
        same = drawn.setdefault(picture.tobytes(), name)
        assert same == name, f"{name} draws what {same} draws"
        assert picture.std() > 10


def test_names_and_the_tiny_checkpoint_need_no_torch() -> None:
    code = "import sys, agents.diffusion.samplers, agents.diffusion.tiny_checkpoint, agents.prompts.tokens"
    code += ", agents.diffusion.families.table"
    code += "; sys.exit(bool({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
