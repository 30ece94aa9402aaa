"""Model families: what a checkpoint's tensor names say it is, and the configs of its parts.

A family is a folder under `configs/` in the layout diffusers knows (one small JSON per part) plus `family.json`. The
template's sizes are those of the real family; the sizes of one checkpoint are read from its tensors' shapes, so that
smaller relatives load as well. Two things no shape tells: how many heads attention has and how many groups the norms
have. The header's free text may say it (`darkroom.unet_heads`, `darkroom.text_heads`, `darkroom.norm_groups`); if not,
the convention holds: 8 heads in the UNet, one head per 64 channels in the text encoder, 32 groups.

Nothing here imports torch.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).parent / "configs"
VOCABULARY_FILE = CONFIGS / "clip" / "bpe_simple_vocab_16e6.txt.gz"

UNET = "model.diffusion_model."
VAE = "first_stage_model."
TEXT = "cond_stage_model.transformer."

Shapes = Mapping[str, tuple[int, ...]]
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


def recognise(shapes: Shapes) -> tuple[str, str]:
    """The family's name and "", or "" and a sentence on why this is no checkpoint that Darkroom can run."""
    if f"{UNET}input_blocks.0.0.weight" not in shapes:
        return "", _no_unet(shapes)
    if any(name.startswith("conditioner.embedders.") for name in shapes):
        return "", "It is an SDXL checkpoint; Darkroom runs Stable Diffusion 1.x so far."
    if any(name.startswith("cond_stage_model.model.") for name in shapes):
        return "", "It is a Stable Diffusion 2 checkpoint; Darkroom runs Stable Diffusion 1.x so far."
    if (channels := shapes[f"{UNET}input_blocks.0.0.weight"][1]) != 4:
        kind = {9: "an inpainting", 8: "an instruct-pix2pix"}.get(channels, f"a {channels}-channel")
        return "", f"It is {kind} model; Darkroom runs plain text-to-image models so far."
    if any(name in shapes for name in ("v_pred", "ztsnr", "edm_vpred.sigma_max", "edm_mean")):
        return "", "It is a v-prediction or EDM model; Darkroom runs noise-predicting models so far."
    if not any(name.startswith(VAE) for name in shapes):
        return "", "It has no VAE (first_stage_model); use a file that has everything in it."
    if not any(name.startswith(TEXT) for name in shapes):
        return "", "It has no CLIP text encoder (cond_stage_model); use a file that has everything in it."
    return "sd15", ""


def _no_unet(shapes: Shapes) -> str:
    if any(re.search(r"lora_(up|down|A|B)\b", name) for name in shapes):
        return "It is a LoRA; choose a checkpoint as the model."
    if any(name.startswith(("down_blocks.", "double_blocks.", "joint_blocks.", "control_model.")) for name in shapes):
        return "It is a single part of a model or another architecture; choose a full Stable Diffusion 1.x checkpoint."
    return "It is no Stable Diffusion checkpoint in the single-file layout."


def adapt(family: Family, shapes: Shapes, metadata: Mapping[str, str]) -> Parts:
    """The family's configs with this checkpoint's sizes. KeyError or ValueError when the shapes make no such model."""
    unet = _unet(family.unet, shapes, metadata)
    vae = _vae(family.vae, shapes, metadata)
    if unet["in_channels"] != vae["latent_channels"]:
        raise ValueError(f"the UNet works on {unet['in_channels']} channels, the VAE on {vae['latent_channels']}")
    return Parts(unet=unet, vae=vae, text=_text(family.text, shapes, metadata))


