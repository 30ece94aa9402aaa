import json
import os
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from agents.headers import sandbox
from agents.headers.errors import BadHeader
from agents.headers.metadata import METADATA_BYTES
from agents.headers.safetensors import BITS, HEADER_LIMIT, LARGEST_HEADER, parse
from schemas.files import Identity
from tests.ingest.hostile import entry
from tests.ingest.making import SD15, encoded, gguf, header, model, put

UNET = "model.diffusion_model."
IN = UNET + "input_blocks.0.0.weight"
VAE = ("first_stage_model.encoder.conv_in.weight", "first_stage_model.decoder.conv_in.weight")
XL = ("conditioner.embedders.0.transformer.text_model.x", "conditioner.embedders.1.model.x", UNET + "x", *VAE)


def identify(folder: Path, content: bytes, name: str = "a.safetensors") -> Identity:
    return sandbox.identify(str(put(folder / name, content)))


KINDS: list[tuple[dict[str, tuple[int, ...]] | tuple[str, ...], str, str]] = [
    (SD15, "checkpoint", "sd15"),
    (("cond_stage_model.model.transformer.resblocks.0.x", UNET + "x", *VAE), "checkpoint", "sd2"),
    (XL, "checkpoint", "sdxl"),
    (("conditioner.embedders.0.model.transformer.x", UNET + "x", *VAE), "checkpoint", "sdxl-refiner"),
    ((UNET + "joint_blocks.0.x", *VAE), "checkpoint", "sd3"),
    ((UNET + "joint_blocks.0.x_block.attn.ln_k.weight", "text_encoders.clip_l.x", *VAE), "checkpoint", "sd35"),
    (("double_blocks.0.x", "single_blocks.0.x", "guidance_in.in_layer.weight"), "diffusion_model", "flux"),
    (
        (UNET + "double_blocks.0.x", UNET + "single_blocks.0.x", UNET + "img_in.weight"),
        "diffusion_model",
        "flux-schnell",
    ),
    (
        (
            "transformer_blocks.0.attn.add_k_proj.x",
            "single_transformer_blocks.0.x",
            "time_text_embed.guidance_embedder.x",
        ),
        "diffusion_model",
        "flux",
    ),
    (
        ("transformer_blocks.0.attn.add_k_proj.x", "pos_embed.proj.weight", "context_embedder.weight"),
        "diffusion_model",
        "sd3",
    ),
    (("distilled_guidance_layer.x", "double_blocks.0.x", "single_blocks.0.x"), "diffusion_model", "chroma"),
    (
        {
            IN: (320, 4, 3, 3),
            UNET + "output_blocks.0.0.x": (1,),
            UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
        },
        "diffusion_model",
        "sd15",
    ),
    (
        {
            "conv_in.weight": (320, 4, 3, 3),
            "down_blocks.0.x": (1,),
            "up_blocks.0.x": (1,),
            "time_embedding.linear_1.x": (1,),
            "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight": (640, 2048),
        },
        "diffusion_model",
        "sdxl",
    ),
    (VAE, "vae", ""),
    (
        ("encoder.conv_in.weight", "decoder.conv_in.weight", "encoder.down_blocks.0.x", "decoder.up_blocks.0.x"),
        "vae",
        "",
    ),
    (
        {
            "control_model.input_hint_block.0.x": (1,),
            "control_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 1024),
        },
        "controlnet",
        "sd2",
    ),
    (("controlnet_cond_embedding.conv_in.weight", "down_blocks.0.x"), "controlnet", ""),
    ({"emb_params": (4, 768)}, "embedding", "sd15"),
    ({"clip_l": (4, 768), "clip_g": (4, 1280)}, "embedding", "sdxl"),
    ({"<cat-toy>": (1024,)}, "embedding", "sd2"),
    (("conv_first.weight", "body.0.rdb1.conv1.weight"), "upscaler", "esrgan"),
    (("model.0.weight", "model.1.sub.0.RDB1.conv1.0.weight"), "upscaler", "esrgan"),
    (("text_model.encoder.layers.0.x", "text_model.embeddings.x"), "text_encoder", "clip"),
    (("encoder.block.0.layer.0.SelfAttention.k.weight", "shared.weight"), "text_encoder", "t5"),
    ({"lora_unet_x_attn2_to_k.lora_down.weight": (8, 768), "lora_te_x.lora_down.weight": (8, 768)}, "lora", "sd15"),
    ({"lora_unet_x_attn2_to_k.lora_down.weight": (8, 2048)}, "lora", "sdxl"),
    ({"lora_te2_text_model_encoder_layers_0_x.lora_up.weight": (8, 8)}, "lora", "sdxl"),
    ({"transformer.single_transformer_blocks.0.attn.to_k.lora_A.weight": (8, 8)}, "lora", "flux"),
    ({"unet.x.attn2.to_k.lora.down.weight": (8, 1024)}, "lora", "sd2"),
    (("lora_unet_x.hada_w1_a",), "lora", ""),
    (("ip_adapter.0.x", "image_proj.x"), "unknown", "ip-adapter"),
    (("layer.weight", "layer.bias"), "unknown", ""),
]


