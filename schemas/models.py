"""Models: what the catalog holds by content, and the facts of its history (stream CATALOG)."""

import msgspec

from schemas.files import FilePath, Identity


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One content, known by its SHA-256 (64 hex digits), with every path it is at now. `missing` means no path."""

    sha256: str
    name: str
    size: int
    identity: Identity
    paths: tuple[FilePath, ...]
    missing: bool
    created_at: float


class ModelReady(msgspec.Struct, frozen=True, kw_only=True):
    """A model became usable: new, or back after it was missing."""

    model: Model
    at: float


class ModelMissing(msgspec.Struct, frozen=True, kw_only=True):
    """The last path of a model is gone; its row and all that hangs on it stay."""

    sha256: str
    name: str
    at: float


class ModelMoved(msgspec.Struct, frozen=True, kw_only=True):
    """The set of paths of a model changed while it stayed usable."""

    sha256: str
    name: str
    paths: tuple[FilePath, ...]
    at: float
