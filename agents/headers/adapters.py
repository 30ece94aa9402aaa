"""Adapters: the family of the model that a LoRA (LoHa, LoKr, …) was made for, by the layers it changes.

Trainers write the same layer under many names: `lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight`,
`diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight`, `base_model.model.…`, `transformer.…`. Here each becomes
`double_blocks_N_img_attn_qkv` with the numbers it takes in and gives out. Some layers are of one family only. Others
are of several, which differ in widths and in how many blocks they have; where those leave a choice too, it is a guess.
The names and sizes are in `layers`.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from agents.headers.layers import KNOWN, MODELS, SURE, Denoiser, Sizes
from agents.headers.safetensors import Tensor

Tensors = Mapping[str, Tensor]

_PREFIX = re.compile(
    r"base_model\.|model\.|diffusion_model\.|pipe\.|dit\.|module\.|_orig_mod\.|lora_unet_|lora_transformer[_.]|lora_dit_"
    r"|lora_prior_unet_|lycoris_|transformer\.|unet\.|net\.|transformer_(?=transformer_blocks|single_transformer_blocks)"
)
_ENDING = re.compile(
    r"[._](?:lora[12]?[._]|lora_|hada_|lokr_|oft_|boft_|glora|ia3|on_input|alpha$|dora_scale$|diff$|diff_b$|[wb]_norm$|"
    r"a1\.weight$|a2\.weight$|b1\.weight$|b2\.weight$)"
)
_BLOCK = re.compile(r"(blocks|layers|refiner)_([0-9]{1,6})_")
_DEPTH = re.compile(
    r"(?:attentions[._][0-9]|blocks[._][0-9]{1,2}[._]1|middle_block[._]1)[._]transformer_blocks[._]([0-9]{1,2})[._]"
)
_SHALLOW = 4
"""Transformers in a block of SDXL's refiner, the UNet with most after SDXL, which has ten."""
_LONGEST_NAME = 300
_TEXT_ENCODER = ("lora_te", "text_encoder", "te1.", "te2.", "clip_l.", "clip_g.", "t5xxl.")
_BROKEN_UP = re.compile(r"\.(?:img|txt)_attn_(?:qkv|proj|q|k|v)$")


class Layers(NamedTuple):
    """The layers of a denoiser that an adapter changes, without numbers of blocks; the highest of those numbers by what
    stands before it; whether names with dots have an underscore where only HunyuanVideo's have one."""

    sizes: dict[str, Sizes]
    highest: dict[str, int]
    is_broken_up: bool

    def have(self, beginnings: Iterable[str]) -> bool:
        """Whether some layer's name begins with one of these (or holds it, written "*part")."""
        return any(
            part[1:] in name if part.startswith("*") else name.startswith(part)
            for part in beginnings
            for name in self.sizes
        )


class AdapterFamily(NamedTuple):
    """A family, what of it (klein-4b, for example), and why it is only a guess, empty where the keys are clear."""

    family: str
    edition: str = ""
    guess: str = ""


def layers_of(tensors: Tensors) -> Layers:
    """The layers of the denoiser that an adapter changes; those of text encoders are left out."""
    sizes: dict[str, Sizes] = {}
    highest: dict[str, int] = {}
    is_broken_up = False
    for key, tensor in tensors.items():
        if len(key) > _LONGEST_NAME or key.startswith(_TEXT_ENCODER) or (end := _ENDING.search(key)) is None:
            continue
        name = key[: end.start()]
        while found := _PREFIX.match(name):
            name = name[found.end() :]
        is_broken_up = is_broken_up or _BROKEN_UP.search(name) is not None
        name = name.replace(".", "_")
        for block in _BLOCK.finditer(name):
            before = name[: block.end(1)]
            highest[before] = max(highest.get(before, 0), int(block[2]))
        name = _BLOCK.sub(r"\1_N_", name)
        reads, writes = sizes.get(name, (0, 0))
        if not (reads and writes):
            part = key[end.start() + 1 :]
            sizes[name] = (reads or _reads(tensors, key, part, tensor), writes or _writes(tensors, key, part, tensor))
    return Layers(sizes, highest, is_broken_up)


