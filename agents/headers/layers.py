"""Layers: what the blocks of denoisers are called and how large their layers are, as tables.

Names are without their prefixes, with underscores, and with N for the number of a block. Sizes are what a layer takes
in and gives out. Sources: the published models, diffusers' loaders, ComfyUI's detection.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

Sizes = tuple[int, int]
"""What a layer takes in and gives out; 0 where that is not known."""

SURE = (
    ("chroma-radiance", ("nerf_",)),
    ("chroma", ("distilled_guidance_layer_",)),
    ("flux3", ("early_stream_modulations_",)),
    ("hidream", ("double_stream_blocks_", "single_stream_blocks_")),
    ("kandinsky5", ("visual_transformer_blocks_", "text_transformer_blocks_")),
    ("auraflow", ("joint_transformer_blocks_", "double_layers_", "single_layers_")),
    ("auraflow", ("single_transformer_blocks_N_ff_linear_1", "single_transformer_blocks_N_ff_linear_2")),
    ("qwen-image-2.1", ("transformer_blocks_N_img_mlp_gate_layer", "transformer_blocks_N_img_mlp_proj")),
    ("qwen-image-2.1", ("transformer_blocks_N_img_mlp_out", "txt_in_in_layer", "txt_in_out_layer")),
    ("qwen-image", ("transformer_blocks_N_img_m", "transformer_blocks_N_txt_m")),
    ("krea2", ("txtfusion_", "text_fusion_", "blocks_N_attn_gate", "blocks_N_attn_wq", "blocks_N_attn_wk")),
    ("krea2", ("blocks_N_attn_wv", "blocks_N_attn_wo", "transformer_blocks_N_attn_to_gate")),
    ("krea2", ("transformer_blocks_N_ff_gate", "transformer_blocks_N_ff_up", "transformer_blocks_N_ff_down")),
    ("krea2", ("blocks_N_mlp_gate", "blocks_N_mlp_up", "blocks_N_mlp_down")),
    ("ideogram4", ("embed_image_indicator", "llm_cond_proj", "layers_N_adaln_modulation")),
    ("ernie-image", ("layers_N_self_attention_", "layers_N_adaLN_sa_ln", "layers_N_mlp_linear_fc2")),
    ("anima", ("llm_adapter_",)),
    ("ltx2", ("*transformer_blocks_N_audio_", "*audio_to_video_attn_", "*video_to_audio_attn_")),
    ("sana", ("*ff_conv_inverted", "*ff_conv_point", "*mlp_inverted_conv", "*mlp_point_conv")),
    (
        "hunyuan-dit",
        ("blocks_N_attn1_Wqkv", "blocks_N_attn2_kv_proj", "blocks_N_attn1_out_proj", "blocks_N_attn2_q_proj"),
    ),
    ("ovis-image", ("double_blocks_N_img_mlp_gate_proj", "single_blocks_N_gate_proj")),
    ("cascade", ("*_attention_attn_in_proj", "*_attention_attn_to_", "*_attention_attn_out_proj", "*_kv_mapper_")),
)
"""Layers (beginnings of names; "*": parts) that one family has; the first that fits."""


class Denoiser(NamedTuple):
    """A model by its layers: `width`, what the first layer of its feed-forward gives out and the second takes in, and
    how many blocks it has of each kind."""

    family: str
    edition: str
    width: int
    up: int
    hidden: int
    blocks: Mapping[str, int]
    layers: Mapping[str, Callable[["Denoiser"], Sizes]]


def _same(one: Denoiser) -> Sizes:
    return (one.width, one.width)


def _times(count: int) -> Callable[[Denoiser], Sizes]:
    return lambda one: (one.width, count * one.width)


def _up(one: Denoiser) -> Sizes:
    return (one.width, one.up)


def _down(one: Denoiser) -> Sizes:
    return (one.hidden, one.width)


def _fused(one: Denoiser) -> Sizes:
    return (one.width, 3 * one.width + one.up)


def _unfused(one: Denoiser) -> Sizes:
    return (one.width + one.hidden, one.width)


def _any(one: Denoiser) -> Sizes:
    return (0, 0)


def _of(*parts: str, size: Callable[[Denoiser], Sizes]) -> dict[str, Callable[[Denoiser], Sizes]]:
    return dict.fromkeys(parts, size)


_STREAMS = ("double_blocks_N_img", "double_blocks_N_txt")
_ORIGINAL = {
    **_of(*(f"{stream}_attn_qkv" for stream in _STREAMS), size=_times(3)),
    **_of(*(f"{stream}_attn_proj" for stream in _STREAMS), size=_same),
    "single_blocks_N_linear1": _fused,
    "single_blocks_N_linear2": _unfused,
}
_PLAIN_MLP = {
    **_of(*(f"{stream}_mlp_0" for stream in _STREAMS), size=_up),
    **_of(*(f"{stream}_mlp_2" for stream in _STREAMS), size=_down),
}
_ATTENTION = _of(
    *(f"transformer_blocks_N_attn_{part}" for part in ("to_q", "to_k", "to_v", "to_out_0", "to_add_out")),
    *(f"transformer_blocks_N_attn_add_{part}_proj" for part in "qkv"),
    size=_same,
)
_SINGLE_ATTENTION = _of(*(f"single_transformer_blocks_N_attn_to_{part}" for part in "qkv"), size=_same)
_SINGLE = {
    **_SINGLE_ATTENTION,
    "single_transformer_blocks_N_proj_mlp": _up,
    "single_transformer_blocks_N_proj_out": _unfused,
}
_FEED_FORWARD = {
    **_of("transformer_blocks_N_ff_net_0_proj", "transformer_blocks_N_ff_context_net_0_proj", size=_up),
    **_of("transformer_blocks_N_ff_net_2", "transformer_blocks_N_ff_context_net_2", size=_down),
}
_NORMS = _of("transformer_blocks_N_norm1_linear", "transformer_blocks_N_norm1_context_linear", size=_times(6))
_CHROMA = {**_ORIGINAL, **_PLAIN_MLP, **_ATTENTION, **_SINGLE, **_FEED_FORWARD}
_FLUX = {
    **_CHROMA,
    **_NORMS,
    **_of(*(f"{stream}_mod_lin" for stream in _STREAMS), size=_times(6)),
    **_of("single_blocks_N_modulation_lin", "single_transformer_blocks_N_norm_linear", size=_times(3)),
    **_of(
        *(f"{kind}_blocks_N_processor_{part}" for kind in ("double", "single") for part in ("qkv", "proj")), size=_any
    ),
}
_FLUX2 = {
    **_ORIGINAL,
    **_PLAIN_MLP,
    **_ATTENTION,
    **_of("double_stream_modulation_img_lin", "double_stream_modulation_txt_lin", size=_times(6)),
    **_of("double_stream_modulation_img_linear", "double_stream_modulation_txt_linear", size=_times(6)),
    **_of("single_stream_modulation_lin", "single_stream_modulation_linear", size=_times(3)),
    **_of("transformer_blocks_N_ff_linear_in", "transformer_blocks_N_ff_context_linear_in", size=_up),
    **_of("transformer_blocks_N_ff_linear_out", "transformer_blocks_N_ff_context_linear_out", size=_down),
    "single_transformer_blocks_N_attn_to_qkv_mlp_proj": _fused,
    "single_transformer_blocks_N_attn_to_out": _unfused,
}
_HUNYUAN = {
    **_ORIGINAL,
    **_ATTENTION,
    **_SINGLE,
    **_FEED_FORWARD,
    **_NORMS,
    **_of(*(f"{stream}_mlp_fc1" for stream in _STREAMS), size=_up),
    **_of(*(f"{stream}_mlp_fc2" for stream in _STREAMS), size=_down),
    **_of(*(f"{stream}_mod_linear" for stream in _STREAMS), size=_times(6)),
    **_of("single_blocks_N_modulation_linear", "single_transformer_blocks_N_norm_linear", size=_times(3)),
    **_of("txt_in_individual_token_refiner_blocks_N_self_attn_qkv", size=_times(3)),
    **_of("context_embedder_token_refiner_refiner_blocks_N_attn_to_q", size=_same),
}
_JOINT = {
    **_of("joint_blocks_N_x_block_attn_qkv", "joint_blocks_N_context_block_attn_qkv", size=_times(3)),
    **_of("joint_blocks_N_x_block_attn_proj", "joint_blocks_N_context_block_attn_proj", size=_same),
    **_of("joint_blocks_N_x_block_mlp_fc1", "joint_blocks_N_context_block_mlp_fc1", size=_up),
    **_of("joint_blocks_N_x_block_mlp_fc2", "joint_blocks_N_context_block_mlp_fc2", size=_down),
    **_of("joint_blocks_N_x_block_adaLN_modulation_1", "joint_blocks_N_context_block_adaLN_modulation_1", size=_any),
}
_SD3 = {**_JOINT, **_ATTENTION, **_FEED_FORWARD, **_NORMS}
_SD35_MEDIUM = {
    **_SD3,
    **_of(*(f"transformer_blocks_N_attn2_{part}" for part in ("to_q", "to_k", "to_v", "to_out_0")), size=_same),
    **_of("joint_blocks_N_x_block_attn2_proj", size=_same),
    **_of("transformer_blocks_N_norm1_linear", "joint_blocks_N_x_block_adaLN_modulation_1", size=_any),
    **_of("joint_blocks_N_x_block_attn2_qkv", size=_times(3)),
}
_CROSS = _of(*(f"blocks_N_{kind}_attn_{part}" for kind in ("self", "cross") for part in "qkvo"), size=_same)
_WAN = {
    **_CROSS,
    **_of("blocks_N_cross_attn_k_img", "blocks_N_cross_attn_v_img", size=_same),
    **_of("blocks_N_attn2_add_k_proj", "blocks_N_attn2_add_v_proj", size=_same),
    **_of(*(f"blocks_N_attn{n}_{part}" for n in "12" for part in ("to_q", "to_k", "to_v", "to_out_0")), size=_same),
    **_of("blocks_N_ffn_0", "blocks_N_ffn_net_0_proj", size=_up),
    **_of("blocks_N_ffn_2", "blocks_N_ffn_net_2", size=_down),
}
_CROSS_OF_ORIGINALS = {
    "blocks_N_attn_qkv": _times(3),
    **_of("blocks_N_attn_proj", "blocks_N_cross_attn_q_linear", "blocks_N_cross_attn_proj", size=_same),
    "blocks_N_cross_attn_kv_linear": _times(2),
}
_NUMBERED_MLP = {"blocks_N_mlp_fc1": _up, "blocks_N_mlp_fc2": _down}
_TWO_ATTENTIONS = {
    **_of(
        *(f"transformer_blocks_N_attn{n}_{part}" for n in "12" for part in ("to_q", "to_k", "to_v", "to_out_0")),
        size=_same,
    ),
    "transformer_blocks_N_ff_net_0_proj": _up,
    "transformer_blocks_N_ff_net_2": _down,
}
_COSMOS = {
    **_TWO_ATTENTIONS,
    **_of("transformer_blocks_N_attn2_to_k", "transformer_blocks_N_attn2_to_v", size=lambda one: (1024, one.width)),
    **_of(*(f"blocks_N_self_attn_{part}" for part in ("q_proj", "k_proj", "v_proj", "output_proj")), size=_same),
    **_of("blocks_N_cross_attn_q_proj", "blocks_N_cross_attn_output_proj", size=_same),
    **_of("blocks_N_cross_attn_k_proj", "blocks_N_cross_attn_v_proj", size=lambda one: (1024, one.width)),
    "blocks_N_mlp_layer1": _up,
    "blocks_N_mlp_layer2": _down,
}
_LAYERS = {
    "layers_N_attention_out": _same,
    **_of("layers_N_feed_forward_w1", "layers_N_feed_forward_w3", size=_up),
    "layers_N_feed_forward_w2": _down,
}
_LUMINA2 = {
    **_LAYERS,
    "layers_N_attention_qkv": lambda one: (one.width, 5 * one.width // 3),
    "layers_N_adaLN_modulation_1": lambda one: (1024, 4 * one.width),
}
_LUMINA2_OF_DIFFUSERS = {
    **_of("layers_N_attn_to_q", "layers_N_attn_to_out_0", size=_same),
    **_of("layers_N_attn_to_k", "layers_N_attn_to_v", size=lambda one: (one.width, one.width // 3)),
    **_of("layers_N_feed_forward_linear_1", "layers_N_feed_forward_linear_3", size=_up),
    "layers_N_feed_forward_linear_2": _down,
    "layers_N_norm1_linear": lambda one: (1024, 4 * one.width),
}
_Z_IMAGE = {
    **_LAYERS,
    "layers_N_attention_qkv": _times(3),
    **_of(*(f"layers_N_attention_{part}" for part in ("to_q", "to_k", "to_v", "to_out_0")), size=_same),
    "layers_N_adaLN_modulation_0": lambda one: (256, 4 * one.width),
}
_IDEOGRAM = {
    **_LAYERS,
    "layers_N_attention_qkv": _times(3),
    **_of(*(f"layers_N_attention_{part}" for part in ("to_q", "to_k", "to_v", "to_out_0", "o")), size=_same),
}
_KREA2 = {
    **_ATTENTION,
    **_of("transformer_blocks_N_attn_to_k", "transformer_blocks_N_attn_to_v", size=lambda one: (one.width, 1536)),
}
_ONE_ATTENTION = {
    **_of(*(f"transformer_blocks_N_attn1_{part}" for part in ("to_q", "to_k", "to_v", "to_out_0")), size=_same),
    "transformer_blocks_N_norm1_linear": _any,
    "transformer_blocks_N_ff_net_0_proj": _up,
    "transformer_blocks_N_ff_net_2": _down,
}
_LIKE_FLUX = {name: size for name, size in _FLUX.items() if "transformer_blocks" in name}
_QWEN21 = _of(*(f"transformer_blocks_N_attn_{part}" for part in ("to_q", "to_k", "to_v", "to_out_0")), size=_same)


def _doubles(double: int, single: int) -> dict[str, int]:
    """Blocks, under their names in the original layout and in diffusers'."""
    names = {"double_blocks": double, "transformer_blocks": double}
    return names | {"single_blocks": single, "single_transformer_blocks": single}


