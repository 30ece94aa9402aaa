"""Settings: flags over environment over file, and nothing unknown passes."""

from pathlib import Path

import pytest

from agents.runtime.settings import load
from bus.errors import UserError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_flags_go_over_the_environment_which_goes_over_the_file(here: Path):
    (here / "darkroom.toml").write_text('[http]\nport = 1\nhost = "127.0.0.2"\n[bus]\nmax_attempts = 9\n')
    environment = {"DARKROOM_HTTP__PORT": "2", "DARKROOM_HTTP__HOST": "127.0.0.3", "HOME": "/x", "DARKROOMS": "1"}
    settings = load({"http.port": 3, "nats_url": None}, environment)
    assert (settings.http.port, settings.http.host, settings.bus.max_attempts) == (3, "127.0.0.3", 9)
    assert settings.nats_url == ""


def test_the_file_is_the_one_named_by_flag_or_variable_or_the_one_that_lies_here(here: Path):
    for name, port in (("darkroom.toml", 1), ("variable.toml", 2), ("flag.toml", 3)):
        (here / name).write_text(f"[http]\nport = {port}\n")
    assert load({}, {}).http.port == 1
    assert load({}, {"DARKROOM_CONFIG": "variable.toml"}).http.port == 2
    assert load({}, {"DARKROOM_CONFIG": "variable.toml"}, Path("flag.toml")).http.port == 3


def test_without_anything_the_defaults_hold_and_paths_are_absolute(here: Path):
    settings = load({}, {})
    assert settings.data_dir == str(here / "data")
    assert settings.roots == {"models": str(here / "data" / "models")}


def test_lists_and_tables_in_the_environment_are_json():
    settings = load({}, {"DARKROOM_ROOTS": '{"nas": "/mnt/nas"}', "DARKROOM_HTTP__HOSTS": '["a.example"]'})
    assert settings.roots == {"nas": "/mnt/nas"} and settings.http.hosts == ("a.example",)
    with pytest.raises(UserError, match="JSON"):
        load({}, {"DARKROOM_ROOTS": "{oops"})


@pytest.mark.parametrize(
    ("file", "environment", "why"),
    [
        ("surprise = 1\n", {}, "surprise"),
        ("[bus]\nsurprise = 1\n", {}, "surprise"),
        ("", {"DARKROOM_SURPRISE": "1"}, "surprise"),
        ("", {"DARKROOM_BUS__SURPRISE": "1"}, "surprise"),
        ("", {"DARKROOM_LOG_LEVEL__DEEP": "1"}, "log_level"),
        ('log_level = "loud"\n', {}, "log_level"),
        ("[http]\nport = 70000\n", {}, "port"),
        ("", {"DARKROOM_HTTP__PORT": "http"}, "port"),
        ("[bus]\nack_wait = 0\n", {}, "ack_wait"),
        ("", {"DARKROOM_GENERATOR__PREVIEWS": "nan"}, "previews"),
        ("not toml", {}, "TOML"),
    ],
)
def test_what_is_unknown_or_out_of_range_is_refused_by_name(here: Path, file: str, environment: dict, why: str):
    (here / "darkroom.toml").write_text(file)
    with pytest.raises(UserError, match=why):
        load({}, environment)


@pytest.mark.parametrize("name", ["", "Models", "a b", "a.b", "*", ">", "ä", "x" * 65, "a/b"])
def test_a_root_whose_name_could_be_no_token_is_refused(here: Path, name: str):
    with pytest.raises(UserError, match="root"):
        load({"roots": {name: "/models"}}, {})


def test_a_named_file_that_is_not_there_is_told(here: Path):
    with pytest.raises(UserError, match=r"missing\.toml"):
        load({}, {}, here / "missing.toml")
    (here / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"bytes\.toml"):
        load({}, {}, here / "bytes.toml")
