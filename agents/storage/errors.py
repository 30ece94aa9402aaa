"""What can go wrong with a file of a root. The docstring is the default message, with what to do."""


class IngestError(Exception):
    """A file could not be taken in."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or (self.__doc__ or "").strip())


class BadPath(IngestError):
    """This is not a path below a root: it must be relative, without '..', '.' or empty parts, and in %XX form."""


class OutsideRoot(IngestError):
    """This path leads out of its root; move the file into the folder, or make the folder it points to a root."""