def _alone(count: int) -> dict[str, int]:
    return {"joint_blocks": count, "transformer_blocks": count, "blocks": count, "layers": count}


MODELS = (
    Denoiser("flux", "", 3072, 12288, 12288, _doubles(19, 38), _FLUX),
    Denoiser("flux2", "klein-4b", 3072, 18432, 9216, _doubles(5, 20), _FLUX2),
    Denoiser("flux2", "klein-9b", 4096, 24576, 12288, _doubles(8, 24), _FLUX2),
    Denoiser("flux2", "dev", 6144, 36864, 18432, _doubles(8, 48), _FLUX2),
    Denoiser("chroma", "", 3072, 12288, 12288, _doubles(19, 38), _CHROMA),
    Denoiser("hunyuan-video", "", 3072, 12288, 12288, _doubles(20, 40), _HUNYUAN),
    Denoiser("hunyuan-image", "", 3584, 14336, 14336, _doubles(20, 40), _HUNYUAN),
    Denoiser("qwen-image", "", 3072, 12288, 12288, _alone(60), _ATTENTION),
    Denoiser("qwen-image-2.1", "", 4096, 12288, 12288, _alone(60), _QWEN21),
    Denoiser("ovis-image", "", 3072, 24576, 12288, _doubles(6, 27), _LIKE_FLUX),
    Denoiser("longcat-image", "", 3072, 12288, 12288, _doubles(10, 20), _LIKE_FLUX),
    Denoiser("krea2", "", 6144, 16384, 16384, _alone(28), _KREA2),
    Denoiser("sd3", "medium", 1536, 6144, 6144, _alone(24), _SD3),
    Denoiser("sd35", "medium", 1536, 6144, 6144, _alone(24), _SD35_MEDIUM),
    Denoiser("sd35", "large", 2432, 9728, 9728, _alone(38), _SD3),
    Denoiser("wan", "1.3b", 1536, 8960, 8960, _alone(30), _WAN),
    Denoiser("wan", "14b", 5120, 13824, 13824, _alone(40), _WAN),
    Denoiser("wan", "5b", 3072, 14336, 14336, _alone(30), _WAN),
    Denoiser("z-image", "", 3840, 10240, 10240, _alone(30), _Z_IMAGE),
    Denoiser("lumina2", "", 2304, 9216, 9216, _alone(26), {**_LUMINA2, **_LUMINA2_OF_DIFFUSERS}),
    Denoiser("omnigen2", "", 2520, 10240, 10240, _alone(32), _LUMINA2_OF_DIFFUSERS),
    Denoiser("ideogram4", "", 4608, 12288, 12288, _alone(34), _IDEOGRAM),
    Denoiser("pixart", "", 1152, 4608, 4608, _alone(28), {**_TWO_ATTENTIONS, **_CROSS_OF_ORIGINALS, **_NUMBERED_MLP}),
    Denoiser("hunyuan-dit", "", 1408, 6144, 6144, _alone(40), _NUMBERED_MLP),
    Denoiser("sana", "0.6b", 1152, 0, 0, _alone(28), {**_TWO_ATTENTIONS, **_CROSS_OF_ORIGINALS}),
    Denoiser("sana", "1.6b", 2240, 0, 0, _alone(60), {**_TWO_ATTENTIONS, **_CROSS_OF_ORIGINALS}),
    Denoiser("ltx-video", "2b", 2048, 8192, 8192, _alone(28), _TWO_ATTENTIONS),
    Denoiser("ltx-video", "13b", 4096, 16384, 16384, _alone(48), _TWO_ATTENTIONS),
    Denoiser("ltx2", "", 4096, 16384, 16384, _alone(48), _TWO_ATTENTIONS),
    Denoiser("cogview4", "", 4096, 16384, 16384, _alone(28), _ONE_ATTENTION),
    Denoiser("glm-image", "", 4096, 16384, 16384, _alone(30), _ONE_ATTENTION),
    Denoiser("cosmos", "2b", 2048, 8192, 8192, _alone(28), _COSMOS),
    Denoiser("anima", "", 2048, 8192, 8192, _alone(28), _COSMOS),
    Denoiser("cosmos", "7b", 4096, 16384, 16384, _alone(28), _COSMOS),
    Denoiser("cosmos", "14b", 5120, 20480, 20480, _alone(36), _COSMOS),
)
"""Models whose layers have names that others' have too. Where several fit, the first is the likeliest."""

KNOWN = frozenset(name for one in MODELS for name in one.layers)
"""Every such name."""
