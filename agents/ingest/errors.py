"""What can go wrong between a folder and a digest. The docstring is the default message, with what to do."""

from agents.storage.errors import IngestError


class ChangedWhileHashing(IngestError):
    """The file was written while it was read; it is hashed again once it has settled."""


class Gone(IngestError):
    """The file is not there any more."""


class Unreadable(IngestError):
    """The file can't be read; check its permissions and the disk."""


class MissingAlgorithm(IngestError):
    """A hash was asked for whose package is not installed."""


class HashCancelled(IngestError):
    """Hashing was stopped before the end, as asked."""


class EventsLost(IngestError):
    """The file system does not report (any more) what happens in a folder; it is scanned at intervals instead."""


class WrongSchema(IngestError):
    """The watcher's table was written by a newer version; run that version, or move the table away to start afresh."""
