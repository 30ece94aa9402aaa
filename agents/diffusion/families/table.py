"""Model families: the configs that all checkpoints of one share, and why other models can't be run.

A family is a folder under `configs/` in the layout diffusers knows (one small JSON per part) plus `family.json`. The
sizes in it are those of the real family; those of one checkpoint are read from its tensors' shapes, so that smaller
relatives load as well. `headers.classify` recognises the family of a file. Nothing here imports torch.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.files import Identity

CONFIGS = Path(__file__).parent / "configs"
VOCABULARY_FILE = CONFIGS / "clip" / "bpe_simple_vocab_16e6.txt.gz"

_NAMES = {"sdxl": "SDXL", "sdxl-refiner": "SDXL refiner", "sd2": "Stable Diffusion 2"}

Config = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Family:
    """What all checkpoints of a family share. `size` is its own picture size in pixels, `latent_rgb` a row of red,
    green and blue per latent channel, for previews. The configs are templates."""

    name: str
    label: str
    size: int
    latent_rgb: tuple[tuple[float, ...], ...]
    unet: Config
    vae: Config
    text: Config
    scheduler: Config


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The configs of one checkpoint's parts, as the classes of diffusers and transformers take them."""

    unet: Config
    vae: Config
    text: Config


def load_family(name: str) -> Family:
    """The family of that name from the data files; FileNotFoundError when it isn't there."""
    folder = CONFIGS / name

    def config(part: str) -> Config:
        fields: Config = json.loads((folder / part).read_text())
        return fields

    about = config("family.json")
    return Family(
        name=about["name"],
        label=about["label"],
        size=about["size"],
        latent_rgb=tuple(tuple(row) for row in about["latent_rgb"]),
        unet=config("unet/config.json"),
        vae=config("vae/config.json"),
        text=config("text_encoder/config.json"),
        scheduler=config("scheduler/scheduler_config.json"),
    )


def unsupported(identity: Identity) -> str:
    """A sentence on why a model of this identity can't be run; empty for one that can."""
    if identity.kind == "lora":
        return "It is a LoRA; choose a checkpoint as the model."
    if "denoiser" not in identity.components:
        return (
            "It is no Stable Diffusion checkpoint in the single-file layout (a single part of a model, or another "
            "architecture); choose a full Stable Diffusion 1.x checkpoint."
        )
    if identity.family.endswith("-pix2pix") or identity.variant == "inpaint":
        kind = "an inpainting" if identity.variant else "an instruct-pix2pix"
        return f"It is {kind} model; Darkroom runs plain text-to-image models so far."
    if identity.family not in ("", *supported()):
        name = _NAMES.get(identity.family, identity.family)
        return f"It is a model of the family {name}; Darkroom runs Stable Diffusion 1.x so far."
    if identity.variant == "v-prediction":
        return "It is a v-prediction or EDM model; Darkroom runs noise-predicting models so far."
    if "vae" not in identity.components:
        return "It has no VAE (first_stage_model); use a file that has everything in it."
    if "text_encoder" not in identity.components:
        return "It has no CLIP text encoder (cond_stage_model); use a file that has everything in it."
    return "" if identity.family else "It is no Stable Diffusion checkpoint in the single-file layout."


def supported() -> tuple[str, ...]:
    """The families Darkroom can run: the folders of configs that hold a `family.json`."""
    return tuple(sorted(file.parent.name for file in CONFIGS.glob("*/family.json")))