@pytest.mark.parametrize(("shapes", "kind", "family"), KINDS)
def test_names_and_shapes_show_kind_and_family(tmp_path: Path, shapes: Any, kind: str, family: str) -> None:
    found = identify(tmp_path, model(shapes))
    assert (found.kind, found.family) == (kind, family)
    assert bool(found.problem) == (kind == "unknown")


def test_the_layout_decides_where_the_width_is_odd(tmp_path: Path) -> None:
    tiny = dict.fromkeys(SD15, (2, 4, 3, 3)) | {
        UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (32, 32)
    }
    assert identify(tmp_path, model(tiny)).family == "sd15"


@pytest.mark.parametrize(
    ("extra", "metadata", "variant"),
    [
        ({IN: (320, 4, 3, 3)}, {}, ""),
        ({IN: (320, 9, 3, 3)}, {}, "inpaint"),
        ({"v_pred": ()}, {}, "v-prediction"),
        ({"ztsnr": ()}, {}, "v-prediction"),
        ({}, {"modelspec.prediction_type": "v"}, "v-prediction"),
        ({}, {"modelspec.prediction_type": "epsilon"}, ""),
    ],
)
def test_variants_are_recognised(tmp_path: Path, extra: Any, metadata: dict[str, str], variant: str) -> None:
    found = identify(tmp_path, model(dict.fromkeys(XL, (1,)) | extra, metadata))
    assert (found.family, found.variant) == ("sdxl", variant)


@pytest.mark.parametrize(
    ("extra", "family"),
    [
        ({"edm_mean": (1,)}, "playground"),
        ({"edm_vpred.sigma_max": ()}, "cosxl"),
        ({IN: (320, 8, 3, 3)}, "sdxl-pix2pix"),
    ],
)
def test_fine_tunes_that_sample_otherwise_are_families_of_their_own(tmp_path: Path, extra: Any, family: str) -> None:
    assert identify(tmp_path, model(dict.fromkeys(XL, (1,)) | extra)).family == family


def test_sizes_dtypes_and_components_add_up(tmp_path: Path) -> None:
    table, size = header({SD15[0]: (10,), IN: (100,), VAE[0]: (5, 5)})
    table["model_ema.decay"] = {"dtype": "F32", "shape": [], "data_offsets": [size, size + 4]}
    found = identify(tmp_path, encoded(table, bytes(size + 4)))
    assert found.parameters == 10 + 100 + 25 + 1 and found.dtypes == ("F16", "F32")
    assert found.components == {"text_encoder": 20, "denoiser": 200, "vae": 50, "ema": 4}


def test_trigger_words_are_the_authors_or_the_commonest_tags(tmp_path: Path) -> None:
    tags = {
        "ss_tag_frequency": json.dumps({"10_x": {"sks dog": 90, "grass": 5}, "5_y": {"grass": 7, "broken": "many"}})
    }
    shapes: dict[str, tuple[int, ...]] = {"lora_unet_x.lora_down.weight": (2, 2)}
    assert identify(tmp_path, model(shapes, tags)).trigger_words == ("sks dog", "grass")
    own = {"modelspec.trigger_phrase": "ohwx man, ohwx man, in the rain"}
    assert identify(tmp_path, model(shapes, tags | own)).trigger_words == ("ohwx man", "in the rain")
    assert identify(tmp_path, model(SD15, tags)).trigger_words == ()


