"""SQL stays SQL: a file of statements, divided into sections by marker comments."""

import re
from importlib.resources import files


def sections(file: str, marker: str) -> dict[str, str]:
    """The sections of one of this package's .sql files, in order, by what stands after `-- <marker>: `.

    Raises ValueError for a section that comes twice.
    """
    text = (files(__package__) / file).read_text(encoding="utf-8")
    parts = re.split(rf"^-- {marker}: (\S+)$", text, flags=re.MULTILINE)
    found = dict(zip(parts[1::2], (part.strip() for part in parts[2::2]), strict=True))
    if len(found) != len(parts) // 2:
        raise ValueError(f"a {marker} comes twice in {file}")
    return found
