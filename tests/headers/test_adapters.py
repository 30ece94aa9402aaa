"""Adapters of every family, under the names that trainers and programs write: the layers show what they are for, and
what they leave open is marked as a guess.

Names and sizes of layers are facts of the published models.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.headers import sandbox
from agents.headers.classify import identify_header
from agents.headers.safetensors import Header, Tensor
from schemas.files import Identity
from tests.ingest.making import Shapes, gguf_of, put

Layers = dict[str, tuple[int, int]]
"""What each layer takes in and gives out."""


def tensors(shapes: Shapes, metadata: dict[str, str] | None = None) -> Identity:
    """What a file of these tensors is, whose weights nobody has to write for that."""
    table = {name: Tensor(dtype="BF16", shape=shape, data_offsets=(0, 0)) for name, shape in shapes.items()}
    return identify_header(Header(table, metadata or {}, 0, 0))


def pairs(prefix: str, down: str, up: str, *, alpha: bool = False) -> Callable[[Layers], Shapes]:
    """Adapters of two factors under names with dots."""

    def made(layers: Layers) -> Shapes:
        shapes: Shapes = {}
        for name, (reads, writes) in layers.items():
            shapes |= {f"{prefix}{name}.{down}": (16, reads), f"{prefix}{name}.{up}": (writes, 16)}
            shapes |= {f"{prefix}{name}.alpha": ()} if alpha else {}
        return shapes

    return made


def underscores(prefix: str, naming: Callable[[Layers], Shapes]) -> Callable[[Layers], Shapes]:
    """The same with underscores in the names of layers."""
    return lambda layers: naming({prefix + name.replace(".", "_"): sizes for name, sizes in layers.items()})


def loha(layers: Layers) -> Shapes:
    parts = {"hada_w1_a": 1, "hada_w2_a": 1, "hada_w1_b": 0, "hada_w2_b": 0}
    return {
        f"{name}.{part}": (sizes[1], 8) if side else (8, sizes[0])
        for name, sizes in layers.items()
        for part, side in parts.items()
    }


def lokr(layers: Layers) -> Shapes:
    shapes: Shapes = {}
    for name, (reads, writes) in layers.items():
        shapes |= {f"{name}.lokr_w1": (16, 16), f"{name}.lokr_w2_a": (writes // 16, 8)}
        shapes |= {f"{name}.lokr_w2_b": (8, reads // 16), f"{name}.alpha": ()}
    return shapes


KOHYA = pairs("", "lora_down.weight", "lora_up.weight", alpha=True)

NAMINGS: dict[str, Callable[[Layers], Shapes]] = {
    "kohya": underscores("lora_unet_", KOHYA),
    "onetrainer": underscores("lora_transformer_", KOHYA),
    "lycoris": underscores("lycoris_", lokr),
    "loha": underscores("lora_unet_", loha),
    "diffusers": pairs("transformer.", "lora_A.weight", "lora_B.weight"),
    "old diffusers": pairs("transformer.", "lora.down.weight", "lora.up.weight"),
    "peft": pairs("base_model.model.", "lora_A.weight", "lora_B.weight"),
    "diffsynth": pairs("", "lora_A.default.weight", "lora_B.default.weight"),
    "lightning": pairs("", "lora_down.weight", "lora_up.weight", alpha=True),
    "ai-toolkit": pairs("diffusion_model.", "lora_A.weight", "lora_B.weight"),
    "comfyui": pairs("model.diffusion_model.", "lora_down.weight", "lora_up.weight", alpha=True),
}


def streams(width: int, up: int, hidden: int) -> Layers:
    """FLUX in the original layout."""
    return {
        "double_blocks.0.img_attn.qkv": (width, 3 * width),
        "double_blocks.0.img_attn.proj": (width, width),
        "double_blocks.0.img_mlp.0": (width, up),
        "double_blocks.0.img_mlp.2": (hidden, width),
        "single_blocks.0.linear1": (width, 3 * width + up),
        "single_blocks.0.linear2": (width + hidden, width),
    }


def joint(width: int) -> Layers:
    """What FLUX, Qwen-Image, SD3 and HunyuanVideo have in diffusers."""
    parts = ("to_q", "to_k", "to_v", "add_q_proj", "to_add_out")
    return {f"transformer_blocks.0.attn.{part}": (width, width) for part in parts}


def wan(width: int, up: int) -> Layers:
    layers = {f"blocks.0.{kind}_attn.{part}": (width, width) for kind in ("self", "cross") for part in "qkvo"}
    return layers | {"blocks.0.ffn.0": (width, up), "blocks.0.ffn.2": (up, width)}


def fused(width: int, qkv: int, up: int, modulation: dict[str, tuple[int, int]]) -> Layers:
    layers = {"attention.qkv": (width, qkv), "attention.out": (width, width), "feed_forward.w1": (width, up)}
    return {f"layers.0.{name}": sizes for name, sizes in (layers | modulation).items()}


def sd3(width: int) -> Layers:
    layers = {"attn.qkv": (width, 3 * width), "attn.proj": (width, width), "mlp.fc1": (width, 4 * width)}
    return {f"joint_blocks.0.{of}_block.{name}": sizes for of in ("x", "context") for name, sizes in layers.items()}


def cosmos(width: int) -> Layers:
    parts = {"self_attn.q_proj": width, "self_attn.output_proj": width, "cross_attn.k_proj": 1024, "mlp.layer1": width}
    return {f"blocks.0.{name}": (reads, 4 * width if "mlp" in name else width) for name, reads in parts.items()}


MODULATED = {"double_blocks.0.img_mod.lin": (3072, 18432), "single_blocks.0.modulation.lin": (3072, 9216)}
NORM = {"transformer_blocks.0.norm1.linear": (3072, 18432)}
FLUX2 = {
    "transformer_blocks.0.ff.linear_in": (3072, 18432),
    "transformer_blocks.0.ff.linear_out": (9216, 3072),
    "single_transformer_blocks.0.attn.to_qkv_mlp_proj": (3072, 27648),
}
TOLD: dict[str, tuple[Layers, str, str]] = {
    "FLUX.1": (streams(3072, 12288, 12288) | MODULATED, "flux", ""),
    "FLUX.2 klein 4B": (streams(3072, 18432, 9216), "flux2", "klein-4b"),
    "FLUX.2 klein 9B": (streams(4096, 24576, 12288), "flux2", "klein-9b"),
    "FLUX.2 dev": (streams(6144, 36864, 18432), "flux2", "dev"),
    "FLUX.2 klein 4B, the feed-forward alone": (
        {"double_blocks.3.txt_mlp.0": (3072, 18432)},
        *("flux2", "klein-4b"),
    ),
    "FLUX.2 klein 4B in diffusers": (joint(3072) | FLUX2, "flux2", "klein-4b"),
    "FLUX.2 klein 9B, attention alone": (joint(4096) | {"single_blocks.0.linear1": (4096, 36864)}, "flux2", "klein-9b"),
    "Chroma": (
        streams(3072, 12288, 12288) | {"distilled_guidance_layer.layers.0.in_layer": (5120, 5120)},
        *("chroma", ""),
    ),
    "Qwen-Image": (joint(3072) | {"transformer_blocks.0.img_mlp.net.2": (12288, 3072)}, "qwen-image", ""),
    "Qwen-Image, attention alone": (
        joint(3072) | {"transformer_blocks.59.attn.to_q": (3072, 3072)},
        *("qwen-image", ""),
    ),
    "HunyuanVideo": (
        {"double_blocks.0.img_mlp.fc1": (3072, 12288), "single_blocks.0.modulation.linear": (3072, 9216)},
        *("hunyuan-video", ""),
    ),
    "HunyuanImage": ({"double_blocks.0.img_mlp.fc1": (3584, 14336)}, "hunyuan-image", ""),
    "Z-Image": (fused(3840, 11520, 10240, {"adaLN_modulation.0": (256, 15360)}), "z-image", ""),
    "Z-Image in diffusers": ({"layers.0.attention.to_q": (3840, 3840)}, "z-image", ""),
    "Lumina 2": (fused(2304, 3840, 9216, {"adaLN_modulation.1": (1024, 9216)}), "lumina2", ""),
    "Lumina 2 in diffusers": ({"layers.0.attn.to_q": (2304, 2304)}, "lumina2", ""),
    "SD3.5 large": (sd3(2432), "sd35", "large"),
    "SD3.5 medium": (sd3(1536) | {"joint_blocks.0.x_block.attn2.qkv": (1536, 4608)}, "sd35", "medium"),
    "SD3.5 large in diffusers": (joint(2432), "sd35", "large"),
    "Wan 1.3B": (wan(1536, 8960), "wan", "1.3b"),
    "Wan 14B": (wan(5120, 13824), "wan", "14b"),
    "Wan 5B": (wan(3072, 14336), "wan", "5b"),
    "Wan in diffusers": (
        {"blocks.0.attn2.to_k": (5120, 5120), "blocks.0.ffn.net.2": (13824, 5120)},
        *("wan", "14b"),
    ),
    "Krea 2": ({"blocks.0.attn.gate": (6144, 6144), "blocks.0.attn.wq": (6144, 6144)}, "krea2", ""),
    "Krea 2 in diffusers": (
        {"transformer_blocks.0.attn.to_q": (6144, 6144), "transformer_blocks.0.attn.to_k": (6144, 1536)},
        *("krea2", ""),
    ),
    "Ideogram 4": ({"layers.0.attention.to_q": (4608, 4608)}, "ideogram4", ""),
    "ERNIE-Image": ({"layers.0.self_attention.to_q": (3072, 3072)}, "ernie-image", ""),
    "HiDream": ({"double_stream_blocks.0.block.attn1.to_q": (2560, 2560)}, "hidream", ""),
    "Cosmos 14B": (cosmos(5120), "cosmos", "14b"),
    "Anima": (cosmos(2048) | {"llm_adapter.blocks.0.self_attn.q_proj": (1024, 1024)}, "anima", ""),
    "AuraFlow": ({"joint_transformer_blocks.0.attn.to_q": (3072, 3072)}, "auraflow", ""),
    "PixArt": ({"blocks.0.mlp.fc1": (1152, 4608), "blocks.0.attn.qkv": (1152, 3456)}, "pixart", ""),
    "Sana": (
        {"transformer_blocks.0.attn1.to_q": (2240, 2240), "transformer_blocks.0.attn2.to_k": (2240, 2240)},
        *("sana", "1.6b"),
    ),
    "LTX-Video": (
        {"transformer_blocks.0.attn2.to_k": (2048, 2048), "transformer_blocks.0.ff.net.0.proj": (2048, 8192)},
        *("ltx-video", "2b"),
    ),
    "LTX-2": ({"transformer_blocks.0.audio_attn1.to_q": (2048, 2048)}, "ltx2", ""),
}


@pytest.mark.parametrize("naming", NAMINGS.values(), ids=NAMINGS.keys())
@pytest.mark.parametrize(("layers", "family", "edition"), TOLD.values(), ids=TOLD.keys())
def test_the_layers_show_what_an_adapter_is_for_however_they_are_named(
    layers: Layers, family: str, edition: str, naming: Callable[[Layers], Shapes]
) -> None:
    found = tensors(naming(layers))
    assert (found.kind, found.family, found.edition, found.guess) == ("lora", family, edition, "")


def parts(prefix: str, shapes: Callable[[int, int], Shapes]) -> Callable[[Layers], Shapes]:
    """Adapters of any other parts, by what the layer takes in and gives out."""
    return lambda layers: {
        f"{prefix}{name}.{part}": shape for name, sizes in layers.items() for part, shape in shapes(*sizes).items()
    }


OTHERS: dict[str, Callable[[Layers], Shapes]] = {
    "OFT of kohya": underscores("lora_unet_", parts("", lambda _, out: {"oft_blocks": (4, out // 4, out // 4)})),
    "OFT of LyCORIS": underscores("lycoris_", parts("", lambda _, out: {"oft_diag": (out // 8, 8, 8)})),
    "OFT of peft": parts("base_model.model.", lambda into, _: {"oft_R.weight": (into // 32, 496)}),
    "named OFT of peft": parts("transformer.", lambda into, _: {"oft_R.default.weight": (into // 32, 496)}),
    "BOFT": parts("", lambda into, out: {"boft_R": (1, into // 8, 8, 8), "boft_s": (out, 1)}),
    "IA3 of peft": parts("base_model.model.", lambda _, out: {"ia3_l": (out, 1)}),
    "IA3 of LyCORIS": underscores("lora_unet_", parts("", lambda _, out: {"on_input": (), "weight": (out, 1)})),
    "GLoRA": parts("", lambda into, out: {"a1.weight": (8, into), "b1.weight": (8, into), "b2.weight": (out, 8)}),
    "GLoRA, the other way round": parts("", lambda into, out: {"a1.weight": (into, 8), "b1.weight": (out, 8)}),
    "DoRA": parts("", lambda into, out: {"lora_A": (8, into), "lora_B": (out, 8), "lora_magnitude_vector": (out,)}),
    "without an ending": parts("diffusion_model.", lambda into, out: {"lora_down": (8, into), "lora_up": (out, 8)}),
}
WHERE = {
    "FLUX.2 klein 9B": ({"double_blocks.0.img_attn.qkv": (4096, 12288)}, "flux2"),
    "FLUX.1": ({"double_blocks.0.img_mod.lin": (3072, 18432)}, "flux"),
    "Wan 14B": (wan(5120, 13824), "wan"),
    "Z-Image": ({"layers.0.attention.to_q": (3840, 3840)}, "z-image"),
    "SD3.5 large": (sd3(2432), "sd35"),
}


@pytest.mark.parametrize("naming", OTHERS.values(), ids=OTHERS.keys())
@pytest.mark.parametrize(("layers", "family"), WHERE.values(), ids=WHERE.keys())
def test_adapters_of_any_kind_are_adapters_and_recognised_by_the_widths_in_their_parts(
    layers: Layers, family: str, naming: Callable[[Layers], Shapes]
) -> None:
    found = tensors(naming(layers))
    assert (found.kind, found.family, found.guess) == ("lora", family, "")


@pytest.mark.parametrize(
    "prefix",
    [
        *("model.", "dit.", "pipe.dit.", "module.", "transformer._orig_mod.", "lora_transformer."),
        "base_model.model.diffusion_model.",
    ],
)
def test_whatever_a_program_wrapped_its_model_in_is_passed_over(prefix: str) -> None:
    found = tensors(pairs(prefix, "lora_A.weight", "lora_B.weight")(streams(3072, 18432, 9216)))
    assert (found.family, found.edition) == ("flux2", "klein-4b")


@pytest.mark.parametrize(
    ("layers", "family"),
    [
        ({"layers.0.attn.to_q": (2520, 2520)}, "omnigen2"),
        ({"layers.0.attn.to_k": (2304, 768)}, "lumina2"),
        ({"layers.0.attn.to_q": (2000, 2000)}, ""),
        ({"blocks.0.mlp.fc1": (1408, 6144)}, "hunyuan-dit"),
        ({"blocks.0.mlp.fc1": (1152, 4608), "blocks.0.attn1.Wqkv": (1408, 4224)}, "hunyuan-dit"),
        ({"blocks.0.mlp.fc1": (768, 3072)}, ""),
        ({"down_blocks.0.2.attention.attn.in_proj": (2048, 6144)}, "cascade"),
    ],
)
def test_layers_of_one_name_in_several_models_are_recognised_by_their_widths(layers: Layers, family: str) -> None:
    found = tensors(NAMINGS["diffusers"](layers))
    assert (found.family, found.guess) == (family, "")


@pytest.mark.parametrize("last", [0, 3, 9])
@pytest.mark.parametrize("block", ["down_blocks.2.attentions.0", "input_blocks.7.1", "middle_block.1"])
def test_a_unet_without_a_layer_that_reads_text_is_sdxls_where_no_other_is_so_deep(block: str, last: int) -> None:
    layers = {f"{block}.transformer_blocks.{last}.attn1.to_k": (1280, 1280)}
    for naming in (NAMINGS["kohya"], pairs("unet.", "lora_A.weight", "lora_B.weight")):
        assert tensors(naming(layers)).family == ("sdxl" if last == 9 else "")


_CLIP, _T5 = "text_model.encoder.layers.0.self_attn.q_proj", "encoder.block.0.layer.0.SelfAttention.q"


@pytest.mark.parametrize(
    ("layers", "family", "guess"),
    [
        ({f"lora_te_{_CLIP}": (768, 768)}, "sd15", ""),
        ({f"lora_te_{_CLIP}": (1024, 1024)}, "sd2", ""),
        ({f"lora_te1_{_CLIP}": (768, 768)}, "sdxl", "flux"),
        ({f"lora_te1_{_CLIP}": (768, 768), f"lora_te2_{_CLIP}": (1280, 1280)}, "sdxl", "sd3"),
        ({f"lora_te1_{_CLIP}": (768, 768), "lora_unet_input_blocks.4.0.in_layers.2": (640, 640)}, "sdxl", ""),
        ({f"lora_te1_{_CLIP}": (768, 768), f"lora_te2_{_T5}": (4096, 4096)}, "flux", "text encoders"),
        ({f"lora_te1_{_CLIP}": (768, 768), f"lora_te2_{_CLIP}": (1280, 1280), f"lora_te3_{_T5}": (4096, 4096)},
         "sd3", "text encoders"),
    ],
)  # fmt: skip
def test_an_adapter_of_text_encoders_alone_is_known_by_them_or_a_guess(layers: Layers, family: str, guess: str) -> None:
    found = tensors(underscores("", KOHYA)(layers))
    assert (found.kind, found.family) == ("lora", family)
    assert guess in found.guess and bool(found.guess) == bool(guess)


OPEN: dict[str, tuple[Layers, str, str]] = {
    "a width that three families have": ({"double_blocks.0.img_attn.qkv": (3072, 9216)}, "flux", "flux2"),
    "FLUX.1 or Chroma": (streams(3072, 12288, 12288), "flux", "chroma"),
    "FLUX.1 or HunyuanVideo": (
        joint(3072) | NORM | {"single_transformer_blocks.0.proj_mlp": (3072, 12288)},
        *("flux", "hunyuan-video"),
    ),
    "Qwen-Image or FLUX": (joint(3072), "qwen-image", "flux"),
    "SD3 or SD3.5 medium": (sd3(1536), "sd3", "sd35"),
    "Cosmos or Anima": (cosmos(2048), "cosmos", "anima"),
    "PixArt or Sana": ({"blocks.0.cross_attn.kv_linear": (1152, 2304)}, "pixart", "sana"),
}


@pytest.mark.parametrize(("layers", "family", "other"), OPEN.values(), ids=OPEN.keys())
def test_what_no_key_shows_is_a_guess_that_names_the_others(layers: Layers, family: str, other: str) -> None:
    found = tensors(NAMINGS["ai-toolkit"](layers))
    assert found.family == family and other in found.guess


def test_layers_that_only_one_program_writes_are_those_of_the_family_it_is_for() -> None:
    names = ("double_blocks.0.processor.qkv_lora1.down.weight", "single_blocks.0.processor.proj_lora.up.weight")
    found = tensors(dict.fromkeys(names, (16, 3072)))
    assert (found.family, found.guess) == ("flux", "")


def test_an_adapter_of_every_block_is_recognised_by_their_number() -> None:
    parts = ("transformer_blocks.{}.attn.to_q", "single_transformer_blocks.{}.attn.to_q")
    for family, counts in {"flux": (19, 38), "hunyuan-video": (20, 40), "longcat-image": (10, 20)}.items():
        names = [part.format(at) for part, count in zip(parts, counts, strict=True) for at in range(count)]
        found = tensors(NAMINGS["diffusers"](dict.fromkeys(names, (3072, 3072))))
        assert found.family == family and bool(found.guess) == (family == "flux")  # Chroma has as many


@pytest.mark.parametrize(
    ("declared", "layers", "family"),
    [
        ("chroma", streams(3072, 12288, 12288), "chroma"),
        ("flux2", {"double_blocks.0.img_attn.qkv": (3072, 9216)}, "flux2"),
        ("flux2", streams(3072, 12288, 12288), "flux"),
        ("chroma", streams(3072, 18432, 9216), "flux2"),
        ("anima", cosmos(2048), "anima"),
        ("kolors", {"down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k": (2048, 640)}, "kolors"),
    ],
)
def test_what_a_trainer_wrote_decides_where_the_keys_leave_a_choice_and_only_there(
    declared: str, layers: Layers, family: str
) -> None:
    found = tensors(NAMINGS["kohya"](layers), {"ss_base_model_version": declared})
    assert found.family == family
    assert ("trainer" in found.guess) == (declared == family)


@pytest.mark.parametrize("width", [768, 1024, 2048, 1280])
def test_adapters_of_a_unet_are_recognised_by_the_text_they_read(width: int) -> None:
    layers = {"down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k": (width, 640)}
    families = {768: "sd15", 1024: "sd2", 2048: "sdxl", 1280: "sdxl-refiner"}
    for naming in ("kohya", "loha", "lycoris", "peft"):
        found = tensors(NAMINGS[naming](layers))
        assert (found.kind, found.family, found.guess) == ("lora", families[width], "")


BASES: dict[str, tuple[Shapes, str, str]] = {
    "schnell": ({"double_blocks.0.img_attn.norm.key_norm.scale": (128,)}, "flux-schnell", ""),
    "dev": (
        {"double_blocks.0.img_attn.norm.key_norm.scale": (128,), "guidance_in.in_layer.bias": (3072,)},
        *("flux", ""),
    ),
    "FLUX.2 dev": ({"double_stream_modulation_img.lin.weight": (36864, 6144)}, "flux2", "dev"),
    "klein 4B": ({"double_stream_modulation_img.lin.weight": (18432, 3072)}, "flux2", "klein-4b"),
    "klein 9B in diffusers": ({"double_stream_modulation_img.linear.weight": (24576, 4096)}, "flux2", "klein-9b"),
    "Chroma": ({"distilled_guidance_layer.in_proj.bias": (5120,), "double_blocks.0.x": (1,)}, "chroma", ""),
    "Chroma Radiance": (
        {"distilled_guidance_layer.in_proj.bias": (5120,), "nerf_image_embedder.embedder.0.bias": (64,)},
        *("chroma-radiance", ""),
    ),
    "Z-Image": (
        {"context_refiner.0.attention.k_norm.weight": (128,), "layers.0.adaLN_modulation.0.bias": (15360,)},
        *("z-image", ""),
    ),
    "Z-Image in diffusers": (
        {"context_refiner.0.attention.norm_k.weight": (128,), "layers.0.adaLN_modulation.0.bias": (15360,)},
        *("z-image", ""),
    ),
    "Qwen-Image": (
        {
            "time_text_embed.timestep_embedder.linear_1.bias": (3072,),
            "img_in.bias": (3072,),
            "transformer_blocks.0.attn.add_k_proj.bias": (3072,),
        },
        *("qwen-image", ""),
    ),
    "Qwen-Image of nunchaku": (
        {
            "time_text_embed.timestep_embedder.linear_1.bias": (3072,),
            "img_in.bias": (3072,),
            "transformer_blocks.0.attn.add_qkv_proj.bias": (9216,),
        },
        *("qwen-image", ""),
    ),
    "Krea 2": ({"txtfusion.projector.weight": (1, 12), "blocks.0.attn.gate.weight": (6144, 6144)}, "krea2", ""),
    "Ideogram 4": (
        {"embed_image_indicator.weight": (2, 4608), "llm_cond_proj.weight": (4608, 53248)},
        *("ideogram4", ""),
    ),
    "SD3.5 large": ({"joint_blocks.0.context_block.attn.proj.bias": (2432,)}, "sd35", "large"),
    "SD3 medium": ({"joint_blocks.0.context_block.attn.proj.bias": (1536,)}, "sd3", "medium"),
    "Lumina 2": ({"cap_embedder.0.weight": (2304,)}, "lumina2", ""),
    "HiDream": ({"caption_projection.0.linear.weight": (2560, 4096)}, "hidream", ""),
    "Wan 1.3B": ({"blocks.0.cross_attn.k.bias": (1536,)}, "wan", "1.3b"),
    "Wan 14B": ({"blocks.0.cross_attn.k.bias": (5120,)}, "wan", "14b"),
    "Wan 5B": ({"blocks.0.cross_attn.k.bias": (3072,)}, "wan", "5b"),
    "Wan 14B in four bits": (
        {"blocks.0.cross_attn.k.weight": (13107200, 1), "blocks.0.cross_attn.k.bias": (5120,)},
        *("wan", "14b"),
    ),
    "SD3.5 large in four bits": (
        {
            "joint_blocks.0.context_block.attn.proj.weight": (2957312, 1),
            "joint_blocks.0.context_block.attn.proj.bias": (2432,),
        },
        *("sd35", "large"),
    ),
    "Cosmos": ({"blocks.0.mlp.layer1.weight": (8192, 2048)}, "cosmos", ""),
    "Anima": ({"blocks.0.mlp.layer1.weight": (8192, 2048), "llm_adapter.x": (1,)}, "anima", ""),
    "Sana": ({"attention_y_norm.weight": (2240,), "blocks.0.cross_attn.q_linear.weight": (1, 1)}, "sana", ""),
    "PixArt": ({"t_block.1.weight": (1, 1), "blocks.0.cross_attn.q_linear.weight": (1, 1)}, "pixart", ""),
    "LTX-Video": ({"adaln_single.emb.timestep_embedder.linear_1.bias": (2048,)}, "ltx-video", ""),
    "HunyuanVideo": ({"txt_in.individual_token_refiner.blocks.0.x": (1,)}, "hunyuan-video", ""),
}


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model.", "net.", "transformer."])
@pytest.mark.parametrize(("shapes", "family", "edition"), BASES.values(), ids=BASES.keys())
def test_a_model_is_recognised_by_its_keys_after_every_prefix_quantised_or_not(
    shapes: Shapes, family: str, edition: str, prefix: str
) -> None:
    scales: Shapes = {
        f"{name.removesuffix('.weight')}.{more}": () for name in shapes for more in ("comfy_quant", "weight_scale")
    }
    for more in ({}, scales | {"scaled_fp8": (2,)}):
        found = tensors({prefix + name: shape for name, shape in (shapes | more).items()})
        assert (found.kind, found.family, found.edition, found.guess) == ("diffusion_model", family, edition, "")


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("shapes", "family", "edition"), BASES.values(), ids=BASES.keys())
def test_a_gguf_file_is_recognised_by_its_tensors_whatever_architecture_it_names(
    tmp_path: Path, shapes: Shapes, family: str, edition: str, turned: bool
) -> None:
    made: Any = {name: shape[::-1] if turned else shape for name, shape in shapes.items()}
    found = sandbox.identify(put(tmp_path / "a.gguf", gguf_of(b"flux", made)))
    assert (found.kind, found.family, found.edition, found.guess) == ("diffusion_model", family, edition, "")


def test_a_gguf_file_whose_tensors_leave_all_open_is_a_guess(tmp_path: Path) -> None:
    found = sandbox.identify(put(tmp_path / "a.gguf", gguf_of(b"flux", {"x": (1,)})))
    assert found.family == "flux" and "architecture" in found.guess


PARTS = st.sampled_from(
    (
        *("net.", "lora_unet_", "transformer.", "double_blocks", "single_transformer_blocks", "layers", "_", ".", "0"),
        *(
            "9" * 400,
            "attn.to_q",
            ".lora_A.weight",
            ".lokr_w1",
            ".lokr_w2",
            ".alpha",
            ".diff",
            "img_attn.qkv",
            "\n",
            "",
        ),
    )
)


@given(st.dictionaries(st.lists(PARTS, max_size=8).map("".join), st.lists(st.integers(0, 1 << 62), max_size=3)))
def test_whatever_the_names_and_shapes_are_something_is_said(shapes: dict[str, list[int]]) -> None:
    assert tensors({name: tuple(shape) for name, shape in shapes.items()}).kind


def test_a_textual_inversion_is_a_guess_by_its_width() -> None:
    assert tensors({"emb_params": (4, 768)}).guess
    assert not tensors({"clip_l": (4, 768), "clip_g": (4, 1280)}).guess
