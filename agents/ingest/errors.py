"""What can go wrong between a folder and a digest. The docstring is the default message and says what to do."""


class IngestError(Exception):
    """A file could not be taken in."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or (self.__doc__ or "").strip())


class BadPath(IngestError):
    """This is not a path below a root: it must be relative, without '..', '.' or empty parts, and in %XX form."""


class OutsideRoot(IngestError):
    """This path leads out of its root; move the file into the folder, or make the folder it points to a root."""


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
    """The file system does not tell (any more) what happens in a folder; it is scanned at intervals instead."""


class BadHeader(IngestError):
    """The file's header is not that of a model."""


class Unfinished(BadHeader):
    """The file ends before its own header does."""


class HeaderUnread(IngestError):
    """The file's header could not be read this time: the machine is too busy. It is tried again."""


class WrongSchema(IngestError):
    """The watcher's table was written by a newer version; run that version, or move the table away to start afresh."""
