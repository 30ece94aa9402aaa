"""From a single .safetensors file in the original layout to the three models that make a picture. Strictly offline.

Models are built without memory and take the file's tensors as their own. Every weight must find its place and every
place its weight; what checkpoints carry besides the three models (an EMA copy, training state) is left on disk.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from tokenizers import Tokenizer
from transformers import CLIPTextConfig, CLIPTextModel

from agents.diffusion.families.ldm import TEXT, UNET, VAE, adapt
from agents.diffusion.families.table import VOCABULARY_FILE, Config, Family, Parts, load_family, unsupported
from agents.diffusion.weights import (
    NotACheckpoint,
    UnsupportedFamily,
    checkpoint_header,
    open_checkpoint,
    read_tensors,
)
from agents.headers.classify import identify_header
from agents.headers.safetensors import Header
from agents.prompts.tokens import clip_tokenizer

State = dict[str, torch.Tensor]

_HARMLESS = (
    f"{VAE}loss.",
    f"{VAE}model_ema.",
    f"{TEXT}text_model.embeddings.position_ids",
    f"{TEXT}embeddings.position_ids",
    f"{TEXT}text_projection",
    f"{TEXT}logit_scale",
)


@dataclass(frozen=True, kw_only=True)
class Models:
    """One checkpoint in memory, on one device and in one type, frozen. `scale` is pixels per latent cell."""

    family: Family
    unet: Any
    vae: Any
    text: Any
    tokenizer: Tokenizer
    device: torch.device
    dtype: torch.dtype
    scale: int


def pick_device(name: str) -> torch.device:
    """The device a setting means: "auto" is the best there is (cuda, mps, cpu). ValueError for one that isn't there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"Unknown device {name!r}; use auto, cpu, mps, cuda or cuda:0.") from error
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, False) or (device.index or 0) >= max(1, torch.cuda.device_count()):
        raise ValueError(f"There is no device {name!r} here; use auto or cpu.")
    return device


def compute_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on cuda; float32 elsewhere (on mps because the VAE breaks in half precision)."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def load(path: str | Path, device: torch.device, *, sha256: str = "") -> Models:
    """Loads a checkpoint onto a device. With `sha256` the file must have that content.

    FileGone, NotACheckpoint, UnsupportedFamily or ContentChanged, all of them CannotLoad, name what the user can do.
    """
    dtype = compute_dtype(device)
    with open_checkpoint(path) as file:
        header = checkpoint_header(file)
        family = _family(path, header)
        configs = _configs(path, family, header)
        state = {name: tensor.to(dtype) for name, tensor in read_tensors(file, header, _is_weight, sha256=sha256)}
    unet = _fill(path, UNet2DConditionModel.from_config, configs.unet, _take(state, UNET), convert_ldm_unet_checkpoint)
    vae = _fill(path, AutoencoderKL.from_config, configs.vae, _take(state, VAE), convert_ldm_vae_checkpoint)
    text = _fill(path, _text_model, configs.text, _take(state, TEXT), _convert_text)
    layout = torch.channels_last if device.type == "cuda" else torch.preserve_format
    return Models(
        family=family,
        unet=unet.to(device=device, memory_format=layout),
        vae=vae.to(device=device, memory_format=layout),
        text=text.to(device=device),
        tokenizer=clip_tokenizer(VOCABULARY_FILE),
        device=device,
        dtype=dtype,
        scale=2 ** (len(configs.vae["block_out_channels"]) - 1),
    )


def _family(path: str | Path, header: Header) -> Family:
    identity = identify_header(header)
    if problem := unsupported(identity):
        raise UnsupportedFamily(f"{path} can't be run. {problem}")
    return load_family(identity.family)


def _configs(path: str | Path, family: Family, header: Header) -> Parts:
    try:
        return adapt(family, {name: entry.shape for name, entry in header.tensors.items()}, header.metadata)
    except (KeyError, ValueError, IndexError, StopIteration) as error:
        raise NotACheckpoint(
            f"{path} is no complete {family.label} checkpoint ({error}); download it again."
        ) from error


def _is_weight(name: str) -> bool:
    return name.startswith((UNET, VAE, TEXT)) and not name.startswith(_HARMLESS)


def _take(state: State, prefix: str) -> State:
    """Moves one model's tensors out of the state, so that no weight is held twice."""
    return {name: state.pop(name) for name in list(state) if name.startswith(prefix)}


def _fill(
    path: str | Path,
    build: Callable[[Config], Any],
    config: Config,
    original: State,
    convert: Callable[[State, Config], State],
) -> Any:
    """Builds a model without memory and gives it its weights: all of them, and nothing besides."""
    original = {name: _linear(name, tensor) for name, tensor in original.items()}
    converted = convert(dict(original), config)
    used = {id(tensor) for tensor in converted.values()}
    left = [name for name, tensor in original.items() if id(tensor) not in used]
    try:
        with torch.device("meta"):
            model = build(config)
    except (ValueError, RuntimeError, TypeError, KeyError, ArithmeticError) as error:
        raise NotACheckpoint(f"{path} describes no model that can be built ({error}).") from error
    missing, unexpected = _assign(path, model, converted)
    if missing or unexpected or left:
        raise NotACheckpoint(
            f"{path} does not fit: {_some('missing', missing)}{_some('unexpected', [*unexpected, *left])}"
            "choose another version of this checkpoint."
        )
    for name, buffer in list(model.named_buffers()):
        if buffer.is_meta:
            _restore_buffer(model, name, buffer)
    model.eval()
    model.requires_grad_(False)
    return model


def _assign(path: str | Path, model: Any, state: State) -> tuple[list[str], list[str]]:
    """The names that lack a weight and those that lack a place. NotACheckpoint when a shape is wrong."""
    try:
        result = model.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:
        raise NotACheckpoint(f"{path} has weights of the wrong shape: {error}") from error
    return list(result.missing_keys), list(result.unexpected_keys)


def _restore_buffer(model: Any, name: str, buffer: torch.Tensor) -> None:
    """Buffers that are no weights came without memory too. The only ones these models have count positions."""
    owner, _, leaf = name.rpartition(".")
    if leaf != "position_ids":
        raise UnsupportedFamily(f"{type(model).__name__} has a buffer {name} that nothing here can fill")
    model.get_submodule(owner).register_buffer(leaf, torch.arange(buffer.shape[-1]).expand(1, -1), persistent=False)


def _linear(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The VAE's attention was made of 1×1 convolutions; its linear layers have the same numbers in two dimensions."""
    return tensor.flatten(1) if ".attn_1." in name and tensor.ndim > 2 else tensor


def _text_model(config: Config) -> Any:
    return CLIPTextModel(CLIPTextConfig(**config))


def _convert_text(state: State, _: Config) -> State:
    """transformers 5.6 took the level `text_model.` out of the names; some old merges never had it."""
    return {name.removeprefix(TEXT).removeprefix("text_model."): tensor for name, tensor in state.items()}


def _some(word: str, names: Iterable[str]) -> str:
    """A few of the names and how many more there are; nothing for none."""
    names = sorted(names)
    if not names:
        return ""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{word} {', '.join(names[:3])}{more}; "
