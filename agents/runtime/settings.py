"""Settings are read here, once: flags over DARKROOM_* environment over darkroom.toml, all into one Struct."""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from agents.ingest.scanning import layouts
from bus.errors import BadSubject, UserError
from bus.subjects import HASH
from schemas.settings import Settings

PREFIX = "DARKROOM_"
FILE = "darkroom.toml"
_FILE_VARIABLE = "DARKROOM_CONFIG"


def load(flags: Mapping[str, Any], environment: Mapping[str, str], config: Path | None = None) -> Settings:
    """The settings. `flags` maps dotted names ("http.port") to values, None meaning not given.

    The file is `config`, else what DARKROOM_CONFIG names, else `darkroom.toml` here if there is one. A nested setting
    is written DARKROOM_HTTP__PORT in the environment. Raises UserError for a file that can't be read, an unknown key
    and a value out of its range.
    """
    tree: dict[str, Any] = {}
    named = config or (Path(environment[_FILE_VARIABLE]) if environment.get(_FILE_VARIABLE) else None)
    source = named or Path(FILE)
    if named or source.exists():
        _merge(tree, _file(source))
    for name, value in environment.items():
        if name.startswith(PREFIX) and name != _FILE_VARIABLE:
            _put(tree, name.removeprefix(PREFIX).lower().split("__"), _plain(value))
    for dotted, value in flags.items():
        if value is not None:
            _put(tree, dotted.split("."), value)
    try:
        settings = msgspec.convert(tree, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise UserError(f"settings ({source.name}, {PREFIX}* or a flag): {error}") from error
    return _with_roots(settings, environment)


def _file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}") from error


def _merge(tree: dict[str, Any], more: Mapping[str, Any]) -> None:
    for name, value in more.items():
        if isinstance(value, dict) and isinstance(tree.get(name), dict):
            _merge(tree[name], value)
        else:
            tree[name] = value


def _put(tree: dict[str, Any], names: list[str], value: Any) -> None:
    for name in names[:-1]:
        inner = tree.setdefault(name, {})
        if not isinstance(inner, dict):
            raise UserError(f"setting {'.'.join(names)}: {name} has no parts")
        tree = inner
    tree[names[-1]] = value


def _plain(value: str) -> Any:
    """An environment variable's value: JSON where it is a list or a table, else the text."""
    if value[:1] in "[{" and value:
        try:
            return json.loads(value)
        except ValueError as error:
            raise UserError(f"{value!r} in the environment is not JSON: {error}") from error
    return value


def _with_roots(settings: Settings, environment: Mapping[str, str]) -> Settings:
    named = settings.roots
    if not (named or settings.model_folders or settings.extra_model_paths):
        named = {"models": str(Path(settings.data_dir) / "models")}
    for name in named:
        try:
            HASH.filter(root=name)
        except BadSubject as error:
            raise UserError(f"root {name!r}: a root's name is made of a-z, 0-9, '-' and '_' (64 at most)") from error
    roots = layouts.roots(
        {name: str(Path(folder).expanduser().absolute()) for name, folder in named.items()},
        model_folders=settings.model_folders,
        extra_model_paths=settings.extra_model_paths,
        environment=environment,
    )
    data_dir = str(Path(settings.data_dir).expanduser().absolute())
    return msgspec.structs.replace(settings, roots=roots, data_dir=data_dir)
