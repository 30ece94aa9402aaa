"""Sidecars: what other programs left with a model: JSON under its name (A1111 and Forge, civitai's answers as many
programs keep them, SD.Next, StabilityMatrix, SwarmUI, ComfyUI-Lora-Manager), and preview pictures.

They come with downloads, so they are read like anything hostile: regular files only, no link out of the roots is
followed, JSON of 1 MiB at most. Bad content is a problem in a sentence, never an exception.
"""

import base64
import binascii
import errno
import html
import json
import os
import re
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from agents.ingest.scanning.names import PREVIEW_SUFFIXES, WORD_SUFFIXES
from agents.storage.errors import OutsideRoot
from agents.storage.paths import is_inside

JSON_BYTES = 1 << 20
TEXT_LENGTH = 8_000
"""Characters of a description or note that are kept."""

HTML_LENGTH = 8 * TEXT_LENGTH
NAME_LENGTH = 200
WORDS = 64
WORD_LENGTH = 120
_THUMBNAIL = re.compile(r"data:image/[a-z]+;base64,")
_OF_A1111 = ("activation text", "sd version", "notes", "preferred weight", "negative text")
_OF_CIVITAI = ("modelId", "trainedWords")
_OF_LORA_MANAGER = ("model_name", "from_civitai", "modelDescription")
_OPEN_SAFELY = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY | os.O_NOFOLLOW
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_BREAKS = re.compile(r"<(?:br|/p|/li|/h[1-6]|/div)\b[^<>]*>", re.IGNORECASE)
_TAGS = re.compile(r"</?[a-z!][^<>]*>", re.IGNORECASE)


class Sidecars(msgspec.Struct, frozen=True, kw_only=True):
    """What a model's sidecars hold; empty where they hold nothing. `base_model` is in the words of whoever wrote it,
    `nsfw` None where none does, `previews` pictures, best first, `thumbnail` the bytes of one that is written into a
    JSON file, `problems` sentences about what can't be used."""

    name: str = ""
    description: str = ""
    notes: str = ""
    base_model: str = ""
    trigger_words: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    nsfw: bool | None = None
    source_url: str = ""
    previews: tuple[Path, ...] = ()
    thumbnail: bytes = b""
    problems: tuple[str, ...] = ()


def read_sidecars(
    path: str | bytes | Path, *, roots: tuple[bytes, ...] = (), names: Iterable[bytes] | None = None, sha256: str = ""
) -> Sidecars:
    """The sidecars of the model file at `path`. Never raises. `names` are the files of its folder, where they are
    known; links are followed into `roots` (real paths) only; `sha256`, the model's, finds its version among others.

    Where several hold the same field, what people write themselves goes before what was downloaded.
    """
    folder, name = os.path.split(os.fsencode(path))
    stem = name.rpartition(b".")[0] or name
    files: dict[bytes, list[Path]] = {}
    for other in sorted(_names_in(folder) if names is None else names):
        if other.startswith(stem):  # the case of the ending is free, that of the name is the model's
            file = Path(os.fsdecode(folder)) / os.fsdecode(other)
            files.setdefault(other[len(stem) :].lower(), []).append(file)
    problems: list[str] = []
    found = [
        _parsed(file, suffix, roots, ModelFile(os.fsdecode(name), sha256), problems)
        for suffix in WORD_SUFFIXES
        for file in files.get(suffix, ())
    ]
    previews = [file for suffix in PREVIEW_SUFFIXES for file in files.get(suffix, ()) if _is_shown(file, roots)]
    fields = ("name", "description", "notes", "base_model", "trigger_words", "tags", "source_url", "thumbnail")
    merged = {
        field: next((value for one in found if (value := getattr(one, field))), getattr(Sidecars(), field))
        for field in fields
    }
    return Sidecars(
        **merged,
        nsfw=next((one.nsfw for one in found if one.nsfw is not None), None),
        previews=tuple(previews),
        problems=(*problems, *(problem for one in found for problem in one.problems)),
    )


class ModelFile(msgspec.Struct, frozen=True):
    """The model that something is about: its file's name and its content."""

    name: str
    sha256: str


