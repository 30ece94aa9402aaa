"""One tiny checkpoint, one engine with it in memory and one plain pipeline for all tests here."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from agents.diffusion.samplers import resolve
from agents.diffusion.tiny_checkpoint import write_tiny_checkpoint
from schemas.files import FilePath
from schemas.jobs import ModelRef, Plan
from tests.diffusion.plain import plain_pipeline
from tests.later import Later

torch, drawing = Later("torch"), Later("agents.diffusion.engine")


@dataclass(frozen=True)
class Tiny:
    path: Path
    sha256: str


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    path = write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny.safetensors")
    return Tiny(path, hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture(scope="session")
def engine() -> Any:
    """One thread: on a busy machine torch's threads wait for each other far longer than these tiny layers take."""
    torch.set_num_threads(1)
    return drawing.Engine(torch.device("cpu"))


@pytest.fixture(scope="session")
def pipeline(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return plain_pipeline(tiny.path, tmp_path_factory.mktemp("configs"))


@pytest.fixture(scope="session")
def plan(tiny: Tiny) -> Callable[..., Plan]:
    """A plan for the tiny model; any field can be given, samplers and schedules by name."""

    def make(sampler: str = "euler", scheduler: str = "normal", **fields: Any) -> Plan:
        resolved = resolve(sampler, scheduler)
        path = FilePath(root="models", rel=tiny.path.name)
        defaults: dict[str, Any] = {
            "id": "0" * 32,
            "lane": "normal",
            "tenant": "t0",
            "day": "2026-01-01",
            "created_at": 0.0,
            "model": ModelRef(sha256=tiny.sha256, name="tiny", family="sd15", path=path),
            "prompt": "a red fox in the snow",
            "negative_prompt": "blurry",
            "steps": 4,
            "cfg_scale": 7.0,
            "width": 64,
            "height": 64,
            "sampler": resolved.sampler,
            "scheduler": resolved.scheduler,
            "spec": resolved.spec,
            "seeds": (1,),
            "format": "webp",
            "quality": 90,
            "lossless": False,
        }
        return Plan(**(defaults | fields))

    return make


@pytest.fixture(scope="session")
def pictures(engine: Any, tiny: Tiny) -> Callable[[Plan], list[NDArray[np.uint8]]]:
    """Makes a plan's pictures, reporting to nobody."""
    return lambda plan: engine.generate(plan, tiny.path, lambda progress: None, lambda: False)
