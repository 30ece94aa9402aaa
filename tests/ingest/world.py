"""A watcher, a hasher and a catalogue of paths in one thread, as small as can be: what tests of the table play with."""

import hashlib
import os
from pathlib import Path

from agents.ingest import store
from agents.ingest.scanning.reconcile import Change, Row, reconcile
from agents.ingest.scanning.scan import scan
from agents.ingest.settling import gate, verdicts
from agents.ingest.settling.fingerprint import verified
from agents.ingest.settling.observe import observe
from agents.storage.paths import resolve, stat_of
from schemas import files
from schemas.files import FilePath, Identity
from schemas.settings import WatcherSettings


class World:
    """Folders by root name, a table, and what a catalogue would make of the facts. Time goes in steps of 10 seconds."""

    def __init__(self, table: Path, folders: dict[str, Path]) -> None:
        self.table = table
        self.folders = {name: str(folder) for name, folder in folders.items()}
        self.now = 1000.0
        self.catalogue: dict[FilePath, tuple[str, str]] = {}
        self.said: list[store.Message] = []
        self.hashed: list[FilePath] = []
        self.ids: set[str] = set()

    def look(self) -> list[Change]:
        """One scan of every root, applied."""
        self.now += 10
        with store.opened(self.table) as db:
            scans = [scan(name, folder) for name, folder in self.folders.items()]
            changes = verified(reconcile(db.rows(), scans), self.folders, sure=True)
            assert changes is not None
            db.apply(changes, roots=list(self.folders), looked_at=self.now, now=self.now)
        return changes

    def judge(self) -> frozenset[int]:
        """The gate, for all that waits; everything is given the time it needs. The rows that were left to a scan."""
        with store.opened(self.table) as db:
            return verdicts.write([self._judged(row) for row in db.waiting()], db, self.now)

    def _judged(self, row: Row) -> verdicts.Judged:
        place = verdicts.RootFolder(self.folders[row.path.root], remote=False)
        seen_long_ago = gate.Track(latest=observe(place.folder, row.path.rel, self.now), since=0.0, same_since=0.0)
        return verdicts.judge(row, place, seen_long_ago, WatcherSettings(), self.now)

    def publish(self) -> list[store.Message]:
        """The outbox, heard by a hasher and a catalogue; returns what was said."""
        said: list[store.Message] = []
        with store.opened(self.table) as db:
            for unsent in db.unsent():
                assert unsent.message_id not in self.ids, "two facts have one message id"
                self.ids.add(unsent.message_id)
                self._hear(db, unsent.message)
                said.append(unsent.message)
                db.sent([unsent.id])
        self.said += said
        return said

    def settle(self) -> list[store.Message]:
        """Scan, gate and outbox, once."""
        self.look()
        self.judge()
        return self.publish()

    def on_disk(self) -> dict[FilePath, str]:
        """The truth: the SHA-256 of every model in every root."""
        found: dict[FilePath, str] = {}
        for name, folder in self.folders.items():
            for rel in scan(name, folder).candidates:
                content = Path(os.fsdecode(resolve(folder, rel))).read_bytes()
                found[FilePath(root=name, rel=rel)] = hashlib.sha256(content).hexdigest()
        return found

    def in_catalogue(self) -> dict[FilePath, str]:
        return {path: sha256 for path, (_, sha256) in self.catalogue.items()}

    def _hear(self, db: store.Store, message: store.Message) -> None:
        match message:
            case files.Settled(key=key, path=path, known=known):
                self.catalogue[path] = (key, known.sha256 if known else "")
            case files.Moved(key=key, old=old, path=path, known=known):
                self._forget(key, old)
                self.catalogue[path] = (key, known.sha256 if known else "")
            case files.Removed(key=key, path=path):
                self._forget(key, path)
            case files.Refused(path=path):
                self.catalogue.pop(path, None)
            case files.Hash(key=key, path=path, stat=stat):
                self.hashed.append(path)
                real = Path(os.fsdecode(resolve(self.folders[path.root], path.rel)))
                if not real.exists() or stat_of(real.stat()) != stat:
                    return
                sha256 = hashlib.sha256(real.read_bytes()).hexdigest()
                db.remember(stat, sha256, Identity(), hashed_at=self.now)
                self.catalogue[path] = (key, sha256)

    def _forget(self, key: str, path: FilePath) -> None:
        """A fact about a file that is no longer the one at its path says nothing about the path."""
        if path in self.catalogue and self.catalogue[path][0] == key:
            del self.catalogue[path]
