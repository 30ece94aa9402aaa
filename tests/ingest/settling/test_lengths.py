import os
import pickle
import zipfile
from pathlib import Path

import pytest

from agents.ingest.settling.lengths import Length, length_of
from tests.ingest.making import gguf, model, put
from tests.later import Later

torch = Later("torch")


def said(path: Path, name: bytes = b"") -> Length:
    fd = os.open(path, os.O_RDONLY)
    try:
        return length_of(fd, name or bytes(path), os.fstat(fd).st_size)
    finally:
        os.close(fd)


def archive(path: Path) -> bytes:
    """What torch.save writes."""
    torch.save({"weight": torch.ones(1000)}, path)
    return path.read_bytes()


@pytest.mark.parametrize("name", ["a.safetensors", "a.gguf", "a.ckpt"])
def test_a_whole_file_says_its_own_length_and_a_part_of_it_never(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    content = {"a.safetensors": model, "a.gguf": lambda: gguf(b"flux"), "a.ckpt": lambda: archive(path)}[name]()
    assert said(put(path, content)) == Length(header="whole", expected=len(content))
    for count in (100, len(content) // 2, len(content) - 60):
        part = said(put(path, content[:count]))
        assert part.header == "partial" or (part.header == "whole" and part.expected > count), count


def test_what_fills_up_the_last_block_of_a_gguf_may_be_there_or_not(tmp_path: Path) -> None:
    for filling in (0, 1, 28):
        content = gguf(b"flux", filling=filling)
        assert said(put(tmp_path / "a.gguf", content)) == Length(header="whole", expected=len(content))
    cut = gguf(b"flux", filling=0)
    assert said(put(tmp_path / "b.gguf", cut[:-1])) == Length(header="whole", expected=len(cut))


def test_a_gguf_with_a_type_nobody_knows_or_more_than_its_tensors_says_nothing(tmp_path: Path) -> None:
    assert said(put(tmp_path / "a.gguf", gguf(b"flux", tensor_type=9999))) == Length()
    assert said(put(tmp_path / "b.gguf", gguf(b"flux") + bytes(100))) == Length()


def test_a_gguf_of_no_known_version_is_foreign(tmp_path: Path) -> None:
    assert said(put(tmp_path / "a.gguf", b"GGUF\x00\x00\x00\x03" + bytes(100))).header == "foreign"
    assert said(put(tmp_path / "b.gguf", bytes(100))).header == "partial"


def test_an_archive_larger_than_32_bits_says_its_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as made:
        made.writestr("data.pkl", b"x" * 1000)
        made.comment = b"written by a test"
    content = (tmp_path / "a.pt").read_bytes()
    assert said(tmp_path / "a.pt") == Length(header="whole", expected=len(content))
    assert said(put(tmp_path / "b.pt", content[:-30])).header == "partial"


def test_an_archive_with_more_behind_it_can_be_loaded_and_says_nothing(tmp_path: Path) -> None:
    content = archive(tmp_path / "a.pt") + b"\n"
    assert said(put(tmp_path / "b.pt", content)) == Length()
    assert torch.load(tmp_path / "b.pt", weights_only=True)["weight"].sum() == 1000


def test_a_record_that_is_cut_off_proves_nothing(tmp_path: Path) -> None:
    end = b"PK\x05\x06" + b"\0" * 8 + b"\xff" * 8 + b"\0\0"
    for before in (b"PK\x03\x04", b"PK\x03\x04" + b"PK\x06\x07" + b"\xff" * 16, b"PK\x03\x04PK\x06\x07" + b"\0" * 16):
        assert said(put(tmp_path / "a.pt", before + end)) == Length()


def test_the_end_of_another_archive_proves_nothing(tmp_path: Path) -> None:
    whole = archive(tmp_path / "a.ckpt")
    assert said(put(tmp_path / "b.ckpt", whole[:500] + whole[-22:])) == Length()


def test_older_pickles_and_whatever_has_no_name_of_a_model_say_nothing(tmp_path: Path) -> None:
    assert said(put(tmp_path / "a.ckpt", pickle.dumps({"a": 1}))) == Length()
    assert said(put(tmp_path / "a.txt", model())) == Length()


def test_the_name_that_counts_is_the_one_given(tmp_path: Path) -> None:
    blob = put(tmp_path / "blobs" / "0123abcd", model())
    assert said(blob) == Length()
    assert said(blob, b"a.safetensors") == Length(header="whole", expected=len(model()))
