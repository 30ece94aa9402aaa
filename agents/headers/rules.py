"""Families: which model it is by the names and shapes of its tensors. Tables of rules, read from the top.

The layout of the keys decides; widths only where the layout leaves a choice. A model that matches no rule is "unknown",
never a guess. Sources of the layouts: the published checkpoints, diffusers' single-file conversion.
"""

from bisect import bisect_left
from typing import NamedTuple

from agents.headers.safetensors import Tensor
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
    *(".oft_diag", ".oft_R.weight", ".glora", ".a1.weight", ".on_input", ".diff", ".w_norm"),
    *("_lora.down.weight", "_lora1.down.weight", "_lora2.down.weight", ".lora_A", ".lora_B", ".lora_down", ".lora_up"),
    *(".hada_w2_a", ".lokr_w2", ".oft_R", ".boft_R", ".boft_s", ".ia3_l", ".lora_mid.weight", ".diff_b"),
)
"""Endings that only adapters have."""

LORA_PARTS = (".lora_A.", ".lora_B.", ".oft_R.")
"""What stands before an adapter's own name in the names of its tensors, as peft writes them."""


class Rule(NamedTuple):
    """Every part of `has` begins a key (or ends one, written "*x"), and no part of `lacks` does."""

    kind: Kind
    family: str
    has: tuple[str, ...]
    lacks: tuple[str, ...] = ()


_ANY_UNET = "model.diffusion_model."

PREFIXES = ("", _ANY_UNET, "diffusion_model.", "net.", "transformer.")
"""What may stand before the keys of a denoiser."""

