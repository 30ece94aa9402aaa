"""Asks about what the catalog holds, and to change it."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from schemas.files import Details, FilePath
from schemas.models import Layer, Model, Tag

Missing = Literal["yes", "no", "only"]
"""Are models without a file at present listed too, not listed, or the only ones?"""


class SearchModels(msgspec.Struct, frozen=True, kw_only=True):
    """Models in whose name, tags, trigger words or description each word of `text` begins a word (empty: all).

    `type` is what people call a model or, where nobody does, its kind by its header. Of `tags` it has all, of
    `without` none. A page of at most `limit`, from `cursor` (the `next` of the page before).
    """

    text: str = ""
    kind: str = ""
    type: str = ""
    family: str = ""
    tags: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    missing: Missing = "yes"
    sort: Literal["name", "newest"] = "name"
    cursor: str = ""
    limit: int = 200


class ModelPage(msgspec.Struct, frozen=True, kw_only=True):
    """Models, without the metadata of their headers and what of their details has no field, and with long fields cut
    (see Model.cut); `next` is empty at the end."""

    models: tuple[Model, ...] = ()
    next: str = ""


class ShowModel(msgspec.Struct, frozen=True, kw_only=True):
    """All about the one model that `name` means: its name, a file name, or 8 or more digits of a hash."""

    name: str


class KnownPath(msgspec.Struct, frozen=True, kw_only=True):
    """Where a model is, or (not `present`) was last."""

    path: FilePath
    present: bool


class ModelPicture(msgspec.Struct, frozen=True, kw_only=True):
    """A picture of a model. `seq` is its place (0, 1, 2, …), `number` is its own for good; `source` is the SHA-256 of
    the original's bytes. `bytes` are all three files', once it is `ready`; `error` is why it `failed`."""

    seq: int
    number: int
    state: Literal["waiting", "ready", "failed"]
    source: str
    origin: Literal["sidecar", "import", "upload"]
    width: int
    height: int
    bytes: int
    error: str
    created_at: float


class SidecarProblem(msgspec.Struct, frozen=True, kw_only=True):
    """A file next to the model's file at `path` that can't be used: a sentence that names it and the reason."""

    path: FilePath
    problem: str


class WholeModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model with all of its own. `layers` is who wrote what, field by field; `model.details` is what that comes
    to. Of very many `paths`, the first are listed: `more_paths` are not. `sidecar_problems` are the first of them."""

    model: Model
    paths: tuple[KnownPath, ...]
    layers: dict[Layer, dict[str, Any]]
    tags: tuple[Tag, ...]
    pictures: tuple[ModelPicture, ...]
    more_paths: int = 0
    sidecar_problems: tuple[SidecarProblem, ...] = ()


class ModelReply(msgspec.Struct, frozen=True, kw_only=True):
    """The model as it is now."""

    model: WholeModel


Line = Annotated[str, Meta(max_length=500)]
Text = Annotated[str, Meta(max_length=20_000)]
Address = Annotated[str, Meta(max_length=2000, pattern=r"^(https?://[^\s]+)?$")]