def parse_civitai(data: dict[str, Any], file: str) -> Sidecars:
    """Civitai's answer about one version of a model; `file` is for the problems. Never raises."""
    fields = _Fields(data, file)
    model = _Fields(fields.take("model", dict, {}), file)
    url = _civitai_url(fields.take("modelId", int, 0), fields.take("id", int, 0))
    return Sidecars(
        name=model.text("name", NAME_LENGTH) or fields.text("name", NAME_LENGTH),
        description=_plain(model.text("description", HTML_LENGTH) or fields.text("description", HTML_LENGTH)),
        base_model=fields.text("baseModel", NAME_LENGTH),
        trigger_words=fields.words("trainedWords"),
        tags=model.words("tags") or fields.words("tags"),
        nsfw=model.take("nsfw", bool, fields.take("nsfw", bool, None)),
        source_url=url,
        problems=(*fields.problems, *model.problems),
    )


def parse_a1111(data: dict[str, Any], file: str) -> Sidecars:
    """What a user wrote of a model in A1111 or Forge; `file` is for the problems. Never raises. A downloader may have
    added where it came from, or a sentence where it found nothing."""
    fields = _Fields(data, file)
    ids = [number if type(number := data.get(name)) is int else 0 for name in ("modelId", "modelVersionId")]
    base = fields.text("sd version", NAME_LENGTH)
    return Sidecars(
        description=fields.text("description"),
        notes=fields.text("notes"),
        base_model="" if base == "Unknown" else base,
        trigger_words=fields.words("activation text"),
        source_url=_civitai_url(*ids),
        problems=tuple(fields.problems),
    )


def parse_civitai_model(data: dict[str, Any], file: str, model: ModelFile) -> Sidecars:
    """Civitai's answer about a model with all its versions, as SD.Next keeps it. Which of them the file is, its content
    decides, else its name; with neither, only what holds for all of them is given. Never raises."""
    fields = _Fields(data, file)
    listed = fields.take("modelVersions", list, [])
    versions = [_Fields(one, file) for one in listed if type(one) is dict]
    ours = next((one for one in versions if _is_version_of(one, model)), None)
    if ours is None:
        ours = versions[0] if len(versions) == 1 else _Fields({}, file)
    return Sidecars(
        name=fields.text("name", NAME_LENGTH),
        description=_plain(fields.text("description", HTML_LENGTH) or ours.text("description", HTML_LENGTH)),
        base_model=ours.text("baseModel", NAME_LENGTH),
        trigger_words=ours.words("trainedWords"),
        tags=fields.words("tags"),
        nsfw=fields.take("nsfw", bool, None),
        source_url=_civitai_url(fields.take("id", int, 0), ours.take("id", int, 0)),
        problems=(*fields.problems, *ours.problems),
    )


def _is_version_of(version: "_Fields", model: ModelFile) -> bool:
    files = version.data.get("files")
    for one in files if type(files) is list else ():
        if type(one) is not dict:
            continue
        hashes = one.get("hashes")
        sha256 = hashes.get("SHA256") if type(hashes) is dict else None
        if type(sha256) is str and model.sha256 and sha256.lower() == model.sha256:
            return True
        if one.get("name") == model.name and not model.sha256:
            return True
    return False


def parse_stability_matrix(data: dict[str, Any], file: str) -> Sidecars:
    """A `.cm-info.json` of StabilityMatrix. Never raises."""
    fields = _Fields(data, file)
    description = fields.text("ModelDescription", HTML_LENGTH) or fields.text("VersionDescription", HTML_LENGTH)
    is_civitais = data.get("Source") in (None, "", "Civitai", 0)
    ids = fields.take("ModelId", int, 0), fields.take("VersionId", int, 0)
    return Sidecars(
        name=fields.text("UserTitle", NAME_LENGTH) or fields.text("ModelName", NAME_LENGTH),
        description=_plain(description),
        base_model=fields.text("BaseModel", NAME_LENGTH),
        trigger_words=fields.words("TrainedWords"),
        tags=fields.words("Tags"),
        nsfw=fields.take("Nsfw", bool, None),
        source_url=_civitai_url(*ids) if is_civitais else "",
        problems=tuple(fields.problems),
    )


