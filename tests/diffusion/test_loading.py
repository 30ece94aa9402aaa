import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import agents.diffusion.tiny_checkpoint as tiny_module
from agents.diffusion.families.ldm import adapt
from agents.diffusion.families.table import CONFIGS, load_family, unsupported
from agents.headers.classify import identify_header
from agents.headers.safetensors import Header, Tensor
from tests.diffusion.conftest import Tiny
from tests.later import Later

torch, diffusers, safetensors = Later("torch"), Later("diffusers"), Later("safetensors.torch")
loading, weights = Later("agents.diffusion.loading"), Later("agents.diffusion.weights")
UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."

Tensors = dict[str, Any]
"""torch's, by name."""


def load(path: Path, **content: str) -> Any:
    """What a checkpoint holds, on the CPU."""
    return loading.load(path, torch.device("cpu"), **content)


@pytest.fixture(scope="module")
def tensors(tiny: Tiny) -> Tensors:
    return safetensors.load_file(tiny.path)


@pytest.fixture
def changed(tensors: Tensors, tmp_path: Path) -> Callable[..., Path]:
    """Writes the tiny checkpoint with some tensors replaced (None: left out)."""

    def write(metadata: dict[str, str] | None = None, **changes: Any) -> Path:
        state = {name: value for name, value in ({**tensors, **changes}).items() if value is not None}
        path = tmp_path / "changed.safetensors"
        safetensors.save_file(state, path, metadata)
        return path

    return write


def test_every_part_is_loaded_with_the_sizes_its_tensors_have(tiny: Tiny) -> None:
    models = load(tiny.path, sha256=tiny.sha256)
    assert list(models.unet.config.block_out_channels) == [64, 64, 96, 128]
    assert models.unet.config.cross_attention_dim == models.text.config.hidden_size == 64
    assert models.text.config.num_hidden_layers == 2
    assert list(models.vae.config.block_out_channels) == [32, 32, 64, 64]
    assert models.scale == 8
    for model in (models.unet, models.vae, models.text):
        assert not model.training
        for value in [*model.parameters(), *model.buffers()]:
            assert value.device.type == "cpu"
            assert not value.requires_grad
        assert {value.dtype for value in model.parameters()} == {torch.float32}


def test_weights_equal_those_of_diffusers_own_loader(tiny: Tiny, pipeline: Any) -> None:
    models = load(tiny.path)
    for ours, theirs in (
        (models.unet, pipeline.unet),
        (models.vae, pipeline.vae),
        (models.text, pipeline.text_encoder),
    ):
        mine, other = ours.state_dict(), theirs.state_dict()
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[name], other[name]) for name in mine)


def test_the_template_holds_true_sd15_sizes_and_true_shapes_lead_back_to_it() -> None:
    family = load_family("sd15")
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel.from_config(family.unet)
        vae = diffusers.AutoencoderKL.from_config(family.vae)
    assert sum(value.numel() for value in unet.parameters()) == 859_520_964
    assert sum(value.numel() for value in vae.parameters()) == 83_653_863
    shapes = _true_shapes()
    tensors = {name: Tensor(dtype="F16", shape=shape, data_offsets=(0, 0)) for name, shape in shapes.items()}
    identity = identify_header(Header(tensors, {}, 0, 0))
    assert (identity.kind, identity.family, unsupported(identity)) == ("checkpoint", "sd15", "")
    parts = adapt(family, shapes, {})
    assert parts.unet == family.unet
    assert parts.vae == family.vae
    assert parts.text == family.text


def test_a_smaller_relative_with_two_levels_and_one_layer_each_loads(tmp_path: Path) -> None:
    path = tmp_path / "relative.safetensors"
    state = _relative()
    safetensors.save_file(state, path)
    models = load(path)
    assert list(models.unet.config.down_block_types) == ["DownBlock2D", "CrossAttnDownBlock2D"]
    assert models.unet.config.layers_per_block == models.vae.config.layers_per_block == 1
    assert (models.unet.config.norm_num_groups, models.unet.config.attention_head_dim) == (32, 8)
    assert models.scale == 2


def test_heads_and_groups_are_taken_from_the_metadata_if_it_names_them(changed: Callable[..., Path]) -> None:
    words = {"darkroom.unet_heads": "4", "darkroom.text_heads": "2", "darkroom.norm_groups": "16"}
    models = load(changed(words))
    assert models.unet.config.attention_head_dim == 4
    assert models.text.config.num_attention_heads == 2
    assert models.unet.config.norm_num_groups == models.vae.config.norm_num_groups == 16


