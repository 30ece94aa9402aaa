import hashlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agents.cli.files import hash_files, inspect_files
from schemas.settings import HasherSettings, Settings
from tests.ingest.making import SD15, encoded, header, model, put

HOSTILE = (
    "plain",
    "two\nlines",
    "back\\slash",
    "carriage\rreturn",
    "\\",
    " a",
    "-c",
    "*x",
    "日本",
    "\x1b[31m",
    "\udcff",
)
HOSTILE += ("x" * 255, "$JS.API", ">", "%41")


def darkroom(*arguments: str | Path, folder: Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-W", "error", "-m", "agents.cli.app", *map(os.fsencode, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, timeout=60, env=environment(), **options)


def side_by_side(count: int) -> Settings:
    return Settings(hasher=HasherSettings(parallel=count))


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


def test_a_line_is_what_sha256sum_writes_and_checks_whatever_the_name(tmp_path: Path):
    for name in HOSTILE:
        put(tmp_path / name, os.fsencode(name))
    own = darkroom("hash", "--", *HOSTILE, folder=tmp_path)
    assert (own.returncode, own.stderr) == (0, b"")
    theirs = subprocess.run(["sha256sum", "--", *map(os.fsencode, HOSTILE)], cwd=tmp_path, capture_output=True)
    assert own.stdout == theirs.stdout
    check = subprocess.run(["sha256sum", "-c", "--strict", "-"], input=own.stdout, cwd=tmp_path, capture_output=True)
    assert check.returncode == 0 and check.stdout.count(b": OK\n") == len(HOSTILE), check.stderr


def test_many_files_side_by_side_come_in_the_order_given(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    sizes = [0, 3 << 20, 1, 5 << 20, 1 << 20, (1 << 20) + 1] * 5
    names = [str(put(tmp_path / str(n), bytes([n]) * size)) for n, size in enumerate(sizes)]
    assert hash_files(side_by_side(4), names) == 0
    lines = [
        f"{hashlib.sha256(bytes([n]) * size).hexdigest()}  {name}"
        for n, (name, size) in enumerate(zip(names, sizes, strict=True))
    ]
    assert capfd.readouterr().out.splitlines() == lines


def test_what_can_not_be_hashed_is_told_and_the_others_go_on(tmp_path: Path):
    put(tmp_path / "good", b"x")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    names = ("folder", "missing", "good", "pipe", "-", "a\nb", "\udcff", "good")
    done = darkroom("hash", *names, folder=tmp_path)
    assert done.returncode == 1
    assert done.stdout == (hashlib.sha256(b"x").hexdigest() + "  good\n").encode() * 2
    assert done.stderr.decode().splitlines() == [
        "darkroom: folder: This is a folder; name the files in it.",
        "darkroom: missing: It can't be read (No such file or directory).",
        "darkroom: pipe: This is no regular file, and is not read.",
        "darkroom: -: Standard input is not read here; a file of this name is ./-",
        "darkroom: a b: It can't be read (No such file or directory).",
        "darkroom: %FF: It can't be read (No such file or directory).",
    ]


def test_json_has_every_hash_that_applies(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    content = model()
    files = [put(tmp_path / "a.safetensors", content), put(tmp_path / "b\udcff.txt", b"text")]
    assert hash_files(side_by_side(2), [str(file) for file in files], as_json=True) == 0
    first, second = json.loads(capfd.readouterr().out)
    sha256 = hashlib.sha256(content).hexdigest()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    assert first["path"] == str(files[0]) and first["size"] == len(content)
    assert (first["sha256"], first["autov2"]) == (sha256, sha256[:10])
    assert first["autov3"] == hashlib.sha256(data).hexdigest()[:12]
    assert first["crc32"] == f"{zlib.crc32(content):08X}"
    assert second["path"].endswith("/b%FF.txt") and "autov3" not in second


def test_blake3_is_there_where_its_package_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    blake3 = pytest.importorskip("blake3")
    hash_files(side_by_side(1), [str(put(tmp_path / "a", b"x"))], as_json=True)
    assert json.loads(capfd.readouterr().out)[0]["blake3"] == blake3.blake3(b"x").hexdigest()


def test_a_reader_that_has_seen_enough_ends_it_quietly(tmp_path: Path):
    names = [put(tmp_path / f"{n:0200}", b"x").name for n in range(400)]
    command = [sys.executable, "-m", "agents.cli.app", "hash", *names]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as run:
        assert run.stdout is not None and run.stderr is not None
        run.stdout.readline()
        run.stdout.close()
        assert run.stderr.read() == b""
    assert run.returncode == 1


def test_a_reader_that_is_gone_ends_any_command_quietly(tmp_path: Path):
    command = [sys.executable, "-m", "agents.cli.app", "trash", "--data", str(tmp_path)]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as run:
        assert run.stdout is not None and run.stderr is not None
        run.stdout.close()
        assert run.stderr.read() == b""
    assert run.returncode == 1


def test_ctrl_c_stops_within_a_buffer(tmp_path: Path):
    for name in ("a", "b"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(64 << 30)
    put(tmp_path / "0", b"")
    command = [sys.executable, "-m", "agents.cli.app", "hash", "0", "a", "b"]
    with interruptible(), subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, env=environment()) as run:
        try:
            assert run.stdout is not None and run.stdout.readline()
            began = time.monotonic()
            run.send_signal(signal.SIGINT)
            assert run.wait(timeout=20) == 130
        finally:
            run.kill()
    assert time.monotonic() - began < 5


@contextmanager
def interruptible() -> Iterator[None]:
    """Children take SIGINT as from a terminal, though this process may have been started with it ignored, as a script
    starts what runs in its background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def test_on_a_terminal_a_bar_is_shown_and_leaves_the_lines_whole(tmp_path: Path):
    put(tmp_path / "a", b"x" * (2 << 20))
    shown = on_terminal("hash", "a", "missing", folder=tmp_path)
    assert "━" in shown
    assert (hashlib.sha256(b"x" * (2 << 20)).hexdigest() + "  a\r\n") in shown
    assert "darkroom: missing: It can't be read" in shown


def test_inspect_says_what_a_model_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    file = put(tmp_path / "fox.safetensors", model(metadata={"modelspec.title": "Fox\x1b[2J\nand more"}))
    put(tmp_path / "fox.preview.png", b"x")
    put(tmp_path / "fox.json", b'{"activation text": "red fox", "description": "Mine"}')
    assert inspect_files([str(file)], as_json=False) == 0
    lines = dict(line.split(": ", 1) for line in capfd.readouterr().out.splitlines())
    table, size = header(dict.fromkeys(SD15, (2, 2, 1, 1)))
    assert (lines["kind"], lines["family"], lines["dtypes"]) == ("checkpoint", "sd15", "F16")
    assert lines["parameters"] == str(4 * len(table)) and lines["size"] == f"{file.stat().st_size:,} bytes"
    assert sum(int(value.split()[0]) for key, value in lines.items() if key.startswith("component ")) == size
    assert lines["metadata modelspec.title"] == "Fox�[2J and more"
    assert (lines["sidecar trigger words"], lines["sidecar previews"]) == ("red fox", "fox.preview.png")
    assert inspect_files([str(file)], as_json=True) == 0
    (report,) = json.loads(capfd.readouterr().out)
    assert (report["kind"], report["family"], report["parameters"]) == ("checkpoint", "sd15", 20)
    assert report["metadata"]["modelspec.title"] == "Fox\x1b[2J\nand more"
    assert report["sidecars"] == {
        "description": "Mine",
        "trigger_words": ["red fox"],
        "previews": [str(tmp_path / "fox.preview.png")],
    }


def test_inspect_says_why_a_family_is_a_guess(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    layer = {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (4, 3072)}
    files = [
        str(put(tmp_path / "guess.safetensors", model(layer))),
        str(
            put(tmp_path / "klein.safetensors", model({"double_blocks.0.img_mlp.0.lora_B.weight": (18432, 4)} | layer))
        ),
    ]
    assert inspect_files(files, as_json=False) == 0
    guess, klein = (
        dict(line.split(": ", 1) for line in block.splitlines()) for block in capfd.readouterr().out.split("\n\n")
    )
    assert guess["family"] == "flux" and "flux2" in guess["guess"]
    assert (klein["family"], klein["edition"], klein.get("guess")) == ("flux2", "klein-4b", None)
    inspect_files(files, as_json=True)
    assert [bool(report["guess"]) for report in json.loads(capfd.readouterr().out)] == [True, False]


def test_inspect_shows_a_table_on_a_terminal(tmp_path: Path):
    put(tmp_path / "fox.safetensors", model(metadata={"note": "[red]x[/red]\x1b]0;title\x07"}))
    shown = on_terminal("inspect", "fox.safetensors", "fox.safetensors", folder=tmp_path)
    assert shown.count("sd15") == 2 and "[red]x[/red]" in shown
    assert "\x1b]0;" not in shown


def test_inspect_tells_what_it_can_not_read_and_goes_on(tmp_path: Path):
    put(tmp_path / "a.ckpt", b"\x80\x02")
    put(tmp_path / "notes.txt", b"x")
    (tmp_path / "d.safetensors").mkdir()
    done = darkroom("inspect", "d.safetensors", "no.pt", "notes.txt", "a.ckpt", folder=tmp_path)
    assert done.returncode == 1
    assert b"kind: unknown (unsafe)" in done.stdout and b"problem: This is a pickle" in done.stdout
    assert [line.split(": ")[1] for line in done.stderr.decode().splitlines()] == [
        "d.safetensors",
        "no.pt",
        "notes.txt",
    ]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 64,
        (1 << 40).to_bytes(8, "little") + b"{",
        encoded(b"[" * 900_000),
        encoded(b'{"a":' * 200_000),
        encoded(b"{" + b",".join(b'"t%d":{}' % n for n in range(1_200_000)) + b"}"),
        encoded({"a": {"dtype": "F16", "shape": [1 << 60, 1 << 60], "data_offsets": [0, 1]}}),
        model()[:-1],
        model() + b"x",
    ],
    ids=["empty", "noise", "long", "nested", "deep", "many", "huge", "short", "over"],
)
def test_a_hostile_header_is_judged_quickly(tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str]):
    file = put(tmp_path / "x.safetensors", content)
    began = time.monotonic()
    assert inspect_files([str(file)], as_json=True) == 0
    assert time.monotonic() - began < 5
    (report,) = json.loads(capfd.readouterr().out)
    assert report["problem"].endswith(".") and report["kind"] == "unknown"


def test_hash_and_inspect_import_nothing_that_they_do_not_need_and_start_nothing(tmp_path: Path):
    file = put(tmp_path / "x.safetensors", model())
    for arguments in (("hash", str(file)), ("hash", "--json", str(file)), ("inspect", str(file))):
        heavy = {"torch", "diffusers", "transformers", "nats", "rich", "yaml", "structlog", "sqlite3"}
        assert not heavy & imported(*arguments)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.safetensors"]


def imported(*arguments: str) -> set[str]:
    """The modules that a command has imported when it ends."""
    code = (
        "import atexit, sys; from agents.cli import app; "
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr)); app.main()"
    )
    command = [sys.executable, "-c", code, *arguments]
    return set(subprocess.run(command, capture_output=True, text=True, env=environment(), check=True).stderr.split())


def on_terminal(*arguments: str, folder: Path) -> str:
    """What a terminal of 250 columns gets to see, output and errors."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "agents.cli.app", *arguments]
    settings = {**environment(), "COLUMNS": "250", "TERM": "xterm"}
    with subprocess.Popen(command, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs, env=settings):
        os.close(theirs)
        shown = b""
        try:
            while data := os.read(ours, 65536):
                shown += data
        except OSError:
            pass  # on Linux, the other side is closed
        finally:
            os.close(ours)
    return shown.decode()
