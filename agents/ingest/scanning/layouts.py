"""Layouts: the folders of other programs, as roots. The folder of A1111, Forge, ComfyUI, SD.Next or SwarmUI, the one
that StabilityMatrix shares among them, and extra_model_paths.yaml.

Only folders that are there become roots, and each file lies in one root at most. A root's name does not depend on which
other folders are there, since the catalog keeps it: two folders of the same name are distinguished by a digest of their
paths. Format: https://github.com/comfyanonymous/ComfyUI, extra_model_paths.yaml.example.
"""

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from bus.errors import UserError

MODELS = (
    *("Stable-diffusion", "checkpoints", "diffusion_models", "unet", "Lora", "loras", "LyCORIS", "VAE"),
    *("VAE-approx", "ApproxVAE", "text_encoder", "text_encoders", "clip", "clip_vision", "ControlNet"),
    *("t2i_adapter", "embeddings", "ESRGAN", "RealESRGAN", "SwinIR", "DAT", "upscale_models", "latent_upscale_models"),
    *("hypernetworks", "style_models", "gligen", "photomaker", "model_patches"),
    *("Embedding", "TextualInversion", "Hypernetwork", "BSRGAN", "ScuNET", "LDSR", "SVD", "audio_encoders"),
    *("ipadapter", "IpAdapters15", "IpAdaptersXl", "InvokeIpAdapters15", "InvokeIpAdaptersXl", "InvokeClipVision"),
)
"""Folders below `models/`, of all programs, in any case and with or without what stands between their words:
`StableDiffusion`, `TextEncoders` and `DiffusionModels` are among them. (Not those of models in many files each.)"""

NEXT_TO_MODELS = ("embeddings", "extensions/sd-webui-controlnet/models")
"""Those of A1111 that lie elsewhere."""

NOT_MODELS = frozenset(
    ("configs", "custom_nodes", "diffusers", "download_model_base", "input", "output", "temp", "user", "classifiers")
)
"""Keys of extra_model_paths.yaml under which no model files lie, or models in many files each."""

YAML_BYTES = 1 << 20
NAME_LENGTH = 64
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})", re.ASCII)


class Source(NamedTuple):
    """One program's folder, or one section of a yaml: what the names of its roots begin with, where it was named, and
    its folders (absolute), each with what it is for. The folders need not be there."""

    name: str
    origin: str
    folders: tuple[tuple[str, str], ...]


def roots(
    named: Mapping[str, str],
    *,
    model_folders: Iterable[str] = (),
    extra_model_paths: Iterable[str] = (),
    environment: Mapping[str, str],
) -> dict[str, str]:
    """Every root by name: those the user named (absolute, as they are), then the folders found.

    A folder that is, or lies in, another root is left out. Raises UserError for a source that is broken or of which
    nothing is there, and when a root named by the user lies inside a folder found.
    """
    sources = [from_folder(folder) for folder in model_folders]
    for file in extra_model_paths:
        sources += from_yaml(file, environment)
    found = {name: folder for name, folder in _named(sources, named).items() if _is_there(folder)}
    lines = {name: _line(folder) for name, folder in (*named.items(), *found.items()) if _is_there(folder)}
    kept = dict(named)
    for name, folder in found.items():
        around = [other for other in lines if other != name and lines[other][0] in lines[name]]
        if any(lines[other][0] != lines[name][0] or other in kept for other in around):
            continue
        for mine in named:
            if mine in lines and lines[name][0] in lines[mine]:
                raise UserError(
                    f"root {mine!r} ({named[mine]}) lies inside {folder}, which `model_folders` or `extra_model_paths` "
                    f"name: each file can be in one root only. Leave out that root, or the other setting"
                )
        kept[name] = folder
    return kept


def from_folder(folder: str) -> Source:
    """What the folder of one of the programs holds; its `models` folder, or one arranged like it, will do as well.

    Raises UserError when no folder of models is there.
    """
    base = _absolute(folder, Path.cwd())
    if base.name.lower() == "models":
        models, base = base, base.parent
    else:
        models = next(iter(_called(base, "models")), base)
    found = _called(models, *MODELS)
    for place in NEXT_TO_MODELS:
        found += _called((base / place).parent, Path(place).name)
    there = dict.fromkeys(map(str, found))
    if not there:
        raise UserError(
            f"model folder {folder}: no folder of A1111, Forge, ComfyUI, SD.Next, SwarmUI or StabilityMatrix is there "
            f"(none of models/Stable-diffusion, models/checkpoints, …); mount its disk, or correct `model_folders`"
        )
    return Source(base.name, str(base), tuple((_use(Path(path)), path) for path in there))


def _called(folder: Path, *names: str) -> list[Path]:
    """The folders in one that are called so, in this order, however their words are written; of several that differ
    in nothing else the one that is written just so is the first."""
    there: dict[str, list[Path]] = {}
    try:
        for path in sorted(folder.iterdir()):
            there.setdefault(_words(path.name), []).append(path)
    except OSError:
        return []
    found = []
    for name in names:
        found += sorted(there.get(_words(name), ()), key=lambda path, name=name: path.name != name)
    return [path for path in found if _is_there(path)]


