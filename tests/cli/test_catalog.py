"""The catalog's commands, on a running service: what they print for people and for scripts, and how they end."""

import functools
import json
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import pytest
from structlog.testing import capture_logs

from agents import hasher
from agents.cli import catalog, imports, tags
from agents.client import scans
from agents.migrator import agent as migrator
from agents.watcher import agent as watcher
from bus.client import Bus
from bus.errors import Declined, UserError
from bus.server import LocalServer
from bus.worker import sole
from schemas.settings import HasherSettings, Settings, WatcherSettings
from tests.catalog import legacy_making
from tests.conftest import QUICK, running
from tests.ingest.making import model, put


@pytest.fixture
def settings(nats_server: LocalServer, tmp_path: Path) -> Settings:
    """A data directory with two models in its one root."""
    models = tmp_path / "data" / "models"
    put(models / "Golden Hour.safetensors", model(fill=1))
    put(models / "red fox.safetensors", model(fill=2))
    return Settings(data_dir=str(tmp_path / "data"), nats_url=nats_server.url, roots={"models": str(models)}, bus=QUICK)


@contextmanager
def refused(kind: type[Exception], text: str) -> Iterator[None]:
    """The command ends with this error, in however many task groups."""
    with pytest.raises(BaseException) as raised:
        yield
    error = sole(raised.value)
    assert isinstance(error, kind) and text in str(error)


@asynccontextmanager
async def service(bus: Bus, settings: Settings) -> AsyncIterator[None]:
    """Watcher, hasher and migrator, which have seen everything."""
    data, roots = Path(settings.data_dir), settings.roots
    with capture_logs():  # they are not configured to go to standard error yet
        async with running(
            functools.partial(watcher.run, bus, data, roots, WatcherSettings(stable=0.2)),
            functools.partial(hasher.run, bus, roots, HasherSettings()),
            functools.partial(migrator.run, bus, data / "catalog.db", roots),
        ):
            await scans.look(bus, settings)
            await scans.compare(bus)
            yield


async def test_models_are_listed_searched_and_shown(bus: Bus, settings: Settings, capsys: pytest.CaptureFixture[str]):
    async with service(bus, settings):
        await catalog.models(settings)
        lines = capsys.readouterr().out.splitlines()
        assert [line.split("\t")[0] for line in lines] == ["Golden Hour", "red fox"]
        await catalog.models(settings, "fo", as_json=True)
        [found] = json.loads(capsys.readouterr().out)
        assert found["name"] == "red fox" and found["tags"] == []
        await catalog.models(settings, "nothing")
        printed = capsys.readouterr()
        assert (printed.out, printed.err) == ("", "no model fits\n")
        await catalog.show(settings, "red fox")
        shown = capsys.readouterr().out
        assert f"sha256       {found['sha256']}" in shown and "at           models/red fox.safetensors" in shown
        await catalog.show(settings, found["sha256"][:8], True)
        assert json.loads(capsys.readouterr().out)["model"]["sha256"] == found["sha256"]
        with refused(Declined, "No model is called 'fox'"):
            await catalog.show(settings, "fox")


async def test_a_family_that_no_key_tells_is_shown_as_a_guess(
    bus: Bus, settings: Settings, capsys: pytest.CaptureFixture[str]
):
    layer = {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (4, 3072)}
    put(Path(settings.roots["models"]) / "style.safetensors", model(layer))
    async with service(bus, settings):
        await catalog.models(settings, "style")
        assert "\tflux (?)\t" in capsys.readouterr().out
        await catalog.show(settings, "style")
        shown = capsys.readouterr().out
        assert "kind         lora flux (?)" in shown and "a guess      its keys could be those of flux2" in shown


