"""Rows of a legacy catalog, whatever odd shape they have, as what this catalog keeps. No IO, and nothing here raises.

What has no field of its own is kept in `extra` under the key it came with; what can't be read is kept there as the text
it is. Every value that could not be taken as it was is in a note.
"""

import functools
import re
from datetime import UTC, datetime
from typing import Any

import msgspec

from agents.catalog.descriptions import TAG_LENGTH, tag_name
from agents.catalog.legacy.source import RawModel, RawTag, number, shown
from agents.storage import paths
from schemas.files import Kind

NO_NAME = "It has no name."
BAD_ID = "Its id is no whole number: it got a new one."
NO_PATH = "It has neither a hash nor a path: nothing shows which file it is about."
BAD_HASH = "Its hash is no SHA-256 in hexadecimal, so it counts as not hashed."
BAD_SIZE = "Its size is no size of a file, so it counts as unknown."
BAD_TIME = "Its time of creation is impossible: the time of the import is used instead."
BAD_PATH = "Its path has a null byte or is too long, and is left out."
BAD_TEXT = "It has text that is not UTF-8: the bytes in question are replaced."
BAD_JSON = "Its JSON can't be read, and is kept as text."
DEEP_JSON = "Its JSON is nested too deeply, and is kept as text."
TOO_LARGE = "It has a value of more than 1 MiB, which is left out."
CUT_NAME = "Its name is too long, and is cut."

LATEST = 4_102_444_800.0
"""Times after the year 2100 are taken for mistakes."""

MOST_BYTES = 1 << 53
PATH_BYTES = 32 * 1024
TITLE_LENGTH = 1000
DEEPEST = 64

KINDS: dict[str, Kind] = {
    "checkpoint": "checkpoint",
    "lora": "lora",
    "locon": "lora",
    "lycoris": "lora",
    "vae": "vae",
    "controlnet": "controlnet",
    "embedding": "embedding",
    "textualinversion": "embedding",
    "upscaler": "upscaler",
    "esrgan": "upscaler",
    "textencoder": "text_encoder",
    "unet": "diffusion_model",
    "diffusionmodel": "diffusion_model",
}
"""What a legacy type, reduced to letters, can only mean."""

_PATHS = "legacy_paths"
_SAFE = re.compile(r"\.(?:safetensors|gguf)$", re.IGNORECASE)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_URL = re.compile(r"https?://\S+")
_DRIVE = re.compile(r"^[A-Za-z]:")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]+")

Note = tuple[str, str]
"""Why, and the value in question."""

Details = dict[str, Any]


class LegacyTag(msgspec.Struct, frozen=True):
    """A tag by the name that is kept (empty: it has none). `created_at` is Unix seconds, None where it is not known."""

    id: int
    name: str
    color: str
    created_at: float | None
    notes: tuple[Note, ...]


class LegacyModel(msgspec.Struct, frozen=True, gc=False):
    """A model; `sha256` is empty for one that is not hashed. `path` is as written (a byte that is not UTF-8 as %XX),
    `file` its last part, both empty where it has none. `title` is its own name. `identity` and
    `details` (schemas.files.Details without what is empty) are JSON: a batch of them as objects would keep the garbage
    collector, and with it the event loop, busy. `images` are names of pictures, as written. `place` is the root and the
    path below it where `path` lies now, if any."""

    id: int
    sha256: str
    path: str
    raw_path: bytes
    file: str
    title: str
    size: int | None
    identity: str
    details: str
    images: tuple[str, ...]
    created_at: float | None
    notes: tuple[Note, ...]
    place: tuple[str, str] | None = None

    @property
    def name(self) -> str:
        """What it is called by its file; by its title, or its hash, where it has none."""
        stem, dot, _ = self.file.rpartition(".")
        return (stem if dot else self.file) or self.file or self.title or self.sha256[:10]


def tag_of(raw: RawTag) -> LegacyTag:
    """A tag as it is kept."""
    notes: list[Note] = [(BAD_ID, raw.odd_id)] if raw.odd_id else []
    written = _CONTROLS.sub(" ", _text(raw.name, notes))
    name = tag_name(written)
    if len(written) > TAG_LENGTH:
        notes.append((CUT_NAME, written))
    color = _CONTROLS.sub("", _text(raw.color, notes)).strip()[:40]
    return LegacyTag(raw.id, name, color, _seconds(raw.created_at, notes), tuple(notes))


