"""Previews: what a picture looks like so far, as a small JPEG."""

import io
import math
from typing import Any

import numpy as np
import torch
from PIL import Image

from agents.diffusion.families.table import Family

PREVIEW_SIDE = 256
"""Pixels; a preview's longest side at most."""


def preview(family: Family, scheduler: Any, scaled: torch.Tensor, noise: torch.Tensor, time: torch.Tensor) -> bytes:
    """A JPEG of the picture that the model aims at, by what it was shown (`scaled`, (1, 4, h, w)) and the noise it
    found there at one of the scheduler's times. The family's linear latent-to-RGB factors make it up to 8 times as
    large, 256 pixels at most on its longer side, which is some 20 KB."""
    latents = _clean(scheduler, scaled, noise, time)
    factors = torch.tensor(family.latent_rgb, device=latents.device)
    colours = torch.einsum("chw,cr->hwr", latents[0], factors).nan_to_num()
    pixels = ((colours + 1) * 127.5).clamp(0, 255).to(torch.uint8).cpu().numpy()
    image = Image.fromarray(pixels)
    factor = min(8.0, PREVIEW_SIDE / max(image.size))
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _clean(scheduler: Any, scaled: torch.Tensor, noise: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """What the model takes the finished latent for: (x - √(1-ā)·ε) / √ā. Every scheduler shows the model x at that
    scale, so one formula serves all; ā is interpolated, as some use times between the trained ones."""
    kept = scheduler.alphas_cumprod.cpu().numpy()
    alpha = float(np.interp(float(time), np.arange(len(kept)), kept))
    noise_share, picture_share = math.sqrt(1 - alpha), math.sqrt(alpha)
    return (scaled.float() - noise_share * noise.float()) / picture_share
