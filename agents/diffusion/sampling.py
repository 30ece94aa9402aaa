"""Sampling: a plan's pictures by one model, from noise to pixels.

The step loop is Darkroom's own and does what diffusers' StableDiffusionPipeline does, number for number. The pictures
of a plan are made one by one, so that none depends on its neighbours, each with its own scheduler and generator.
"""

import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import diffusers.schedulers
import numpy as np
import torch
from numpy.typing import NDArray

from agents.diffusion.families.table import Family
from agents.diffusion.loading import Models
from agents.diffusion.previews import preview
from agents.diffusion.samplers import class_names
from agents.diffusion.text_encoders import PromptEncoder
from schemas.jobs import Plan, SchedulerSpec

Stage = Literal["loading", "encoding prompt", "denoising", "decoding"]
PixelArray = NDArray[np.uint8]


class Stopped(Exception):
    """The work was stopped from outside, between two steps."""


class BrokenPicture(RuntimeError):
    """The model made numbers that are no picture (NaN or infinite)."""


class CannotSample(ValueError):
    """The plan's scheduler can't be built or can't do so few steps. The message names which."""


@dataclass(frozen=True, kw_only=True)
class StepProgress:
    """Where a plan is: `step` of `steps` done for picture `image` (from 0) of `images`.

    `preview()` makes a small JPEG of what the picture looks like so far, or empty bytes before the first step and in
    other stages than denoising. It costs a wait for the device, is only valid while the callback runs, and nothing is
    computed unless it is called.
    """

    stage: Stage
    image: int
    images: int
    step: int
    steps: int
    preview: Callable[[], bytes]


OnStep = Callable[[StepProgress], None]
ShouldStop = Callable[[], bool]
Report = Callable[..., None]
"""Called with a stage, the picture's index, steps done and what makes a preview."""


def draw(models: Models, prompts: PromptEncoder, plan: Plan, report: Report) -> list[PixelArray]:
    """The plan's pictures, uint8 of shape (height, width, 3), in the order of its seeds. Raises CannotSample,
    BrokenPicture and whatever `report` raises."""
    _check_size(plan, models)
    scheduler = _scheduler(models, plan)
    report("encoding prompt", 0, 0)
    context = _context(prompts, plan)
    images = range(len(plan.seeds))
    return [_picture(models, plan, copy.deepcopy(scheduler), context, image, report) for image in images]


def build_scheduler(family: Family, spec: SchedulerSpec) -> Any:
    """A scheduler straight from the family's own configuration with the spec's arguments over it: nothing of an earlier
    request can be in it. CannotSample for a class that no sampler uses and for arguments it doesn't know."""
    if spec.class_name not in class_names():
        raise CannotSample(f"No sampler uses {spec.class_name}; there are: {', '.join(sorted(class_names()))}.")
    kind = getattr(diffusers.schedulers, spec.class_name)
    known = inspect.signature(kind.__init__).parameters
    if unknown := [name for name in spec.args if name not in known]:
        raise CannotSample(f"{spec.class_name} takes no {', '.join(unknown)}.")
    base = {name: value for name, value in family.scheduler.items() if name in known}
    try:
        return kind(**(base | spec.args))
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        raise CannotSample(f"{spec.class_name} can't be built: {error}") from error


def _check_size(plan: Plan, models: Models) -> None:
    if plan.width % models.scale or plan.height % models.scale or min(plan.width, plan.height) < models.scale:
        raise CannotSample(
            f"{plan.width}×{plan.height} is no picture size; both sides are multiples of {models.scale}."
        )


def _context(prompts: PromptEncoder, plan: Plan) -> torch.Tensor:
    """(2, 77 × rows, width), the negative prompt first; without guidance (1, 77 × rows, width)."""
    if plan.cfg_scale <= 1:
        return prompts.one(plan.prompt)
    positive, negative = prompts.pair(plan.prompt, plan.negative_prompt)
    return torch.cat([negative, positive])


def _scheduler(models: Models, plan: Plan) -> Any:
    """The plan's scheduler, ready for its steps. Every picture gets a copy: they collect state while they run, and some
    take 0.2 s to build."""
    scheduler = build_scheduler(models.family, plan.spec)
    try:
        scheduler.set_timesteps(plan.steps, device=models.device)
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise CannotSample(f"{plan.sampler} can't do {plan.steps} steps: {error}") from error
    return scheduler


def _picture(
    models: Models, plan: Plan, scheduler: Any, context: torch.Tensor, image: int, report: Report
) -> PixelArray:
    """Denoises and decodes one picture from its own seed."""
    generator = torch.Generator("cpu").manual_seed(plan.seeds[image] % 2**64)
    shape = (1, models.unet.config.in_channels, plan.height // models.scale, plan.width // models.scale)
    noise = torch.randn(shape, generator=generator, dtype=models.dtype).to(models.device)
    latents, step = noise * scheduler.init_noise_sigma, 0
    report("denoising", image, step)
    for call in _steps(models, scheduler, latents, context, plan, generator):
        latents, step = call.latents, step + call.completes
        report("denoising", image, step, call.preview)
    report("decoding", image, step)
    return _decode(models, latents)


@dataclass(frozen=True)
class _Call:
    """One call of the UNet, done. `completes` is 1 when it ends one of the plan's steps, else 0: second-order
    samplers take two calls a step, and PLMS makes one call more than steps."""

    latents: torch.Tensor
    completes: int
    preview: Callable[[], bytes]


def _steps(
    models: Models,
    scheduler: Any,
    latents: torch.Tensor,
    context: torch.Tensor,
    plan: Plan,
    generator: torch.Generator,
) -> Iterator[_Call]:
    """One call of the UNet after the other, from the first noise to the finished latents."""
    guided = context.shape[0] == 2
    accepted = inspect.signature(scheduler.step).parameters
    extra = {"generator": generator} if "generator" in accepted else {}
    timesteps = scheduler.timesteps
    early = len(timesteps) - plan.steps * scheduler.order
    for index, time in enumerate(timesteps):
        scaled = scheduler.scale_model_input(torch.cat([latents] * 2) if guided else latents, time)
        noise = models.unet(scaled, time, encoder_hidden_states=context, return_dict=False)[0]
        if guided:
            without, with_prompt = noise.chunk(2)
            noise = without + plan.cfg_scale * (with_prompt - without)
        latents = scheduler.step(noise, time, latents, **extra, return_dict=False)[0]
        done = index + 1
        completes = done == len(timesteps) or (done > early and done % scheduler.order == 0)
        yield _Call(latents, int(completes), partial(preview, models.family, scheduler, scaled[:1], noise, time))


def _decode(models: Models, latents: torch.Tensor) -> PixelArray:
    """Latents (1, 4, h, w) as uint8 pixels (8h, 8w, 3), or BrokenPicture."""
    image = models.vae.decode(latents / models.vae.config.scaling_factor, return_dict=False)[0][0].float()
    if not torch.isfinite(image).all():
        raise BrokenPicture(
            "The model made numbers that are no picture (NaN). Try a lower cfg_scale or another sampler; if every "
            "picture ends like this, the checkpoint is damaged."
        )
    pixels: PixelArray = ((image * 0.5 + 0.5).clamp(0, 1).permute(1, 2, 0).cpu().numpy() * 255).round().astype("uint8")
    return pixels
