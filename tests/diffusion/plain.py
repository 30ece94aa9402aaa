"""Plain diffusers, to compare with: the same checkpoint through StableDiffusionPipeline.from_single_file."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.diffusion.families.ldm import adapt
from agents.diffusion.families.table import CONFIGS, VOCABULARY_FILE, load_family
from agents.prompts.tokens import clip_vocabulary
from schemas.jobs import Plan
from tests.later import Later

torch, diffusers, transformers = Later("torch"), Later("diffusers"), Later("transformers")
sampling, weights = Later("agents.diffusion.sampling"), Later("agents.diffusion.weights")


def plain_pipeline(checkpoint: Path, folder: Path) -> Any:
    """A pipeline made by diffusers' own single-file loader; `folder` takes the configs it wants."""
    with weights.open_checkpoint(checkpoint) as file:
        header = weights.checkpoint_header(file)
    parts = adapt(load_family("sd15"), {name: entry.shape for name, entry in header.tensors.items()}, header.metadata)
    shutil.copytree(CONFIGS / "sd15", folder, dirs_exist_ok=True)
    for part, config in (("unet", parts.unet), ("vae", parts.vae), ("text_encoder", parts.text)):
        (folder / part / "config.json").write_text(json.dumps(config))
    vocabulary, merges = clip_vocabulary(VOCABULARY_FILE)
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)
    tokenizer.save_pretrained(folder / "tokenizer")
    pipeline = diffusers.StableDiffusionPipeline.from_single_file(
        str(checkpoint), config=str(folder), local_files_only=True, torch_dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def plain_picture(pipeline: Any, plan: Plan, seed: int) -> NDArray[np.uint8]:
    """One picture of a plan the way diffusers' users make it."""
    pipeline.scheduler = sampling.build_scheduler(load_family("sd15"), plan.spec)
    image = pipeline(
        plan.prompt,
        negative_prompt=plan.negative_prompt,
        num_inference_steps=plan.steps,
        guidance_scale=plan.cfg_scale,
        width=plan.width,
        height=plan.height,
        eta=0.3 if plan.sampler == "tcd" else 0.0,  # the pipeline's 0 would make TCD what DDIM is
        generator=torch.Generator("cpu").manual_seed(seed),
    ).images[0]
    return np.asarray(image)