@pytest.mark.parametrize("text", ["{", "[" * 5000, "[]", '{"a": []}', '{"a": {"b": -1}}', "null", ""])
def test_broken_tag_counts_are_passed_over(tmp_path: Path, text: str) -> None:
    assert identify(tmp_path, model({"x.lora_down.weight": (2, 2)}, {"ss_tag_frequency": text})).trigger_words == ()


def test_metadata_fits_a_message_and_keeps_what_matters(tmp_path: Path) -> None:
    many = {f"ss_{number}": "x" * 500 for number in range(500)}
    metadata = many | {"modelspec.title": "A title", "modelspec.thumbnail": "data:" + "x" * 50_000}
    found = identify(tmp_path, model(SD15, metadata))
    assert found.metadata["modelspec.title"] == "A title" and "modelspec.thumbnail" not in found.metadata
    assert 20_000 < len(json.dumps(found.metadata, ensure_ascii=False).encode()) <= METADATA_BYTES + 1024


@pytest.mark.parametrize("name", ["a.ckpt", "a.pt", "a.PTH", "a.bin"])
def test_pickles_are_unsafe_and_not_opened(tmp_path: Path, name: str) -> None:
    found = identify(tmp_path, b"\x80\x02cos\nsystem\n", name)
    assert found.unsafe and found.kind == "unknown" and "never loaded" in found.problem


def test_gguf_shows_its_architecture(tmp_path: Path) -> None:
    found = identify(tmp_path, gguf(b"flux"), "a.gguf")
    assert (found.kind, found.family, found.problem) == ("diffusion_model", "flux", "")
    assert (found.dtypes, found.parameters, found.components) == (("F32", "Q8_0"), 73, {"denoiser": 34 + 164})
    assert "'mamba'" in identify(tmp_path, gguf(b"mamba"), "b.gguf").problem
    for broken in (b"", b"GGUF", gguf(b"flux")[:50], b"GGUF" + b"\xff" * 100, gguf(b"\xff\xff")):
        assert identify(tmp_path, broken, "c.gguf").problem


ONE = json.dumps(entry(0, 1)).encode()

HOSTILE = {
    "empty": b"",
    "seven bytes": b"1234567",
    "a web page": b"<!DOCTYPE html>",
    "random": bytes(range(256)),
    "zeros": bytes(1000),
    "header too long": struct.pack("<Q", LARGEST_HEADER + 1) + b"{" + bytes(100),
    "header of 2**64 - 1": b"\xff" * 8 + b"{}",
    "header past the end": struct.pack("<Q", 1000) + b"{}",
    "large header past the end": struct.pack("<Q", HEADER_LIMIT) + b"{}",
    "nested arrays": encoded(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "nested objects": encoded(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "large and nested": encoded(b'{"a":' + b"[" * (4 << 20) + b"}"),
    "not an object": encoded(b'{"a":1}'),
    "no tensor at all": encoded({}),
    "metadata only": encoded({"__metadata__": {"a": "b"}}),
    "metadata of numbers": encoded({"__metadata__": {"a": 1}, "x": entry(0, 1)}, b"1"),
    "metadata a tensor": encoded({"__metadata__": entry(0, 1)}, b"1"),
    "overlap": encoded({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)),
    "alias": encoded({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8)),
    "gap": encoded({"a": entry(0, 8), "b": entry(9, 12)}, bytes(12)),
    "not from zero": encoded({"a": entry(4, 8)}, bytes(8)),
    "backwards": encoded({"a": entry(8, 0, [8])}, bytes(8)),
    "negative": encoded({"a": entry(-8, 0)}, bytes(8)),
    "out of range": encoded({"a": entry(0, 1 << 40)}, bytes(8)),
    "shape too large": encoded({"a": entry(0, 8, [1 << 61, 1 << 61])}, bytes(8)),
    "shape of many": encoded({"a": entry(0, 1, [1] * 100_000)}, b"1"),
    "number too long": encoded(b'{"a":{"dtype":"U8","shape":[' + b"9" * 100_000 + b'],"data_offsets":[0,1]}}'),
    "NaN": encoded(b'{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,1]}}'),
    "float": encoded(b'{"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}}', b"1"),
    "true": encoded(b'{"a":{"dtype":"U8","shape":[true],"data_offsets":[0,1]}}', b"1"),
    "unknown dtype": encoded({"a": entry(0, 1, None, "Q4")}, b"1"),
    "dtype a list": encoded({"a": entry(0, 1, None, ["U8"])}, b"1"),
    "shape a text": encoded({"a": entry(0, 1, "1")}, b"1"),
    "three offsets": encoded({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1, 2]}}, b"1"),
    "length and shape differ": encoded({"a": entry(0, 8, [7])}, bytes(8)),
    "double key": encoded(b'{"a":%b,"a":%b}' % ((ONE, ONE)), b"1"),
    "double key spelled otherwise": encoded(b'{"a":%b,"\\u0061":%b}' % ((ONE, ONE)), b"1"),
    "double dtype": encoded(b'{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}', b"1"),
    "not UTF-8": encoded(b'{"\xff":1}'),
    "half a character": encoded({"__metadata__": {"a": "\ud800"}, "x": entry(0, 1)}, b"1"),
    "double metadata": encoded(b'{"__metadata__":{},"__metadata__":{},"a":%b}' % ONE, b"1"),
    "double key hidden by escapes": encoded(
        b'{"a":%b,"a":%b,"%b":%b}' % (ONE, ONE, b"\\u003A" * 4, json.dumps(entry(1, 2)).encode()), b"12"
    ),
    "a fourth field": encoded({"a": entry(0, 1) | {"more": 1}}, b"1"),
    "cut JSON": encoded(b'{"a":{"dtype":"U8"'),
    "two values": encoded(b'{"a":1}{"b":2}'),
    "a tensor at the top": encoded(entry(0, 1), b"1"),
    "too long": encoded({"a": entry(0, 1)}, bytes(100)),
    "too short": encoded({"a": entry(0, 100)}, bytes(10)),
}  # fmt: skip


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_file_is_unknown_with_a_sentence_and_soon(tmp_path: Path, content: bytes) -> None:
    started = time.monotonic()
    found = identify(tmp_path, content)
    assert time.monotonic() - started < 2
    assert found.kind == "unknown" and len(found.problem) < 400 and found.problem.endswith((".", "!"))
    assert found.problem.isprintable()