DIT_RULES = (
    ("flux3", ("early_stream_modulations.",), ()),
    ("flux2", ("double_stream_modulation_img.",), ()),
    ("chroma-radiance", ("distilled_guidance_layer.", "nerf_"), ()),
    ("chroma", ("distilled_guidance_layer.",), ()),
    ("hunyuan-image", ("txt_in.individual_token_refiner.", "byt5_in."), ("cond_type_embedding.", "vision_in.")),
    ("hunyuan-video", ("txt_in.individual_token_refiner.",), ()),
    ("hunyuan-image", ("context_embedder.token_refiner.", "time_guidance_embed."), ()),
    ("hunyuan-video", ("context_embedder.token_refiner.",), ()),
    ("auraflow", ("joint_transformer_blocks.", "single_transformer_blocks."), ()),
    ("ovis-image", ("double_blocks.0.img_mlp.gate_proj.",), ()),
    ("flux", ("double_blocks.", "guidance_in."), ("latent_in.",)),
    ("flux-schnell", ("double_blocks.", "single_blocks."), ("guidance_in.", "latent_in.")),
    ("flux-schnell", ("double_blocks.0.img_attn.norm.key_norm.",), ("guidance_in.", "latent_in.")),
    ("flux", ("single_transformer_blocks.", "transformer_blocks.0.mlp_context_fc1."), ()),
    ("flux", ("single_transformer_blocks.", "time_text_embed.guidance_embedder."), ()),
    (
        "flux-schnell",
        ("single_transformer_blocks.", "time_text_embed.text_embedder."),
        ("time_text_embed.guidance_embedder.",),
    ),
    ("ovis-image", ("single_transformer_blocks.", "context_embedder_norm."), ()),
    ("longcat-image", ("single_transformer_blocks.", "context_embedder.", "time_embed.timestep_embedder."), ()),
    ("hidream", ("double_stream_blocks.",), ()),
    ("hidream", ("caption_projection.0.linear.",), ()),
    ("hidream-o1", ("t_embedder1.mlp.0.", "x_embedder.proj1."), ()),
    ("kandinsky5", ("visual_transformer_blocks.", "text_transformer_blocks."), ()),
    ("sd35", ("joint_blocks.0.x_block.attn.ln_k.",), ()),
    ("sd3", ("joint_blocks.",), ()),
    ("sd35", ("transformer_blocks.0.attn.add_k_proj.", "transformer_blocks.0.attn.norm_q.", "pos_embed.proj."), ()),
    ("sd3", ("transformer_blocks.0.attn.add_k_proj.", "pos_embed.proj.", "context_embedder."), ()),
    ("auraflow", ("double_layers.", "single_layers."), ()),
    ("qwen-image-2.1", ("txt_in.text_norm.",), ()),
    ("qwen-image", ("transformer_blocks.0.img_mod.", "txt_in."), ()),
    ("qwen-image", ("time_text_embed.timestep_embedder.", "img_in.", "transformer_blocks.0.attn.add_"), ()),
    ("krea2", ("txtfusion.projector.",), ()),
    ("krea2", ("text_fusion.projector.",), ()),
    ("ideogram4", ("embed_image_indicator.", "llm_cond_proj."), ()),
    ("ernie-image", ("layers.0.self_attention.", "layers.0.adaLN_sa_ln."), ()),
    ("z-image", ("context_refiner.0.attention.", "layers.0.adaLN_modulation.0."), ()),
    ("z-image", ("noise_refiner.", "cap_embedder.", "layers.0.adaLN_modulation.0."), ()),
    ("lumina2", ("noise_refiner.", "cap_embedder."), ()),
    ("lumina2", ("noise_refiner.", "time_caption_embed."), ("ref_image_refiner.",)),
    ("omnigen2", ("ref_image_refiner.", "time_caption_embed."), ()),
    ("lumina2", ("cap_embedder.0.",), ()),
    ("wan", ("blocks.0.cross_attn.", "patch_embedding."), ()),
    ("wan", ("blocks.0.cross_attn.k.",), ()),
    ("anima", ("llm_adapter.", "blocks.0.mlp.layer1."), ()),
    ("cosmos", ("blocks.0.mlp.layer1.",), ()),
    ("cosmos", ("blocks.0.adaln_modulation_cross_attn.",), ()),
    ("cosmos", ("blocks.block0.blocks.0.",), ()),
    ("cosmos", ("transformer_blocks.0.norm1.linear_1.", "time_embed.t_embedder."), ()),
    ("mochi", ("t5_yproj.", "blocks.0.attn.qkv_x."), ()),
    ("wan", ("blocks.0.attn2.", "patch_embedding.", "condition_embedder.time_embedder."), ()),
    ("ltx2", ("audio_patchify_proj.",), ()),
    ("ltx2", ("audio_proj_in.", "proj_in."), ()),
    ("ltx2", ("audio_adaln_single.",), ()),
    ("ltx-video", ("transformer_blocks.0.scale_shift_table", "proj_in.", "caption_projection."), ()),
    ("ltx-video", ("transformer_blocks.0.scale_shift_table", "patchify_proj."), ()),
    ("sana", ("transformer_blocks.0.ff.conv_inverted.",), ()),
    ("sana", ("attention_y_norm.", "blocks.0.cross_attn."), ()),
    ("sana", ("blocks.0.mlp.inverted_conv.", "blocks.0.cross_attn.q_linear."), ()),
    ("pixart", ("t_block.1.", "blocks.0.cross_attn."), ()),
    ("pixart", ("adaln_single.", "pos_embed.proj."), ()),
    ("ltx-video", ("adaln_single.emb.", "patchify_proj."), ()),
    ("pixart", ("adaln_single.", "caption_projection."), ()),
    ("ltx-video", ("adaln_single.emb.timestep_embedder.",), ()),
    ("glm-image", ("glyph_projector.", "transformer_blocks.0.attn1."), ()),
    ("cogview4", ("patch_embed.text_proj.", "transformer_blocks.0.attn1."), ()),
    ("hunyuan-dit", ("mlp_t5.",), ()),
    ("cascade", ("clip_txt_mapper.",), ()),
    ("cascade", ("effnet_mapper.", "clip_mapper."), ()),
    ("svd", ("input_blocks.0.0.weight", "*.time_stack.0.attn1.to_q.weight"), ()),
    ("svd", ("conv_in.weight", "*.temporal_transformer_blocks.0.attn1.to_q.weight"), ()),
    ("kolors", ("input_blocks.0.0.weight", "encoder_hid_proj.weight"), ()),
    ("kolors", ("conv_in.weight", "encoder_hid_proj.weight", "add_embedding."), ()),
)
"""Transformers (and Cascade) by (family, has, lacks), under one of PREFIXES."""

EDITIONS = (
    ("flux2", "double_stream_modulation_img.lin", {36864: "dev", 18432: "klein-4b", 24576: "klein-9b"}),
    ("sd35", "joint_blocks.0.context_block.attn.proj.", {2432: "large", 1536: "medium"}),
    ("sd35", "transformer_blocks.0.attn.to_q.", {2432: "large", 1536: "medium"}),
    ("sd3", "joint_blocks.0.context_block.attn.proj.", {1536: "medium"}),
    ("wan", "blocks.0.cross_attn.k.", {1536: "1.3b", 5120: "14b", 3072: "5b"}),
    ("wan", "blocks.0.attn2.to_k.", {1536: "1.3b", 5120: "14b", 3072: "5b"}),
)
"""Models of a family by the larger side of a tensor: (family, beginning of its name, edition by side)."""

