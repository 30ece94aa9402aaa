"""The table of subjects: no text of anybody's becomes a token."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.errors import BadSubject, Undecodable
from bus.subjects import ALL, GENERATE, HASH, JOB_STARTED, PREFIX, PREPARE, RESULT, TOKENS, Subject, kept_by, row_of

ID = "0123456789abcdef0123456789abcdef"
GOOD = {
    "id": ID,
    "key": ID,
    "sha256": ID * 2,
    "lane": "high",
    "tenant": "t7",
    "model": "0123456789ab",
    "root": "models_2-a",
    "number": "42",
    "kind": "generate",
    "reason": "bad_subject",
    "name": "preprocess",
    "instance": "0123456789ab",
}
NEVER_A_TOKEN = (
    *("", " ", "*", ">", "a.b", "a b", "a>", "*.x", ".", "a.", ".a", "a\n", "a\r\nPUB x 0", "\t", "\x00", "a\x7f"),
    *("$JS.API.STREAM.DELETE.S", "_INBOX.x", "$SYS.>", "../etc", "a/b", "a\\b", "%2e", "A", "HIGH", "Hígh", "ａ", "١"),
    *("\N{KELVIN SIGN}", "\N{LATIN SMALL LETTER DOTLESS I}d", "x" * 65, ID.upper(), ID + "\n", ID + ".>", "x\ud800"),
)


def refuses(spell: Callable[..., object], *arguments: object, **tokens: str) -> bool:
    """Does it raise BadSubject?"""
    try:
        spell(*arguments, **tokens)
    except BadSubject:
        return True
    return False


def test_what_is_not_of_its_kind_never_becomes_a_token():
    rows = {kind: Subject(f"test.<{kind}>", bytes) for kind in TOKENS}
    taken = [
        (kind, text)
        for kind, row in rows.items()
        for text in NEVER_A_TOKEN
        if not refuses(row, **{kind: text})
        or not refuses(row.filter, **{kind: text})
        or row.matches(f"{PREFIX}test.{text}")
    ]
    assert not taken
    assert not [kind for kind, row in rows.items() if refuses(row, **{kind: GOOD[kind]})]


@given(st.text(max_size=70))
def test_whatever_becomes_a_token_is_one_token_of_plain_ascii(text: str):
    for kind in TOKENS:
        try:
            subject = Subject(f"test.<{kind}>.end", bytes)(**{kind: text})
        except BadSubject:
            continue
        assert subject.isascii() and subject.count(".") == 4 and not set(subject) & set("*> \t\r\n$")


def test_every_row_parses_what_it_spells_and_is_found_by_it():
    for row in ALL:
        tokens = {name: GOOD[name] for name in row.names}
        assert row.parse(row(**tokens)) == tokens, row.template
        assert row_of(row(**tokens)) is row, row.template
        assert row.filter().count("*") == len(row.names), row.template


def test_no_two_rows_share_a_subject_and_each_stored_row_is_kept_by_one_stream():
    streams = {row.stream for row in ALL if row.stream}
    for row in ALL:
        full = row(**{name: GOOD[name] for name in row.names})
        assert [other for other in ALL if other.matches(full)] == [row]
        keeping = [stream for stream in streams for kept in kept_by(stream) if full.startswith(kept.removesuffix(">"))]
        assert keeping == ([row.stream] if row.stream else [])


def test_tokens_must_be_all_there_and_no_others():
    with pytest.raises(BadSubject, match="lane, tenant, id"):
        PREPARE(id=ID)
    with pytest.raises(BadSubject):
        RESULT(id=ID, lane="high")
    with pytest.raises(BadSubject):
        RESULT.filter(nothing="x")
    assert GENERATE.filter(lane="low") == PREFIX + "job.generate.low.*.*"
    assert HASH.filter() == PREFIX + "job.hash.*.*"


def test_a_subject_of_no_row_is_refused_and_known_to_be_nobodys():
    subjects = (PREFIX + "result", PREFIX + f"result.{ID}.x", f"result.{ID}", PREFIX + "evt.job.started.*", ">", "")
    assert not [subject for subject in subjects if row_of(subject) or not refuses(JOB_STARTED.parse, subject)]


def test_a_payload_that_is_not_what_its_subject_says_is_undecodable():
    for data in (b"", b"{}", b'{"prompt": 7}', b"\xff", b"[" * 100_000, b'{"prompt": "\\ud800"}', b"nul"):
        with pytest.raises(Undecodable):
            pytest.fail(f"{data[:20]!r} became {PREPARE.decode(data)}")


def test_fields_nobody_knows_yet_are_tolerated():
    assert PREPARE.decode(b'{"prompt": "x", "of_the_future": {"a": [1]}}').prompt == "x"
