"""Infotext: how a picture was made, as text inside its file, in the form image tools already read.

    a red fox
    Negative prompt: blurry
    Steps: 20, Sampler: Euler, Schedule type: Normal, CFG scale: 7, Seed: 1, Size: 64x64, …, Version: Darkroom 0.1.0

PNG files carry it as the text chunk "parameters"; WebP and JPEG as the EXIF field UserComment. Pillow drops EXIF when
it saves a picture again, so every file gets its own.
"""

import json
import re
import struct
from pathlib import Path

import msgspec
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from agents.images.decode import Broken, opened
from schemas.jobs import Plan

VERSION = "Darkroom 0.1.0"
PNG_KEY = "parameters"
EXIF_IFD, USER_COMMENT, EXIF_UNDEFINED, EXIF_LONG = 0x8769, 0x9286, 7, 4
UNICODE = b"UNICODE\0"
# A JPEG segment is at most 65,533 bytes; the EXIF around the comment takes 58 of them.
LONGEST_COMMENT = 65_000
LONGEST_READ = 200_000

_NEGATIVE = "Negative prompt:"
# Names are bounded so that a hostile line costs time in proportion to its length.
_SETTING = re.compile(r'(\w[\w \-/]{1,40}):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
# A prompt that the three-part form can't hold (a line of it looks like another part) is given once more, quoted.
_EXACT_PROMPT, _EXACT_NEGATIVE = "Darkroom prompt", "Darkroom negative prompt"


class Infotext(msgspec.Struct, frozen=True, kw_only=True):
    """What an infotext holds; the settings are in its order, unquoted."""

    prompt: str
    negative_prompt: str = ""
    settings: dict[str, str] = {}


def of_plan(plan: Plan, *, seed: int, width: int, height: int, sampler: str = "", scheduler: str = "") -> str:
    """The infotext of the picture drawn with `seed` at `width`×`height` px.

    `sampler` and `scheduler` are labels for people ("DPM++ 2M", "Karras"); left out, they are the plan's ids.
    """
    settings = {
        "Steps": str(plan.steps),
        "Sampler": sampler or plan.sampler,
        "Schedule type": scheduler or plan.scheduler,
        "CFG scale": f"{plan.cfg_scale:.6g}",
        "Seed": str(seed),
        "Size": f"{width}x{height}",
        "Model hash": plan.model.sha256[:10],
        "Model": plan.model.name,
        "Version": VERSION,
    }
    return build(Infotext(prompt=plan.prompt, negative_prompt=plan.negative_prompt, settings=settings))


def build(info: Infotext) -> str:
    """The text of `info`; `parse` gives the same prompts and settings back, whatever they hold.

    Raises ValueError for fewer than three settings: readers would take the line for a part of the prompt.
    """
    if len(info.settings) < 3:
        raise ValueError("an infotext needs at least three settings to be distinguished from a prompt")
    text = _joined(info, info.settings)
    settings = dict(info.settings)
    plain = _split(text)
    if plain.prompt != info.prompt:
        settings[_EXACT_PROMPT] = info.prompt
    if plain.negative_prompt != info.negative_prompt:
        settings[_EXACT_NEGATIVE] = info.negative_prompt
    return text if len(settings) == len(info.settings) else _joined(info, settings)


def parse(text: str) -> Infotext:
    """What an infotext holds, ours or another tool's. Text that is none comes back as a prompt without settings."""
    info = _split(text)
    settings = dict(info.settings)
    prompt = settings.pop(_EXACT_PROMPT, info.prompt)
    negative_prompt = settings.pop(_EXACT_NEGATIVE, info.negative_prompt)
    return Infotext(prompt=prompt, negative_prompt=negative_prompt, settings=settings)


def exif(text: str) -> bytes:
    """An EXIF block whose UserComment is `text`, for WebP and JPEG files.

    Written here because Pillow gives the field the type BYTE, where the standard (and piexif) want UNDEFINED. A text
    too long for a JPEG segment loses the end of its prompt, never its settings.
    """
    comment = UNICODE + _shortened(text).encode("utf-16-be", "replace")
    header, one_field = struct.pack(">2sHI", b"MM", 42, 8), struct.pack(">H", 1)
    pointer = struct.pack(">HHII", EXIF_IFD, EXIF_LONG, 1, 26)
    field = struct.pack(">HHII", USER_COMMENT, EXIF_UNDEFINED, len(comment), 44)
    last = struct.pack(">I", 0)
    return b"Exif\0\0" + header + one_field + pointer + last + one_field + field + last + comment


def png_info(text: str) -> PngInfo:
    """The text chunk "parameters" (tEXt, or iTXt when `text` is not Latin-1), for saving a PNG."""
    info = PngInfo()
    info.add_text(PNG_KEY, text.encode("utf-8", "replace").decode("utf-8"))
    return info


def read(image: Image.Image) -> str:
    """The infotext in an opened image's file, or "" when there is none; at most its first 200,000 characters."""
    text = image.info.get(PNG_KEY)
    if isinstance(text, str):
        return text[:LONGEST_READ]
    comment = image.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT, b"")
    if not isinstance(comment, bytes) or len(comment) < len(UNICODE):
        return ""
    kind, body = comment[: len(UNICODE)], comment[len(UNICODE) :]
    return body.decode("utf-16-be" if kind == UNICODE else "utf-8", "replace").rstrip("\0")[:LONGEST_READ]


