import functools
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.ingest.sidecars import parse as sidecars
from agents.ingest.sidecars.parse import Sidecars, parse_a1111, parse_civitai, read_sidecars

CIVITAI: dict[str, Any] = {
    "id": 290640,
    "modelId": 257749,
    "name": "V6",
    "baseModel": "Pony",
    "trainedWords": ["score_9, score_8_up", "  fox "],
    "description": None,
    "model": {
        "name": "Fox & Friends",
        "type": "LORA",
        "nsfw": False,
        "tags": ["animal", "fox"],
        "description": '<p>A <b>fox</b>&nbsp;&amp; <a href="https://x/?a=1&b=2">friends</a>.</p><p>Use 1 &lt; 2</p>',
    },
    "images": [{"url": "https://example.com/1.png", "nsfwLevel": 1}],
}
A1111 = {
    "description": "Mine",
    "sd version": "SDXL",
    "activation text": "red fox,, bushy  tail",
    "preferred weight": 0.8,
    "notes": "Good at 0.8.\nNot at 1.",
}


def model(folder: Path, name: str = "fox.v6.safetensors", **beside: bytes | dict[str, Any]) -> Path:
    """A model file with what lies beside it, by suffix ('_' for '.')."""
    path = folder / name
    path.write_bytes(b"")
    for suffix, content in beside.items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        ending = suffix.replace("_", ".").replace(".cm.info.", ".cm-info.")
        path.with_name(path.stem + ending).write_bytes(data)
    return path


def test_a_model_alone_has_nothing_said_of_it(tmp_path: Path):
    assert read_sidecars(model(tmp_path)) == Sidecars()
    assert read_sidecars(tmp_path / "no folder" / "x.safetensors") == Sidecars()


def test_civitais_answer_is_read(tmp_path: Path):
    assert read_sidecars(model(tmp_path, _civitai_info=CIVITAI)) == Sidecars(
        name="Fox & Friends",
        description="A fox & friends.\nUse 1 < 2",
        base_model="Pony",
        trigger_words=("score_9", "score_8_up", "fox"),
        tags=("animal", "fox"),
        nsfw=False,
        source_url="https://civitai.com/models/257749?modelVersionId=290640",
    )


def test_what_a_user_wrote_in_a1111_goes_before_it(tmp_path: Path):
    found = read_sidecars(model(tmp_path, _civitai_info=CIVITAI, _json=A1111))
    assert (found.description, found.base_model, found.notes) == ("Mine", "SDXL", "Good at 0.8.\nNot at 1.")
    assert found.trigger_words == ("red fox", "bushy tail")
    assert (found.name, found.tags) == ("Fox & Friends", ("animal", "fox"))


def test_an_unknown_version_and_empty_fields_of_a1111_hide_nothing(tmp_path: Path):
    empty = {"description": "", "sd version": "Unknown", "activation text": " , ", "notes": ""}
    found = read_sidecars(model(tmp_path, _civitai_info=CIVITAI, _json=empty))
    assert found == read_sidecars(model(tmp_path, "b.safetensors", _civitai_info=CIVITAI))


def test_civitais_answer_under_the_other_name_is_known_by_its_content(tmp_path: Path):
    found = read_sidecars(model(tmp_path, _json=b"\xef\xbb\xbf" + json.dumps(CIVITAI).encode()))
    assert found.name == "Fox & Friends" and not found.problems


@pytest.mark.parametrize("model_id", [1234, "Model not found"])
def test_what_a_user_wrote_stays_when_a_downloader_adds_where_it_came_from(tmp_path: Path, model_id: object):
    added = {"modelId": model_id, "modelVersionId": 7, "sha256": "AB"}
    own = {"activation text": "ohwx man, red", "sd version": "SDXL", "notes": "mine"}
    found = read_sidecars(model(tmp_path, _json=own | added))
    assert (found.trigger_words, found.base_model, found.notes) == (("ohwx man", "red"), "SDXL", "mine")
    assert found.source_url == ("https://civitai.com/models/1234?modelVersionId=7" if model_id == 1234 else "")
    assert found.problems == ()