async def test_tags_are_made_changed_put_taken_and_deleted_by_name(
    bus: Bus, settings: Settings, capsys: pytest.CaptureFixture[str]
):
    async with service(bus, settings):
        await tags.add(settings, "Photo", "#FF0000")
        await tags.put(settings, "PHOTO", ["red fox", "Golden Hour"])
        capsys.readouterr()
        await tags.put(settings, "light", ["red fox", "Golden Hour"])
        assert capsys.readouterr().out == "red fox\tlight, photo\nGolden Hour\tlight, photo\n"
        await tags.take(settings, "light", ["red fox"])
        await tags.rename(settings, "photo", "Snap")
        await tags.color(settings, "SNAP", "#00ff00")
        capsys.readouterr()
        await tags.list_tags(settings)
        assert capsys.readouterr().out == "light\t\t1\nsnap\t#00ff00\t2\n"
        await tags.delete(settings, "snap")
        assert "off 2 models" in capsys.readouterr().err
        await tags.list_tags(settings, as_json=True)
        assert [tag["name"] for tag in json.loads(capsys.readouterr().out)] == ["light"]
        for nothing in (
            tags.delete(settings, "snap"),
            tags.take(settings, "snap", ["red fox"]),
        ):
            with refused(Declined, "no tag 'snap'"):  # one status for one mistake, whichever command meets it
                await nothing
        with refused(Declined, "colour"):
            await tags.add(settings, "x", "red")


async def test_names_that_would_steer_the_terminal_are_spelled_out(
    bus: Bus, settings: Settings, capsys: pytest.CaptureFixture[str]
):
    put(Path(settings.data_dir) / "models" / "red\x1b[31m\u202efox.safetensors", model(fill=3))
    async with service(bus, settings):
        await tags.put(settings, "loud\x07", ["Golden Hour"])
        await catalog.models(settings)
        await tags.list_tags(settings)
        await catalog.show(settings, "red\x1b[31m\u202efox")
        printed = capsys.readouterr().out
        assert "\x1b" not in printed and "\u202e" not in printed and "\x07" not in printed
        assert "red\\x1b[31m\\u202efox" in printed and "loud\\x07" in printed
        await catalog.models(settings, as_json=True)
        assert "red\x1b[31m\u202efox" in {found["name"] for found in json.loads(capsys.readouterr().out)}


@pytest.mark.parametrize("id", ["0", "-1", str(2**63), "9" * 30, "x"])
async def test_an_id_that_no_record_can_have_is_a_wrong_argument(id: str):
    command = [sys.executable, "-m", "agents.cli.app", "promote", "--", id]
    done = await anyio.run_process(command, check=False)
    assert done.returncode == 2 and b"Invalid value" in done.stderr


async def test_a_legacy_catalog_is_imported_and_what_failed_is_printed_and_is_the_status(
    bus: Bus, settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = [
        legacy_making.model(1, "/nas/known.safetensors", legacy_making.sha("known")),
        legacy_making.model(2, "/nas/later.safetensors"),
    ]
    good = legacy_making.make(tmp_path / "good.db", rows, [(3, "photo", "#ff0000", 0)], [(2, 3)])
    bad = legacy_making.make(tmp_path / "bad.db", rows, [(4, "", None, 0)])
    async with service(bus, settings):
        assert await imports.take_over(settings, good, dry_run=True, as_json=True) == 0
        dry = json.loads(capsys.readouterr().out)
        assert dry["report"]["dry_run"] and dry["report"]["tables"]["models"]["inserted"] == 1
        assert await imports.take_over(settings, good) == 0
        lines = dict(line.split("\t", 1) for line in capsys.readouterr().out.splitlines())
        assert lines["models"] == lines["pending_import"] == lines["tags"] == "1\t1\t0\t0\t0"
        await catalog.pending(settings)
        printed = capsys.readouterr()
        assert printed.out == "2\twaiting\tModel 2\t/nas/later.safetensors\tphoto\t\n"
        assert printed.err == "2: No file in the folders has its name.\n"
        assert await catalog.promote(settings, [2, 9], "merge", as_json=True) == 1
        outcomes = json.loads(capsys.readouterr().out)
        assert [one["outcome"] for one in outcomes] == ["waiting", "unknown"]
        assert await imports.take_over(settings, bad) == 1, "a tag without a name"
        assert "It has no name." in capsys.readouterr().err
        assert await imports.take_over(settings, tmp_path / "none.db") == 1
        assert "There is no file" in capsys.readouterr().err
        with refused(UserError, "report, override, merge, ignore, delete"):
            await catalog.promote(settings, [2], "win")
