"""The engine: one device, one model, one thread. A plan goes in, pictures come out; a plan replayed gives the same.

The step loop is Darkroom's own and does what diffusers' StableDiffusionPipeline does, number for number. The pictures
of a plan are made one by one, so that none depends on its neighbours, each with its own scheduler and generator.
"""

import copy
import inspect
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import diffusers.schedulers
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from agents.diffusion.families.table import Family
from agents.diffusion.loading import Models, load
from agents.diffusion.samplers import class_names
from agents.diffusion.text_encoders import PromptEncoder
from schemas.jobs import Plan, SchedulerSpec

Stage = Literal["loading", "encoding prompt", "denoising", "decoding"]
Picture = NDArray[np.uint8]

PREVIEW_SIDE = 256
"""Pixels; a preview's longest side at most."""


class Stopped(Exception):
    """The work was stopped from outside, between two steps."""


class BrokenPicture(RuntimeError):
    """The model made numbers that are no picture (NaN or infinite)."""


class CannotSample(ValueError):
    """The plan's scheduler can't be built or can't do so few steps. The message says which."""


@dataclass(frozen=True, kw_only=True)
class Progress:
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


OnStep = Callable[[Progress], None]
ShouldStop = Callable[[], bool]
Tell = Callable[..., None]


class Engine:
    """Keeps one model on one device, with its last prompts. Not thread-safe: it belongs to one worker thread."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._sha256 = ""
        self._models: Models | None = None
        self._prompts: PromptEncoder | None = None

    @property
    def loaded(self) -> str:
        """The SHA-256 of the model in memory, or empty."""
        return self._sha256

    def unload(self) -> None:
        """Gives the model's memory back."""
        self._sha256, self._models, self._prompts = "", None, None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        elif self.device.type == "mps":
            torch.mps.empty_cache()

    def generate(self, plan: Plan, path: str | Path, on_step: OnStep, should_stop: ShouldStop) -> list[Picture]:
        """The plan's pictures, uint8 of shape (height, width, 3), in the order of its seeds.

        `path` is where the plan's checkpoint lies; it is read, and its SHA-256 compared, only when another model is in
        memory. Both callables are called in this thread, between steps. Raises CannotLoad, CannotSample, Stopped or
        BrokenPicture; torch.OutOfMemoryError passes. The engine can be used again after each of them.
        """
        images, steps = len(plan.seeds), plan.steps

        def tell(stage: Stage, image: int, step: int, preview: Callable[[], bytes] = bytes) -> None:
            if should_stop():
                raise Stopped
            on_step(Progress(stage=stage, image=image, images=images, step=step, steps=steps, preview=preview))

        with torch.inference_mode():
            if self._sha256 != plan.model.sha256 or self._models is None or self._prompts is None:
                tell("loading", 0, 0)
                self._load(path, plan.model.sha256)
                assert self._models is not None and self._prompts is not None
            models = self._models
            _check_size(plan, models)
            scheduler = _scheduler(models, plan)
            tell("encoding prompt", 0, 0)
            context = _context(self._prompts, plan)
            return [_picture(models, plan, copy.deepcopy(scheduler), context, image, tell) for image in range(images)]

    def _load(self, path: str | Path, sha256: str) -> None:
        self.unload()
        self._models = load(path, self.device, sha256=sha256)
        self._prompts = PromptEncoder(self._models.tokenizer, self._models.text)
        self._sha256 = sha256


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


def _picture(models: Models, plan: Plan, scheduler: Any, context: torch.Tensor, image: int, tell: Tell) -> Picture:
    """Denoises and decodes one picture from its own seed."""
    generator = torch.Generator("cpu").manual_seed(plan.seeds[image] % 2**64)
    shape = (1, models.unet.config.in_channels, plan.height // models.scale, plan.width // models.scale)
    noise = torch.randn(shape, generator=generator, dtype=models.dtype).to(models.device)
    latents, step = noise * scheduler.init_noise_sigma, 0
    tell("denoising", image, step)
    for call in _steps(models, scheduler, latents, context, plan, generator):
        latents, step = call.latents, step + call.completes
        tell("denoising", image, step, call.preview)
    tell("decoding", image, step)
    return _decode(models, latents)


@dataclass(frozen=True)
class _Call:
    """One call of the UNet behind us. `completes` is 1 when it ends one of the plan's steps, else 0: second-order
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
        preview = partial(_preview, models.family, scheduler, scaled[:1], noise, time)
        yield _Call(latents, int(completes), preview)


def _preview(family: Family, scheduler: Any, scaled: torch.Tensor, noise: torch.Tensor, time: torch.Tensor) -> bytes:
    return preview_jpeg(family, _clean(scheduler, scaled, noise, time))


def _clean(scheduler: Any, scaled: torch.Tensor, noise: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """What the model takes the finished latent for: (x - √(1-ā)·ε) / √ā. Every scheduler shows the model x at that
    scale, so one formula serves all; ā is interpolated, as some use times between the trained ones."""
    kept = scheduler.alphas_cumprod.cpu().numpy()
    alpha = float(np.interp(float(time), np.arange(len(kept)), kept))
    noise_share, picture_share = math.sqrt(1 - alpha), math.sqrt(alpha)
    return (scaled.float() - noise_share * noise.float()) / picture_share


def preview_jpeg(family: Family, latents: torch.Tensor) -> bytes:
    """A JPEG of (1, 4, h, w) latents by the family's linear latent-to-RGB factors: up to 8 times as large, 256 pixels
    at most on its longer side, which is some 20 KB."""
    factors = torch.tensor(family.latent_rgb, device=latents.device)
    colours = torch.einsum("chw,cr->hwr", latents[0].float(), factors).nan_to_num()
    pixels = ((colours + 1) * 127.5).clamp(0, 255).to(torch.uint8).cpu().numpy()
    image = Image.fromarray(pixels)
    factor = min(8.0, PREVIEW_SIDE / max(image.size))
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _decode(models: Models, latents: torch.Tensor) -> Picture:
    """Latents (1, 4, h, w) as uint8 pixels (8h, 8w, 3), or BrokenPicture."""
    image = models.vae.decode(latents / models.vae.config.scaling_factor, return_dict=False)[0][0].float()
    if not torch.isfinite(image).all():
        raise BrokenPicture(
            "The model made numbers that are no picture (NaN). Try a lower cfg_scale or another sampler; if every "
            "picture ends like this, the checkpoint is damaged."
        )
    pixels: Picture = ((image * 0.5 + 0.5).clamp(0, 1).permute(1, 2, 0).cpu().numpy() * 255).round().astype("uint8")
    return pixels