def test_colons_in_texts_are_no_second_names(tmp_path: Path) -> None:
    text = b'{"__metadata__":{"a:\\u003a":"\\\\u003a: \\u003A"},"b:\\u003ac":%b}' % ONE
    assert identify(tmp_path, encoded(text, b"1")).metadata == {"a::": "\\u003a: :"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.sampled_from(("a", "dtype", "shape", "data_offsets", "__metadata__")), inner)
    ),
)


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_nothing_but_a_bad_header_comes_of_any_bytes(raw: bytes) -> None:
    try:
        parse(raw)
    except BadHeader as error:
        assert str(error)


TEXTS = st.text() | st.text(':\\\\"u03aA')


def spelled(text: str, escapes: bool) -> str:
    """A JSON text, by escapes alone or by as few as can be."""
    return '"' + "".join(f"\\u{ord(one):04x}" for one in text) + '"' if escapes and text.isascii() else json.dumps(text)


@given(
    st.lists(st.tuples(TEXTS, st.booleans()), min_size=1, unique_by=lambda one: one[0]),
    st.none() | st.dictionaries(TEXTS, TEXTS),
    st.integers(0, 9),
)
def test_a_name_that_comes_twice_is_found_however_it_is_spelled(
    names: list[tuple[str, bool]], metadata: dict[str, str] | None, double: int
) -> None:
    names = [(name, escapes) for name, escapes in names if name != "__metadata__"] or [("a", False)]
    twice = names[double : double + 1]
    entries = [f"{spelled(name, escapes)}:{json.dumps(entry(0, 0))}" for name, escapes in names + twice]
    head = [] if metadata is None else [f'"__metadata__" : {json.dumps(metadata)}']
    raw = "{" + ",".join(head + entries) + "}"
    if twice:
        with pytest.raises(BadHeader, match="twice"):
            parse(raw.encode())
    else:
        table = parse(raw.encode())
        assert (set(table.tensors), table.metadata) == ({name for name, _ in names}, metadata or {})


@pytest.mark.parametrize("length", [640, 15_392, 15_420, 66_176])
def test_a_length_whose_bytes_begin_a_pickle_or_a_page_is_a_length(tmp_path: Path, length: int) -> None:
    table, size = header(dict.fromkeys(SD15, (2, 2, 1, 1)))
    content = encoded(json.dumps(table).encode().ljust(length), bytes(size))
    assert content[:2] == b"\x80\x02" or b"<" in content[:2]
    assert set(safetensors.numpy.load(content)) == set(SD15)
    assert identify(tmp_path, content).kind == "checkpoint"


