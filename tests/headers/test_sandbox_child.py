"""Headers over 1 MiB, which a child reads: in little time and memory, and its end is no verdict on the file."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors

from agents.headers import sandbox
from agents.headers.compact import UNREADABLY_LARGE
from agents.headers.errors import HeaderUnread, Unfinished
from agents.headers.safetensors import HEADER_LIMIT
from schemas.files import Identity
from tests.ingest.hostile import entry, many
from tests.ingest.making import SD15, encoded, header, model, put

UNET = "model.diffusion_model."


def identify(folder: Path, content: bytes) -> Identity:
    return sandbox.identify(str(put(folder / "a.safetensors", content)))


MEASURE = """
import resource, sys
from agents.headers import sandbox
sandbox.identify(sys.argv[1])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)
"""


TENSOR = b'"t.lora_up.weight":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'


def full(piece: bytes, before: bytes = b"{", after: bytes = b"}") -> bytes:
    """A header of 16 MiB, filled with as many numbered pieces as fit."""
    pieces, size = [], len(before) + len(after)
    while (size := size + len(numbered := piece % len(pieces)) + 1) <= HEADER_LIMIT:
        pieces.append(numbered)
    return encoded(before + b",".join(pieces) + after)


def tag_counts() -> bytes:
    """A header of nearly 16 MiB, all of it the tags of one training set."""
    tags = json.dumps(json.dumps({"a": {f"{number:x}": 1 for number in range(1_200_000)}}))
    return encoded(b'{"__metadata__":{"ss_tag_frequency":' + tags.encode() + b"}," + TENSOR + b"}")


COSTLY = {
    "tensors": lambda: many(1 << 30, HEADER_LIMIT),
    "tensors whose place is looked up": lambda: full(
        b'"diffusion_model.%x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    ),
    "no tensors": lambda: full(b'"%x":{}'),
    "metadata": lambda: full(b'"%x":""', b"{" + TENSOR + b',"__metadata__":{', b"}}"),
    "tags": tag_counts,
}


@pytest.mark.parametrize("made", COSTLY.values(), ids=COSTLY.keys())
def test_16_mib_of_anything_are_read_in_a_child_that_stays_small(tmp_path: Path, made: Callable[[], bytes]) -> None:
    path = put(tmp_path / "a.safetensors", made())
    top = Path(__file__).parents[2]
    command = [sys.executable, "-c", MEASURE, str(path)]
    measured = subprocess.run(command, cwd=top, capture_output=True, check=True, text=True)
    processor_seconds, resident = measured.stdout.split()
    assert float(processor_seconds) < 2  # of its own time: a busy machine is not its fault
    assert int(resident) <= sandbox.CHILD_MEMORY_BYTES  # which leaves room for the agent itself in 256 MiB


def test_a_legal_header_of_16_mib_is_read_to_its_end(tmp_path: Path) -> None:
    found = identify(tmp_path, many(1 << 30, HEADER_LIMIT))
    assert found.parameters > 200_000


def test_1_2_million_tensors_are_too_many_to_read_which_is_no_damage(tmp_path: Path) -> None:
    found = identify(tmp_path, many(1_200_000, 1 << 30))
    assert found.kind == "unknown" and found.problem == UNREADABLY_LARGE


LAYER = {"lora_unet_double_blocks_0_img_mod_lin.lora_down.weight": (8, 3072)}


def large(metadata: str, padding: int = 0) -> bytes:
    """A LoRA with that metadata (JSON) and as much white space after its header."""
    table, size = header(LAYER)
    text = b'{"__metadata__":' + metadata.encode() + b"," + json.dumps(table)[1:].encode() + b" " * padding
    return encoded(text, bytes(size))


LARGE = {
    "a workflow": lambda: large(
        json.dumps({"ss_tag_frequency": '{"a": {"sks": 3}}', "workflow": '{"x": 1}' * 3_000_000})
    ),
    "one wide character": lambda: large(json.dumps({"log": "x" * (40 << 20) + "🦊"}, ensure_ascii=False)),
    "text after text": lambda: large(json.dumps({f"log{number}": "x" * 500_000 for number in range(60)})),
    "a picture in a name": lambda: large(json.dumps({"x" * (17 << 20): "y"})),
    "padding": lambda: large("null", 20 << 20),
    "the library's limit": lambda: large(json.dumps({"log": "x" * 99_999_000})),
}


@pytest.mark.parametrize("made", LARGE.values(), ids=LARGE.keys())
def test_a_header_of_up_to_100_mb_is_read_whatever_fills_it(tmp_path: Path, made: Callable[[], bytes]) -> None:
    path = put(tmp_path / "a.safetensors", made())
    command = [sys.executable, "-c", MEASURE, str(path)]
    measured = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, check=True, text=True)
    assert int(measured.stdout.split()[1]) <= sandbox.CHILD_MEMORY_BYTES
    found = sandbox.identify(path)
    assert (found.kind, found.family, found.problem) == ("lora", "flux", "")
    with path.open("rb") as file:
        assert sandbox.expected_size(file.fileno()) == path.stat().st_size
        assert list(safetensors.safe_open(str(path), "numpy").keys()) == list(LAYER)


TEXTS = {
    "no UTF-8": b"\xff",
    "half a character": b"\xf0\x9f\xa6",
    "a surrogate in UTF-8": b"\xed\xa0\x80",
    "an escape that is none": b"\\x",
    "half a pair": b"\\ud83e",
    "the other half": b"\\udd8a",
    "a line's end": b"\n",
    "a fox": b"\\ud83e\\udd8a\xf0\x9f\xa6\x8a",
    "words": "日本語 Größe \x7f".encode() + b"\\n\\u00e9\\/",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_a_long_text_that_is_left_out_must_be_one_that_the_library_takes(tmp_path: Path, text: bytes) -> None:
    head, size = header(LAYER)
    long = b'{"__metadata__":{"log":"' + b"x" * (17 << 20) + text + b'"},' + json.dumps(head)[1:].encode()
    path = put(tmp_path / "a.safetensors", encoded(long, bytes(size)))
    try:
        safetensors.safe_open(str(path), "numpy")
    except safetensors.SafetensorError:
        assert "damaged" in sandbox.identify(path).problem
    else:
        assert sandbox.identify(path).kind == "lora"


def test_of_a_large_header_the_short_texts_stay_and_the_long_ones_are_left_out(tmp_path: Path) -> None:
    found = identify(tmp_path, LARGE["a workflow"]())
    assert (found.metadata, found.trigger_words) == ({"ss_tag_frequency": '{"a": {"sks": 3}}'}, ("sks",))


def test_a_large_header_without_its_end_is_unfinished_not_damaged(tmp_path: Path) -> None:
    path = put(tmp_path / "a.safetensors", LARGE["padding"]()[: 19 << 20])
    with path.open("rb") as file, pytest.raises(Unfinished):
        sandbox.expected_size(file.fileno())


def test_a_large_header_reads_the_same_in_the_child(tmp_path: Path) -> None:
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(SD15, (2, 2, 1, 1))
    shapes |= {f"{UNET}middle_block.{number}.{'x' * 100}": (1,) for number in range(8000)}
    content = model(shapes, {"modelspec.title": "Größe"})
    assert len(content) > sandbox.CHILD_OVER_BYTES
    found = identify(tmp_path, content)
    assert (found.kind, found.family, found.metadata) == ("checkpoint", "sd15", {"modelspec.title": "Größe"})
    with (tmp_path / "a.safetensors").open("rb") as file:
        assert sandbox.expected_size(file.fileno()) == len(content)


def test_a_large_bad_header_brings_its_sentence_from_the_child(tmp_path: Path) -> None:
    padding = " " * (2 << 20)
    found = identify(
        tmp_path, encoded((json.dumps({"a": entry(0, 8), "b": entry(4, 12)}) + padding).encode(), bytes(12))
    )
    assert "overlap" in found.problem


ENDLESS = """
import sys; sys.path.insert(0, sys.argv[1])
from agents.headers import sandbox
sandbox.CHILD_SECONDS = 1
sandbox._read_here = lambda *_: all(not number for number in iter(int, 1))  # it never comes to an end
sandbox.main(False)
"""


def child_is(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Headers are read by a shell script instead."""
    program = put(folder / "child", f"#!/bin/sh\n{script}\n".encode())
    program.chmod(0o755)
    monkeypatch.setattr(sandbox.sys, "executable", str(program))


def test_a_child_that_needs_too_much_time_is_a_problem_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "endless.py", ENDLESS.encode())
    child_is(tmp_path, monkeypatch, f"exec {sys.executable} {tmp_path}/endless.py {Path(__file__).parents[2]}")
    assert "more time or memory" in identify(tmp_path, many(1 << 20, 2 << 20)).problem


@pytest.mark.parametrize("script", ["kill -9 $$", "exec sleep 60"])
def test_a_child_that_is_killed_or_gets_no_time_is_no_verdict_on_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    child_is(tmp_path, monkeypatch, script)
    monkeypatch.setattr(sandbox, "CHILD_WALL_SECONDS", 0.5)
    with pytest.raises(HeaderUnread, match="tried again"):
        identify(tmp_path, many(1 << 20, 2 << 20))