def model_of(raw: RawModel) -> LegacyModel:
    """A model as it is kept, still without its place."""
    notes: list[Note] = [(BAD_ID, raw.odd_id)] if raw.odd_id else []
    notes += [(TOO_LARGE, "")] if raw.too_large else []
    raw_path, path = _path(raw.path, notes)
    file = _file_of(path)
    type = _text(raw.type, notes)
    details, images = _details(raw, type, notes)
    if path:
        details.setdefault("extra", {})[_PATHS] = [path]
    return LegacyModel(
        id=raw.id,
        sha256=_sha256(raw.hash_hex, notes),
        path=path,
        raw_path=raw_path,
        file=file,
        size=_size(raw.size_bytes, notes),
        identity=guessed(type, _SAFE.search(file) is not None),
        title=details.get("title", ""),
        details=msgspec.json.encode(details).decode(),
        images=images,
        created_at=_seconds(raw.created_at, notes),
        notes=tuple(notes),
    )


@functools.lru_cache(maxsize=256)
def guessed(type: str, safe: bool) -> str:
    """What a file is that nobody has read yet, as the JSON of an Identity (what the schema asks for, no more): of the
    kind that its legacy type means where that is clear, and unsafe unless its format can't run code."""
    kind = KINDS.get(re.sub("[^a-z]", "", type.lower()), "unknown")
    identity: dict[str, Any] = {"kind": kind, "family": "", "unsafe": not safe, "problem": "", "trigger_words": []}
    return msgspec.json.encode(identity).decode()


def merged(first: Details, second: Details) -> Details:
    """Both, where the first goes before: the second fills what is empty there, and adds its keys and paths."""
    both = {**{key: value for key, value in second.items() if value}, **first}
    extra, more = first.get("extra", {}), second.get("extra", {})
    together = {**more, **extra}
    if paths_of(second):
        together[_PATHS] = list(dict.fromkeys((*paths_of(first), *paths_of(second))))
    if together:
        both["extra"] = together
    return both


def paths_of(details: Details) -> list[str]:
    """Where the model lies by a legacy catalog."""
    found = details.get("extra", {}).get(_PATHS, [])
    return [path for path in found if isinstance(path, str)] if isinstance(found, list) else []


def _details(raw: RawModel, type: str, notes: list[Note]) -> tuple[Details, tuple[str, ...]]:
    """The details in the columns, and the names of pictures."""
    kept: Details = {}
    title = _text(raw.name, notes).replace("\0", " ").strip(" ")  # after a NUL SQLite's JSON would lose it
    stated, meta = _json(raw.extra_json, "extra_json", kept, notes), _json(raw.meta_json, "meta_json", kept, notes)
    images = _names(stated.pop("images", None))
    fields = {"title": title[:TITLE_LENGTH], "type": type, **_fields(stated)}
    if len(title) > TITLE_LENGTH:
        notes.append((CUT_NAME, title))
        kept["name"] = title
    other = {key: value for key, value in meta.items() if key in stated and stated[key] != value}
    extra = {**meta, **stated, **kept}
    if _PATHS in extra:  # the one key that is ours
        other[_PATHS] = extra.pop(_PATHS)
    if other:
        extra["meta_json"] = other
    return {key: value for key, value in {**fields, "extra": extra}.items() if value}, images


def _fields(stated: Details) -> Details:
    """What has a field of its own, taken out of `stated`; what is of another shape than that stays."""
    fields: Details = {}
    for key in ("description", "notes"):
        if isinstance(stated.get(key, ""), str | None):
            fields[key] = stated.pop(key, "")
    links = stated.get("community_links", "")
    if links in (None, ""):
        stated.pop("community_links", None)
    elif isinstance(links, str) and _URL.fullmatch(links.strip()):
        fields["source_url"] = stated.pop("community_links").strip()
    words = stated.get("trigger_words")
    if isinstance(words, list) and all(isinstance(word, str) for word in words):
        fields["trigger_words"] = stated.pop("trigger_words")
    prompts = stated.get("prompts", {})
    if isinstance(prompts, dict):
        for key in ("positive", "negative"):
            if isinstance(prompts.get(key, ""), str | None):
                fields[key] = prompts.pop(key, "")
    if not prompts:
        stated.pop("prompts", None)
    return fields


