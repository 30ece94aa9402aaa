"""The ledger: which content lies at which path, and what the catalog publishes when that changes. No IO.

It is filled with the rows that a batch of facts can touch, given the facts in order, and asked which rows changed.
Facts about files may be late, repeated or out of order. Three rules keep the rows true:

- the watcher's times order the facts about one path: a fact a little older than the last one applied was overtaken and
  changes nothing; one much older was not, the clock was put back;
- a hash belongs to every path whose file key and Stat are those that were hashed (hard links are one file), and to no
  other: a Stat names the version of the file that was read;
- of two facts of one moment about a path, one that its file is gone and one that another file is there, the
  second is what remains, whichever comes first.
"""

from collections.abc import Iterable

import msgspec

from agents.catalog.names import stem
from schemas.files import FilePath, Hashed, HashFailed, Identity, Moved, Refused, Removed, Settled, Stat
from schemas.models import Model, ModelMissing, ModelMoved, ModelReady

FileFact = Settled | Hashed | Moved | Removed | Refused | HashFailed
ModelFact = ModelReady | ModelMissing | ModelMoved

OVERTAKEN_SECONDS = 600.0
"""By how much a fact of the watcher can be older than one that overtook it."""

_ORDER = (ModelMissing, ModelMoved, ModelReady)