class DetailsEdit(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A user's words on a model; see schemas.files.Details. A field that is there goes over what files and imports
    have, also when it is empty; null takes the user's value back."""

    title: Line | UnsetType | None = UNSET
    type: Line | UnsetType | None = UNSET
    description: Text | UnsetType | None = UNSET
    notes: Text | UnsetType | None = UNSET
    base_model: Line | UnsetType | None = UNSET
    source_url: Address | UnsetType | None = UNSET
    trigger_words: Annotated[tuple[Line, ...], Meta(max_length=200)] | UnsetType | None = UNSET
    positive: Text | UnsetType | None = UNSET
    negative: Text | UnsetType | None = UNSET
    nsfw: bool | UnsetType | None = UNSET


class EditModel(msgspec.Struct, frozen=True, kw_only=True):
    """Change what a user wrote about the model with this SHA-256."""

    sha256: str
    edit: DetailsEdit


class ListTags(msgspec.Struct, frozen=True, kw_only=True):
    """Tags by name: a page of at most `limit`, after the one with the name `after`."""

    after: str = ""
    limit: int = 1000


class TagPage(msgspec.Struct, frozen=True, kw_only=True):
    """Tags; `more` follow after the last."""

    tags: tuple[Tag, ...]
    more: bool = False


class PutTag(msgspec.Struct, frozen=True, kw_only=True):
    """Make a tag (without `id`), or change this one: what is None stays. `color` is '#rrggbb', or empty for none."""

    id: int | None = None
    name: str | None = None
    color: str | None = None


class DropTag(msgspec.Struct, frozen=True, kw_only=True):
    """Delete a tag; it is taken off every model that has it."""

    id: int


class TagReply(msgspec.Struct, frozen=True, kw_only=True):
    """The tag as it is now, or was before it was deleted."""

    tag: Tag


class TagModels(msgspec.Struct, frozen=True, kw_only=True):
    """Put tags on models, by name (those that do not exist are made), and take others off: all of it or nothing."""

    models: tuple[str, ...]
    put: tuple[str, ...] = ()
    take: tuple[str, ...] = ()


class Tagged(msgspec.Struct, frozen=True, kw_only=True):
    """How many of the models got other tags than they had, and the tags of each now, in the order of the question."""

    changed: int = 0
    tags: tuple[tuple[str, ...], ...] = ()


class ListPictures(msgspec.Struct, frozen=True, kw_only=True):
    """The pictures of the model with this SHA-256."""

    sha256: str


class AddPicture(msgspec.Struct, frozen=True, kw_only=True):
    """Give a model the picture kept as `data/blobs/<blob>`, as its last one; one that it has stays where it is."""

    sha256: str
    blob: str


class DropPicture(msgspec.Struct, frozen=True, kw_only=True):
    """Take the picture at a place off a model; those after it move up."""

    sha256: str
    seq: int


class OrderPictures(msgspec.Struct, frozen=True, kw_only=True):
    """Put a model's pictures into this order; `numbers` are those of all of them."""

    sha256: str
    numbers: tuple[int, ...]


class Pictures(msgspec.Struct, frozen=True, kw_only=True):
    """A model's pictures in order, now; `number` is the one that was meant, if one was, and `added` is whether it is
    new."""

    pictures: tuple[ModelPicture, ...] = ()
    number: int | None = None
    added: bool = False


class ListOutputs(msgspec.Struct, frozen=True, kw_only=True):
    """Generated pictures, newest first: those in whose infotext each word of `text` begins a word, made with the model
    whose SHA-256 begins with `model`. A page of at most `limit`, from `cursor`."""

    text: str = ""
    model: str = ""
    cursor: str = ""
    limit: int = 100


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """A generated picture: number `n` of its job, at `file` below the data directory. `digest` is the file's SHA-256,
    `model` its checkpoint's; `cut` names the fields that are not here in full."""

    job: str
    n: int
    file: str
    digest: str
    width: int
    height: int
    bytes: int
    seed: int
    model: str
    infotext: str
    created_at: float
    cut: tuple[str, ...] = ()


class OutputPage(msgspec.Struct, frozen=True, kw_only=True):
    """Generated pictures; `next` is empty at the end."""

    outputs: tuple[Output, ...] = ()
    next: str = ""


class AdoptFiles(msgspec.Struct, frozen=True, kw_only=True):
    """Make pending records of files that lie in the roots and are neither hashed nor pending: some of them."""


class Adopted(msgspec.Struct, frozen=True, kw_only=True):
    """`added` records; there are `pending` now. With `more`, ask again."""

    added: int
    pending: int
    more: bool = False


class FileState(msgspec.Struct, frozen=True, kw_only=True):
    """What is in the first of these places that holds a file? `size` is its bytes, for one that the catalog does
    not know. `promote` promotes the records that wait for it, where it is hashed. Of the records `asked`, which were
    promoted since?"""

    places: tuple[FilePath, ...]
    size: int = -1
    promote: bool = False
    asked: tuple[int, ...] = ()


class FileReply(msgspec.Struct, frozen=True, kw_only=True):
    """Is a file there (or not `known`), and which content? Without `sha256` it is not hashed yet. `waiting` are records
    that it could be of, `promoted` those promoted by this, or among those asked for."""

    known: bool = False
    sha256: str | None = None
    waiting: tuple[int, ...] = ()
    promoted: tuple[int, ...] = ()


class ResolveModel(msgspec.Struct, frozen=True, kw_only=True):
    """Which model does a name, a file name or the start of a SHA-256 mean? Empty means the only checkpoint there is."""

    name: str


class ResolveReply(msgspec.Struct, frozen=True, kw_only=True):
    """The model that is meant; its file is there."""

    model: Model


Strategy = Literal["report", "override", "merge", "ignore", "delete"]
"""What becomes of a pending record whose model is described already."""


class ListPending(msgspec.Struct, frozen=True, kw_only=True):
    """Pending records by id: a page of at most `limit`, after the one with the id `after`."""

    after: int = 0
    limit: int = 200


class PendingRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A model whose content is not known yet. `path` is as its catalog wrote it, `place` where that lies below a root;
    `sha256` is the model it would go to (state conflict) or goes to (promoting); `images` counts its pictures. `reason`
    is why it is pending still, `cut` names the fields that are not here in full."""

    id: int
    legacy_id: int | None = None
    path: str
    place: FilePath | None = None
    name: str
    size: int | None = None
    details: Details = Details()
    origin: Literal["import", "scan"]
    state: Literal["waiting", "conflict", "promoting"]
    sha256: str | None = None
    tags: tuple[str, ...] = ()
    images: int = 0
    reason: str = ""
    cut: tuple[str, ...] = ()


class PendingList(msgspec.Struct, frozen=True, kw_only=True):
    """Pending records; `more` follow after the last."""

    records: tuple[PendingRecord, ...]
    more: bool = False


class Promote(msgspec.Struct, frozen=True, kw_only=True):
    """Promote these pending records now, where their files are hashed."""

    ids: tuple[int, ...]
    strategy: Strategy = "report"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one pending record; `waiting` means that its file is not hashed yet."""

    id: int
    outcome: Literal["promoted", "conflict", "ignored", "deleted", "waiting", "unknown"]
    sha256: str | None = None
    error: str = ""


class Outcomes(msgspec.Struct, frozen=True, kw_only=True):
    """One for each id that was asked for, in that order."""

    outcomes: tuple[Outcome, ...]
