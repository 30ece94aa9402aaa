"""Names tell which models a file describes, whatever the case of its ending."""

import pytest

from agents.ingest.scanning.names import PREVIEW_SUFFIXES, WORD_SUFFIXES, described_by


@pytest.mark.parametrize("suffix", [*WORD_SUFFIXES, *PREVIEW_SUFFIXES])
def test_every_ending_is_known_in_every_case(suffix: bytes):
    for ending in (suffix, suffix.upper(), suffix.title()):
        assert b"Fox v1.5" in described_by(b"Fox v1.5" + ending)


@pytest.mark.parametrize(
    ("name", "stems"),
    [
        (b"fox.json", (b"fox",)),
        (b"fox.preview.png", (b"fox", b"fox.preview")),
        (b"fox.metadata.json", (b"fox", b"fox.metadata")),
        (b"fox.civitai.info", (b"fox",)),
        (b"\xff.a.GIF", (b"\xff.a",)),
        (b"fox.info", ()),
        (b"fox.safetensors", ()),
        (b".png", ()),
        (b".preview.png", (b".preview",)),
        (b"png", ()),
        (b"fox.png.part", ()),
        (b"", ()),
    ],
)
def test_a_name_is_that_of_every_model_it_could_describe(name: bytes, stems: tuple[bytes, ...]):
    assert described_by(name) == stems