@pytest.mark.parametrize("heads", ["0", "many", "-1", "7"])
def test_heads_that_make_no_model_are_an_error(heads: str, changed: Callable[..., Path]) -> None:
    with pytest.raises(weights.NotACheckpoint):
        load(changed({"darkroom.unet_heads": heads}))


def test_harmless_extras_are_left_on_disk(changed: Callable[..., Path], tiny: Tiny) -> None:
    extras = ("alphas_cumprod", "betas", "model_ema.decay", "cond_stage_model.logit_scale")
    inside = (f"{VAE}loss.logvar", f"{TEXT}text_model.embeddings.position_ids", f"{VAE}model_ema.decay")
    models = load(changed(**{name: torch.ones(1) for name in (*extras, *inside)}))
    assert same_weights(models, load(tiny.path))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_weights_of_any_float_type_become_the_compute_type(
    dtype: str, changed: Callable[..., Path], tensors: Tensors
) -> None:
    models = load(changed(**{name: value.to(getattr(torch, dtype)) for name, value in tensors.items()}))
    assert {value.dtype for value in models.unet.parameters()} == {torch.float32}


def test_old_merges_without_text_model_in_the_names_load(
    changed: Callable[..., Path], tensors: Tensors, tiny: Tiny
) -> None:
    names = [name for name in tensors if name.startswith(TEXT)]
    old = {name.replace("text_model.", ""): tensors[name] for name in names}
    assert len(old) == len(names) > 10 and not old.keys() & set(names)
    assert same_weights(load(changed(**dict.fromkeys(names), **old)), load(tiny.path))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (f"{UNET}out.2.bias", None, "missing conv_out.bias"),
        (f"{VAE}decoder.conv_out.bias", None, "missing decoder.conv_out.bias"),
        (f"{TEXT}text_model.final_layer_norm.bias", None, "missing final_layer_norm.bias"),
        (f"{UNET}surprise.weight", (2,), f"unexpected {UNET}surprise.weight"),
        (f"{VAE}encoder.surprise.weight", (2,), "unexpected"),
        (f"{TEXT}text_model.surprise", (2,), "unexpected surprise"),
        (f"{UNET}time_embed.0.bias", (7,), "wrong shape"),
        (f"{UNET}out.2.weight", None, "no complete Stable Diffusion"),
        (f"{TEXT}text_model.embeddings.token_embedding.weight", (1000, 64), "1000 tokens"),
    ],
)
def test_missing_unexpected_and_misshapen_weights_are_named(
    name: str, shape: tuple[int, ...] | None, message: str, changed: Callable[..., Path]
) -> None:
    with pytest.raises(weights.NotACheckpoint, match=message):
        load(changed(**{name: None if shape is None else torch.ones(shape)}))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (f"{UNET}input_blocks.0.0.weight", (64, 9, 3, 3), "inpainting"),
        (f"{UNET}input_blocks.0.0.weight", (64, 8, 3, 3), "instruct-pix2pix"),
        ("v_pred", (1,), "v-prediction"),
        ("cond_stage_model.model.ln_final.weight", (1,), "Stable Diffusion 2"),
        ("conditioner.embedders.0.transformer.text_model.x", (1,), "SDXL"),
    ],
)
def test_families_that_cannot_run_yet_are_named(
    name: str, shape: tuple[int, ...], message: str, changed: Callable[..., Path]
) -> None:
    with pytest.raises(weights.UnsupportedFamily, match=message):
        load(changed(**{name: torch.ones(shape)}))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["lora_unet_down.lora_down.weight"], "LoRA"),
        (["unet.to_q.lora_A.weight"], "LoRA"),
        (["down_blocks.0.resnets.0.conv1.weight"], "single part"),
        (["something"], "no Stable Diffusion checkpoint"),
        ([f"{UNET}input_blocks.0.0.weight"], "no VAE"),
        ([f"{UNET}input_blocks.0.0.weight", f"{VAE}x"], "no CLIP text encoder"),
    ],
)
def test_files_that_are_no_checkpoint_are_named(names: list[str], message: str, tmp_path: Path) -> None:
    safetensors.save_file({name: torch.ones(4, 4) for name in names}, tmp_path / "x.safetensors")
    with pytest.raises(weights.CannotLoad, match=message):
        load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("size", [0, 4, 8, 100, 50_000, 1_000_000, -1])
