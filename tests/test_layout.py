"""The layout is a rule: imports run one way, torch stays in the generator, subjects are spelled in one place."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(file for folder in ("schemas", "bus", "agents") for file in (ROOT / folder).rglob("*.py"))
SPELLED = re.compile(r"[\"'](?:darkroom\.v1\.|(?:job|evt|tick|ask|result|dlq)\.[a-z]+\.)[^\"']*[\"']")
HEAVY = {"torch", "diffusers", "transformers"}
LIGHT_AGENTS = ("watcher", "hasher", "migrator", "preprocess", "encoder", "telemetry", "bridge")


def imports(file: Path) -> set[str]:
    """Every module a file imports, wherever the statement stands."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def below(modules: set[str], *packages: str) -> set[str]:
    return {module for module in modules if any(module == one or module.startswith(one + ".") for one in packages)}


@pytest.mark.parametrize("file", SOURCES, ids=name)
def test_imports_run_one_way(file: Path):
    seen, parts = imports(file), file.relative_to(ROOT).parts
    if parts[0] == "schemas":
        assert not below(seen, "bus", "agents")
    elif parts[0] == "bus":
        assert not below(seen, "agents")
    elif len(parts) > 2:  # a library: a folder below agents
        assert not {module for module in below(seen, "bus") if not below({module}, "bus.errors") and module != "bus"}
        libraries = {other.name for other in (ROOT / "agents").iterdir() if other.is_dir()}
        assert {module.split(".")[1] for module in below(seen, "agents") if "." in module} <= libraries


def test_libraries_do_not_import_each_other_in_circles():
    edges: dict[str, set[str]] = {}
    for file in SOURCES:
        parts = file.relative_to(ROOT).parts
        if parts[0] == "agents" and len(parts) > 2:
            libraries = {module.split(".")[1] for module in below(imports(file), "agents") if "." in module}
            edges.setdefault(parts[1], set()).update(libraries - {parts[1]})

    def reach(start: str, seen: frozenset[str]) -> set[str]:
        return {start} | {
            far for near in edges.get(start, ()) if near not in seen for far in reach(near, seen | {near})
        }

    for library, nexts in edges.items():
        for near in nexts:
            assert library not in reach(near, frozenset({near})), f"{library} and {near} import each other"


@pytest.mark.parametrize("file", SOURCES, ids=name)
def test_only_the_table_spells_a_subject(file: Path):
    if file.name == "subjects.py":
        return
    spelled = SPELLED.findall(file.read_text("utf-8"))
    assert not spelled


def test_no_light_agent_imports_torch():
    code = "import sys; " + "; ".join(f"import agents.{agent}" for agent in LIGHT_AGENTS)
    code += f"; print(sorted({HEAVY} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert told.stdout.strip() == "[]"


def test_the_top_level_is_what_the_design_says():
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=True)
    tracked = listed.stdout.splitlines()
    top = {line.split("/")[0] for line in tracked if line and not line.startswith(".")}
    allowed = {"pyproject.toml", "bus", "agents", "schemas", "data", "deploy", "tests", "README.md", "Makefile"}
    assert top <= allowed | {"LICENSE", "CHANGELOG.md"}
