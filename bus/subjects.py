"""THE TABLE: every subject of the system, what it carries and which stream keeps it. Nothing else spells a subject.

A subject is a template under `darkroom.v1.` whose tokens in angle brackets come from enumerations, hex digits and
configured names alone, so that no text of a user ever becomes part of a subject.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import msgspec

from bus.errors import BadSubject, Undecodable
from schemas import asks, catalog, files, images, imports, jobs, models, ticks

PREFIX = "darkroom.v1."

T = TypeVar("T")

TENANTS = tuple(f"t{n}" for n in range(8))

TOKENS: dict[str, re.Pattern[str]] = {
    "id": re.compile(r"[0-9a-f]{32}"),
    "key": re.compile(r"[0-9a-f]{32}"),
    "sha256": re.compile(r"[0-9a-f]{64}"),
    "lane": re.compile("|".join(jobs.LANES)),
    "tenant": re.compile("|".join(TENANTS)),
    "model": re.compile(r"[0-9a-f]{12}|[a-z][a-z0-9_-]{0,31}"),
    "root": re.compile(r"[a-z0-9_-]{1,64}"),
    "number": re.compile(r"[1-9][0-9]{0,18}"),
    "kind": re.compile(r"[a-z0-9_-]{1,64}"),
    "reason": re.compile(r"[a-z0-9_-]{1,64}"),
    "name": re.compile(r"[a-z0-9_-]{1,64}"),
    "instance": re.compile(r"[a-z0-9_-]{1,64}"),
}


@dataclass(frozen=True)
class Subject(Generic[T]):
    """One row: `subject(id=…)` spells it in full, `subject.filter(lane=…)` with a wildcard for each token left out."""

    template: str
    payload: type[T]
    stream: str | None = None

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The tokens' names, in order."""
        return tuple(re.findall(r"<(\w+)>", self.template))

    @cached_property
    def _decoder(self) -> msgspec.json.Decoder[T]:
        return msgspec.json.Decoder(self.payload)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        escaped = re.escape(PREFIX + self.template)
        return re.compile(re.sub(r"<(\w+)>", lambda m: f"(?P<{m[1]}>{TOKENS[m[1]].pattern})", escaped))

    def __call__(self, **tokens: str) -> str:
        """The full subject. Raises BadSubject for a token that is missing, unknown or not of its kind."""
        if set(tokens) != set(self.names):
            raise BadSubject(f"{self.template} takes {', '.join(self.names) or 'no tokens'}; got {', '.join(tokens)}")
        return self.filter(**tokens)

    def filter(self, **tokens: str) -> str:
        """The subject to listen on: tokens left out are wildcards. Raises BadSubject."""
        for name, value in tokens.items():
            if name not in self.names or not TOKENS[name].fullmatch(value):
                raise BadSubject(f"{value!r} can't be the <{name}> of {self.template}")
        return PREFIX + re.sub(r"<(\w+)>", lambda m: tokens.get(m[1], "*"), self.template)

    def parse(self, subject: str) -> dict[str, str]:
        """The tokens of a full subject. Raises BadSubject when it is not one of this row's."""
        if (match := self._pattern.fullmatch(subject)) is None:
            raise BadSubject(f"{subject!r} is no {self.template}")
        return match.groupdict()

    def matches(self, subject: str) -> bool:
        """Is this full subject one of this row's?"""
        return self._pattern.fullmatch(subject) is not None

    def decode(self, data: bytes) -> T:
        """The payload. Raises Undecodable."""
        try:
            return self._decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Undecodable(f"not a {self.payload.__name__}: {error}") from error


# Jobs: imperative, in a work queue, at least once, one message per subject.
HASH = Subject("job.hash.<root>.<id>", files.Hash, "HASH")
PREPARE = Subject("job.prepare.<lane>.<tenant>.<id>", jobs.Request, "PREPARE")
GENERATE = Subject("job.generate.<lane>.<model>.<id>", jobs.Plan, "GENERATE")
ENCODE = Subject("job.encode.<lane>.<id>", images.Encode, "ENCODE")
PICTURE = Subject("job.picture.<id>", images.EncodePicture, "ENCODE")
IMPORT = Subject("job.import.<id>", imports.Import, "IMPORT")