def test_a_truncated_file_is_an_error(size: int, tiny: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(tiny.path.read_bytes()[:size])
    with pytest.raises(weights.NotACheckpoint, match="again"):
        load(path)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{}x",
        b'{"a": 1}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}',
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "X", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
        b'{"__metadata__": 3}',
        b"\xff\xfe",
    ],
)
def test_a_damaged_header_is_an_error(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(weights.NotACheckpoint), weights.open_checkpoint(path) as file:
        weights.checkpoint_header(file)


def test_tensors_that_nothing_needs_may_be_of_any_type(tiny: Tiny, tmp_path: Path) -> None:
    content = tiny.path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    table, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    for dtype, size in {"U16": 2, "U32": 4, "U64": 8, "C64": 8, "F8_E8M0": 1, "F4": 1, "F8_E4M3FNUZ": 1}.items():
        shape = [2] if dtype == "F4" else [1]
        table[f"training.{dtype}"] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + size]}
        data += bytes(size)
    text = json.dumps(table).encode()
    path = tmp_path / "more.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    for sha256 in ("", digest):
        assert _fingerprint(load(path, sha256=sha256)) == _fingerprint(load(tiny.path))


def test_a_weight_of_a_type_that_no_weight_has_is_named(tiny: Tiny, tmp_path: Path) -> None:
    content = tiny.path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    table = json.loads(content[8 : 8 + length])
    name = next(name for name, one in table.items() if one.get("dtype") == "F16")
    table[name]["dtype"] = "U16"
    text = json.dumps(table).encode()
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    with pytest.raises(weights.NotACheckpoint, match="type U16"):
        load(path)


def test_a_file_that_is_gone_or_a_folder_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.safetensors", tmp_path):
        with pytest.raises(weights.FileGone, match="scan"):
            load(path)


def test_a_file_with_another_digest_is_not_loaded(tiny: Tiny) -> None:
    with pytest.raises(weights.ContentChanged):
        load(tiny.path, sha256=hashlib.sha256(b"").hexdigest())