class LedgerRow(msgspec.Struct, frozen=True, kw_only=True):
    """What lies at a path: a row of `paths`. `away`: it is not there because its root or disk is not."""

    path: FilePath
    key: str
    stat: Stat
    sha256: str | None
    present: bool
    seen_at: float
    away: bool = False


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A model without its paths: a row of `models`."""

    sha256: str
    name: str
    size: int
    identity: Identity
    created_at: float

    def at(self, paths: Iterable[FilePath]) -> Model:
        """The model with the paths it is at now."""
        where = _in_order(paths)
        return Model(
            sha256=self.sha256,
            name=self.name,
            size=self.size,
            identity=self.identity,
            paths=where,
            missing=not where,
            created_at=self.created_at,
        )


class Ledger:
    """Rows by path and by content. `changed_rows` and `changed_entries` are what has to be written back."""

    def __init__(self, places: Iterable[LedgerRow], entries: Iterable[Entry]) -> None:
        self.changed_rows: dict[FilePath, LedgerRow] = {}
        self.changed_entries: dict[str, Entry] = {}
        self._places: dict[FilePath, LedgerRow] = {}
        self._by_key: dict[str, set[FilePath]] = {}
        self._at: dict[str, set[FilePath]] = {}
        self._entries = {entry.sha256: entry for entry in entries}
        for place in places:
            self._index(place)

    def whereabouts(self) -> dict[str, frozenset[FilePath]]:
        """The paths at which each content is now."""
        return {sha256: frozenset(paths) for sha256, paths in self._at.items()}

    def sha256_at(self, path: FilePath) -> str:
        """The content that lies, or lay last, at a path; empty when that is not known."""
        place = self._places.get(path)
        return (place and place.sha256) or ""

    def apply(self, fact: FileFact) -> list[ModelFact]:
        """Apply one fact; what it changed about models, those that lost a path first. A repeat changes nothing."""
        match fact:
            case Hashed():
                entry = _entry(fact.sha256, fact.identity, fact)
                return self._put(self._hashed(fact), entry, fact.at, refresh=True)
            case Settled() | Moved():
                known = _entry(fact.known.sha256, fact.known.identity, fact) if fact.known else None
                return self._put(
                    self._settled(fact) if isinstance(fact, Settled) else self._moved(fact), known, fact.at
                )
            case Removed():
                gone = self._gone(fact.path, fact.at, key=fact.key, away=fact.unmounted)
                return self._put(gone, None, fact.at)
            case Refused():
                return self._put(self._gone(fact.path, fact.at), None, fact.at)
            case _:
                return []

    def _hashed(self, fact: Hashed) -> list[LedgerRow]:
        """The paths that this hash is about: the hashed one unless the fact is late, and every link to the file."""
        row = self._places.get(fact.path)
        placed = [msgspec.structs.replace(link, sha256=fact.sha256) for link in self._links(fact.key, fact.stat)]
        if any(place.path == fact.path for place in placed):
            return placed
        late = row is not None and (
            fact.at < row.seen_at or (row.present and fact.stat.ctime_ns < row.stat.ctime_ns)  # a version before this
        )
        if not late:
            # Ahead of the watcher's own word. Its clock alone orders the facts about a path: the hasher's may differ.
            seen_at = row.seen_at if row else 0.0
            placed.append(_place(fact.path, fact.key, fact.stat, fact.sha256, seen_at))
        return placed

    def _settled(self, fact: Settled) -> list[LedgerRow]:
        row = self._places.get(fact.path)
        links = [link for link in self._links(fact.key, fact.stat) if link.path != fact.path]
        if _overtaken(fact.at, row):
            return []
        if fact.known is not None:
            sha256: str | None = fact.known.sha256
            placed = [msgspec.structs.replace(link, sha256=sha256) for link in links]
        else:
            sha256 = _content_of(links) or self._still(row, fact)
            placed = []
        return [*placed, _place(fact.path, fact.key, fact.stat, sha256, fact.at)]

    def _still(self, row: LedgerRow | None, fact: Settled) -> str | None:
        """What the path held, when only attributes (a mode, a link) changed since; the coming hash has the last word.

        Anything else is another content until it is hashed: a model must not answer for bytes nobody has read.
        """
        if row is None or not row.present or row.key != fact.key:
            return None
        return row.sha256 if _same_bytes(row.stat, fact.stat) else None

    def _moved(self, fact: Moved) -> list[LedgerRow]:
        source, target = self._places.get(fact.old), self._places.get(fact.path)
        sha256 = fact.known.sha256 if fact.known else None
        if sha256 is None and source is not None and source.key == fact.key and _same_bytes(source.stat, fact.stat):
            sha256 = source.sha256
        if sha256 is None:
            sha256 = _content_of(self._links(fact.key, fact.stat))
        placed = self._gone(fact.old, fact.at, key=fact.key) if fact.old != fact.path else []
        if not _overtaken(fact.at, target):
            placed.append(_place(fact.path, fact.key, fact.stat, sha256, fact.at))
        return placed

    def _gone(self, path: FilePath, at: float, *, key: str | None = None, away: bool = False) -> list[LedgerRow]:
        """Whatever the path held is gone, unless it was found at this very moment that another file than `key` is there
        now (two files that change places, for example)."""
        row = self._places.get(path)
        if row is None or _overtaken(at, row) or (at == row.seen_at and key not in (None, row.key)):
            return []
        return [msgspec.structs.replace(row, present=False, away=away, seen_at=at)]

    def _links(self, key: str, stat: Stat) -> list[LedgerRow]:
        """Every present path of this very version of this file."""
        rows = (self._places[path] for path in self._by_key.get(key, ()))
        return [row for row in rows if row.present and row.stat == stat]

    def _put(
        self, placed: list[LedgerRow], entry: Entry | None, at: float, *, refresh: bool = False
    ) -> list[ModelFact]:
        """Place rows; what that changed. `entry` is what is known of the content, should it be new here; `refresh`
        means that its identity was read from the file just now and goes over an older one."""
        old = [row.sha256 for place in placed if (row := self._places.get(place.path)) and row.present]
        touched = dict.fromkeys(sha for sha in (*old, *(place.sha256 for place in placed)) if sha is not None)
        before = {sha256: frozenset(self._at.get(sha256, ())) for sha256 in touched}
        refreshed = False
        if entry is not None and entry.sha256 in touched:
            known = self._entries.get(entry.sha256)
            if known is None:
                self._enter(entry)
            elif (
                (refresh or not known.identity.dtypes)  # an identity without them was only guessed, by an import
                and known.identity != entry.identity
                and (known.identity.unsafe or not entry.identity.unsafe)
            ):
                # (The same bytes under a pickle's name are what they were found to be under their own.)
                self._enter(msgspec.structs.replace(known, identity=entry.identity))
                refreshed = True
        for place in placed:
            if self._places.get(place.path) != place:
                self._index(place)
                self.changed_rows[place.path] = place
        news = [
            self._news(sha256, before[sha256], at, refreshed and entry is not None and sha256 == entry.sha256)
            for sha256 in touched
        ]
        return sorted((fact for fact in news if fact), key=lambda fact: _ORDER.index(type(fact)))

    def _news(self, sha256: str, before: frozenset[FilePath], at: float, refreshed: bool) -> ModelFact | None:
        after = self._at.get(sha256, set())
        entry = self._entries[sha256]
        if after and not _is_one_named(entry.name, after):
            entry = msgspec.structs.replace(entry, name=stem(min(after).rel))
            self._enter(entry)
        if after and (not before or refreshed):
            return ModelReady(model=entry.at(after), at=at)
        if before and not after:
            return ModelMissing(sha256=sha256, name=entry.name, at=at)
        if before != after:
            return ModelMoved(sha256=sha256, name=entry.name, paths=_in_order(after), at=at)
        return None

    def _enter(self, entry: Entry) -> None:
        self._entries[entry.sha256] = self.changed_entries[entry.sha256] = entry

    def _index(self, place: LedgerRow) -> None:
        old = self._places.get(place.path)
        if old is not None:
            self._by_key[old.key].discard(place.path)
            if old.present and old.sha256:
                self._at[old.sha256].discard(place.path)
        self._places[place.path] = place
        self._by_key.setdefault(place.key, set()).add(place.path)
        if place.present and place.sha256:
            self._at.setdefault(place.sha256, set()).add(place.path)


def _in_order(paths: Iterable[FilePath]) -> tuple[FilePath, ...]:
    """Paths sorted; of a content with thousands of copies, their own comparison would take most of the time."""
    return tuple(sorted(paths, key=lambda path: (path.root, path.rel)))


def _is_one_named(name: str, paths: Iterable[FilePath]) -> bool:
    """Whether the file at one of these paths has this name, looking closely only at those that may."""
    return any((name in path.rel or "%" in path.rel) and stem(path.rel) == name for path in paths)


def _content_of(links: Iterable[LedgerRow]) -> str | None:
    """What is known of the content of the paths of one file: by the first of them that has any."""
    known = [link for link in links if link.sha256]
    return min(known, key=lambda link: (link.path.root, link.path.rel)).sha256 if known else None


def _entry(sha256: str, identity: Identity, fact: Hashed | Settled | Moved) -> Entry:
    return Entry(sha256=sha256, name=stem(fact.path.rel), size=fact.stat.size, identity=identity, created_at=fact.at)


def _place(path: FilePath, key: str, stat: Stat, sha256: str | None, seen_at: float) -> LedgerRow:
    return LedgerRow(path=path, key=key, stat=stat, sha256=sha256, present=True, seen_at=seen_at)


def _overtaken(at: float, row: LedgerRow | None) -> bool:
    return row is not None and 0 < row.seen_at - at < OVERTAKEN_SECONDS


def _same_bytes(one: Stat, other: Stat) -> bool:
    """Whether nothing but attributes can differ, as far as size and modification time show."""
    return (one.dev, one.ino, one.size, one.mtime_ns) == (other.dev, other.ino, other.size, other.mtime_ns)
