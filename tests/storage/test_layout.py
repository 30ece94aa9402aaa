"""The data directory's names: spelled once, and the same as in every version before."""

import re
from pathlib import Path

from agents.storage.layout import BLOBS, IMAGES, OUTPUTS, PENDING, DataDir

AGENTS = Path(__file__).parents[2] / "agents"


def test_folders_and_files_are_called_what_they_were_always_called(tmp_path: Path) -> None:
    data = DataDir(tmp_path)
    names = {name: path.relative_to(tmp_path).as_posix() for name, path in vars(data).items() if name != "path"}
    assert names == {
        "catalog": "catalog.db",
        "history": "history",
        "files": "files.sqlite3",
        "nats": "nats",
        "work": "work",
        "outputs": "outputs",
        "images": "images",
        "pending": "images/pending",
        "blobs": "blobs",
        "trash": "trash",
        "lock": "lock",
        "note": "run.json",
    }
    assert (OUTPUTS, IMAGES, BLOBS, PENDING) == ("outputs", "images", "blobs", "images/pending")
    assert DataDir.of(data.catalog).path == tmp_path


def test_no_other_file_spells_them() -> None:
    names = r"work|outputs|images|images/pending|pending|blobs|history|trash|nats|catalog\.db|files\.sqlite3|run\.json"
    spelled = re.compile(rf"/ ['\"](?:{names})['\"/]|with_name\(['\"](?:{names})['\"]|['\"](?:outputs|images|blobs)/\w")
    found = [
        f"{file.relative_to(AGENTS)}: {line.strip()}"
        for pattern in ("*.py", "*.sql")
        for file in AGENTS.rglob(pattern)
        for line in file.read_text("utf-8").splitlines()
        if spelled.search(line) and file.name != "layout.py"
    ]
    assert found == []
