"""A tiny checkpoint in the original single-file layout of Stable Diffusion 1.x: real names, real CLIP vocabulary, small
widths. It makes pictures in about a second on two cores, so tests, benchmarks and a first try need no download.

The weights are random, yet shaped so that something can be seen. The UNet's first and last layers carry the noisy
latent through next to the random rest, which makes its noise prediction roughly right: latents end at the size real
ones have, in every sampler. Nothing here imports torch.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TEXT_WIDTH = 64
TEXT_LAYERS = 2
UNET_WIDTHS = (64, 64, 96, 128)
VAE_WIDTHS = (32, 32, 64, 64)
BLOCKS = 2
VOCABULARY = 49_408
POSITIONS = 77

Shape = tuple[int, ...]
Named = Iterator[tuple[str, Shape]]
Tensors = dict[str, NDArray[np.float16]]

_BLUR = np.outer([0.6, 1.0, 0.6], [0.6, 1.0, 0.6]).astype(np.float32) * np.float32(1.75)


def write_tiny_checkpoint(path: str | Path, *, seed: int = 0, metadata: Mapping[str, str] | None = None) -> Path:
    """Writes about 25 MB of float16 weights to `path`, whole or not at all, and returns the path.

    The bytes are a function of `seed` and `metadata` (the safetensors header's free text) alone. The folder must exist;
    a file already at `path` is replaced. OSError as the file system raises it.
    """
    path = Path(path)
    data = checkpoint_bytes(tiny_tensors(seed), metadata or {})
    handle, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(data)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def tiny_tensors(seed: int) -> Tensors:
    """Every tensor by its original name, float16."""
    draw = np.random.default_rng(seed)
    tensors = {name: _random(draw, name, shape) for name, shape in tensor_shapes()}
    _carry_the_latent(tensors)
    _listen_to_the_prompt(tensors)
    _colour_the_picture(tensors)
    return {name: np.ascontiguousarray(value, dtype=np.float16) for name, value in tensors.items()}


def checkpoint_bytes(tensors: Tensors, metadata: Mapping[str, str]) -> Iterator[bytes]:
    """The safetensors format, written here because the library orders a header's metadata differently in every run."""
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name, value in sorted(tensors.items()):
        header[name] = {"dtype": "F16", "shape": list(value.shape), "data_offsets": [offset, offset + value.nbytes]}
        offset += value.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for _, value in sorted(tensors.items()):
        yield value.tobytes()


def _random(draw: np.random.Generator, name: str, shape: Shape) -> NDArray[np.float32]:
    """Norms start at one, biases near zero, weights keep the variance of what they multiply. Convolutions smooth (most
    of a kernel is one blurred number), so that pictures have areas instead of grain."""
    noise = draw.standard_normal(shape, dtype=np.float32)
    if "_embedding" in name:
        return noise
    if len(shape) == 1:
        return noise * np.float32(0.05) + np.float32(name.endswith(".weight"))
    if shape[2:] == (3, 3):
        noise = (0.25 * noise + 0.75 * draw.standard_normal((*shape[:2], 1, 1), dtype=np.float32)) * _BLUR
    return noise * np.float32(int(np.prod(shape[1:])) ** -0.5)


def _carry_the_latent(tensors: dict[str, NDArray[np.float32]]) -> None:
    """Makes the UNet predict the noise it is shown, plus what the random layers and the prompt add.

    SiLU(a) - SiLU(-a) = a: each latent channel travels as the pair (a, -a), which is one normalisation group of the
    last layers, so that it arrives as a / rms(a). The pair sits in conv_in's channels, passes the first skip connection
    into the last block (after that block's own channels) and leaves by out.2.
    """
    unet = "model.diffusion_model."
    width = UNET_WIDTHS[0]
    conv_in, conv_out = tensors[unet + "input_blocks.0.0.weight"], tensors[unet + "out.2.weight"]
    skip = tensors[unet + "output_blocks.11.0.skip_connection.weight"]
    conv_out *= np.float32(0.6)
    for channel in range(4):
        for side, sign in enumerate((1.0, -1.0)):
            at = 2 * channel + side
            for weight in (conv_in[at], skip[at], conv_out[:, at]):
                weight[...] = 0.0
            conv_in[at, channel, 1, 1] = sign
            skip[at, width + at, 0, 0] = 6.0
            conv_out[channel, at, 1, 1] = 0.95 * sign
    for layer in ("input_blocks.0.0.bias", "output_blocks.11.0.skip_connection.bias", "out.0.bias"):
        tensors[unet + layer][:8] = 0.0
    tensors[unet + "out.0.weight"][:8] = 1.0


def _listen_to_the_prompt(tensors: dict[str, NDArray[np.float32]]) -> None:
    """Random attention averages over all 77 tokens, nearly all of them padding. Sharper keys and louder values let the
    few words through."""
    for name, value in tensors.items():
        if "attn2.to_k" in name:
            value *= np.float32(4.0)
        if "attn2.to_v" in name:
            value *= np.float32(3.0)


def _colour_the_picture(tensors: dict[str, NDArray[np.float32]]) -> None:
    """Lets the decoder's last layer use the range of a picture, -1 to 1, without living at its ends."""
    tensors["first_stage_model.decoder.conv_out.weight"] *= np.float32(0.6)


def tensor_shapes() -> Named:
    """Every name and shape of the layout."""
    yield from _under("cond_stage_model.transformer.text_model.", _text())
    yield from _under("first_stage_model.", _vae())
    yield from _under("model.diffusion_model.", _unet())


def _under(prefix: str, named: Named) -> Named:
    for name, shape in named:
        yield prefix + name, shape


def _layer(name: str, *shape: int) -> Named:
    """A layer with a bias: `shape` is the weight's, output first. One number makes it a norm."""
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _text() -> Named:
    width = TEXT_WIDTH
    yield "embeddings.token_embedding.weight", (VOCABULARY, width)
    yield "embeddings.position_embedding.weight", (POSITIONS, width)
    for index in range(TEXT_LAYERS):
        at = f"encoder.layers.{index}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _layer(f"{at}.self_attn.{part}", width, width)
        yield from _layer(f"{at}.layer_norm1", width)
        yield from _layer(f"{at}.layer_norm2", width)
        yield from _layer(f"{at}.mlp.fc1", 4 * width, width)
        yield from _layer(f"{at}.mlp.fc2", width, 4 * width)
    yield from _layer("final_layer_norm", width)


def _unet() -> Named:
    first, time = UNET_WIDTHS[0], 4 * UNET_WIDTHS[0]
    yield from _layer("time_embed.0", time, first)
    yield from _layer("time_embed.2", time, time)
    yield from _layer("input_blocks.0.0", first, 4, 3, 3)
    skips, width, index = [first], first, 1
    for level, wide in enumerate(UNET_WIDTHS):
        for _ in range(BLOCKS):
            yield from _unet_resnet(f"input_blocks.{index}.0", width, wide, time)
            if level < 3:
                yield from _transformer(f"input_blocks.{index}.1", wide)
            width, index = wide, index + 1
            skips.append(width)
        if level < 3:
            yield from _layer(f"input_blocks.{index}.0.op", width, width, 3, 3)
            index += 1
            skips.append(width)
    yield from _unet_resnet("middle_block.0", width, width, time)
    yield from _transformer("middle_block.1", width)
    yield from _unet_resnet("middle_block.2", width, width, time)
    index = 0
    for level, wide in reversed(list(enumerate(UNET_WIDTHS))):
        for block in range(BLOCKS + 1):
            yield from _unet_resnet(f"output_blocks.{index}.0", width + skips.pop(), wide, time)
            if level < 3:
                yield from _transformer(f"output_blocks.{index}.1", wide)
            if level and block == BLOCKS:
                yield from _layer(f"output_blocks.{index}.{2 if level < 3 else 1}.conv", wide, wide, 3, 3)
            width, index = wide, index + 1
    yield from _layer("out.0", first)
    yield from _layer("out.2", 4, first, 3, 3)


def _unet_resnet(at: str, narrow: int, wide: int, time: int) -> Named:
    yield from _layer(f"{at}.in_layers.0", narrow)
    yield from _layer(f"{at}.in_layers.2", wide, narrow, 3, 3)
    yield from _layer(f"{at}.emb_layers.1", wide, time)
    yield from _layer(f"{at}.out_layers.0", wide)
    yield from _layer(f"{at}.out_layers.3", wide, wide, 3, 3)
    if narrow != wide:
        yield from _layer(f"{at}.skip_connection", wide, narrow, 1, 1)


def _transformer(at: str, width: int) -> Named:
    yield from _layer(f"{at}.norm", width)
    yield from _layer(f"{at}.proj_in", width, width, 1, 1)
    block = f"{at}.transformer_blocks.0"
    for attention, context in (("attn1", width), ("attn2", TEXT_WIDTH)):
        yield f"{block}.{attention}.to_q.weight", (width, width)
        yield f"{block}.{attention}.to_k.weight", (width, context)
        yield f"{block}.{attention}.to_v.weight", (width, context)
        yield from _layer(f"{block}.{attention}.to_out.0", width, width)
    yield from _layer(f"{block}.ff.net.0.proj", 8 * width, width)
    yield from _layer(f"{block}.ff.net.2", width, 4 * width)
    for norm in ("norm1", "norm2", "norm3"):
        yield from _layer(f"{block}.{norm}", width)
    yield from _layer(f"{at}.proj_out", width, width, 1, 1)


def _vae() -> Named:
    last = VAE_WIDTHS[-1]
    yield from _layer("encoder.conv_in", VAE_WIDTHS[0], 3, 3, 3)
    width = VAE_WIDTHS[0]
    for level, wide in enumerate(VAE_WIDTHS):
        for block in range(BLOCKS):
            yield from _vae_resnet(f"encoder.down.{level}.block.{block}", width, wide)
            width = wide
        if level < 3:
            yield from _layer(f"encoder.down.{level}.downsample.conv", width, width, 3, 3)
    yield from _vae_middle("encoder", last)
    yield from _layer("encoder.norm_out", last)
    yield from _layer("encoder.conv_out", 8, last, 3, 3)
    yield from _layer("quant_conv", 8, 8, 1, 1)
    yield from _layer("post_quant_conv", 4, 4, 1, 1)
    yield from _layer("decoder.conv_in", last, 4, 3, 3)
    yield from _vae_middle("decoder", last)
    width = last
    for level, wide in reversed(list(enumerate(VAE_WIDTHS))):
        for block in range(BLOCKS + 1):
            yield from _vae_resnet(f"decoder.up.{level}.block.{block}", width, wide)
            width = wide
        if level:
            yield from _layer(f"decoder.up.{level}.upsample.conv", width, width, 3, 3)
    yield from _layer("decoder.norm_out", width)
    yield from _layer("decoder.conv_out", 3, width, 3, 3)


def _vae_middle(at: str, width: int) -> Named:
    yield from _vae_resnet(f"{at}.mid.block_1", width, width)
    yield from _layer(f"{at}.mid.attn_1.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        yield from _layer(f"{at}.mid.attn_1.{part}", width, width, 1, 1)
    yield from _vae_resnet(f"{at}.mid.block_2", width, width)


def _vae_resnet(at: str, narrow: int, wide: int) -> Named:
    yield from _layer(f"{at}.norm1", narrow)
    yield from _layer(f"{at}.conv1", wide, narrow, 3, 3)
    yield from _layer(f"{at}.norm2", wide)
    yield from _layer(f"{at}.conv2", wide, wide, 3, 3)
    if narrow != wide:
        yield from _layer(f"{at}.nin_shortcut", wide, narrow, 1, 1)
