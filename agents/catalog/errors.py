"""What can keep a migrator from the catalog."""

import sqlite3

from bus.errors import BadSubject, Declined, UserError


class CatalogUnusable(UserError):
    """The catalog's file can't be opened, written or read as a catalog: the message names the file and what helps."""


class CatalogTooNew(UserError):
    """The catalog was written by a newer Darkroom: update this one, or restore a backup made before the update."""


class CatalogTaken(UserError):
    """Another migrator answers for the catalog on this bus, and there can be only one: stop it first."""


class CatalogApart(UserError):
    """The catalog's file and the history on the bus don't belong together: the message gives the reason, and the two
    commands that go on."""


class LegacyUnusable(UserError):
    """The legacy catalog, or its folder of pictures, can't be read: the message names it and what helps."""


IMPOSSIBLE = (sqlite3.IntegrityError, OverflowError, BadSubject)
"""What a fact raises that no row can hold, or that could never be published, however often it is tried."""


def unknown_model(sha256: str) -> Declined:
    """The refusal of a question about a model that is not there."""
    return Declined("unknown-model", f"There is no model with the SHA-256 {sha256[:64]!r}.")
