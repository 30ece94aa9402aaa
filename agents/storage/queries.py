"""SQL stays SQL: a file of statements, divided into sections by marker comments."""

import re
from importlib.resources import files

_PART = re.compile(r"\{(\w+)\}")


def sections(package: str, file: str, marker: str) -> dict[str, str]:
    """The sections of a .sql file of a package, in order, by what stands after `-- <marker>: `. A section after
    `-- part: <name>` is none of them: its text stands wherever another one has {name}.

    Raises ValueError for a section that comes twice, KeyError for a part that is not there.
    """
    text = (files(package) / file).read_text(encoding="utf-8")
    parts = re.split(rf"^-- ({marker}|part): (\S+)$", text, flags=re.MULTILINE)
    found: dict[str, dict[str, str]] = {marker: {}, "part": {}}
    for kind, name, body in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        if name in found[kind]:
            raise ValueError(f"a {kind} {name} comes twice in {file}")
        found[kind][name] = body.strip()
    return {name: _PART.sub(lambda hit: found["part"][hit[1]], body) for name, body in found[marker].items()}


def migrations(package: str) -> dict[int, str]:
    """The scripts of a package's schema.sql, by the version that each makes."""
    return {int(version): script for version, script in sections(package, "schema.sql", "version").items()}
