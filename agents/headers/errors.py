"""What can go wrong when the header of a model file is read."""

from agents.storage.errors import IngestError


class BadHeader(IngestError):
    """The file's header is not that of a model."""


class Unfinished(BadHeader):
    """The file ends before its own header does."""


class HeaderUnread(IngestError):
    """The file's header could not be read this time: the machine is too busy. It is tried again."""
