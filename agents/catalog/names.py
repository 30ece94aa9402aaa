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
