"""Families: what the names and shapes in a tensor table say about a model. A table of rules, read from the top.

The layout of the keys decides; widths only where the layout leaves a choice. A model that matches no rule is "unknown",
never a guess. Sources of the layouts: the published checkpoints, diffusers' single-file conversion.
"""

from bisect import bisect_left
from typing import NamedTuple

from agents.ingest.tensors import Tensor
from schemas.files import Kind

Tensors = dict[str, Tensor]

LORA_MARKS = (
    *(".lora_down.weight", ".lora_up.weight", ".lora_A.weight", ".lora_B.weight", ".lora.down.weight"),
    *(
        ".lora_A.default.weight",
        ".lora_linear_layer.down.weight",
        ".hada_w1_a",
        ".lokr_w1",
        ".lokr_w1_a",
        ".oft_blocks",
    ),
    *(".oft_diag", ".glora", ".a1.weight", ".on_input", ".to_q_lora.down.weight"),
)
"""Endings that only adapters have."""


class Rule(NamedTuple):
    """Every part of `has` begins a key (or ends one, written "*x"), and no part of `lacks` does."""

    kind: Kind
    family: str
    has: tuple[str, ...]
    lacks: tuple[str, ...] = ()


_ANY_UNET = "model.diffusion_model."

DIT_RULES = (
    ("flux2", ("double_stream_modulation_img.",), ()),
    ("chroma", ("distilled_guidance_layer.",), ()),
    ("hunyuan-video", ("txt_in.individual_token_refiner.",), ()),
    ("flux", ("double_blocks.", "guidance_in."), ()),
    ("flux-schnell", ("double_blocks.", "single_blocks."), ("guidance_in.",)),
    ("flux", ("single_transformer_blocks.", "time_text_embed.guidance_embedder."), ()),
    ("flux-schnell", ("single_transformer_blocks.", "context_embedder."), ("time_text_embed.guidance_embedder.",)),
    ("sd35", ("joint_blocks.0.x_block.attn.ln_k.",), ()),
    ("sd3", ("joint_blocks.",), ()),
    ("sd35", ("transformer_blocks.0.attn.add_k_proj.", "transformer_blocks.0.attn.norm_q.", "context_embedder."), ()),
    ("sd3", ("transformer_blocks.0.attn.add_k_proj.", "pos_embed.proj.", "context_embedder."), ()),
    ("auraflow", ("double_layers.", "single_layers."), ()),
    ("qwen-image", ("transformer_blocks.0.img_mod.", "txt_in."), ()),
    ("lumina2", ("noise_refiner.", "cap_embedder."), ()),
    ("wan", ("blocks.0.cross_attn.", "patch_embedding."), ()),
    ("ltx-video", ("transformer_blocks.0.scale_shift_table", "patchify_proj."), ()),
    ("pixart", ("adaln_single.", "caption_projection."), ()),
    ("hunyuan-dit", ("mlp_t5.", "style_embedder."), ()),
    ("cascade", ("clip_txt_mapper.",), ()),
)
"""Transformers (and Cascade) by (family, has, lacks), under no prefix or that of a full checkpoint."""

