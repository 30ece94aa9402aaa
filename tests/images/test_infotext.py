import io
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from agents.images.decode import BadPicture
from agents.images.infotext import Infotext, build, exif, of_plan, parse, png_info, read, read_file
from schemas.jobs import Plan
from tests import plans
from tests.plans import MODEL

TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('\n\n,:"\\ '), max_size=60)
LINES = st.lists(TEXT | st.sampled_from(["Negative prompt: x", "Steps: 1, Seed: 2, Size: 3x4"]), max_size=4)
PROMPT = LINES.map("\n".join)
NAME = st.from_regex(r"[A-Za-z][A-Za-z \-/]{0,30}[A-Za-z]", fullmatch=True)


def plan(prompt: str, negative_prompt: str = "", name: str = "fox-mini") -> Plan:
    model = msgspec.structs.replace(MODEL, sha256="ab12" * 16, name=name)
    return plans.plan(prompt=prompt, negative_prompt=negative_prompt, model=model, steps=20)


def test_a_plan_reads_like_the_infotext_other_tools_write() -> None:
    text = of_plan(plan("a red fox", "blurry"), seed=1, width=64, height=64, sampler="Euler", scheduler="Normal")
    assert text == (
        "a red fox\nNegative prompt: blurry\n"
        "Steps: 20, Sampler: Euler, Schedule type: Normal, CFG scale: 7, Seed: 1, Size: 64x64, "
        "Model hash: ab12ab12ab, Model: fox-mini, Version: Darkroom 0.1.0"
    )


def test_values_with_commas_colons_or_newlines_are_quoted() -> None:
    text = of_plan(plan("fox", name='fox, "v2": final\n'), seed=1, width=64, height=64)
    assert r'Model: "fox, \"v2\": final\n", Version' in text
    assert parse(text).settings["Model"] == 'fox, "v2": final\n'


@given(prompt=PROMPT, negative=PROMPT, settings=st.dictionaries(NAME, TEXT, min_size=3, max_size=6))
def test_whatever_is_written_is_read_back(prompt: str, negative: str, settings: dict[str, str]) -> None:
    info = Infotext(prompt=prompt, negative_prompt=negative, settings=settings)
    assert parse(build(info)) == info


@given(prompt=PROMPT, negative=PROMPT)
@example(prompt="\0", negative="")
def test_an_infotext_survives_every_file_format(prompt: str, negative: str) -> None:
    text = of_plan(plan(prompt, negative), seed=1, width=8, height=8)
    ways = {"WEBP": {"exif": exif(text)}, "JPEG": {"exif": exif(text)}, "PNG": {"pnginfo": png_info(text)}}
    for form, extra in ways.items():
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, form, **extra)
        assert read(Image.open(file)) == text


@given(text=PROMPT)
def test_any_text_can_be_parsed_and_nothing_is_made_up(text: str) -> None:
    info = parse(text)
    parts = (*info.prompt.split("\n"), *info.negative_prompt.split("\n"), *info.settings)
    assert all(part in text for part in parts)


def test_text_of_another_tool_is_understood() -> None:
    info = parse(
        "a castle, (night:1.2)\nby the sea\nNegative prompt: fog,\nrain\n"
        'Steps: 30, Sampler: DPM++ 2M, Seed: 42, Size: 512x768, Lora hashes: "a: 1, b: 2", Hires upscale: 2'
    )
    assert info.prompt == "a castle, (night:1.2)\nby the sea"
    assert info.negative_prompt == "fog,\nrain"
    assert info.settings["Lora hashes"] == "a: 1, b: 2"
    assert info.settings["Size"] == "512x768"
    assert list(info.settings)[-1] == "Hires upscale"


def test_a_prompt_alone_has_no_settings() -> None:
    assert parse("a fox: red, small") == Infotext(prompt="a fox: red, small")


def test_too_few_settings_to_be_recognised_are_refused() -> None:
    with pytest.raises(ValueError, match="three"):
        build(Infotext(prompt="x", settings={"Steps": "1"}))


def test_the_exif_comment_has_the_type_undefined_as_the_standard_wants() -> None:
    block = exif("é")
    assert b"\x92\x86\x00\x07\x00\x00\x00\x0a" in block
    assert block.endswith(b"UNICODE\0\0\xe9")
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "WEBP", exif=block)
    assert b"\x92\x86\x00\x07" in file.getvalue()


@pytest.mark.parametrize("prompt", ["fox " * 20_000, "🦊" * 20_000, "x\nNegative prompt: " * 4_000])
def test_a_prompt_too_long_for_jpeg_loses_its_end_and_keeps_the_settings(prompt: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", exif=exif(of_plan(plan(prompt), seed=77, width=8, height=8)))
    info = parse(read(Image.open(file)))
    assert info.settings["Seed"] == "77"
    assert info.prompt.startswith(prompt[:1])


def test_one_line_too_long_for_jpeg_is_cut() -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", exif=exif("x" * 100_000))
    assert read(Image.open(file)).endswith("x…")


def test_a_picture_without_infotext_reads_as_empty() -> None:
    assert read(Image.new("RGB", (8, 8))) == ""


def test_a_lone_surrogate_does_not_cost_the_picture() -> None:
    for form, extra in (("WEBP", {"exif": exif("a\ud800b")}), ("PNG", {"pnginfo": png_info("a\ud800b")})):
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, form, **extra)
        assert read(Image.open(file)) == "a?b"


@pytest.mark.parametrize("line", ["x" * 200_000, " " * 200_000, 'aa:"' * 50_000, "aa: ," * 40_000, "a-" * 100_000])
def test_a_hostile_line_is_parsed_in_time(line: str) -> None:
    start = time.process_time()
    parse(line)
    assert time.process_time() - start < 2


@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
def test_a_file_gives_its_infotext_and_a_damaged_one_is_a_bad_picture(tmp_path: Path, form: str) -> None:
    file = tmp_path / "a"
    carried = {"pnginfo": png_info("ein Füchslein")} if form == "PNG" else {"exif": exif("ein Füchslein")}
    Image.new("RGB", (8, 8)).save(file, form, **carried)
    assert read_file(file) == "ein Füchslein"
    content = file.read_bytes()
    for size in range(len(content)):
        file.write_bytes(content[:size])
        try:
            assert read_file(file) in ("", "ein Füchslein")
        except BadPicture as error:
            assert str(error)
    file.unlink()
    with pytest.raises(OSError):
        read_file(file)
