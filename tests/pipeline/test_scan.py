"""`darkroom scan`: looks now, waits for what is on the way, and says what was refused."""

import json
from pathlib import Path

from agents.diffusion.tiny import write_tiny_checkpoint
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
