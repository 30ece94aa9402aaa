"""Rows and names on a terminal."""

import pytest

from agents.cli.console import counted, printable, table


def test_text_that_steers_a_terminal_or_turns_a_line_around_is_spelled_out_and_any_other_is_left():
    assert printable("a\x1b[2Jb\x9bc\x00\n") == r"a\x1b[2Jb\x9bc\x00\n"
    assert printable("gnp.\u202esrotasnetefas\u2069") == r"gnp.\u202esrotasnetefas\u2069"
    for text in ("Ünï 🦊", "👩\u200d🎨", "עברית", "日本\u3000語", "", "a\u00a0b"):
        assert printable(text) == text


def test_a_cell_is_one_line_whatever_it_says(capsys: pytest.CaptureFixture[str]):
    table(("name", "what"), [("two\nlines\tand a tab", "\x1b]0;title\x07")], nothing="none")
    assert capsys.readouterr().out == "two lines and a tab\t\\x1b]0;title\\x07\n"


def test_what_is_counted_is_in_the_number_that_its_count_has():
    assert [counted(n, "model") for n in (0, 1, 2, 2000)] == ["0 models", "1 model", "2 models", "2,000 models"]
    assert [counted(n, "history") for n in (1, 2)] == ["1 history", "2 histories"]
    assert counted(2, "key") == "2 keys"