def _json(value: Any, column: str, extra: dict[str, Any], notes: list[Note]) -> dict[str, Any]:
    """A column's JSON object; anything else it holds is put into `extra` under the column's name."""
    if value is None or value == b"":
        return {}
    if not isinstance(value, bytes):
        notes.append((BAD_JSON, f"{column}: {value}"))
        extra[column] = value
        return {}
    why = BAD_JSON
    try:
        if value.count(b"{") + value.count(b"[") > DEEPEST and _depth(value) > DEEPEST:
            why = DEEP_JSON
            raise ValueError
        decoded = msgspec.json.decode(value)
    except (ValueError, RecursionError):  # msgspec's errors, and text that is not UTF-8, are ValueErrors
        text = value.decode("utf-8", "replace")
        notes.append((why, f"{column}: {text}"))
        extra[column] = text
        return {}
    if isinstance(decoded, dict):
        return decoded
    if decoded not in (None, [], ""):
        extra[column] = decoded
    return {}


def _depth(text: bytes) -> int:
    """How deep brackets are nested at most; those in strings count too, which only errs towards caution."""
    depth = deepest = 0
    for bracket in re.findall(rb"[\[\]{}]", text):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _names(value: Any) -> tuple[str, ...]:
    """Names of pictures, from a string, a list of strings, or nothing. An object of a list may have them by a key."""
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list):
        return tuple(name for one in value if (name := _name(one)))
    return (value,) if isinstance(value, str) and value else ()


def _name(value: Any) -> str:
    if isinstance(value, dict):
        value = next((value[key] for key in ("path", "url", "name") if isinstance(value.get(key), str)), "")
    return value if isinstance(value, str) else ""


def _text(value: Any, notes: list[Note]) -> str:
    if value is None:
        return ""
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode()
    except UnicodeDecodeError:
        text = value.decode("utf-8", "replace")
        notes.append((BAD_TEXT, text))
        return text


def _path(value: Any, notes: list[Note]) -> tuple[bytes, str]:
    """A path as bytes and as text; empty when it can't be one."""
    raw = value if isinstance(value, bytes) else str(value or "").encode()
    if b"\0" in raw or len(raw) > PATH_BYTES:
        notes.append((BAD_PATH, raw[:200].decode("utf-8", "replace")))
        return b"", ""
    try:
        return raw, raw.decode()
    except UnicodeDecodeError:
        return raw, paths.encode(raw)


def _file_of(path: str) -> str:
    """The last part of a path. One that does not begin with a single slash is of Windows, where both kinds of slash
    divide it."""
    if path.startswith("/") and not path.startswith("//"):
        return path.rpartition("/")[2]
    return _DRIVE.sub("", path).replace("\\", "/").rpartition("/")[2]


def _sha256(value: Any, notes: list[Note]) -> str:
    text = (value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")).strip().lower()
    if text and not _SHA256.fullmatch(text):
        notes.append((BAD_HASH, text))
        return ""
    return text


def _size(value: Any, notes: list[Note]) -> int | None:
    size = number(value)
    if size is None or (isinstance(size, int) and 0 <= size < MOST_BYTES):
        return size
    notes.append((BAD_SIZE, shown(value)))
    return None


def _seconds(value: Any, notes: list[Note]) -> float | None:
    """Milliseconds, or a date as ISO 8601 writes it (without a zone: UTC), as seconds."""
    if value is None:
        return None
    when = number(value)
    seconds = when / 1000 if isinstance(when, int | float) else _date(shown(value))
    if 0 < seconds < LATEST:
        return seconds
    notes.append((BAD_TIME, shown(value)))
    return None


def _date(text: str) -> float:
    """Seconds; 0 for what is no date."""
    try:
        date = datetime.fromisoformat(text.strip())
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return 0.0