def parse_lora_manager(data: dict[str, Any], file: str) -> Sidecars:
    """A `.metadata.json` of ComfyUI-Lora-Manager, with civitai's answer in it where it has one. Never raises."""
    fields = _Fields(data, file)
    theirs = parse_civitai(fields.take("civitai", dict, {}), file)
    base = fields.text("base_model", NAME_LENGTH)
    return Sidecars(
        name=fields.text("model_name", NAME_LENGTH) or theirs.name,
        description=_plain(fields.text("modelDescription", HTML_LENGTH)) or theirs.description,
        notes=fields.text("notes"),
        base_model=theirs.base_model if base in ("", "Unknown") else base,
        trigger_words=theirs.trigger_words,
        tags=fields.words("tags") or theirs.tags,
        nsfw=theirs.nsfw,
        source_url=theirs.source_url,
        problems=(*fields.problems, *theirs.problems),
    )


def parse_swarm(data: dict[str, Any], file: str) -> Sidecars:
    """A `.swarm.json` of SwarmUI: the keys of ModelSpec, with their prefix or without. Never raises."""
    plain = {key: value for key, value in data.items() if not key.startswith("modelspec.")}
    spec = {key.removeprefix("modelspec."): value for key, value in data.items() if key.startswith("modelspec.")}
    fields = _Fields(plain | spec, file)
    return Sidecars(
        name=fields.text("title", NAME_LENGTH),
        description=_plain(fields.text("description", HTML_LENGTH)),
        notes=fields.text("usage_hint"),
        base_model=fields.text("architecture", NAME_LENGTH),
        trigger_words=fields.words("trigger_phrase"),
        tags=fields.words("tags"),
        thumbnail=_thumbnail(fields.text("thumbnail", JSON_BYTES) or fields.text("preview_image", JSON_BYTES)),
        problems=tuple(fields.problems),
    )


def _thumbnail(text: str) -> bytes:
    """The picture in a data: address; nothing for any other text."""
    found = _THUMBNAIL.match(text)
    try:
        return base64.b64decode(text[found.end() :], validate=True) if found else b""
    except binascii.Error:
        return b""


def _civitai_url(model: int, version: int) -> str:
    """Where a model is shown; empty without its number."""
    if not 0 < model < 1 << 53:
        return ""
    return f"https://civitai.com/models/{model}" + (f"?modelVersionId={version}" if 0 < version < 1 << 53 else "")


def _parsed(file: Path, suffix: bytes, roots: tuple[bytes, ...], model: ModelFile, problems: list[str]) -> Sidecars:
    """One JSON sidecar, by what is in it: programs write each other's words under each other's names."""
    data, shown = _read(file, roots, problems), _shown(file)
    if type(data.get("modelVersions")) is list:
        return parse_civitai_model(data, shown, model)
    if suffix == b".swarm.json" or any(key.startswith("modelspec.") for key in data):
        return parse_swarm(data, shown)
    is_a1111 = not data.keys().isdisjoint(_OF_A1111)
    parse: Callable[[dict[str, Any], str], Sidecars]
    if suffix == b".cm-info.json" or "ModelName" in data:
        parse = parse_stability_matrix
    elif suffix == b".metadata.json" or not data.keys().isdisjoint(_OF_LORA_MANAGER):
        parse = parse_lora_manager
    elif suffix == b".civitai.info" or not (is_a1111 or data.keys().isdisjoint(_OF_CIVITAI)):
        parse = parse_civitai
    else:
        parse = parse_a1111
    return parse(data, shown)