def test_a_file_overwritten_after_loading_changes_nothing_in_memory(tiny: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(tiny.path.read_bytes())
    models = load(path)
    before = _fingerprint(models)
    path.write_bytes(b"")
    assert _fingerprint(models) == before


def test_devices_that_are_not_there_are_an_error_and_types_follow_the_device() -> None:
    assert loading.pick_device("cpu").type == "cpu"
    assert loading.pick_device("auto").type in ("cpu", "cuda", "mps")
    for name in ("abacus", "cuda:99", "meta"):
        with pytest.raises(ValueError, match="use auto"):
            loading.pick_device(name)
    assert [loading.compute_dtype(torch.device(name)) for name in ("cpu", "mps", "cuda")] == [
        torch.float32,
        torch.float32,
        torch.bfloat16,
    ]


def test_shipped_configs_are_json_that_names_its_class() -> None:
    for path in sorted((CONFIGS / "sd15").rglob("*.json")):
        assert isinstance(json.loads(path.read_text()), dict)


def same_weights(one: Any, other: Any) -> bool:
    """Have all three parts the same parameters and buffers, bit for bit?"""
    pairs = [(getattr(one, part).state_dict(), getattr(other, part).state_dict()) for part in ("unet", "vae", "text")]
    return all(
        ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
        for ours, theirs in pairs
    )


def _fingerprint(models: Any) -> str:
    digest = hashlib.sha256()
    for value in models.unet.parameters():
        digest.update(np.ascontiguousarray(value.detach().numpy()).tobytes())
    return digest.hexdigest()


def _true_shapes() -> dict[str, tuple[int, ...]]:
    """The tensors of a true SD1.5 checkpoint: those of the tiny builder with the family's widths."""
    patch = pytest.MonkeyPatch()
    patch.setattr(tiny_module, "UNET_WIDTHS", (320, 640, 1280, 1280))
    patch.setattr(tiny_module, "VAE_WIDTHS", (128, 256, 512, 512))
    patch.setattr(tiny_module, "TEXT_WIDTH", 768)
    patch.setattr(tiny_module, "TEXT_LAYERS", 12)
    try:
        return dict(tiny_module.tensor_shapes())
    finally:
        patch.undo()


def _relative() -> Tensors:
    """A model nobody's builder made: names written out by hand from the original layout."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    def resnet(at: str, narrow: int, wide: int) -> None:
        layer(f"{at}.in_layers.0", narrow)
        layer(f"{at}.in_layers.2", wide, narrow, 3, 3)
        layer(f"{at}.emb_layers.1", wide, 128)
        layer(f"{at}.out_layers.0", wide)
        layer(f"{at}.out_layers.3", wide, wide, 3, 3)
        if narrow != wide:
            layer(f"{at}.skip_connection", wide, narrow, 1, 1)

    def crossing(at: str) -> None:
        layer(f"{at}.norm", 64)
        layer(f"{at}.proj_in", 64, 64, 1, 1)
        layer(f"{at}.proj_out", 64, 64, 1, 1)
        block = f"{at}.transformer_blocks.0"
        for name, context in (("attn1", 64), ("attn2", 32)):
            shapes[f"{block}.{name}.to_q.weight"] = (64, 64)
            shapes[f"{block}.{name}.to_k.weight"] = shapes[f"{block}.{name}.to_v.weight"] = (64, context)
            layer(f"{block}.{name}.to_out.0", 64, 64)
        layer(f"{block}.ff.net.0.proj", 512, 64)
        layer(f"{block}.ff.net.2", 64, 256)
        for name in ("norm1", "norm2", "norm3"):
            layer(f"{block}.{name}", 64)

    layer(f"{UNET}time_embed.0", 128, 32)
    layer(f"{UNET}time_embed.2", 128, 128)
    layer(f"{UNET}input_blocks.0.0", 32, 4, 3, 3)
    resnet(f"{UNET}input_blocks.1.0", 32, 32)
    layer(f"{UNET}input_blocks.2.0.op", 32, 32, 3, 3)
    resnet(f"{UNET}input_blocks.3.0", 32, 64)
    crossing(f"{UNET}input_blocks.3.1")
    resnet(f"{UNET}middle_block.0", 64, 64)
    crossing(f"{UNET}middle_block.1")
    resnet(f"{UNET}middle_block.2", 64, 64)
    for index, (narrow, wide) in enumerate(((128, 64), (96, 64), (96, 32), (64, 32))):
        resnet(f"{UNET}output_blocks.{index}.0", narrow, wide)
        if index < 2:
            crossing(f"{UNET}output_blocks.{index}.1")
    layer(f"{UNET}output_blocks.1.2.conv", 64, 64, 3, 3)
    layer(f"{UNET}out.0", 32)
    layer(f"{UNET}out.2", 4, 32, 3, 3)
    shapes |= _relative_vae()
    layer_text(shapes)
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def _relative_vae() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *shape: int) -> None:
        shapes[f"{VAE}{name}.weight"], shapes[f"{VAE}{name}.bias"] = shape, shape[:1]

    def resnet(at: str) -> None:
        for norm in ("norm1", "norm2"):
            layer(f"{at}.{norm}", 32)
        for conv in ("conv1", "conv2"):
            layer(f"{at}.{conv}", 32, 32, 3, 3)

    for side, first, last in (("encoder", 3, 8), ("decoder", 4, 3)):
        layer(f"{side}.conv_in", 32, first, 3, 3)
        layer(f"{side}.norm_out", 32)
        layer(f"{side}.conv_out", last, 32, 3, 3)
        resnet(f"{side}.mid.block_1")
        resnet(f"{side}.mid.block_2")
        layer(f"{side}.mid.attn_1.norm", 32)
        for part in ("q", "k", "v", "proj_out"):
            layer(f"{side}.mid.attn_1.{part}", 32, 32, 1, 1)
    for level in (0, 1):
        resnet(f"encoder.down.{level}.block.0")
        resnet(f"decoder.up.{level}.block.0")
        resnet(f"decoder.up.{level}.block.1")
    layer("encoder.down.0.downsample.conv", 32, 32, 3, 3)
    layer("decoder.up.1.upsample.conv", 32, 32, 3, 3)
    layer("quant_conv", 8, 8, 1, 1)
    layer("post_quant_conv", 4, 4, 1, 1)
    return shapes


def layer_text(shapes: dict[str, tuple[int, ...]]) -> None:
    at = f"{TEXT}text_model."
    shapes[f"{at}embeddings.token_embedding.weight"] = (49_408, 32)
    shapes[f"{at}embeddings.position_embedding.weight"] = (77, 32)
    layers = {"self_attn.q_proj": 32, "self_attn.k_proj": 32, "self_attn.v_proj": 32, "self_attn.out_proj": 32}
    for name in layers:
        shapes[f"{at}encoder.layers.0.{name}.weight"], shapes[f"{at}encoder.layers.0.{name}.bias"] = (32, 32), (32,)
    for name, shape in (("mlp.fc1", (37, 32)), ("mlp.fc2", (32, 37)), ("layer_norm1", (32,)), ("layer_norm2", (32,))):
        shapes[f"{at}encoder.layers.0.{name}.weight"], shapes[f"{at}encoder.layers.0.{name}.bias"] = shape, shape[:1]
    shapes[f"{at}final_layer_norm.weight"] = shapes[f"{at}final_layer_norm.bias"] = (32,)