def read_file(path: Path) -> str:
    """The infotext that a picture's file carries, or "". Raises BadPicture or OSError."""
    with opened(path.read_bytes()) as image:
        try:
            return read(image)
        except Exception as error:  # readers meet damaged bytes with every kind of exception
            raise Broken(f"the picture's metadata can't be read: {error}") from error


def _joined(info: Infotext, settings: dict[str, str]) -> str:
    parts = [info.prompt]
    if info.negative_prompt:
        parts.append(f"{_NEGATIVE} {info.negative_prompt}")
    parts.append(", ".join(f"{name}: {_quoted(value)}" for name, value in settings.items()))
    return "\n".join(parts)


def _split(text: str) -> Infotext:
    """By the rules other tools use: the last line is settings when it holds three; a line opens the negative prompt."""
    lines = text.split("\n")
    found = _SETTING.findall(lines[-1])
    settings = {name: _unquoted(value) for name, value in found} if len(found) >= 3 else {}
    if settings:
        lines.pop()
    opening = next((at for at, line in enumerate(lines) if line.startswith(_NEGATIVE)), len(lines))
    negative = "\n".join(lines[opening:])[len(_NEGATIVE) :].strip()
    return Infotext(prompt="\n".join(lines[:opening]).strip(), negative_prompt=negative, settings=settings)


def _quoted(value: str) -> str:
    """In JSON's quotes when the plain value could not be distinguished from what surrounds it."""
    return (
        value
        if value == value.strip() and not any(mark in value for mark in ',:\n\r"')
        else json.dumps(value, ensure_ascii=False)
    )


def _unquoted(value: str) -> str:
    value = value.strip()
    if not (len(value) >= 2 and value[0] == value[-1] == '"'):
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value


def _shortened(text: str) -> str:
    """`text` with the end of its prompts cut off, so that its UTF-16 fits a JPEG segment."""
    if len(text.encode("utf-16-be", "replace")) <= LONGEST_COMMENT:
        return text
    prompts, _, last = text.rpartition("\n")
    settings = _SETTING.sub(lambda match: "" if match[1] in (_EXACT_PROMPT, _EXACT_NEGATIVE) else match[0], last)
    tail = "…\n" + settings.rstrip(", ") if prompts and len(settings) < LONGEST_COMMENT // 8 else "…"
    room = LONGEST_COMMENT - len(tail.encode("utf-16-be", "replace"))
    return (prompts or text).encode("utf-16-be", "replace")[:room].decode("utf-16-be", "ignore") + tail