CHECKPOINT_RULES = (
    Rule("checkpoint", "sdxl", ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model.", _ANY_UNET)),
    Rule("checkpoint", "sdxl", ("conditioner.embedders.1.", _ANY_UNET)),
    Rule("checkpoint", "sdxl-refiner", ("conditioner.embedders.0.model.", _ANY_UNET)),
    Rule("checkpoint", "sd2", ("cond_stage_model.model.", _ANY_UNET)),
    Rule("checkpoint", "sd15", ("cond_stage_model.transformer.", _ANY_UNET)),
)
"""Full checkpoints with a UNet: the text encoder's layout tells them apart."""

OTHER_RULES = (
    Rule("controlnet", "", ("control_model.input_hint_block.",)),
    Rule("controlnet", "", ("input_hint_block.",)),
    Rule("controlnet", "", ("controlnet_cond_embedding.",)),
    Rule("controlnet", "", ("controlnet_down_blocks.",)),
    Rule("controlnet", "", ("controlnet_blocks.",)),
    Rule("controlnet", "", ("controlnet_x_embedder.",)),
    Rule("unknown", "ip-adapter", ("ip_adapter.", "image_proj.")),
    Rule("unknown", "t2i-adapter", ("adapter.body.",)),
    Rule("unknown", "motion-module", ("*motion_modules.0.temporal_transformer.proj_in.weight",)),
    Rule("vae", "", ("encoder.conv_in.", "decoder.conv_in.", "encoder.down.0.", "decoder.up.0.")),
    Rule("vae", "", ("first_stage_model.encoder.", "first_stage_model.decoder."), (_ANY_UNET,)),
    Rule("vae", "", ("encoder.conv_in.", "decoder.conv_in.", "encoder.down_blocks.", "decoder.up_blocks.")),
    Rule("vae", "taesd", ("encoder.layers.0.", "decoder.layers.")),
    Rule("vae", "taesd", ("taesd_encoder.", "taesd_decoder.")),
    Rule("vae", "wan", ("encoder.conv1.", "decoder.conv1.", "encoder.middle.")),
    Rule("upscaler", "esrgan", ("conv_first.", "body.0.rdb1.")),
    Rule("upscaler", "esrgan", ("model.0.", "model.1.sub.")),
    Rule("upscaler", "esrgan", ("conv_first.", "RRDB_trunk.")),
    Rule("upscaler", "swinir", ("conv_first.", "layers.0.residual_group.")),
    Rule("upscaler", "dat", ("conv_first.", "layers.0.blocks.")),
    Rule("upscaler", "compact", ("body.0.", "body.1.", "body.2."), ("body.0.rdb1.",)),
    Rule("text_encoder", "clip", ("text_model.encoder.layers.", "text_model.embeddings.")),
    Rule("text_encoder", "open-clip", ("transformer.resblocks.", "token_embedding.")),
    Rule("text_encoder", "t5", ("encoder.block.0.layer.0.SelfAttention.", "shared.")),
    Rule("text_encoder", "t5", ("encoder.block.0.layer.0.SelfAttention.",)),
    Rule("text_encoder", "llm", ("model.layers.0.self_attn.", "model.embed_tokens.")),
)
"""What is no whole checkpoint and no bare UNet or transformer."""

COMPANIONS = ("first_stage_model.", "text_encoders.", "vae.", "cond_stage_model.", "conditioner.")
"""Beginnings of what a checkpoint has beside what denoises."""

UNET_MARKS = (
    ("input_blocks.0.0.weight", "output_blocks.0.0."),
    ("conv_in.weight", "down_blocks.0.", "up_blocks.0.", "time_embedding.linear_1."),
)
"""A bare UNet, in the original and in the diffusers layout."""

WIDTHS = {768: "sd15", 1024: "sd2", 2048: "sdxl", 1280: "sdxl-refiner"}
"""The width that cross-attention reads its text in."""

EMBEDDING_WIDTHS = {768: "sd15", 1024: "sd2", 1280: "sdxl"}

LORA_RULES = (
    ("sdxl", ("lora_te2_", "lora_te1_", "text_encoder_2.")),
    ("flux", ("lora_unet_double_blocks_", "lora_unet_single_blocks_", "diffusion_model.double_blocks.")),
    ("flux", ("transformer.single_transformer_blocks.",)),
    ("sd3", ("lora_unet_joint_blocks_", "diffusion_model.joint_blocks.")),
    ("qwen-image", ("transformer_blocks.0.img_mod.", "diffusion_model.transformer_blocks.0.img_m")),
    ("wan", ("diffusion_model.blocks.0.cross_attn.", "lora_unet_blocks_0_cross_attn_")),
)
"""Adapters by (family, beginnings of keys, one of which is enough)."""

LORA_METADATA = (
    ("ss_base_model_version", "sdxl", "sdxl"),
    ("ss_base_model_version", "sd_v1", "sd15"),
    ("ss_base_model_version", "sd_v2", "sd2"),
    ("ss_base_model_version", "sd_1.5", "sd15"),
    ("ss_base_model_version", "flux", "flux"),
    ("ss_base_model_version", "sd3", "sd3"),
    ("modelspec.architecture", "stable-diffusion-xl", "sdxl"),
    ("modelspec.architecture", "stable-diffusion-v1", "sd15"),
    ("modelspec.architecture", "stable-diffusion-v2", "sd2"),
    ("modelspec.architecture", "stable-diffusion-3", "sd3"),
    ("modelspec.architecture", "flux", "flux"),
)
"""What trainers write, where the keys leave a choice: (metadata key, what it begins with, family)."""

COMPONENTS = (
    (
        "text_encoder",
        ("cond_stage_model.", "conditioner.embedders.0.", "text_encoders.clip_l.", "lora_te_", "lora_te1_"),
    ),
    ("text_encoder_2", ("conditioner.embedders.1.", "text_encoders.clip_g.", "lora_te2_")),
    ("text_encoder_3", ("text_encoders.",)),
    ("vae", ("first_stage_model.", "vae.")),
    ("ema", ("model_ema.",)),
    ("denoiser", (_ANY_UNET, "lora_unet_", "unet.", "transformer.", "diffusion_model.")),
    ("controlnet", ("control_model.",)),
)
"""Where the bytes of a file belong, by how a key begins."""

PARTS = tuple(part for _, parts in COMPONENTS for part in parts)
"""Every such beginning."""


class Keys:
    """The names in a tensor table, sorted, so that a beginning is found without looking at them all."""

    def __init__(self, tensors: Tensors) -> None:
        self.names = sorted(tensors)

    def begin(self, part: str) -> bool:
        """Whether some name begins with `part` (or ends so, written "*part")."""
        if part.startswith("*"):
            return any(name.endswith(part[1:]) for name in self.names)
        at = bisect_left(self.names, part)
        return at < len(self.names) and self.names[at].startswith(part)

    def match(self, has: tuple[str, ...], lacks: tuple[str, ...] = (), prefix: str = "") -> bool:
        """Whether there is a name for every part of `has` and none for any of `lacks`, all under a prefix."""
        if not all(self.begin(part if part.startswith("*") else prefix + part) for part in has):
            return False
        return not any(self.begin(prefix + part) for part in lacks)
