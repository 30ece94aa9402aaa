"""The original layout of latent diffusion checkpoints: the configs of one checkpoint's parts by its tensors' shapes.

Two things no shape shows: how many heads attention has and how many groups the norms have. The header's free text may
name them (`darkroom.unet_heads`, `darkroom.text_heads`, `darkroom.norm_groups`); if not, the convention holds: 8 heads
in the UNet, one head per 64 channels in the text encoder, 32 groups. Nothing here imports torch.
"""

import math
import re
from collections.abc import Mapping

from agents.diffusion.families.table import Config, Family, Parts

UNET = "model.diffusion_model."
VAE = "first_stage_model."
TEXT = "cond_stage_model.transformer."

Shapes = Mapping[str, tuple[int, ...]]


def adapt(family: Family, shapes: Shapes, metadata: Mapping[str, str]) -> Parts:
    """The family's configs with this checkpoint's sizes. KeyError or ValueError when the shapes make no such model."""
    unet = _unet(family.unet, shapes, metadata)
    vae = _vae(family.vae, shapes, metadata)
    if unet["in_channels"] != vae["latent_channels"]:
        raise ValueError(f"the UNet works on {unet['in_channels']} channels, the VAE on {vae['latent_channels']}")
    return Parts(unet=unet, vae=vae, text=_text(family.text, shapes, metadata))


def _unet(template: Config, shapes: Shapes, metadata: Mapping[str, str]) -> Config:
    """Downsamplers (input_blocks.N.0.op) divide the levels; a level with transformers is one of cross-attention."""
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
        "attention_head_dim": _declared(metadata, "darkroom.unet_heads", template["attention_head_dim"]),
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
        "num_attention_heads": _declared(metadata, "darkroom.text_heads", max(1, width // 64)),
        "max_position_embeddings": shapes[f"{at}embeddings.position_embedding.weight"][0],
    }


def _groups(template: Config, widths: list[int], metadata: Mapping[str, str]) -> int:
    """32, or for models too small for that the most that divides every width."""
    return _declared(metadata, "darkroom.norm_groups", math.gcd(template["norm_num_groups"], *widths))


def _declared(metadata: Mapping[str, str], key: str, otherwise: int) -> int:
    """A count from the header's free text, or the convention's."""
    number = int(metadata.get(key, otherwise))
    if number < 1:
        raise ValueError(f"{key} is {number} in its metadata")
    return number


def _count(shapes: Shapes, pattern: str) -> int:
    """One more than the highest number the pattern finds in a name."""
    found = {int(match[1]) for name in shapes if (match := re.match(pattern, name))}
    return max(found) + 1 if found else 0
