"""What the README claims is tested."""

import re
import sys
from pathlib import Path
from typing import Any

import anyio

from tests.pipeline.conftest import Agents, bus_of, drop

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text("utf-8")


async def test_the_worked_example_of_a_nats_client_makes_a_picture(agents: Agents):
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    agents.start("migrator", "watcher", "hasher", "preprocess", "encoder")
    agents.start("generator")
    async with bus_of(agents) as bus:
        await drop(bus, agents)
    with anyio.fail_after(60):
        done = await anyio.run_process([sys.executable, "-W", "error", "-c", example, agents.url], check=False)
    assert done.returncode == 0, done.stderr
    assert (agents.data / done.stdout.decode().strip()).is_file()


def test_every_command_is_in_the_readme():
    from agents.cli.app import COMMANDS
    from agents.cli.options import CommandGroup

    groups = [command.commands for command in COMMANDS.values() if isinstance(command, CommandGroup)]
    for name, command in [row for commands in (COMMANDS, *groups) for row in commands.items()]:
        if isinstance(command, CommandGroup) or not command.hidden:
            assert re.search(rf"\b{name}\b", README), f"{name} is undocumented"


def test_every_address_is_in_the_readme():
    from starlette.routing import Mount

    from agents.http.app import app
    from schemas.settings import Settings

    nobody: Any = None
    routes = app(nobody, Settings(), page=Path(), stopping=anyio.Event()).routes
    (api,) = [route for route in routes if isinstance(route, Mount) and route.path == "/api"]
    paths = [f"/api{route.path}" for route in api.routes] + [route.path for route in routes if route is not api]
    assert len(paths) > 25
    for path in paths:
        short = path.replace("/api/migration/pending", "/pending").split("{path")[0]
        assert short in README, f"{path} is undocumented"


def test_every_setting_the_readme_shows_is_one(tmp_path: Path):
    from agents.runtime.settings import load

    (block,) = re.findall(r"```toml\n(.*?)```", README, flags=re.DOTALL)
    (tmp_path / "darkroom.toml").write_text(block)
    settings = load({}, {}, tmp_path / "darkroom.toml")
    assert settings.http.port == 7860 and settings.roots["loras"] == "/srv/loras"


def test_every_file_the_readme_names_exists():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    quoted = re.findall(r"\b((?:agents|bus|deploy|schemas|tests)/[\w/.-]*)", README)
    assert len(quoted) > 40
    for path in {*links, *quoted} - {"agents/NAME.py"}:
        assert (ROOT / path).exists(), path


def test_every_room_is_in_the_map_of_files():
    files = README.split("## Files")[1].split("## Work on it")[0]
    rooms = [path for path in (ROOT / "agents").iterdir() if path.suffix == ".py" or any(path.rglob("*.py"))]
    for room in (*rooms, ROOT / "agents/web"):
        if room.name not in ("__init__.py", "__pycache__"):
            assert f"`agents/{room.name}{'/' * room.is_dir()}`" in files, room.name


def test_every_dependency_earns_its_line():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    table = README.split("## Dependencies")[1]
    for requirement in project["dependencies"]:
        assert re.split(r"[<>=]", requirement)[0] in table, requirement
    pins = (ROOT / "deploy/constraints.txt").read_text().lower().replace("_", "-")
    for requirement in (*project["dependencies"], *project["optional-dependencies"]["dev"]):
        assert f"\n{re.split(r'[<>=]', requirement)[0].lower()}==" in "\n" + pins, requirement
