"""Models: what the catalog holds by content, and the facts of its history (stream CATALOG)."""

from typing import Literal

import msgspec

from schemas.files import Details, FilePath, Identity

Layer = Literal["sidecar", "import", "user"]


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One content, known by its SHA-256 (64 hex digits), with every path it is at now. `missing` means no path.

    `details`, `tags`, `digests` and the number of `pictures` are the catalog's answer to asks; facts leave them out.
    `cut` names the fields (details.description …) that a list has not in full; asked for alone, the model has them.
    """

    sha256: str
    name: str
    size: int
    identity: Identity
    paths: tuple[FilePath, ...]
    missing: bool
    created_at: float
    details: Details = Details()
    tags: tuple[str, ...] = ()
    digests: dict[str, str] = {}
    pictures: int = 0
    cut: tuple[str, ...] = ()


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


class ModelDescribed(msgspec.Struct, frozen=True, kw_only=True):
    """The description of a model changed in one layer: in files next to it, by an import, or by a user."""

    sha256: str
    name: str
    layer: Layer
    at: float


class ModelTagged(msgspec.Struct, frozen=True, kw_only=True):
    """The set of tags of a model changed; `tags` is all of them now, by name."""

    sha256: str
    name: str
    tags: tuple[str, ...]
    at: float


class ModelPictured(msgspec.Struct, frozen=True, kw_only=True):
    """The finished pictures of a model changed: their number, and the file names' numbers in order."""

    sha256: str
    name: str
    numbers: tuple[int, ...]
    at: float


class ModelPromoted(msgspec.Struct, frozen=True, kw_only=True):
    """What a pending record held now describes the model with the content of its file."""

    sha256: str
    name: str
    pending_id: int
    strategy: str
    at: float


class Tag(msgspec.Struct, frozen=True, kw_only=True):
    """A tag; `models` is how many have it."""

    id: int
    name: str
    color: str = ""
    models: int = 0


class TagPut(msgspec.Struct, frozen=True, kw_only=True):
    """A tag was made, or its name or colour changed."""

    id: int
    name: str
    color: str
    at: float


class TagDropped(msgspec.Struct, frozen=True, kw_only=True):
    """A tag was deleted, and taken off every model that had it."""

    id: int
    name: str
    at: float


class PendingAdded(msgspec.Struct, frozen=True, kw_only=True):
    """Records of models whose content is not known yet were added, as many as one transaction had."""

    source: str
    count: int
    first_id: int
    last_id: int
    at: float


class PendingConflict(msgspec.Struct, frozen=True, kw_only=True):
    """The file of a pending record has the content of a model that is described already: somebody has to choose."""

    pending_id: int
    sha256: str
    path: str
    at: float


class PendingDropped(msgspec.Struct, frozen=True, kw_only=True):
    """A pending record is gone: promoted, or deleted by a user's choice."""

    pending_id: int
    path: str
    reason: Literal["promoted", "deleted"]
    at: float


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the catalog, put (as it is now) or dropped (its key). Reals are text, to keep all their digits."""

    op: Literal["put", "drop"]
    table: str
    row: msgspec.Raw


class Changed(msgspec.Struct, frozen=True, kw_only=True):
    """What one transaction did to the catalog's rows, in order; too many are in `history/<file>.json.gz`.

    `history` (32 hex digits) is the one it belongs to, `number` its place there (from 1), `after` the id of the
    transaction before it, also where that is of another history. The first of a history holds every row there was,
    `lineage`, the histories that it goes on with, newest first, and `begun`, when the oldest of them began (seconds
    since 1970). `cursors` are the sequences of the streams up to which facts are applied, by stream.
    """

    id: str
    changes: tuple[Change, ...] = ()
    file: str = ""
    at: float
    history: str = ""
    number: int = 0
    after: str = ""
    lineage: tuple[str, ...] = ()
    begun: float = 0.0
    cursors: dict[str, int] = {}
