"""Identity: what the catalog records of a model, by the tensors and the metadata in its header. Pure."""

from math import prod
from typing import Literal, NamedTuple

from agents.headers import adapters, rules
from agents.headers.metadata import bounded, trigger_words
from agents.headers.rules import Keys, Tensors
from agents.headers.safetensors import Header
from schemas.files import Identity, Kind

_EMBEDDING_TENSORS = 4
_EMBEDDING_NAMES = frozenset(
    (*("clip_l", "clip_g", "t5", "clip_l_out", "clip_g_out", "t5_out"), *("text_encoders_0", "text_encoders_1"))
)
"""Of the vectors for each text encoder, as trainers name them."""

_SUFFIXES = {5: "-depth", 7: "-upscaler", 8: "-pix2pix"}
"""Of a UNet's family, by the channels it takes in."""

_INPAINTING = (9, 384)
"""What inpainting models take in: channels of a UNet, features of FLUX Fill."""

_BY_TRAINER = "by what its trainer wrote: its keys leave it open"

_UNFAMILIAR = (
    "This is a safetensors file, but its tensors are of no kind of model known here; "
    "if it should be one, convert it to the original layout of its family."
)


class _Recognised(NamedTuple):
    """What a table of tensors is: `prefix` stands before the keys of what denoises; the rest as in Identity."""

    kind: Kind
    family: str
    edition: str = ""
    guess: str = ""
    prefix: str = ""


def identify_header(header: Header) -> Identity:
    """Kind, family, variant and sizes. Looks at names and shapes only."""
    tensors = header.tensors
    found = recognise(tensors, header.metadata)
    kind, family = found.kind, found.family
    channels = _input_channels(tensors)
    if family in rules.WIDTHS.values() and kind in ("checkpoint", "diffusion_model"):
        family += _SUFFIXES.get(channels, "")
    if kind in ("checkpoint", "diffusion_model"):
        family = _special(tensors, family)
    problem = ""
    if kind == "unknown":
        problem = f"This is a model of the type {family}, which nothing here can use yet." if family else _UNFAMILIAR
    return Identity(
        kind=kind,
        family=family,
        variant=_variant(tensors, header.metadata, channels),
        dtypes=_dtypes(tensors),
        parameters=sum(prod(tensor.shape) for tensor in tensors.values()),
        components=_components(tensors, kind),
        metadata=bounded(header.metadata),
        trigger_words=trigger_words(header.metadata) if kind in ("lora", "embedding") else (),
        problem=problem,
        edition=found.edition,
        guess=found.guess,
    )


def recognise(tensors: Tensors, metadata: dict[str, str]) -> _Recognised:
    """Adapters first, since they name the parts they adapt; then whole checkpoints; then parts."""
    keys = Keys(tensors)
    if keys.match(("ip_adapter.", "image_proj.")):
        return _Recognised("unknown", "ip-adapter")
    if any(key.endswith(rules.LORA_MARKS) or any(part in key for part in rules.LORA_PARTS) for key in keys.names):
        return _lora(tensors, keys, metadata)
    for rule in rules.CHECKPOINT_RULES:
        if keys.match(rule.has, rule.lacks):
            return _Recognised(rule.kind, rule.family)
    control = any(keys.begin(mark) for mark in rules.CONTROL_MARKS)
    if (found := _transformer(tensors, keys)) is not None:
        return found._replace(kind="controlnet") if control else found
    if control:
        return _Recognised("controlnet", _width_family(tensors))
    for rule in rules.OTHER_RULES:
        if keys.match(rule.has, rule.lacks):
            return _Recognised(rule.kind, rule.family or _width_family(tensors))
    for marks in rules.UNET_MARKS:
        if any(keys.match(marks, prefix=prefix) for prefix in rules.PREFIXES):
            return _Recognised(_whole_or_part(keys), _width_family(tensors))
    return _embedding(tensors)


def _transformer(tensors: Tensors, keys: Keys) -> _Recognised | None:
    """What a model with a transformer that denoises is; None for other files."""
    for family, has, lacks in rules.DIT_RULES:
        for prefix in rules.PREFIXES:
            if keys.match(has, lacks, prefix):
                family, edition = _edition(tensors, keys, family, prefix)
                return _Recognised(_whole_or_part(keys), family, edition, prefix=prefix)
    return None


def _edition(tensors: Tensors, keys: Keys, family: str, prefix: str) -> tuple[str, str]:
    """The family and which of its models it is, by the shapes of a few tensors (in GGUF they may be transposed)."""

    def sides(part: str) -> list[int]:
        return sorted({side for name in keys.all(prefix + part) for side in tensors[name].shape}, reverse=True)

    def side(part: str) -> int:
        return max(sides(part), default=0)

    if family == "sd3" and 2432 in sides("joint_blocks.0.context_block.attn.proj."):
        return "sd35", "large"
    if family in ("flux-schnell", "longcat-image") and (
        width := side("txt_in.weight") or side("context_embedder.weight")
    ):
        family = {3584: "longcat-image"}.get(width, "bria" if family == "longcat-image" else family)
    if family == "qwen-image" and keys.begin(prefix + "__index_timestep_zero__"):
        return family, "edit-2511"
    for of, part, editions in rules.EDITIONS:
        if of == family:  # weights of four bits are packed into one long side: the bias next to them keeps its own
            for one in sides(part):
                if edition := editions.get(one, ""):
                    return family, edition
    return family, ""