def _read(file: Path, roots: tuple[bytes, ...], problems: list[str]) -> dict[str, Any]:
    """The object in a file; empty when there is no file, or with a problem noted."""
    try:
        fd = opened(file, roots)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                problems.append(f"{_shown(file)} is no file and is not read.")
                return {}
            raw = os.pread(fd, JSON_BYTES + 1, 0)
        finally:
            os.close(fd)
        if len(raw) > JSON_BYTES:
            problems.append(f"{_shown(file)} is longer than {JSON_BYTES >> 20} MiB and is not read.")
            return {}
        data = json.loads(raw.decode(json.detect_encoding(raw)))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OutsideRoot as error:
        problems.append(f"{_shown(file)} can't be read ({error}).")
    except OSError as error:
        problems.append(f"{_shown(file)} can't be read ({error.strerror}).")
    except UnicodeError:
        problems.append(f"{_shown(file)} is in neither UTF-8 nor UTF-16 and is not read; save it as UTF-8.")
    except (ValueError, RecursionError):
        problems.append(f"{_shown(file)} is not JSON and is not read; correct it, or have it written again.")
    else:
        if isinstance(data, dict):
            return data
        problems.append(f"{_shown(file)} holds no object and is not used.")
    return {}


def opened(file: Path, roots: tuple[bytes, ...]) -> int:
    """A file opened to be read, as a descriptor; a link is followed where it leads into one of these real paths. It is
    not waited for, whatever it is. Raises OutsideRoot, or OSError."""
    raw = os.fsencode(file)
    try:
        return os.open(raw, _OPEN_SAFELY)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
    real = os.path.realpath(raw)
    if not any(is_inside(real, root) for root in roots):
        raise OutsideRoot("it is a link that leads out of the roots" if roots else "it is a link")
    return os.open(real, _OPEN_SAFELY)


class _Fields:
    """A JSON object of which every field may be anything: what has the wrong type is a problem, and left out."""

    def __init__(self, data: dict[str, Any], file: str) -> None:
        self.data, self.file = data, file
        self.problems: list[str] = []

    def take(self, name: str, kind: type, default: Any) -> Any:
        """The field where it is exactly of this type (a bool is no int); null is as good as absent, and so is an empty
        text."""
        value = self.data.get(name)
        if type(value) is kind:
            return value
        if value not in (None, ""):
            self.problems.append(f"{self.file}: {name!r} is not what it should be and is left out.")
        return default

    def text(self, name: str, length: int = TEXT_LENGTH) -> str:
        """A text without control characters, cut to a length in characters."""
        return _clean(self.take(name, str, ""), length)

    def words(self, name: str) -> tuple[str, ...]:
        """Single words or phrases, from a list of texts or one text, split at commas."""
        value = self.data.get(name)
        texts = [value] if type(value) is str else self.take(name, list, [])
        if not all(type(text) is str for text in texts):
            self.problems.append(f"{self.file}: {name!r} holds something other than texts, which is left out.")
        return _words(text for text in texts if type(text) is str)


def _words(texts: Iterable[str]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for text in texts:
        for word in text.split(","):
            cleaned = " ".join(_clean(word, WORD_LENGTH).split())
            if cleaned:
                found[cleaned] = None
            if len(found) == WORDS:
                return tuple(found)
    return tuple(found)


def _clean(text: str, length: int) -> str:
    """Without control characters and halves of surrogate pairs, neither of which can be stored or shown."""
    return _CONTROLS.sub("", text[: 8 * length].replace("\r\n", "\n")).strip()[:length]


def _plain(text: str) -> str:
    """HTML as plain text. Patterns, not a parser: nothing is trusted to be well formed, and it takes linear time."""
    lines = html.unescape(_TAGS.sub("", _BREAKS.sub("\n", text))).splitlines()
    return _clean("\n".join(line for raw in lines if (line := " ".join(raw.split()))), TEXT_LENGTH)


def _names_in(folder: bytes) -> list[bytes]:
    try:
        with os.scandir(folder or b".") as entries:
            return [entry.name for entry in entries]
    except OSError:
        return []


def _is_shown(path: Path, roots: tuple[bytes, ...]) -> bool:
    """Whether it is a regular file with something in it, or a link that may be followed to one. (One that may not is
    found out when it is opened, where there are roots.)"""
    try:
        status = path.stat() if roots else path.lstat()
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size > 0


def _shown(file: Path) -> str:
    """A name fit for a sentence."""
    return file.name if file.name.isprintable() else ascii(file.name)