# The one end of every generation job: the first writer wins.
RESULT = Subject("result.<id>", jobs.Result, "RESULTS")

# Facts about files.
FILE_SETTLED = Subject("evt.file.settled.<key>", files.Settled, "FILES")
FILE_MOVED = Subject("evt.file.moved.<key>", files.Moved, "FILES")
FILE_REMOVED = Subject("evt.file.removed.<key>", files.Removed, "FILES")
FILE_REFUSED = Subject("evt.file.refused.<key>", files.Refused, "FILES")
FILE_DESCRIBED = Subject("evt.file.described.<key>", files.Described, "FILES")
FILE_HASHED = Subject("evt.file.hashed.<key>", files.Hashed, "FILES")
FILE_HASH_FAILED = Subject("evt.file.hash_failed.<key>", files.HashFailed, "FILES")

# The catalog's history: one writer, in order, kept for ever.
MODEL_READY = Subject("evt.model.ready.<sha256>", models.ModelReady, "CATALOG")
MODEL_MISSING = Subject("evt.model.missing.<sha256>", models.ModelMissing, "CATALOG")
MODEL_MOVED = Subject("evt.model.moved.<sha256>", models.ModelMoved, "CATALOG")
MODEL_DESCRIBED = Subject("evt.model.described.<sha256>", models.ModelDescribed, "CATALOG")
MODEL_TAGGED = Subject("evt.model.tagged.<sha256>", models.ModelTagged, "CATALOG")
MODEL_PICTURED = Subject("evt.model.pictured.<sha256>", models.ModelPictured, "CATALOG")
MODEL_PROMOTED = Subject("evt.model.promoted.<sha256>", models.ModelPromoted, "CATALOG")
TAG_PUT = Subject("evt.tag.put.<number>", models.TagPut, "CATALOG")
TAG_DROPPED = Subject("evt.tag.dropped.<number>", models.TagDropped, "CATALOG")
PENDING_ADDED = Subject("evt.pending.added.<number>", models.PendingAdded, "CATALOG")
PENDING_CONFLICT = Subject("evt.pending.conflict.<number>", models.PendingConflict, "CATALOG")
PENDING_DROPPED = Subject("evt.pending.dropped.<number>", models.PendingDropped, "CATALOG")
CATALOG_CHANGED = Subject("evt.catalog.changed", models.Changed, "CATALOG")

# Facts about jobs. An attempt at each kind of job is counted by its own noun.
JOB_PLANNED = Subject("evt.job.planned.<id>", jobs.Plan, "EVENTS")
JOB_REJECTED = Subject("evt.job.rejected.<id>", jobs.Rejected, "EVENTS")
JOB_STARTED = Subject("evt.job.started.<id>", jobs.Started, "EVENTS")
JOB_RELEASED = Subject("evt.job.released.<id>", jobs.Released, "EVENTS")
JOB_FINISHED = Subject("evt.job.finished.<id>", jobs.Finished, "EVENTS")
ATTEMPT_STARTED = Subject("evt.attempt.started.<kind>.<id>", jobs.Started, "EVENTS")
ATTEMPT_RELEASED = Subject("evt.attempt.released.<kind>.<id>", jobs.Released, "EVENTS")
ATTEMPT_FAILED = Subject("evt.attempt.failed.<kind>.<id>", jobs.AttemptFailed, "EVENTS")
IMAGE_ENCODED = Subject("evt.image.encoded.<id>", images.Encoded, "EVENTS")
IMAGE_REFUSED = Subject("evt.image.refused.<id>", images.PictureRefused, "EVENTS")

