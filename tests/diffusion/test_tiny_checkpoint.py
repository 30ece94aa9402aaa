from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from agents.diffusion.tiny_checkpoint import write_tiny_checkpoint
from tests.diffusion.conftest import Tiny


def test_one_seed_gives_one_file_and_another_seed_another(tiny: Tiny, tmp_path: Path) -> None:
    again = write_tiny_checkpoint(tmp_path / "again.safetensors", seed=0)
    other = write_tiny_checkpoint(tmp_path / "other.safetensors", seed=1)
    assert again.read_bytes() == tiny.path.read_bytes()
    assert other.read_bytes() != tiny.path.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.safetensors", "other.safetensors"]


def test_it_is_small_and_safetensors_own_reader_reads_it_with_its_metadata(tmp_path: Path) -> None:
    words = {"b": "2", "a": "1", "modelspec.title": "Tiny"}
    path = write_tiny_checkpoint(tmp_path / "tiny.safetensors", metadata=words)
    assert path.stat().st_size < 30_000_000
    with safe_open(path, framework="numpy") as file:
        assert file.metadata() == words
        names = set(file.keys())
        assert file.get_tensor("cond_stage_model.transformer.text_model.embeddings.token_embedding.weight").shape == (
            49_408,
            64,
        )
    assert "model.diffusion_model.output_blocks.11.0.skip_connection.weight" in names
    assert "first_stage_model.decoder.up.3.upsample.conv.bias" in names


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        write_tiny_checkpoint(tmp_path / "tiny.safetensors")
    assert not list(tmp_path.iterdir())


def test_its_pictures_have_structure_and_colours(plan: Callable[..., Any], pictures: Callable[..., Any]) -> None:
    for picture in pictures(plan(steps=10, seeds=(1, 2, 3))):
        assert picture.std() > 30
        assert min(picture[..., colour].std() for colour in range(3)) > 15
        assert len({tuple(pixel) for pixel in picture[::8, ::8].reshape(-1, 3)}) > 40
        assert ((picture == 0) | (picture == 255)).mean() < 0.3