def _words(name: str) -> str:
    return re.sub(r"[-_ ]", "", name).lower()


def _use(path: Path) -> str:
    return "controlnet-extension" if path.parent.name.startswith("sd-webui") else path.name


def from_yaml(file: str, environment: Mapping[str, str]) -> list[Source]:
    """The sections of an extra_model_paths.yaml, the default ones first. Raises UserError for one that is broken, or
    of whose folders none is there."""
    path = _absolute(file, Path.cwd())
    sections = _sections(path)
    order = sorted(sections, key=lambda name: not sections[name].get("is_default", False))
    sources = [Source(name, f"{path}:{name}", _folders(path, name, sections[name], environment)) for name in order]
    if not any(_is_there(folder) for source in sources for _, folder in source.folders):
        raise UserError(f"{path}: none of the folders it names is there; mount their disk, or correct its base_path")
    return sources


def _sections(path: Path) -> dict[str, dict[str, Any]]:
    """The yaml's sections that have something in them. Raises UserError for anything but a mapping of mappings."""
    import yaml

    try:
        with path.open("rb") as file:
            raw = file.read(YAML_BYTES + 1)
        if len(raw) > YAML_BYTES:
            raise UserError(f"{path} is larger than any extra_model_paths.yaml; correct `extra_model_paths`")
        top = yaml.safe_load(raw.decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}); correct `extra_model_paths`") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(top, dict):
        raise UserError(f"{path} is no extra_model_paths.yaml: it holds no sections (`comfyui:`, `a111:`, …)")
    for name, section in top.items():
        if not isinstance(section, dict | None):
            raise UserError(f"{path}: section {name!r} is no list of `what: folder`")
    return {str(name): section for name, section in top.items() if section is not None}


def _folders(
    path: Path, name: str, section: Mapping[str, Any], environment: Mapping[str, str]
) -> tuple[tuple[str, str], ...]:
    """One section's folders. Relative ones begin at its base_path, which begins at the yaml's own folder."""

    def expanded(key: object, text: object) -> str:
        if not isinstance(text, str):
            raise UserError(f"{path}: {name}.{key} is {text!r}; it must be a folder, or several on a line each")
        return _expanded(text, environment, f"{path}: {name}.{key}")

    base = path.parent
    if section.get("base_path") is not None:
        base = _absolute(expanded("base_path", section["base_path"]).strip(), base)
    found = []
    for key, value in section.items():
        if key in ("base_path", "is_default") or key in NOT_MODELS or value is None:
            continue
        for line in expanded(key, value).splitlines():
            if folder := line.strip():
                full = _absolute(folder, base)
                use = str(key) if _slug(str(key)) == _slug(full.name) else f"{key}-{full.name}"
                found.append((use, str(full)))
    return tuple(found)


def _expanded(text: str, environment: Mapping[str, str], where: str) -> str:
    """The text with its variables filled in. Raises UserError for one that is not set."""

    def value(found: re.Match[str]) -> str:
        variable = found[1] or found[2]
        if variable not in environment:
            raise UserError(f"{where} names the environment variable {variable}, which is not set")
        return environment[variable]

    return _VARIABLE.sub(value, text)


def _absolute(text: str, below: Path) -> Path:
    """The path that a user wrote, `~` and `..` resolved, symlinks not. Raises UserError for a user who is not there."""
    try:
        return Path(os.path.normpath(below / Path(text).expanduser()))
    except RuntimeError as error:
        raise UserError(f"{text}: {error}") from error


def _is_there(folder: str | Path) -> bool:
    """Whether it is a folder as far as can be seen from here."""
    try:
        return Path(folder).is_dir()
    except OSError:
        return False


def _named(sources: Iterable[Source], taken: Mapping[str, str]) -> dict[str, str]:
    """Folders by name. Whoever comes second under a name gets a digest of its own path at its end."""
    found: dict[str, str] = {}
    origins: dict[str, str] = {}
    for source in sources:
        begin = _slug(source.name)
        if origins.setdefault(begin, source.origin) != source.origin:
            begin = _distinct(begin, source.origin)
        for use, folder in source.folders:
            name = _fitting(f"{begin}-{_slug(use)}", folder)
            if name in taken or found.get(name, folder) != folder:
                name = _distinct(name, folder)
            found[name] = folder
    return found


def _slug(text: str) -> str:
    """The text in the characters a root's name is made of; a digest of it when none of them is left."""
    ascii = unicodedata.normalize("NFKD", text).casefold().encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9_]+", "-", ascii).strip("-") or _digest(text)


def _fitting(name: str, folder: str) -> str:
    return name if len(name) <= NAME_LENGTH else _distinct(name, folder)


def _distinct(name: str, path: str) -> str:
    return f"{name[: NAME_LENGTH - 7]}-{_digest(path)}"


def _digest(text: str) -> str:
    return blake2b(os.fsencode(text), digest_size=3).hexdigest()


def _line(folder: str) -> list[tuple[int, int]]:
    """What identifies a folder (device and inode) and, after it, every folder above it; symlinks are followed."""
    real = Path(os.path.realpath(folder))
    found = []
    for path in (real, *real.parents):
        status = path.stat()
        found.append((status.st_dev, status.st_ino))
    return found