def test_the_empty_fields_of_a_skeleton_are_no_problems(tmp_path: Path):
    skeleton = {"id": "", "modelId": "", "model": {"name": "", "nsfw": ""}, "trainedWords": []}
    assert read_sidecars(model(tmp_path, _civitai_info=skeleton)).problems == ()


def test_previews_are_found_best_first_and_links_and_empty_files_are_none(tmp_path: Path):
    path = model(tmp_path, _png=b"x", _preview_png=b"x", _preview_webp=b"x", _jpg=b"", _preview_mp4=b"x")
    path.with_name("fox.v6.jpeg").symlink_to(path.with_name("fox.v6.png"))
    path.with_name("fox.v6.webp").mkdir()
    names = [file.name for file in read_sidecars(path).previews]
    assert names == ["fox.v6.preview.png", "fox.v6.preview.webp", "fox.v6.png"]


def test_a_name_that_is_not_utf8_has_sidecars_too(tmp_path: Path):
    raw = os.fsencode(tmp_path) + b"/\xff\n.safetensors"
    Path(os.fsdecode(raw.replace(b".safetensors", b".json"))).write_text("no")
    Path(os.fsdecode(raw.replace(b".safetensors", b".preview.jpg"))).write_text("x")
    found = read_sidecars(raw)
    assert len(found.previews) == 1
    assert found.problems == (r"'\udcff\n.json' is not JSON and is not read; correct it, or have it written again.",)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 500_000, "is not JSON"),
        (b'{"a":' * 200_000, "is not JSON"),
        (b"1" * 1_000_000, "is not JSON"),
        (b"[1, 2]", "holds no object"),
        (b'"text"', "holds no object"),
        (b" " * (sidecars.JSON_BYTES + 1), "is longer than 1 MiB"),
        (b'{"description": 3}', "'description' is not what it should be"),
        (b'{"activation text": [1, "a"]}', "'activation text' holds something other than texts"),
        (b'{"modelId": true, "trainedWords": {}}', "'trainedWords' is not what it should be"),
        (b'{"modelId": 1, "model": []}', "'model' is not what it should be"),
    ],
)
def test_bad_content_is_a_sentence(tmp_path: Path, content: bytes, told: str):
    began = time.monotonic()
    problems = read_sidecars(model(tmp_path, _json=content)).problems
    assert any(told in problem and problem.startswith("fox.v6.json") and problem.endswith(".") for problem in problems)
    assert time.monotonic() - began < 2


def test_no_link_is_followed_and_no_pipe_waited_for(tmp_path: Path):
    (tmp_path / "secret.json").write_text('{"description": "secret"}')
    path = model(tmp_path)
    path.with_name("fox.v6.json").symlink_to(tmp_path / "secret.json")
    os.mkfifo(path.with_name("fox.v6.civitai.info"))
    found = read_sidecars(path)
    assert found.description == ""
    assert found.problems == (
        "fox.v6.json can't be read (it is a link).",
        "fox.v6.civitai.info is no file and is not read.",
    )


def test_a_link_is_followed_where_it_leads_into_the_roots_and_is_told_where_it_leads_out(tmp_path: Path):
    root = tmp_path / "root"
    (root / "store").mkdir(parents=True)
    for folder in (root / "store", tmp_path):
        (folder / "words").write_text('{"description": "linked"}')
        (folder / "picture").write_text("x")
    path = model(root)
    path.with_name("fox.v6.json").symlink_to(root / "store" / "words")
    path.with_name("fox.v6.png").symlink_to(root / "store" / "picture")
    path.with_name("fox.v6.civitai.info").symlink_to(tmp_path / "words")
    path.with_name("fox.v6.swarm.json").symlink_to(root / "store" / "nothing")
    path.with_name("fox.v6.jpg").symlink_to(root / "store" / "nothing")
    path.with_name("fox.v6.metadata.json").symlink_to("fox.v6.metadata.json")
    found = read_sidecars(path, roots=(bytes(root),))
    assert (found.description, [file.name for file in found.previews]) == ("linked", ["fox.v6.png"])
    assert found.problems == (
        "fox.v6.metadata.json can't be read (Too many levels of symbolic links).",
        "fox.v6.civitai.info can't be read (it is a link that leads out of the roots).",
    )