CHECKPOINT_RULES = (
    Rule("checkpoint", "sdxl", ("conditioner.embedders.0.transformer.", _ANY_UNET)),
    Rule("checkpoint", "sdxl", ("conditioner.embedders.1.", _ANY_UNET)),
    Rule("checkpoint", "sdxl-refiner", ("conditioner.embedders.0.model.", _ANY_UNET)),
    Rule("checkpoint", "sd2", ("cond_stage_model.model.", _ANY_UNET)),
    Rule("checkpoint", "sd15", ("cond_stage_model.transformer.", _ANY_UNET)),
)
"""Full checkpoints with a UNet: the text encoder's layout distinguishes them."""

CONTROL_MARKS = (
    *("control_model.input_hint_block.", "input_hint_block.", "controlnet_cond_embedding.", "controlnet_down_blocks."),
    *("controlnet_blocks.", "controlnet_x_embedder.", "lllite_unet_", "control_all_x_embedder.", "control_layers."),
)
"""Beginnings that only ControlNets have: their other keys may be those of the model they steer."""

OTHER_RULES = (
    Rule("unknown", "flux-redux", ("redux_up.", "redux_down.")),
    Rule("unknown", "t2i-adapter", ("adapter.body.",)),
    Rule("unknown", "t2i-adapter", ("body.0.block1.", "conv_in.")),
    Rule("unknown", "motion-module", ("*motion_modules.0.temporal_transformer.proj_in.weight",), ("conv_in.",)),
    Rule("unknown", "motion-module", ("*motion_modules.0.proj_in.weight",), ("conv_in.",)),
    Rule("vae", "", ("encoder.conv_in.", "decoder.conv_in.", "encoder.down.0.", "decoder.up.0.")),
    Rule("vae", "", ("first_stage_model.encoder.", "first_stage_model.decoder."), (_ANY_UNET,)),
    Rule("vae", "", ("encoder.conv_in.", "decoder.conv_in.", "encoder.down_blocks.", "decoder.up_blocks.")),
    Rule("vae", "taesd", ("encoder.layers.0.", "decoder.layers.")),
    Rule("vae", "taesd", ("taesd_encoder.", "taesd_decoder.")),
    Rule("vae", "wan", ("encoder.conv1.", "decoder.conv1.", "encoder.middle.")),
    Rule("upscaler", "esrgan", ("conv_first.", "body.0.rdb1.")),
    Rule("upscaler", "esrgan", ("model.0.", "model.1.sub.")),
    Rule("upscaler", "esrgan", ("conv_first.", "RRDB_trunk.")),
    Rule("upscaler", "hat", ("conv_first.", "layers.0.residual_group.overlap_attn.")),
    Rule("upscaler", "atd", ("conv_first.", "layers.0.residual_group.layers.")),
    Rule("upscaler", "swin2sr", ("conv_first.", "layers.0.residual_group.blocks.0.attn.logit_scale")),
    Rule("upscaler", "swinir", ("conv_first.", "layers.0.residual_group.")),
    Rule("upscaler", "drct", ("conv_first.", "layers.0.swin1.")),
    Rule("upscaler", "plksr", ("feats.0.", "feats.1.lk.")),
    Rule("upscaler", "span", ("conv_1.sk.", "block_1.c1_r.")),
    Rule("upscaler", "omnisr", ("residual_layer.0.residual_layer.", "input.", "up.0.")),
    Rule("upscaler", "scunet", ("m_head.0.", "m_tail.0.")),
    Rule("upscaler", "dat", ("conv_first.", "layers.0.blocks.")),
    Rule("upscaler", "compact", ("body.0.weight", "body.1.weight", "body.2.weight"), ("head.",)),
    Rule("text_encoder", "clip", ("text_model.encoder.layers.", "text_model.embeddings.")),
    Rule("text_encoder", "clip", ("encoder.layers.0.self_attn.k_proj.", "embeddings.token_embedding.")),
    Rule("text_encoder", "open-clip", ("transformer.resblocks.", "token_embedding.")),
    Rule("text_encoder", "t5", ("encoder.block.0.layer.0.SelfAttention.", "shared.")),
    Rule("text_encoder", "t5", ("encoder.block.0.layer.0.SelfAttention.",)),
    Rule("text_encoder", "llm", ("model.layers.0.self_attn.", "model.embed_tokens.")),
)
"""What is no whole checkpoint and no bare UNet or transformer."""

