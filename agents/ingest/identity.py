"""Identity: a tensor table and its metadata, made into what the catalog says of a model. Pure."""

from math import prod
from typing import Literal

from agents.ingest import families
from agents.ingest.families import Keys, Tensors
from agents.ingest.metadata import bounded, trigger_words
from agents.ingest.tensors import Table
from schemas.files import Identity, Kind

_CHECKPOINT = "model.diffusion_model."
_EMBEDDING_TENSORS = 4
_EMBEDDING_NAMES = frozenset(
    (*("clip_l", "clip_g", "t5", "clip_l_out", "clip_g_out", "t5_out"), *("text_encoders_0", "text_encoders_1"))
)
"""Of the vectors for each text encoder, as trainers name them."""

_SUFFIXES = {5: "-depth", 7: "-upscaler", 8: "-pix2pix"}
"""Of a UNet's family, by the channels it takes in."""

_INPAINTING = (9, 384)
"""What inpainting models take in: channels of a UNet, features of FLUX Fill."""

_UNFAMILIAR = (
    "This is a safetensors file, but its tensors are of no kind of model known here; "
    "if it should be one, convert it to the original layout of its family."
)


def identify_table(table: Table) -> Identity:
    """Kind, family, variant and sizes. Looks at names and shapes only."""
    tensors = table.tensors
    kind, family = _kind_and_family(tensors, table.metadata)
    channels = _input_channels(tensors)
    if family in families.WIDTHS.values() and kind in ("checkpoint", "diffusion_model"):
        family += _SUFFIXES.get(channels, "")
    if kind in ("checkpoint", "diffusion_model"):
        family = _special(tensors, family)
    problem = "" if kind != "unknown" else _problem(family)
    return Identity(
        kind=kind,
        family=family,
        variant=_variant(tensors, table.metadata, channels),
        dtypes=_dtypes(tensors),
        parameters=sum(prod(tensor.shape) for tensor in tensors.values()),
        components=_components(tensors, kind),
        metadata=bounded(table.metadata),
        trigger_words=trigger_words(table.metadata) if kind in ("lora", "embedding") else (),
        problem=problem,
    )


def _kind_and_family(tensors: Tensors, metadata: dict[str, str]) -> tuple[Kind, str]:
    """Adapters first, since they name the parts they adapt; then whole checkpoints; then parts."""
    keys = Keys(tensors)
    if keys.match(("ip_adapter.", "image_proj.")):
        return "unknown", "ip-adapter"
    if any(key.endswith(families.LORA_MARKS) or ".lora_A." in key for key in keys.names):
        return "lora", _lora_family(tensors, keys, metadata)
    for rule in families.CHECKPOINT_RULES:
        if keys.match(rule.has, rule.lacks):
            return rule.kind, rule.family
    control = any(keys.begin(mark) for mark in families.CONTROL_MARKS)
    for family, has, lacks in families.DIT_RULES:
        if keys.match(has, lacks, _CHECKPOINT) or keys.match(has, lacks):
            return "controlnet" if control else _whole_or_part(keys), family
    if control:
        return "controlnet", _width_family(tensors)
    for rule in families.OTHER_RULES:
        if keys.match(rule.has, rule.lacks):
            return rule.kind, rule.family or _width_family(tensors)
    for marks in families.UNET_MARKS:
        if keys.match(marks) or keys.match(marks, prefix=_CHECKPOINT):
            return _whole_or_part(keys), _width_family(tensors)
    return _embedding(tensors)


def _whole_or_part(keys: Keys) -> Kind:
    """What denoises is a checkpoint when it has its text encoders or its VAE with it in the file."""
    return "checkpoint" if any(keys.begin(part) for part in families.COMPANIONS) else "diffusion_model"


def _width_family(tensors: Tensors) -> str:
    """The family by the width of the text that cross-attention reads; empty when there is none or it is unusual."""
    for key, tensor in tensors.items():
        if key.endswith(("attn2.to_k.weight", "attn2.to_k.down")) and len(tensor.shape) == 2:
            return families.WIDTHS.get(tensor.shape[1], "")
    return ""


def _lora_family(tensors: Tensors, keys: Keys, metadata: dict[str, str]) -> str:
    """By the layout, then by widths where the layout is a UNet's; what trainers wrote decides what these leave open."""
    said = next(
        (
            family
            for name, beginning, family in families.LORA_METADATA
            if metadata.get(name, "").lower().startswith(beginning)
        ),
        "",
    )
    for family, parts in families.LORA_RULES:
        if any(keys.begin(part) for part in parts):
            if family == "flux":
                return said if said in families.LIKE_FLUX else _flux_family(tensors)
            return family or said
    for key in tensors:
        if "attn2" in key and "to_k" in key and (family := families.WIDTHS.get(_reads(tensors, key), "")):
            return family
    return said