ODD = {
    "no metadata": {"__metadata__": None},
    "empty metadata": {"__metadata__": {}},
    "metadata of one key twice": b'{"__metadata__":{"a":"1","a":"2"},"x":%b}' % ONE,
    "a number as metadata": {"__metadata__": {"a": 1}},
    "nothing as metadata": {"__metadata__": {"a": None}},
    "a list as metadata": {"__metadata__": []},
    "metadata twice": b'{"__metadata__":{},"__metadata__":{},"x":%b}' % ONE,
    "a zero in names": {"__metadata__": {"a\0": "\0"}, "x\0": entry(0, 1)},
    "a name of nothing": {"": entry(0, 1)},
    "more fields": {"x": entry(0, 1) | {"note": {"more": [1, {"a:b": ":"}]}}},
    "a field twice": b'{"x":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
    "space before": b" \n" + json.dumps({"x": entry(0, 1)}).encode(),
    "space behind": json.dumps({"x": entry(0, 1)}).encode() + b" \n\t\r",
    "zeros behind": json.dumps({"x": entry(0, 1)}).encode() + b"\0",
    "a scalar": {"x": entry(0, 1, [])},
    "tensors of nothing": {"x": entry(0, 0, [0]), "y": entry(0, 0, [3, 0, 2]), "z": entry(0, 1)},
    "large tensors of nothing": {"x": entry(0, 0, [0, (1 << 64) - 1])},
    "too large tensors of nothing": {"x": entry(0, 0, [1 << 62, 1 << 62, 0])},
    "a number of more than 64 bits": {"x": entry(0, 0, [0, 1 << 64])},
    "a length of -0": b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[-0,1]}}',
    "-0 where nobody looks": b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"more":[-0, 1]}}',
    "a number too large for any": b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"more":1e999}}',
    "a long number too large for any": b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"more":%s}}'
    % (b"9" * 400),
    **{
        f"{depth} lists in lists": b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"more":%b}}'
        % (b"[" * depth + b"]" * depth)
        for depth in (125, 126)
    },
    "100 dimensions": {"x": entry(0, 1, [1] * 100)},
    **{
        f"{count} of {dtype}": {"x": entry(0, -(-count * bits // 8), [count], dtype)}
        for dtype, bits in {**BITS, "F4_E2M1": 4, "U4": 4, "C128": 128, "f32": 32}.items()
        for count in (1, 4)
    },
}


@pytest.mark.parametrize("head", ODD.values(), ids=ODD.keys())
def test_what_the_library_loads_is_a_good_file_and_nothing_else_is(tmp_path: Path, head: Any) -> None:
    table = head if isinstance(head, bytes) or "x" in head else head | {"x": entry(0, 1)}
    size = (
        1
        if isinstance(table, bytes)
        else max(one["data_offsets"][1] for one in table.values() if one and "dtype" in one)
    )
    content = encoded(table, bytes(size))
    try:
        safetensors.deserialize(content)
    except safetensors.SafetensorError:
        with pytest.raises(BadHeader):
            parse(content[8:])
    else:
        path = put(tmp_path / "a.safetensors", content)
        with path.open("rb") as file:
            assert sandbox.expected_size(file.fileno()) == len(content)
        assert "type known here" in sandbox.identify(path).problem or "kind of model" in sandbox.identify(path).problem


def test_two_tensors_of_one_name_are_reported_as_such_and_not_as_damage() -> None:
    with pytest.raises(BadHeader, match="'a' comes twice") as raised:
        parse(b'{"a":%b,"a":%b}' % (ONE, ONE))
    assert "damaged" not in str(raised.value)


def test_the_library_agrees_on_a_whole_file(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    from safetensors.numpy import save_file

    save_file({"a": numpy.zeros((2, 3), "float32"), "b": numpy.zeros((0,), "int8")}, str(tmp_path / "a.safetensors"))
    with (tmp_path / "a.safetensors").open("rb") as file:
        assert sandbox.expected_size(file.fileno()) == os.fstat(file.fileno()).st_size


def test_only_the_disk_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sandbox.identify(str(tmp_path / "nothing.safetensors"))