def test_endings_are_read_in_any_case_and_names_as_they_are(tmp_path: Path):
    path = model(tmp_path, _preview_PNG=b"x", _JPeG=b"x", _gif=b"x", _WEBP=b"x", _JSON=A1111)
    for other in ("Fox.v6.png", "fox.V6.png", "fox.v6x.png", "fox.png"):
        (tmp_path / other).write_text("x")
    found = read_sidecars(path)
    assert [file.name for file in found.previews] == [f"fox.v6.{end}" for end in ("preview.PNG", "JPeG", "WEBP", "gif")]
    assert found.description == "Mine"


VERSIONS = [
    {"id": 1, "baseModel": "Pony", "trainedWords": ["old"], "files": [{"hashes": {"SHA256": "AB" * 32}}, None, 3]},
    {"id": 2, "baseModel": "SDXL", "trainedWords": ["new"], "files": [{"name": "fox.v6.safetensors"}], "images": []},
]
"""Two versions of a model, as civitai tells them."""


@pytest.mark.parametrize(
    ("versions", "sha256", "words", "base", "version"),
    [
        (VERSIONS, "ab" * 32, ("old",), "Pony", "?modelVersionId=1"),
        (VERSIONS, "", ("new",), "SDXL", "?modelVersionId=2"),
        (VERSIONS, "cd" * 32, (), "", ""),
        (VERSIONS[:1], "cd" * 32, ("old",), "Pony", "?modelVersionId=1"),
        ([], "", (), "", ""),
        ([None, 7, {"files": {}}], "", ("x",) * 0, "", ""),
    ],
)
def test_of_sd_nexts_sidecar_the_version_of_the_file_is_heard(
    tmp_path: Path, versions: list[Any], sha256: str, words: tuple[str, ...], base: str, version: str
):
    data = {"id": 7, "name": "Fox", "description": "<p>Red.</p>", "tags": ["animal"], "nsfw": False, "type": "LORA"}
    found = read_sidecars(model(tmp_path, _json=data | {"modelVersions": versions}), sha256=sha256)
    assert (found.name, found.description, found.tags, found.nsfw) == ("Fox", "Red.", ("animal",), False)
    assert (found.trigger_words, found.base_model) == (words, base)
    assert found.source_url == f"https://civitai.com/models/7{version}"


def test_what_lora_manager_stability_matrix_and_swarmui_wrote_is_read(tmp_path: Path):
    manager = {
        "file_name": "fox", "model_name": "Fox", "file_path": "/x", "size": 1, "modified": 1.5, "sha256": "ab",
        "base_model": "Unknown", "preview_url": "", "notes": "mine", "from_civitai": True, "tags": ["animal"],
        "modelDescription": "<b>Red</b>", "usage_tips": "{}", "civitai": CIVITAI,
    }  # fmt: skip
    found = read_sidecars(model(tmp_path, "a.safetensors", _metadata_json=manager))
    assert (found.name, found.notes, found.description, found.tags) == ("Fox", "mine", "Red", ("animal",))
    assert (found.base_model, found.trigger_words[:1], found.problems) == ("Pony", ("score_9",), ())
    matrix = {
        "ModelId": 7, "ModelName": "Fox", "ModelDescription": "<p>Red.</p>", "Nsfw": True, "Tags": ["animal"],
        "ModelType": "LORA", "VersionId": 9, "VersionName": "v6", "VersionDescription": None, "BaseModel": "SDXL 1.0",
        "TrainedWords": ["red fox"], "UserTitle": "My fox", "ImportedAt": "2024-01-01T00:00:00+00:00", "Hashes": {},
    }  # fmt: skip
    found = read_sidecars(model(tmp_path, "b.safetensors", _cm_info_json=matrix))
    assert (found.name, found.description, found.base_model) == ("My fox", "Red.", "SDXL 1.0")
    assert (found.trigger_words, found.tags, found.nsfw) == (("red fox",), ("animal",), True)
    assert found.source_url == "https://civitai.com/models/7?modelVersionId=9" and found.problems == ()
    swarm = {
        "modelspec.title": "Fox", "modelspec.description": "Red", "modelspec.trigger_phrase": "red fox, bushy",
        "modelspec.tags": "animal, fox", "modelspec.usage_hint": "at 0.8", "modelspec.author": "somebody",
        "modelspec.architecture": "stable-diffusion-xl-v1-base", "modelspec.thumbnail": "data:image/jpeg;base64,eA==",
        "title": "less",
    }  # fmt: skip
    found = read_sidecars(model(tmp_path, "c.safetensors", _swarm_json=swarm))
    assert (found.name, found.description, found.notes) == ("Fox", "Red", "at 0.8")
    assert (found.trigger_words, found.tags) == (("red fox", "bushy"), ("animal", "fox"))
    assert (found.thumbnail, found.base_model, found.problems) == (b"x", "stable-diffusion-xl-v1-base", ())


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_words_are_read_in_every_encoding_that_can_be_told(tmp_path: Path, encoding: str):
    text = json.dumps({"description": "Füchse 狐 🦊"}, ensure_ascii=False)
    assert read_sidecars(model(tmp_path, _json=text.encode(encoding))).description == "Füchse 狐 🦊"


