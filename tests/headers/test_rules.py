"""The layouts that programs and trainers of the field write, in a few keys each: those easily taken for another's.

Key names and widths are facts of the published formats: diffusers' and ComfyUI's converters, kohya's sd-scripts,
OneTrainer, LyCORIS, PEFT, spandrel's architectures.
"""

from pathlib import Path
from typing import Any

import pytest

from agents.headers import sandbox
from tests.ingest.making import model, put

UNET = "model.diffusion_model."
IN = UNET + "input_blocks.0.0.weight"
VAE = ("first_stage_model.encoder.conv_in.weight", "first_stage_model.decoder.conv_in.weight")
SD2 = ("cond_stage_model.model.transformer.resblocks.0.x", UNET + "x", *VAE)
TE1, TE2 = "lora_te1_text_model_encoder_layers_0_x", "lora_te2_text_model_encoder_layers_0_x"

Shapes = dict[str, tuple[int, ...]]


def lora(*names: str, width: int = 8) -> Shapes:
    """Layers as kohya's trainers adapt them."""
    return {f"{name}.lora_down.weight": (8, width) for name in names}


def peft(*names: str, width: int = 8) -> Shapes:
    """Layers as PEFT and diffusers do."""
    return {f"{name}.lora_A.weight": (8, width) for name in names}


ADAPTERS: list[tuple[Shapes | tuple[str, ...], str]] = [
    (lora("lora_unet_double_blocks_0_img_attn_qkv", TE1, width=3072), "flux"),
    (lora("lora_transformer_single_transformer_blocks_0_attn_to_k", TE1, "lora_te2_encoder_block_0_x"), "flux"),
    (peft("transformer.single_transformer_blocks.0.attn.to_k", "text_encoder_2.encoder.block.0.x"), "flux"),
    (peft("diffusion_model.single_blocks.0.linear1"), "flux"),
    (peft("base_model.model.double_blocks.0.img_attn.qkv"), "flux"),
    (("double_blocks.0.processor.qkv_lora1.down.weight", "single_blocks.0.processor.qkv_lora.down.weight"), "flux"),
    (peft("diffusion_model.double_blocks.0.img_attn.qkv", width=6144), "flux2"),
    (lora("lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_distilled_guidance_layer_x"), "chroma"),
    (lora("lora_unet_double_blocks_0_img_mlp_fc1"), "hunyuan-video"),
    (lora("lora_unet_joint_blocks_0_context_block_attn_qkv", TE1, TE2), "sd3"),
    (peft("transformer.transformer_blocks.0.attn2.to_k", width=2048), ""),
    (peft("blocks.0.attn2.to_k", width=1024), ""),
    (peft("blocks.0.cross_attn.k"), "wan"),
    (peft("transformer.transformer_blocks.0.img_mod.1"), "qwen-image"),
    (lora("lora_unet_input_blocks_4_1_x_attn2_to_k", TE1, TE2, width=2048), "sdxl"),
    (lora("lora_unet_down_blocks_0_x_attn2_to_k", "lora_te_text_model_encoder_layers_0_x", width=768), "sd15"),
    (peft("unet.down_blocks.0.x.attn2.to_k", "text_encoder_2.text_model.encoder.layers.0.x", width=2048), "sdxl"),
    ({"unet.x.attn2.to_k.lora_A.style.weight": (8, 768)}, "sd15"),
    ({"lora_unet_x_attn2_to_k.hada_w1_a": (320, 8), "lora_unet_x_attn2_to_k.hada_w1_b": (8, 768)}, "sd15"),
    ({"lora_unet_x_attn2_to_k.lokr_w1": (8, 16), "lora_unet_x_attn2_to_k.lokr_w2": (80, 128)}, "sdxl"),
    (("lora_unet_x.diff",), ""),
    (("lora_unet_x.oft_R.weight",), ""),
]


@pytest.mark.parametrize(("shapes", "family"), ADAPTERS)
def test_an_adapter_is_of_the_family_that_it_adapts(tmp_path: Path, shapes: Any, family: str) -> None:
    found = sandbox.identify(put(tmp_path / "a.safetensors", model(shapes)))
    assert (found.kind, found.family) == ("lora", family)


@pytest.mark.parametrize(
    ("declared", "family"), [("flux1", "flux"), ("chroma", "chroma"), ("hunyuan-image-2.1", "hunyuan-image")]
)
def test_what_the_trainer_declares_divides_families_whose_names_are_equal(
    tmp_path: Path, declared: str, family: str
) -> None:
    content = model(lora("lora_unet_double_blocks_0_img_attn_qkv"), {"ss_base_model_version": declared})
    assert sandbox.identify(put(tmp_path / "a.safetensors", content)).family == family


