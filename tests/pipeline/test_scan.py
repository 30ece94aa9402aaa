"""`darkroom scan`: looks now, waits for what is on the way, and says what was refused."""

import json
import os
import time
from pathlib import Path

from agents.diffusion.tiny_checkpoint import write_tiny_checkpoint
from tests.pipeline.test_up import darkroom, up


def test_scan_waits_until_all_is_hashed_and_tells_what_was_refused(tmp_path: Path):
    models = tmp_path / "data" / "models"
    data = ("--data", str(tmp_path / "data"))
    with up(tmp_path / "data"):
        assert darkroom("scan", *data).stdout.startswith("models: 0 models")
        write_tiny_checkpoint(models / "tiny.safetensors")
        whole = (models / "tiny.safetensors").read_bytes()
        (models / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
        with (models / "open.safetensors").open("wb") as writer:  # somebody is still writing this one
            writer.write(whole[:1000])
            writer.flush()
            done = darkroom("scan", *data, "--json")
            (state,) = json.loads(done.stdout)["roots"]
            assert (state["files"], state["refused"], state["waiting"], state["unhashed"]) == (3, 1, 1, 0)
            assert done.returncode == 1 and "cut.safetensors" in state["problems"][0]
            writer.write(whole[1000:])
        (models / "cut.safetensors").unlink()
        done = darkroom("scan", *data)
        assert done.returncode == 0 and done.stdout.startswith("models: 2 models"), done.stdout


def test_scan_for_a_root_without_a_watcher_says_so(tmp_path: Path):
    with up(tmp_path / "data"):
        (tmp_path / "darkroom.toml").write_text(f'roots = {{ elsewhere = "{tmp_path}" }}\n')
        done = darkroom("scan", "--data", str(tmp_path / "data"), "--config", str(tmp_path / "darkroom.toml"))
        assert done.returncode == 2 and "elsewhere" in done.stderr and "Traceback" not in done.stderr


def test_what_waits_is_named_by_scan_and_doctor_and_is_no_failure(tmp_path: Path):
    models, data = tmp_path / "data" / "models", ("--data", str(tmp_path / "data"))
    models.mkdir(parents=True)
    write_tiny_checkpoint(models / "whole.safetensors")
    whole = (models / "whole.safetensors").read_bytes()
    (models / "part.safetensors").write_bytes(whole[:-10])
    then = time.time() - 30 * 24 * 3600
    for name in ("whole", "part"):
        control = models / f"{name}.safetensors.aria2"
        control.touch()
        os.utime(control, (then, then))
    os.utime(models / "whole.safetensors", (9_300_000_000, 9_300_000_000))
    with up(tmp_path / "data"):
        done = darkroom("scan", *data)
        first, *lines = done.stdout.splitlines()
        assert done.returncode == 0 and first.startswith("models: 1 model in "), done.stdout
        assert "1 waiting" in first and len(lines) == 1, done.stdout
        assert "part.safetensors: waits since " in lines[0] and "part.safetensors.aria2 marks it" in lines[0]
        (state,) = json.loads(darkroom("scan", *data, "--json").stdout)["roots"]
        assert [file["path"]["rel"] for file in state["waits"]] == ["part.safetensors"]
        done = darkroom("doctor", *data)
        assert "warn   file in models: part.safetensors: waits since " in done.stdout, done.stdout
        assert "warn   files waiting: 1" in done.stdout