@pytest.mark.parametrize("encoding", ["cp1252", "gbk", "shift-jis"])
def test_a_code_page_is_told_with_what_to_do(tmp_path: Path, encoding: str):
    text = json.dumps({"description": "Füchse" if encoding == "cp1252" else "狐狸"}, ensure_ascii=False)
    found = read_sidecars(model(tmp_path, _json=text.encode(encoding)))
    assert found.description == ""
    assert found.problems == ("fox.v6.json is in neither UTF-8 nor UTF-16 and is not read; save it as UTF-8.",)


def test_texts_lose_what_can_not_be_stored_or_shown_and_are_bounded():
    found = parse_a1111({"description": "a\x00b\x1b[31m\ud800c\r\nd", "activation text": "w\x07" * 999}, "x.json")
    assert found.description == "ab[31mc\nd"
    assert found.trigger_words == ("w" * sidecars.WORD_LENGTH,)
    data = {"description": "x" * 10**6, "modelId": 10**30, "trainedWords": [f"w{i}" for i in range(10_000)]}
    found = parse_civitai(data, "x")
    assert len(found.description) == sidecars.TEXT_LENGTH
    assert len(found.trigger_words) == sidecars.WORDS
    assert found.source_url == ""


@pytest.mark.parametrize("bit", ["<", "<a", "<!--", "<br", "</p", "&", "&#", "<p>", "<br "])
def test_hostile_html_takes_no_time(bit: str):
    began = time.monotonic()
    parse_civitai({"description": bit * (sidecars.JSON_BYTES // len(bit))}, "x")
    assert time.monotonic() - began < 1


FIELDS = ("id", "modelId", "name", "model", "trainedWords", "tags", "nsfw", "description", "sd version", "notes")
FIELDS += ("modelVersions", "files", "hashes", "civitai", "ModelName", "TrainedWords", "Tags", "ModelId", "Source")
FIELDS += ("model_name", "modelDescription", "modelspec.title", "modelspec.thumbnail", "title", "trigger_phrase")
PARSERS = (
    parse_civitai,
    parse_a1111,
    sidecars.parse_stability_matrix,
    sidecars.parse_lora_manager,
    sidecars.parse_swarm,
    functools.partial(sidecars.parse_civitai_model, model=sidecars.ModelFile("x.safetensors", "ab" * 32)),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(FIELDS) | st.text(), inner),
)


@given(st.dictionaries(st.sampled_from((*FIELDS, "activation text", "baseModel")), VALUES))
def test_any_object_is_read_without_an_exception(data: dict[str, Any]):
    for parse in PARSERS:
        found = parse(data, "x.json")
        assert all(text.encode() or True for text in (found.name, found.description, *found.trigger_words, *found.tags))