def _flux_family(tensors: Tensors) -> str:
    """FLUX.1 is 3072 wide; FLUX.2 has the same names and is wider."""
    for key in tensors:
        if "double_blocks" in key and "img_attn" in key and "qkv" in key and (width := _reads(tensors, key)):
            return "flux2" if width in (4096, 6144) else "flux"
    return "flux"


def _reads(tensors: Tensors, key: str) -> int:
    """The width that the layer an adapter's tensor belongs to takes in; 0 when this tensor does not tell."""
    shape = tensors[key].shape
    if len(shape) < 2:
        return 0
    if key.endswith(("down.weight", ".hada_w1_b")) or ".lora_A." in key:
        return shape[1]
    if key.endswith(".lokr_w1"):
        other = tensors.get(key[:-1] + "2") or tensors.get(key[:-1] + "2_b")
        return shape[1] * other.shape[1] if other is not None and len(other.shape) > 1 else 0
    return 0


def _embedding(tensors: Tensors) -> tuple[Kind, str]:
    """Textual inversions: a few vectors under few names."""
    if tensors.keys() <= _EMBEDDING_NAMES:
        if "t5" in tensors:
            return "embedding", "sd3" if "clip_g" in tensors else "flux" if "clip_l" in tensors else ""
        if {"clip_l", "clip_g"} <= tensors.keys() or "text_encoders_1" in tensors:
            return "embedding", "sdxl"
    flat = [tensor for tensor in tensors.values() if len(tensor.shape) in (1, 2)]
    if len(tensors) > _EMBEDDING_TENSORS or len(flat) != len(tensors):
        return "unknown", ""
    named = "emb_params" in tensors or any(key.startswith("string_to_param") for key in tensors)
    width = flat[0].shape[-1]
    if named or (len(tensors) == 1 and width in families.EMBEDDING_WIDTHS):
        return "embedding", families.EMBEDDING_WIDTHS.get(width, "")
    return "unknown", ""


def _input_channels(tensors: Tensors) -> int:
    """Channels that a UNet takes in: 4, 9 for inpainting, 8 for editing; or features of a transformer; 0 when there is
    neither."""
    for key in (
        *("model.diffusion_model.input_blocks.0.0.weight", "input_blocks.0.0.weight", "conv_in.weight"),
        *("model.diffusion_model.img_in.weight", "img_in.weight", "x_embedder.weight"),
    ):
        tensor = tensors.get(key)
        if tensor is not None and len(tensor.shape) in (2, 4):
            return tensor.shape[1]
    return 0


def _special(tensors: Tensors, family: str) -> str:
    """Fine-tunes whose noise is scaled otherwise: to sample them as their family would give noise."""
    if "edm_mean" in tensors:
        return "playground"
    return family.replace("sdxl", "cosxl") if "edm_vpred.sigma_max" in tensors else family


def _variant(tensors: Tensors, metadata: dict[str, str], channels: int) -> Literal["", "inpaint", "v-prediction"]:
    if channels in _INPAINTING:
        return "inpaint"
    if "v_pred" in tensors or "ztsnr" in tensors:
        return "v-prediction"
    says = metadata.get("modelspec.prediction_type", "").lower()
    trained = metadata.get("ss_v_parameterization", "").lower() == "true"
    is_768_v = metadata.get("modelspec.architecture", "").lower().startswith("stable-diffusion-v2-768-v")
    return "v-prediction" if says in ("v", "v_prediction", "v-prediction") or trained or is_768_v else ""


def _dtypes(tensors: Tensors) -> tuple[str, ...]:
    """Number formats by falling share of the bytes."""
    sizes: dict[str, int] = {}
    for tensor in tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.size
    return tuple(sorted(sizes, key=lambda dtype: (-sizes[dtype], dtype)))


def _components(tensors: Tensors, kind: Kind) -> dict[str, int]:
    """Bytes per component; what belongs to none is the file's own kind."""
    sizes: dict[str, int] = {}
    own = _own_name(kind)
    for key, tensor in tensors.items():
        name = own
        if key.startswith(families.PARTS):
            name = next(name for name, parts in families.COMPONENTS if key.startswith(parts))
        sizes[name] = sizes.get(name, 0) + tensor.size
    return dict(sorted(sizes.items()))


def _own_name(kind: Kind) -> str:
    return {"checkpoint": "other", "diffusion_model": "denoiser", "unknown": "other"}.get(kind, kind)


def _problem(family: str) -> str:
    if family:
        return f"This is a model of the type {family}, which nothing here can use yet."
    return _UNFAMILIAR
