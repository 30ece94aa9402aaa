"""Index words: text as the full-text index has it, and as it is looked for.

SQLite's tokenizer knows letters and digits as of Unicode 6.1; all else only separates words. So both sides go through
`searchable` first: emoji and other symbols become words of their own, spelled in characters for private use, which the
tokenizer takes for letters; so does each character of a script that puts no spaces between words.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from agents.catalog.names import loose

SEARCH_VERSION = "3"
"""Of what is indexed: a catalog that another version indexed is indexed anew. Counted up with each change of
`searchable`, or of what goes into the index."""

_WRITTEN_TOGETHER = (
    (0x0E00, 0x0FFF),  # Thai, Lao, Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),
    (0x3021, 0x30FF),  # kana
    (0x3100, 0x312F),
    (0x31A0, 0x31BF),
    (0x31F0, 0x31FF),
    (0x3400, 0x9FFF),  # Han
    (0xA000, 0xA4CF),
    (0xAC00, 0xD7A3),  # Hangul: words are compounds there
)
"""Scripts in which a word can begin at any character."""
_LARGEST_PLAIN = 0xFFFF
_SKIN = range(0x1F3FB, 0x1F400)
_PUNCTUATION_EMOJI = re.compile("[‼⁉]")  # NFKC would make two marks of each
_PARTS = re.compile(
    "[\U0001f1e6-\U0001f1ff]{2}"  # a flag: two letters, of which the second begins no other flag
    "|\U0001f3f4[\U000e0020-\U000e007f]+"  # the flag of a region: its name in tags
    "|[#*]\ufe0f?\u20e3"  # a key: by itself, its sign would only be between words
    "|[^\x00-\x7f]"
)


def searchable(text: str | None) -> str:
    """Text for the index, in which what the tokenizer would not see is spelled so that it does; "" for None. Pure.

    Compatible spellings (full width, ligatures, letters of mathematics) are one. What has no look of its own (joiners,
    variation selectors, skin tones) and accents that can be left out (Arabic and Hebrew points, too) are left out.
    """
    if not text:
        return ""
    text = text.replace("\0", " ")
    if text.isascii():
        return text
    text = _PUNCTUATION_EMOJI.sub(lambda found: _word(found[0]), text)
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return _PARTS.sub(lambda found: _token(found[0]), text)


def searchable_json(text: str | None) -> str:
    """All texts in a JSON value, as the index has them. (Of a text with a NUL, SQLite would give what is before it.)"""
    if not text:
        return ""
    if text[0] in '"[' and text.isascii() and "\\" not in text:
        return text  # as it is: quotes, brackets and commas are between words
    return searchable("\n".join(_texts(json.loads(text))))


def is_of_a_word(char: str) -> bool:
    """Is this a character of a word in searchable text, and nothing between words?"""
    return char.isalnum() or "\ue000" <= char <= "\uf8ff"


def functions() -> dict[str, Callable[[str | None], str]]:
    """What statements use, by their names there: each takes one value."""
    return {"searchable": searchable, "searchable_json": searchable_json, "loose": lambda text: loose(text or "")}


def _texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case list():
            for one in value:
                yield from _texts(one)
        case dict():
            yield from _texts([*value.values()])


@lru_cache(maxsize=1 << 16)
def _token(part: str) -> str:
    """One character that is not ASCII, one flag or one key, as the index has it."""
    if len(part) > 1:
        plain = part.replace("\ufe0f", "")
        return f" {''.join(map(_private, plain))} "
    code, category = ord(part), unicodedata.category(part)
    match category[0]:
        case "L" | "N":
            if code > _LARGEST_PLAIN:
                return _word(part)
            return f" {part} " if _is_written_together(code) else part
        case "M":
            if category == "Me" or _can_be_left_out(part):
                return ""
            return _word(part) if _is_written_together(code) else _private(part)
    if category == "Cf" and part != "\u200b":
        return ""
    if code in _SKIN:
        return ""
    return _word(part) if category in ("So", "Sm", "Sc", "Cn", "Co") else " "


def _can_be_left_out(mark: str) -> bool:
    """Is this mark an accent, or none that is seen? Others spell: the vowels of India, for example."""
    order = unicodedata.combining(mark)
    is_selector = 0xFE00 <= ord(mark) <= 0xFE0F or 0xE0100 <= ord(mark) <= 0xE01EF or mark == "\u034f"
    return is_selector or order == 1 or 10 <= order <= 35 or order >= 200


def _is_written_together(code: int) -> bool:
    return any(first <= code <= last for first, last in _WRITTEN_TOGETHER)


def _word(symbol: str) -> str:
    return f" {_private(symbol)} "


def _private(symbol: str) -> str:
    """Two characters of the basic plane's private use area for any character there is."""
    code = ord(symbol)
    return chr(0xE000 + (code >> 12)) + chr(0xE200 + (code & 0xFFF))
