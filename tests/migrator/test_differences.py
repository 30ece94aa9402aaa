"""The catalog and the watcher's table, the same again after one of them was lost or restored."""

import msgspec

from agents.catalog.ledger import LedgerRow
from agents.migrator.drift import differences
from schemas.files import Known, ListedFile, Removed, Settled
from tests.catalog.facts import CHECKPOINT, at_path, key, sha, stat


def place(rel: str, content: str) -> LedgerRow:
    of = stat(content)
    return LedgerRow(path=at_path(rel), key=key(of), stat=of, sha256=sha(content), present=True, seen_at=1.0)


def listed(rel: str, content: str, *, hashed: bool = True) -> ListedFile:
    of = stat(content)
    known = Known(sha256=sha(content), identity=CHECKPOINT) if hashed else None
    return ListedFile(path=at_path(rel), key=key(of), stat=of, known=known)


def by_path(*places: LedgerRow):
    return {one.path: one for one in places}


def test_two_that_agree_need_nothing():
    assert differences(by_path(place("a", "one")), [listed("a", "one")], 9.0) == []


def test_a_file_the_watcher_does_not_have_is_removed():
    (fact,) = differences(by_path(place("a", "one")), [], 9.0)
    assert isinstance(fact, Removed) and fact.path == at_path("a") and fact.at == 9.0


def test_a_file_the_catalog_does_not_have_or_has_with_another_content_is_settled_without_a_hash():
    facts = differences(by_path(place("a", "old")), [listed("a", "new"), listed("b", "two")], 9.0)
    assert [(type(fact), fact.path.rel) for fact in facts] == [(Settled, "a"), (Settled, "b")]
    assert [fact.known.sha256 for fact in facts if isinstance(fact, Settled) and fact.known] == [sha("new"), sha("two")]


def test_a_file_whose_hash_is_on_the_way_is_left_to_it():
    assert differences(by_path(place("a", "old")), [listed("a", "new", hashed=False)], 9.0) == []
    assert differences({}, [msgspec.structs.replace(listed("a", "new"), known=None)], 9.0) == []