def reads(tensors: Tensors, key: str) -> int:
    """The width that the layer an adapter's tensor belongs to takes in; 0 when this tensor does not show it."""
    end = _ENDING.search(key)
    return _reads(tensors, key, key[end.start() + 1 :], tensors[key]) if end else 0


def is_deep(names: Iterable[str]) -> bool:
    """Whether an adapter changes a UNet whose blocks hold more transformers than one, and more than four: SDXL's."""
    return any(int(found[1]) >= _SHALLOW for name in names if (found := _DEPTH.search(name)))


def _reads(tensors: Tensors, key: str, part: str, tensor: Tensor) -> int:
    shape, kind = tensor.shape, _part(part)
    if kind == "on_input":  # (IA)³ scales what a layer takes in or gives out, one number for each
        return _scaled(tensors, key[: -len(part)], 1)
    if len(shape) < 2:
        return 0
    match kind:
        case "down" | "hada_w1_b" | "lora_down" | "lora_A" | "diff":
            return shape[1]
        case "lokr_w1" | "lokr_w1_b":
            return shape[1] * _side(tensors, key[: -len(part)], 1)
        case "ia3_l":
            return shape[1] if shape[0] == 1 else 0
        case "a1" | "a2":  # of GLoRA; which of them comes first differs from program to program
            return max(shape)
        case "oft_R":  # what is above the diagonals of skew-symmetric blocks
            return shape[0] * (1 + math.isqrt(1 + 8 * shape[1])) // 2 if len(shape) == 2 else shape[0] * shape[1]
        case "boft_R":
            return shape[-3] * shape[-1] if len(shape) > 2 else 0
    return 0


def _writes(tensors: Tensors, key: str, part: str, tensor: Tensor) -> int:
    shape, kind = tensor.shape, _part(part)
    if kind == "on_input":
        return _scaled(tensors, key[: -len(part)], 0)
    if len(shape) < 2:
        return 0
    match kind:
        case "up" | "hada_w1_a" | "lora_up" | "lora_B" | "diff" | "boft_s":
            return shape[0]
        case "lokr_w1" | "lokr_w1_a":
            return shape[0] * _side(tensors, key[: -len(part)], 0)
        case "ia3_l":
            return shape[0] if shape[1] == 1 else 0
        case "b1" | "b2":
            return shape[0] if shape[0] > shape[1] else 0
        case "oft_blocks" | "oft_diag":  # square blocks, in BOFT several times over
            return shape[-3] * shape[-1] if len(shape) > 2 else 0
    return 0


def _part(part: str) -> str:
    """What a tensor is to its layer: `down` of `lora_down.weight`, or `lora_A` of `lora_A.default.weight`."""
    parts = [one for one in part.split(".") if one not in ("weight", "default", "lora", "lora1", "lora2")]
    name = parts[0] if parts else ""
    return {"lora_down": "down", "lora_up": "up"}.get(name, name)


def _scaled(tensors: Tensors, layer: str, side: int) -> int:
    weight = tensors.get(f"{layer}weight")
    is_this = weight is not None and len(weight.shape) == 2 and weight.shape[1 - side] == 1
    return weight.shape[side] if weight is not None and is_this else 0


def _side(tensors: Tensors, layer: str, side: int) -> int:
    """A side of the second factor of a Kronecker product, whole or itself in two parts; 0 where it is not there."""
    other = tensors.get(f"{layer}lokr_w2") or tensors.get(f"{layer}lokr_w2_{'ab'[side]}")
    return other.shape[side] if other is not None and len(other.shape) > 1 else 0


_STREAMS_OF_FLUX = ("double_blocks_N_", "single_blocks_N_", "single_transformer_blocks_N_")
_OWN = (*_STREAMS_OF_FLUX, "joint_blocks_N_", "blocks_N_cross_attn_", "blocks_N_self_attn_")
"""Beginnings that fix a layout whatever the widths are."""

