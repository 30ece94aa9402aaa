"""The layout is a rule: imports run one way, torch stays in the generator, subjects are spelled in one place."""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from agents.runtime.runner import AGENTS

ROOT = Path(__file__).parent.parent
SOURCES = sorted(file for folder in ("schemas", "bus", "agents") for file in (ROOT / folder).rglob("*.py"))
SPELLED = re.compile(r"[\"'](?:darkroom\.v1\.|(?:job|evt|tick|ask|result|dlq)\.[a-z]+\.)[^\"']*[\"']")
HEAVY = {"torch", "diffusers", "transformers"}

GONE = (
    *("say", "says", "said", "saying", "tell", "tells", "told", "telling", "teller", "hear", "hears", "heard"),
    *("behind", "beside", "alike", "bury", "burying", "buried", "desk", "door", "doors", "shelf", "hang", "glance"),
    *("bell", "patience", "portrait", "portraits", "take_up"),
)
"""Words that the field has others for, wherever they stand: names, docstrings, comments, log events, texts."""
GONE_NAMES = ("Alike", "Below", "Impossible", "Meters", "Teller", "Turns", "_Behind", "_Library")
"""Names of classes that are gone; as plain words they are English."""
WORDS = re.compile(rf"(?<![A-Za-z])(?:(?i:{'|'.join(GONE)})|{'|'.join(GONE_NAMES)})(?![A-Za-z])")
NOT_OURS = re.compile(r"\.tell\(|\btold INTEGER\b|\btold = :published|NOT told\b|found\[\"told\"\]")
"""Where they stay: a method of files, a column of files.sqlite3."""

FRONT = {"agents.cli", "agents.client", "agents.http", "agents.runtime", "agents.web"}
LIBRARIES = (
    *("agents.storage", "agents.prompts", "agents.headers", "agents.images"),
    *("agents.ingest", "agents.catalog", "agents.diffusion"),
)
OF_BUS = ("bus.errors", "bus.clock", "bus.ids")
"""What a library needs of the bus: errors, the time and new ids."""


@dataclass(frozen=True)
class Rule:
    """These rooms may import themselves and, of the project, what lies under `may`; of other packages, where `outside`
    is given, those alone and the standard library."""

    line: str
    rooms: tuple[str, ...]
    may: tuple[str, ...]
    outside: tuple[str, ...] | None = None


LIGHT_AGENTS = tuple(f"agents.{name}" for name in AGENTS if name not in ("generator", "bridge"))
RULES = (
    Rule("schemas: msgspec and the standard library", ("schemas",), (), ("msgspec",)),
    Rule("bus: schemas", ("bus",), ("schemas",), ("anyio", "msgspec", "nats", "structlog")),
    Rule("storage, prompts: no other library", ("agents.storage", "agents.prompts"), ("schemas", *OF_BUS)),
    Rule("headers, images: storage", ("agents.headers", "agents.images"), ("schemas", *OF_BUS, "agents.storage")),
    Rule(
        "ingest, catalog, diffusion: the libraries below, not one another",
        ("agents.ingest", "agents.catalog", "agents.diffusion"),
        ("schemas", *OF_BUS, "agents.headers", "agents.images", "agents.storage", "agents.prompts"),
    ),
    Rule("providers: diffusion", ("agents.providers",), ("schemas", *OF_BUS, "agents.diffusion", "agents.storage")),
    Rule("client: bus and libraries", ("agents.client",), ("schemas", "bus", *LIBRARIES)),
    Rule("http: client and libraries", ("agents.http",), ("schemas", "bus", "agents.client", *LIBRARIES)),
    Rule("an agent: bus and libraries", LIGHT_AGENTS, ("schemas", "bus", *LIBRARIES)),
    Rule("generator: providers too", ("agents.generator",), ("schemas", "bus", "agents.providers", *LIBRARIES)),
    Rule(
        "bridge: http and client too",
        ("agents.bridge",),
        ("schemas", "bus", "agents.client", "agents.http", *LIBRARIES),
    ),
    Rule(
        "runtime: bus, the data directory and the roots' layouts",
        ("agents.runtime",),
        ("schemas", "bus", "agents.storage.layout", "agents.ingest.scanning.layouts"),
    ),
    Rule(
        "cli: everything but http and the page",
        ("agents.cli",),
        ("schemas", "bus", "agents.client", "agents.runtime", "agents.generator", *LIGHT_AGENTS, *LIBRARIES),
    ),
)