COMPANIONS = ("first_stage_model.", "text_encoders.", "vae.", "cond_stage_model.", "conditioner.")
"""Beginnings of what a checkpoint has besides what denoises."""

UNET_MARKS = (
    ("input_blocks.0.0.weight", "output_blocks.0.0."),
    ("conv_in.weight", "down_blocks.0.", "up_blocks.0.", "time_embedding.linear_1."),
)
"""A bare UNet, in the original and in the diffusers layout."""

WIDTHS = {768: "sd15", 1024: "sd2", 2048: "sdxl", 1280: "sdxl-refiner"}
"""The width that cross-attention reads its text in."""

EMBEDDING_WIDTHS = {768: "sd15", 1024: "sd2", 1280: "sdxl"}

TRANSFORMERS = (
    *("transformer.", "lora_transformer_", "diffusion_model.transformer_blocks.", "transformer_blocks.", "blocks."),
    *("diffusion_model.blocks.", "diffusion_model.layers.", "layers.", "lora_unet_transformer_blocks_"),
    *("lora_unet_blocks_", "lora_unet_layers_", "base_model.model.transformer_blocks.", "base_model.model.blocks."),
)
"""Beginnings of an adapter's keys that are some transformer's: a UNet's widths don't apply."""

SDXL_TEXT = ("lora_te2_text_model_", "lora_te1_text_model_", "text_encoder_2.text_model.", "clip_g.")
"""Those of the text encoders that SDXL has, and some transformers."""

SECOND_CLIP = ("lora_te2_text_model_", "text_encoder_2.text_model.", "clip_g.")
"""Those of the larger CLIP, which FLUX has not."""

TEXT_ENCODERS = ("lora_te", "text_encoder", "clip_l.", "clip_g.")
"""Those of any text encoder."""

ONE_CLIP = "lora_te_text_model_encoder_layers_"
"""The beginning of those of a text encoder that is a model's only one."""

WIDTHS_OF_CLIP = {768: "sd15", 1024: "sd2"}
"""What a layer of a CLIP takes in, for models with one."""

LORA_METADATA = (
    ("ss_base_model_version", "flux_2", "flux2"),
    ("ss_base_model_version", "flux2", "flux2"),
    ("ss_base_model_version", "chroma", "chroma"),
    ("ss_base_model_version", "hunyuan_video", "hunyuan-video"),
    ("ss_base_model_version", "hunyuan-image", "hunyuan-image"),
    ("ss_base_model_version", "hunyuan_image", "hunyuan-image"),
    ("ss_base_model_version", "lumina2", "lumina2"),
    ("ss_base_model_version", "wan", "wan"),
    ("ss_base_model_version", "qwen_image", "qwen-image"),
    ("ss_base_model_version", "z_image", "z-image"),
    ("ss_base_model_version", "zimage", "z-image"),
    ("ss_base_model_version", "anima", "anima"),
    ("ss_base_model_version", "kolors", "kolors"),
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
    ("modelspec.architecture", "flux-2", "flux2"),
    ("modelspec.architecture", "flux.2", "flux2"),
    ("modelspec.architecture", "flux2", "flux2"),
    ("modelspec.architecture", "flux", "flux"),
    ("modelspec.architecture", "chroma", "chroma"),
    ("modelspec.architecture", "qwen-image", "qwen-image"),
    ("modelspec.architecture", "z-image", "z-image"),
    ("modelspec.architecture", "hunyuan-video", "hunyuan-video"),
    ("modelspec.architecture", "lumina", "lumina2"),
    ("modelspec.architecture", "wan", "wan"),
    ("modelspec.architecture", "kolors", "kolors"),
    ("modelspec.architecture", "anima", "anima"),
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

    def all(self, part: str) -> list[str]:
        """The names that begin with `part`."""
        return self.names[bisect_left(self.names, part) : bisect_left(self.names, part + "\U0010ffff")]

    def match(self, has: tuple[str, ...], lacks: tuple[str, ...] = (), prefix: str = "") -> bool:
        """Whether there is a name for every part of `has` and none for any of `lacks`, all under a prefix."""
        if not all(self.begin(part if part.startswith("*") else prefix + part) for part in has):
            return False
        return not any(self.begin(prefix + part) for part in lacks)
