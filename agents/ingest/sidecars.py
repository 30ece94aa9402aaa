"""Sidecars: what other programs left beside a model: <stem>.civitai.info, <stem>.json (A1111), preview pictures.

They come with downloads, so they are read like anything hostile: regular files only, no link is followed, JSON of 1 MiB
at most. Bad content is a problem in a sentence, never an exception.
"""

import html
import json
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from agents.ingest.names import PREVIEW_SUFFIXES

JSON_BYTES = 1 << 20
TEXT_LENGTH = 8_000
"""Characters of a description or note that are kept."""

HTML_LENGTH = 8 * TEXT_LENGTH
NAME_LENGTH = 200
WORDS = 64
WORD_LENGTH = 120
_OF_A1111 = ("activation text", "sd version", "notes", "preferred weight", "negative text")
_OF_CIVITAI = ("modelId", "trainedWords")
_OPEN_SAFELY = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY | os.O_NOFOLLOW
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_BREAKS = re.compile(r"<(?:br|/p|/li|/h[1-6]|/div)\b[^<>]*>", re.IGNORECASE)
_TAGS = re.compile(r"</?[a-z!][^<>]*>", re.IGNORECASE)


class Sidecars(msgspec.Struct, frozen=True, kw_only=True):
    """What is said of a model beside it; empty where nothing is. `base_model` is in the words of whoever wrote it,
    `nsfw` None where nobody says, `previews` pictures, best first, `problems` sentences about what can't be used."""

    name: str = ""
    description: str = ""
    notes: str = ""
    base_model: str = ""
    trigger_words: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    nsfw: bool | None = None
    source_url: str = ""
    previews: tuple[Path, ...] = ()
    problems: tuple[str, ...] = ()


def read_sidecars(path: str | bytes | Path) -> Sidecars:
    """What lies beside the model file at `path`. Never raises.

    Where two say something of the same thing, the one that the user edits in A1111 goes before civitai's.
    """
    stem = Path(os.fsdecode(path)).with_suffix("")
    problems: list[str] = []
    own, own_problems = _parsed(_beside(stem, ".json"), problems)
    theirs, their_problems = _parsed(_beside(stem, ".civitai.info"), problems)
    previews = tuple(file for suffix in map(os.fsdecode, PREVIEW_SUFFIXES) if _is_file(file := _beside(stem, suffix)))
    merged = {
        field: getattr(own, field) or getattr(theirs, field)
        for field in ("name", "description", "notes", "base_model", "trigger_words", "tags", "source_url")
    }
    return Sidecars(
        **merged,
        nsfw=theirs.nsfw if own.nsfw is None else own.nsfw,
        previews=previews,
        problems=(*problems, *own_problems, *their_problems),
    )


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


def _civitai_url(model: int, version: int) -> str:
    """Where a model is shown; empty without its number."""
    if not 0 < model < 1 << 53:
        return ""
    return f"https://civitai.com/models/{model}" + (f"?modelVersionId={version}" if 0 < version < 1 << 53 else "")


def _parsed(file: Path, problems: list[str]) -> tuple[Sidecars, tuple[str, ...]]:
    """One JSON sidecar, by what is in it: some programs write civitai's answer into <stem>.json."""
    data = _read(file, problems)
    is_a1111 = not data.keys().isdisjoint(_OF_A1111)
    from_civitai = file.name.endswith(".civitai.info") or not (is_a1111 or data.keys().isdisjoint(_OF_CIVITAI))
    found = (parse_civitai if from_civitai else parse_a1111)(data, _shown(file))
    return found, found.problems


def _read(file: Path, problems: list[str]) -> dict[str, Any]:
    """The object in a file; empty when there is no file, or with a problem noted."""
    try:
        fd = os.open(file, _OPEN_SAFELY)
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
        data = json.loads(raw.decode("utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        why = "it is a link" if file.is_symlink() else error.strerror
        problems.append(f"{_shown(file)} can't be read ({why}).")
    except (ValueError, RecursionError):
        problems.append(f"{_shown(file)} is not JSON; delete it, or have it written again.")
    else:
        if isinstance(data, dict):
            return data
        problems.append(f"{_shown(file)} holds no object and is not used.")
    return {}


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


def _beside(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)


def _is_file(path: Path) -> bool:
    """Whether it is a regular file with something in it; a link is none."""
    try:
        status = path.lstat()
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size > 0


def _shown(file: Path) -> str:
    """A name fit for a sentence."""
    return file.name if file.name.isprintable() else ascii(file.name)
