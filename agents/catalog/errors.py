"""What can keep a migrator from the catalog."""

import sqlite3

from bus.errors import BadSubject, DarkroomError, UserError


class CatalogUnusable(UserError):
    """The catalog's file can't be opened, written or read as a catalog: the message says which file and what helps."""


class CatalogTooNew(UserError):
    """The catalog was written by a newer Darkroom: update this one, or restore a backup made before the update."""


class CatalogTaken(UserError):
    """Another migrator answers for the catalog on this bus, and there can be only one: stop it first."""


class CatalogApart(UserError):
    """The catalog's file and the history on the bus don't belong together: the message says why, and names the two
    commands that go on."""


class LegacyUnusable(UserError):
    """The legacy catalog, or its folder of pictures, can't be read: the message says which and what helps."""


IMPOSSIBLE = (sqlite3.IntegrityError, OverflowError, BadSubject)
"""What a fact raises that no row can hold, or that could never be told, however often it is tried."""


class Impossible(DarkroomError):
    """The catalog can't do that. `reason` is a stable word for programs."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class NoSuchModel(Impossible):
    """There is no model with this SHA-256."""

    def __init__(self, sha256: str) -> None:
        super().__init__("unknown-model", f"There is no model with the SHA-256 {sha256[:64]!r}.")
