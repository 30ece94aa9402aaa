"""What can keep a migrator from the catalog."""

from bus.errors import UserError


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
