"""The data directory: which folders and files lie in it, and what they are called."""

from pathlib import Path

OUTPUTS, IMAGES, BLOBS = "outputs", "images", "blobs"
PENDING = f"{IMAGES}/pending"
"""Folders whose files the catalog, and messages, name by their path below the data directory."""


class DataDir:
    """The paths of one data directory. Nothing is made or looked at here."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.catalog = path / "catalog.db"
        self.history = path / "history"
        """Large transactions of the catalog, each in a file named by its SHA-256."""
        self.files = path / "files.sqlite3"
        """The watcher's table."""
        self.nats = path / "nats"
        """What the bus of this machine stores."""
        self.work = path / "work"
        """Pixels on their way to the encoder, and whatever else is gone when its job ends."""
        self.outputs = path / OUTPUTS
        """Generated pictures, in a folder a day."""
        self.images = path / IMAGES
        """Pictures of models, in three tiers each."""
        self.pending = path / PENDING
        """Originals of pictures whose model has no file yet."""
        self.blobs = path / BLOBS
        """Bytes under their own SHA-256."""
        self.trash = path / "trash"
        self.lock, self.note = path / "lock", path / "run.json"
        """Held by the service that owns the directory, and the note of its addresses."""

    @classmethod
    def of(cls, catalog: Path) -> "DataDir":
        """The data directory that a catalog's file lies in."""
        return cls(catalog.parent)
