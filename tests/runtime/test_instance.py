from pathlib import Path

import pytest

from agents.storage.database import owned
from bus.errors import UserError


def test_a_file_of_the_data_directory_has_one_writer_and_is_free_when_that_ends(tmp_path: Path) -> None:
    file = tmp_path / "data" / "catalog.db"
    with owned(file), pytest.raises(UserError, match=r"catalog\.db is in use by another darkroom.*--nats"), owned(file):
        pytest.fail("there were two")
    with owned(file), owned(file.with_name("files.sqlite3")):
        assert file.with_name("catalog.db.lock").exists()


def test_a_data_directory_that_can_not_be_made_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(UserError, match="choose another --data"), owned(tmp_path / "data" / "catalog.db"):
        pytest.fail("that is no folder")