# Dead letters carry the job's own payload.
DEAD = Subject("dlq.<kind>.<reason>.<id>", msgspec.Raw, "DLQ")

# Ticks: lossy, never stored.
TICK_HASH = Subject("tick.hash.<id>", ticks.HashTick)
TICK_GROWING = Subject("tick.growing.<key>", ticks.GrowingTick)
TICK_STEP = Subject("tick.step.<id>", ticks.StepTick)
TICK_PREVIEW = Subject("tick.preview.<id>", ticks.PreviewTick)
TICK_AGENT = Subject("tick.agent.<name>.<instance>", ticks.AgentTick)

# Asks: short, request and reply.
ASKED = "ask.catalog"
ASK_HELLO = Subject("ask.catalog.hello", asks.Nothing)
ASK_RESOLVE = Subject("ask.catalog.resolve", catalog.ResolveModel)
ASK_MODELS = Subject("ask.catalog.models", asks.ListModels)
ASK_IMPORT = Subject("ask.catalog.import", imports.AskImport)
ASK_PENDING = Subject("ask.catalog.pending", catalog.ListPending)
ASK_PROMOTE = Subject("ask.catalog.promote", catalog.Promote)
ASK_SEARCH = Subject("ask.catalog.search", catalog.SearchModels)
ASK_SHOW = Subject("ask.catalog.show", catalog.ShowModel)
ASK_EDIT = Subject("ask.catalog.edit", catalog.EditModel)
ASK_TAGS = Subject("ask.catalog.tags", catalog.ListTags)
ASK_PUT_TAG = Subject("ask.catalog.put_tag", catalog.PutTag)
ASK_DROP_TAG = Subject("ask.catalog.drop_tag", catalog.DropTag)
ASK_TAG_MODELS = Subject("ask.catalog.tag_models", catalog.TagModels)
ASK_PICTURES = Subject("ask.catalog.pictures", catalog.ListPictures)
ASK_ADD_PICTURE = Subject("ask.catalog.add_picture", catalog.AddPicture)
ASK_DROP_PICTURE = Subject("ask.catalog.drop_picture", catalog.DropPicture)
ASK_ORDER_PICTURES = Subject("ask.catalog.order_pictures", catalog.OrderPictures)
ASK_JOBS = Subject("ask.catalog.jobs", jobs.ListJobs)
ASK_OUTPUTS = Subject("ask.catalog.outputs", catalog.ListOutputs)
ASK_ADOPT = Subject("ask.catalog.adopt", catalog.AdoptFiles)
ASK_FILE = Subject("ask.catalog.file", catalog.FileState)
ASK_COMPARE = Subject("ask.catalog.compare", asks.Compare)
ASK_FILES = Subject("ask.files.<root>", files.ListFiles)
ASK_ROOT = Subject("ask.root.<root>", files.ScanRoot)
ASK_METRICS = Subject("ask.telemetry.metrics", asks.Nothing)

ALL: tuple[Subject[Any], ...] = tuple(row for row in globals().values() if isinstance(row, Subject))

OF_CATALOG: dict[type, Subject[Any]] = {row.payload: row for row in ALL if row.template.startswith(ASKED + ".")}
"""Questions to the catalog by what they carry."""

EVENTS_OF_IMAGES = PREFIX + "evt.image.*.*"
EVENTS_OF_A_JOB = PREFIX + "evt.job.*.{id}"
EVERYTHING = PREFIX + ">"


def row_of(subject: str) -> Subject[Any] | None:
    """The row that a full subject belongs to, or None for one of somebody else's."""
    return next((row for row in ALL if row.matches(subject)), None)


def kept_by(stream: str) -> tuple[str, ...]:
    """The patterns that a stream keeps: the first two words of each of its rows, or the one before the first token."""
    heads = {".".join(row.template.split(".<")[0].split(".")[:2]) for row in ALL if row.stream == stream}
    return tuple(sorted(f"{PREFIX}{head}.>" for head in heads))
