"""The engine: one device, one model, one thread. A plan goes in, pictures come out; a plan replayed gives the same."""

from collections.abc import Callable
from pathlib import Path

import torch

from agents.diffusion.loading import Models, load
from agents.diffusion.sampling import OnStep, PixelArray, ShouldStop, Stage, StepProgress, Stopped, draw
from agents.diffusion.text_encoders import PromptEncoder
from schemas.jobs import Plan


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

    def generate(self, plan: Plan, path: str | Path, on_step: OnStep, should_stop: ShouldStop) -> list[PixelArray]:
        """The plan's pictures, uint8 of shape (height, width, 3), in the order of its seeds.

        `path` is where the plan's checkpoint lies; it is read, and its SHA-256 compared, only when another model is in
        memory. Both callables are called in this thread, between steps. Raises CannotLoad, CannotSample, Stopped or
        BrokenPicture; torch.OutOfMemoryError passes. The engine can be used again after each of them.
        """
        images, steps = len(plan.seeds), plan.steps

        def report(stage: Stage, image: int, step: int, preview: Callable[[], bytes] = bytes) -> None:
            if should_stop():
                raise Stopped
            on_step(StepProgress(stage=stage, image=image, images=images, step=step, steps=steps, preview=preview))

        with torch.inference_mode():
            if self._sha256 != plan.model.sha256 or self._models is None or self._prompts is None:
                report("loading", 0, 0)
                self._load(path, plan.model.sha256)
                assert self._models is not None and self._prompts is not None
            return draw(self._models, self._prompts, plan, report)

    def _load(self, path: str | Path, sha256: str) -> None:
        self.unload()
        self._models = load(path, self.device, sha256=sha256)
        self._prompts = PromptEncoder(self._models.tokenizer, self._models.text)
        self._sha256 = sha256