MODELS: list[tuple[Shapes | tuple[str, ...], str, str, str]] = [
    (
        (
            *("transformer_blocks.0.attn.add_k_proj.x", "single_transformer_blocks.0.x", "controlnet_blocks.0.weight"),
            *("time_text_embed.guidance_embedder.x", "controlnet_x_embedder.weight"),
        ),
        *("controlnet", "flux", ""),
    ),
    (("double_blocks.0.x", "guidance_in.x", "controlnet_blocks.0.x", "input_hint_block.0.x"), "controlnet", "flux", ""),
    (("lllite_unet_x.down.0.weight",), "controlnet", "", ""),
    (("noise_refiner.0.x", "cap_embedder.0.x", "layers.0.adaLN_modulation.0.x"), "diffusion_model", "z-image", ""),
    (("noise_refiner.0.x", "cap_embedder.0.x", "layers.0.adaLN_modulation.1.x"), "diffusion_model", "lumina2", ""),
    (
        ("joint_transformer_blocks.0.x", "single_transformer_blocks.0.x", "context_embedder.weight"),
        *("diffusion_model", "auraflow", ""),
    ),
    (
        (
            *("transformer_blocks.0.attn.add_k_proj.x", "single_transformer_blocks.0.x"),
            *("context_embedder.token_refiner.x", "time_text_embed.guidance_embedder.x"),
        ),
        *("diffusion_model", "hunyuan-video", ""),
    ),
    (("single_transformer_blocks.0.x", "context_embedder.weight"), "unknown", "", ""),
    (
        ("single_transformer_blocks.0.x", "context_embedder.weight", "time_text_embed.text_embedder.x"),
        *("diffusion_model", "flux-schnell", ""),
    ),
    (("blocks.0.attn2.x", "patch_embedding.x", "condition_embedder.time_embedder.x"), "diffusion_model", "wan", ""),
    (
        {"double_blocks.0.x": (1,), "guidance_in.x": (1,), "img_in.weight": (8, 384)},
        *("diffusion_model", "flux", "inpaint"),
    ),
    (dict.fromkeys(SD2, (1,)) | {IN: (320, 5, 3, 3)}, "checkpoint", "sd2-depth", ""),
    (dict.fromkeys(SD2, (1,)) | {IN: (320, 8, 3, 3)}, "checkpoint", "sd2-pix2pix", ""),
    (
        {IN: (320, 8, 3, 3), UNET + "output_blocks.0.0.x": (1,), UNET + "x.time_stack.0.attn1.to_q.weight": (1,)},
        *("diffusion_model", "svd", ""),
    ),
    (("body.0.block1.weight", "conv_in.weight", "body.1.x", "body.2.x"), "unknown", "t2i-adapter", ""),
    (("body.0.weight", "body.1.weight", "body.2.weight"), "upscaler", "compact", ""),
    (("head.0.weight", "body.0.body.0.weight", "body.1.body.0.x", "body.2.body.0.x"), "unknown", "", ""),
    (("conv_first.weight", "layers.0.residual_group.overlap_attn.x"), "upscaler", "hat", ""),
    (("conv_first.weight", "layers.0.residual_group.blocks.0.x"), "upscaler", "swinir", ""),
    (("encoder.layers.0.self_attn.k_proj.weight", "embeddings.token_embedding.weight"), "text_encoder", "clip", ""),
    ({"clip_l": (4, 768), "clip_g": (4, 1280), "t5": (4, 4096)}, "embedding", "sd3", ""),
    ({"clip_l": (4, 768), "t5": (4, 4096)}, "embedding", "flux", ""),
    ({"text_encoders_0": (4, 768), "text_encoders_1": (4, 1280)}, "embedding", "sdxl", ""),
    (("ip_adapter.0.to_q_lora.down.weight", "image_proj.x"), "unknown", "ip-adapter", ""),
]


@pytest.mark.parametrize(("shapes", "kind", "family", "variant"), MODELS)
def test_a_model_is_not_taken_for_one_with_names_like_its_own(
    tmp_path: Path, shapes: Any, kind: str, family: str, variant: str
) -> None:
    found = sandbox.identify(put(tmp_path / "a.safetensors", model(shapes)))
    assert (found.kind, found.family, found.variant) == (kind, family, variant)