_TWO = ("transformer_blocks_N_attn1_", "transformer_blocks_N_attn2_", "blocks_N_attn1_", "blocks_N_attn2_")
_BY_TRAINER = "by what its trainer wrote: its keys leave it open"
_BY_NAMES = "by names that layers of several families have"


def family_of(tensors: Tensors, declared: str) -> AdapterFamily:
    """The family by the layers; `declared` is what a trainer wrote, and decides what they leave open. With no family,
    no layer is one of a transformer known here."""
    layers = layers_of(tensors)
    for family, beginnings in SURE:
        if layers.have(beginnings):
            return AdapterFamily(family)
    found = _by_sizes(layers, declared)
    if found.family or not layers.have(_STREAMS_OF_FLUX):
        return found
    return AdapterFamily(declared, guess=_BY_TRAINER) if declared else AdapterFamily("flux", guess=_BY_NAMES)


def _by_sizes(layers: Layers, declared: str) -> AdapterFamily:
    """By every layer whose name several models have, with its sizes and the number of blocks."""
    known = {name: sizes for name, sizes in layers.sizes.items() if name in KNOWN}
    named = [one for one in MODELS if known.keys() <= one.layers.keys() and not _is_too_long(one, layers)]
    if layers.is_broken_up:
        named = [one for one in named if one.family.startswith("hunyuan")]
    if not known or not named:
        return AdapterFamily("")
    if all(name.startswith(_TWO) for name in known) and not all(all(sizes) for sizes in known.values()):
        return AdapterFamily("")  # many have such names, and a width alone proves little
    fitting = [one for one in named if all(_fits(one.layers[name](one), sizes) for name, sizes in known.items())]
    if not fitting and not layers.have(_OWN):
        return AdapterFamily("")
    return _chosen(fitting or named, layers, declared, is_fitting=bool(fitting))


def _chosen(models: list[Denoiser], layers: Layers, declared: str, *, is_fitting: bool) -> AdapterFamily:
    """One of the models that an adapter may be for, and why it is a guess if it is one."""
    exact = [one for one in models if _is_exact(one, layers)]
    models = exact or sorted(models, key=lambda one: (_lacks_single(one, layers), not _ends_with_last(one, layers)))
    families = _families(models)
    if len(families) == 1:
        editions = {one.edition for one in models}
        return AdapterFamily(families[0], editions.pop() if len(editions) == 1 and is_fitting else "")
    if declared in families:
        return AdapterFamily(declared, guess=_BY_TRAINER)
    return AdapterFamily(families[0], guess=f"its keys could be those of {', '.join(families[1:])} too")


def _families(models: Iterable[Denoiser]) -> list[str]:
    return list(dict.fromkeys(one.family for one in models))


def _is_too_long(one: Denoiser, layers: Layers) -> bool:
    """Whether an adapter changes a block that this model has not."""
    return any(number >= one.blocks.get(name, number + 1) for name, number in layers.highest.items())


def _is_exact(one: Denoiser, layers: Layers) -> bool:
    """Whether an adapter changes every block of a model that has two kinds of them: chance would hardly hit both."""
    counts = [(number, one.blocks[name]) for name, number in layers.highest.items() if name in one.blocks]
    return len(counts) > 1 and all(number + 1 == count for number, count in counts)


def _ends_with_last(one: Denoiser, layers: Layers) -> bool:
    """Whether an adapter changes the last block of a model's first kind of them."""
    return layers.highest.get("double_blocks", -1) + 1 == one.blocks.get("double_blocks", -1)


def _lacks_single(one: Denoiser, layers: Layers) -> bool:
    """Whether an adapter leaves out one of a model's two kinds of blocks, which few do."""
    has_single = any(name.startswith("single_") for name in layers.highest)
    return not has_single and "single_blocks" in one.blocks and "double_blocks" not in layers.highest


def _fits(expected: Sizes, found: Sizes) -> bool:
    return all(not one or not other or one == other for one, other in zip(expected, found, strict=True))