def name(file: Path) -> str:
    """A file's module, dotted."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name(file): file for file in SOURCES}


def under(module: str, packages: tuple[str, ...] | set[str]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


@cache
def imports(module: str) -> frozenset[str]:
    """Every module that one imports, wherever the statement stands."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{module} imports by dots"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & MODULES.keys()) | ({node.module} if inner - MODULES.keys() else set())
    return frozenset(found)


def broken(rule: Rule) -> Iterator[str]:
    """What the rule's rooms import and may not."""
    for room in rule.rooms:
        for module in sorted(module for module in MODULES if under(module, (room,))):
            for imported in sorted(imports(module)):
                top = imported.split(".")[0]
                if top in ("schemas", "bus", "agents"):
                    is_fine = under(imported, (room, *rule.may))
                else:
                    is_fine = rule.outside is None or top in rule.outside or top in sys.stdlib_module_names
                if not is_fine:
                    yield f"{module} imports {imported}"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.line)
def test_imports_run_one_way(rule: Rule):
    assert not [*broken(rule)]


def test_every_module_is_in_a_room_of_the_table():
    rooms = {room for rule in RULES for room in rule.rooms}
    assert not [module for module in MODULES if module != "agents" and not under(module, rooms)]


def test_only_the_generator_and_what_it_draws_with_import_torch():
    free = ("agents.diffusion.plan", "agents.diffusion.samplers", "agents.diffusion.families.table")
    may = ("agents.diffusion", "agents.providers.local", "agents.generator")
    heavy = {module for module in MODULES if under(module, free) or not under(module, may)}
    assert not [module for module in sorted(heavy) if any(under(imported, HEAVY) for imported in imports(module))]


def test_no_light_agent_and_no_command_loads_torch():
    code = "import sys, " + ", ".join(sorted(module_of(room) for room in (*LIGHT_AGENTS, "agents.bridge")))
    code += f", agents.cli.app; print(sorted({HEAVY} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert loaded.stdout.strip() == "[]"


def module_of(agent: str) -> str:
    """An agent's module: itself, or `agent` in its package."""
    return f"{agent}.agent" if f"{agent}.agent" in MODULES else agent


def functions(module: str) -> set[str]:
    tree = ast.parse(MODULES[module].read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_what_lies_at_the_top_of_agents_and_runs_is_an_agent_and_nothing_else_is():
    tops = {".".join(module.split(".")[:2]) for module in MODULES if module.startswith("agents.")}
    assert {top for top in tops if "run" in functions(module_of(top))} == {f"agents.{agent}" for agent in AGENTS}
    assert tops <= {*FRONT, *LIBRARIES, "agents.providers", *(f"agents.{agent}" for agent in AGENTS)}


def test_only_the_table_spells_a_subject():
    spelled = {module: SPELLED.findall(file.read_text("utf-8")) for module, file in MODULES.items()}
    assert not {module: found for module, found in spelled.items() if found and module != "bus.subjects"}


def test_every_class_has_a_name_of_its_own():
    trees = (ast.parse(file.read_text("utf-8")) for file in SOURCES)
    names = Counter(node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    assert not {name for name, count in names.items() if count > 1}


def test_the_top_level_is_what_the_design_says():
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=True)
    top = {line.split("/")[0] for line in listed.stdout.splitlines() if line and not line.startswith(".")}
    allowed = {"pyproject.toml", "bus", "agents", "schemas", "data", "deploy", "tests", "README.md", "Makefile"}
    assert top <= allowed | {"LICENSE", "CHANGELOG.md"}


def test_words_that_the_field_has_others_for_stand_nowhere():
    files = [file for folder in ("agents", "bus", "schemas") for file in sorted((ROOT / folder).rglob("*"))]
    texts = [file for file in files if file.suffix in (".py", ".sql", ".js", ".html", ".css")] + [ROOT / "README.md"]
    left = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in texts
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1)
        if WORDS.search(NOT_OURS.sub("", line))
    ]
    assert not left, "\n".join(left)