def _unet(template: Config, shapes: Shapes, metadata: Mapping[str, str]) -> Config:
    """Downsamplers (input_blocks.N.0.op) tell the levels apart; a level with transformers is one of cross-attention."""
    count = _count(shapes, rf"{re.escape(UNET)}input_blocks\.(\d+)\.")
    levels: list[list[int]] = [[]]
    for index in range(1, count):
        if f"{UNET}input_blocks.{index}.0.op.weight" in shapes:
            levels.append([])
        else:
            levels[-1].append(index)
    crossing = [f"{UNET}input_blocks.{level[0]}.1.proj_in.weight" in shapes for level in levels]
    widths = [shapes[f"{UNET}input_blocks.{level[0]}.0.out_layers.3.weight"][0] for level in levels]
    context = next(shape[1] for name, shape in shapes.items() if name.startswith(UNET) and "attn2.to_k.weight" in name)
    return {
        **template,
        "in_channels": shapes[f"{UNET}input_blocks.0.0.weight"][1],
        "out_channels": shapes[f"{UNET}out.2.weight"][0],
        "block_out_channels": widths,
        "layers_per_block": len(levels[0]),
        "down_block_types": ["CrossAttnDownBlock2D" if cross else "DownBlock2D" for cross in crossing],
        "up_block_types": ["CrossAttnUpBlock2D" if cross else "UpBlock2D" for cross in reversed(crossing)],
        "cross_attention_dim": context,
        "attention_head_dim": _told(metadata, "darkroom.unet_heads", template["attention_head_dim"]),
        "norm_num_groups": _groups(template, widths, metadata),
    }


def _vae(template: Config, shapes: Shapes, metadata: Mapping[str, str]) -> Config:
    count = _count(shapes, rf"{re.escape(VAE)}encoder\.down\.(\d+)\.")
    widths = [shapes[f"{VAE}encoder.down.{level}.block.0.conv1.weight"][0] for level in range(count)]
    return {
        **template,
        "in_channels": shapes[f"{VAE}encoder.conv_in.weight"][1],
        "out_channels": shapes[f"{VAE}decoder.conv_out.weight"][0],
        "latent_channels": shapes[f"{VAE}decoder.conv_in.weight"][1],
        "block_out_channels": widths,
        "layers_per_block": _count(shapes, rf"{re.escape(VAE)}encoder\.down\.0\.block\.(\d+)\."),
        "down_block_types": ["DownEncoderBlock2D"] * count,
        "up_block_types": ["UpDecoderBlock2D"] * count,
        "norm_num_groups": _groups(template, widths, metadata),
    }


def _text(template: Config, shapes: Shapes, metadata: Mapping[str, str]) -> Config:
    """Some old merges leave `text_model.` out of the names."""
    at = TEXT + ("text_model." if any(name.startswith(TEXT + "text_model.") for name in shapes) else "")
    vocabulary, width = shapes[f"{at}embeddings.token_embedding.weight"]
    if vocabulary != template["vocab_size"]:
        raise ValueError(f"its text encoder knows {vocabulary} tokens where CLIP has {template['vocab_size']}")
    return {
        **template,
        "hidden_size": width,
        "projection_dim": width,
        "intermediate_size": shapes[f"{at}encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": _count(shapes, rf"{re.escape(at)}encoder\.layers\.(\d+)\."),
        "num_attention_heads": _told(metadata, "darkroom.text_heads", max(1, width // 64)),
        "max_position_embeddings": shapes[f"{at}embeddings.position_embedding.weight"][0],
    }


def _groups(template: Config, widths: list[int], metadata: Mapping[str, str]) -> int:
    """32, or for models too small for that the most that divides every width."""
    return _told(metadata, "darkroom.norm_groups", math.gcd(template["norm_num_groups"], *widths))


def _told(metadata: Mapping[str, str], key: str, otherwise: int) -> int:
    """A count from the header's free text, or the convention's."""
    number = int(metadata.get(key, otherwise))
    if number < 1:
        raise ValueError(f"{key} is {number} in its metadata")
    return number


def _count(shapes: Shapes, pattern: str) -> int:
    """One more than the highest number the pattern finds in a name."""
    found = {int(match[1]) for name in shapes if (match := re.match(pattern, name))}
    return max(found) + 1 if found else 0


def supported() -> tuple[str, ...]:
    """The families Darkroom can run: the folders of configs that hold a `family.json`."""
    return tuple(sorted(file.parent.name for file in CONFIGS.glob("*/family.json")))
