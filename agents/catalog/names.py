"""Names of models: what a file is called, and how a name typed by a person is compared."""

import unicodedata
from pathlib import PurePosixPath


def shown(rel: str) -> str:
    """A path below its root as people write it: '%25' is '%' again; bytes that are no text stay %XX."""
    return rel.replace("%25", "%")


def file_name(rel: str) -> str:
    """The last part of a path below its root."""
    return PurePosixPath(shown(rel)).name


def stem(rel: str) -> str:
    """The file name without its extension: what a model is called."""
    return PurePosixPath(shown(rel)).stem


def fold(text: str) -> str:
    """For comparing without regard to case and to how accents are composed."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def loose(text: str) -> str:
    """For comparing without regard to case, accents' composition, spaces at the ends or more than one of them, and
    characters that nobody sees (of no width, for control)."""
    categories = map(unicodedata.category, text)
    seen = (" " if kind == "Cc" else char for char, kind in zip(text, categories, strict=True) if kind != "Cf")
    return " ".join(fold("".join(seen)).split())