def _whole_or_part(keys: Keys) -> Kind:
    """What denoises is a checkpoint when it has its text encoders or its VAE with it in the file."""
    return "checkpoint" if any(keys.begin(part) for part in rules.COMPANIONS) else "diffusion_model"


def _width_family(tensors: Tensors) -> str:
    """The family by the width of the text that cross-attention reads; empty when there is none or it is unusual."""
    for key, tensor in tensors.items():
        reads_text = key.endswith(("attn2.to_k.weight", "attn2.to_k.down")) and len(tensor.shape) == 2
        if reads_text and (family := rules.WIDTHS.get(tensor.shape[1], "")):
            return family
    return ""


def _lora(tensors: Tensors, keys: Keys, metadata: dict[str, str]) -> _Recognised:
    """By the layers, then by widths where the layout is a UNet's; what trainers wrote decides what these leave open."""
    declared = next(
        (
            family
            for name, beginning, family in rules.LORA_METADATA
            if metadata.get(name, "").lower().startswith(beginning)
        ),
        "",
    )
    found = adapters.family_of(tensors, declared)
    if found.family:
        return _Recognised("lora", *found)
    by_trainer = _Recognised("lora", declared, guess=_BY_TRAINER if declared else "")
    if any(keys.begin(part) for part in rules.TRANSFORMERS):
        return by_trainer
    if any("encoder_hid_proj" in name for name in keys.names):
        return _Recognised("lora", "kolors")
    family = _reading_text(tensors) or ("sdxl" if adapters.is_deep(keys.names) else "")
    if family == "sdxl" and declared == "kolors":  # the same layers, and the same width
        return by_trainer
    if family:
        return _Recognised("lora", family)
    family, guess = _text_encoders(tensors, keys)
    return by_trainer if declared and (guess or not family) else _Recognised("lora", family, guess=guess)


def _text_encoders(tensors: Tensors, keys: Keys) -> tuple[str, str]:
    """The family by which text encoders an adapter changes, and why that is a guess if it is one."""
    is_xl = any(keys.begin(part) for part in rules.SDXL_TEXT)
    if any("SelfAttention" in name or "DenseReluDense" in name for name in keys.names):
        has_second = any(keys.begin(part) for part in rules.SECOND_CLIP)
        return ("sd3" if has_second else "flux" if is_xl else ""), "by the text encoders that it changes"
    if is_xl:
        is_alone = all(name.startswith(rules.TEXT_ENCODERS) for name in keys.names)
        return "sdxl", "its text encoders could be those of sd3, flux too" if is_alone else ""
    for name in keys.all(rules.ONE_CLIP):
        if family := rules.WIDTHS_OF_CLIP.get(adapters.reads(tensors, name), ""):
            return family, ""
    return "", ""


def _reading_text(tensors: Tensors) -> str:
    """The family by the width of the text that a UNet's adapted layers read; empty where they leave it open."""
    for key in tensors:
        reads_text = "attn2" in key and ("to_k" in key or "to_v" in key)
        if reads_text and (family := rules.WIDTHS.get(adapters.reads(tensors, key), "")):
            return family
    return ""


def _embedding(tensors: Tensors) -> _Recognised:
    """Textual inversions: a few vectors under few names."""
    if tensors.keys() <= _EMBEDDING_NAMES:
        if "t5" in tensors:
            return _Recognised("embedding", "sd3" if "clip_g" in tensors else "flux" if "clip_l" in tensors else "")
        if {"clip_l", "clip_g"} <= tensors.keys() or "text_encoders_1" in tensors:
            return _Recognised("embedding", "sdxl")
    flat = [tensor for tensor in tensors.values() if len(tensor.shape) in (1, 2)]
    if not 0 < len(tensors) <= _EMBEDDING_TENSORS or len(flat) != len(tensors):
        return _Recognised("unknown", "")
    named = "emb_params" in tensors or any(key.startswith("string_to_param") for key in tensors)
    width = flat[0].shape[-1]
    if named or (len(tensors) == 1 and width in rules.EMBEDDING_WIDTHS):
        family = rules.EMBEDDING_WIDTHS.get(width, "")
        return _Recognised("embedding", family, guess="by the width of its vectors" if family else "")
    return _Recognised("unknown", "")


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
    if not tensors.keys().isdisjoint(("v_pred", "ztsnr", "edm_vpred.sigma_max")):
        return "v-prediction"
    prediction = metadata.get("modelspec.prediction_type", "").lower()
    trained = metadata.get("ss_v_parameterization", "").lower() == "true"
    is_768_v = metadata.get("modelspec.architecture", "").lower().startswith("stable-diffusion-v2-768-v")
    return "v-prediction" if prediction in ("v", "v_prediction", "v-prediction") or trained or is_768_v else ""


def _dtypes(tensors: Tensors) -> tuple[str, ...]:
    """Number formats by falling share of the bytes."""
    sizes: dict[str, int] = {}
    for tensor in tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.size
    return tuple(sorted(sizes, key=lambda dtype: (-sizes[dtype], dtype)))


def _components(tensors: Tensors, kind: Kind) -> dict[str, int]:
    """Bytes per component; what belongs to none is the file's own kind."""
    sizes: dict[str, int] = {}
    own = {"checkpoint": "other", "diffusion_model": "denoiser", "unknown": "other"}.get(kind, kind)
    for key, tensor in tensors.items():
        name = own
        if key.startswith(rules.PARTS):
            name = next(name for name, parts in rules.COMPONENTS if key.startswith(parts))
        sizes[name] = sizes.get(name, 0) + tensor.size
    return dict(sorted(sizes.items()))
