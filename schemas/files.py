"""Files: what the watcher and the hasher publish about the files of the configured roots."""

from typing import Any, Literal

import msgspec

Kind = Literal[
    "checkpoint", "lora", "vae", "controlnet", "embedding", "upscaler", "text_encoder", "diffusion_model", "unknown"
]

Digest = Literal["autov3", "blake3", "crc32"]
"""What can be had of a file from the same read as its SHA-256."""


class FilePath(msgspec.Struct, frozen=True, kw_only=True, order=True, gc=False):
    """A configured root's name and the path below it: UTF-8, '/' between parts, with the percent sign and every byte
    that is not UTF-8 written %XX."""

    root: str
    rel: str


class Stat(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What identifies one version of a file's content without reading it."""

    dev: int
    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What a model file's header shows without loading a weight.

    `edition` is which model of its family it is, or is for, where its keys show it ("klein-4b", "14b"). `guess` is why
    the family is only a guess, empty where the keys show it (and in what was stored before there was this field).
    `components` is bytes per component, `dtypes` the safetensors names by falling size, `parameters` a count. `unsafe`
    marks formats that can run code when loaded (pickles): they are catalogued, never loaded. `problem` is why a file
    is no usable model, in a sentence.
    """

    kind: Kind = "unknown"
    family: str = ""
    variant: Literal["", "inpaint", "v-prediction"] = ""
    dtypes: tuple[str, ...] = ()
    parameters: int = 0
    components: dict[str, int] = {}
    metadata: dict[str, str] = {}
    trigger_words: tuple[str, ...] = ()
    unsafe: bool = False
    problem: str = ""
    edition: str = ""
    guess: str = ""


class Details(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What people write about a model, as opposed to what its header holds; empty where nobody wrote anything.

    `type` and `base_model` are in the words of whoever wrote them; `positive` and `negative` are prompts that suit it.
    `extra` keeps what has no field of its own, under the keys it came with.
    """

    title: str = ""
    type: str = ""
    description: str = ""
    notes: str = ""
    base_model: str = ""
    source_url: str = ""
    trigger_words: tuple[str, ...] = ()
    positive: str = ""
    negative: str = ""
    nsfw: bool | None = None
    extra: dict[str, Any] = {}


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What the hash cache already knows of a file with this very Stat."""

    sha256: str
    identity: Identity


class Settled(msgspec.Struct, frozen=True, kw_only=True):
    """A file is complete and nobody writes it. `proof` is how that is known. With `known` it needs no hashing."""

    key: str
    path: FilePath
    stat: Stat
    proof: Literal["complete", "stable"]
    at: float
    known: Known | None = None


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """The same content at another path; nothing was read again."""

    key: str
    old: FilePath
    path: FilePath
    stat: Stat
    at: float
    known: Known | None = None


class Removed(msgspec.Struct, frozen=True, kw_only=True):
    """A path is gone, or its root is (`unmounted`): the model stays in the catalog as missing."""

    key: str
    path: FilePath
    at: float
    unmounted: bool = False


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is stable but can't be a model (a truncated one): it is not admitted until it changes."""

    key: str
    path: FilePath
    reason: str
    error: str
    at: float


class Hash(msgspec.Struct, frozen=True, kw_only=True):
    """A job for a hasher that can see the root. `algorithms` are digests wanted besides the SHA-256, from the same
    read. The id is a digest of key, stat and algorithms: one job per version of a file and set of digests."""

    id: str
    key: str
    path: FilePath
    stat: Stat
    algorithms: tuple[Digest, ...] = ()


class Hashed(msgspec.Struct, frozen=True, kw_only=True):
    """The content's SHA-256 (64 hex digits) and what its header holds; `stat` held before and after reading. `job` is
    the id of the job that this answers.

    `digests` are the others that were asked for, as other tools write them: "autov3" (12 hex digits of the SHA-256 of
    what follows a safetensors header; absent where there is none), "blake3" (64), "crc32" (8, upper case). `undone`
    has a sentence for each that could not be computed here.
    """

    key: str
    path: FilePath
    stat: Stat
    sha256: str
    identity: Identity
    seconds: float
    at: float
    digests: dict[str, str] = {}
    undone: dict[str, str] = {}
    job: str = ""


class HashFailed(msgspec.Struct, frozen=True, kw_only=True):
    """A file that could not be hashed; `changed` means it was written meanwhile and will settle again."""

    key: str
    path: FilePath
    stat: Stat
    reason: Literal["changed", "unreadable", "gone", "exhausted"]
    error: str
    at: float


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """A picture that lies next to a model, copied to `data/blobs/<blob>` (the SHA-256 of its bytes)."""

    name: str
    blob: str


class Described(msgspec.Struct, frozen=True, kw_only=True):
    """What the files next to a model hold about it, all of it: empty when they are gone. `problems` are sentences about
    those that can't be used."""

    key: str
    path: FilePath
    sha256: str
    details: Details = Details()
    tags: tuple[str, ...] = ()
    previews: tuple[Preview, ...] = ()
    problems: tuple[str, ...] = ()
    at: float


class ListFiles(msgspec.Struct, frozen=True, kw_only=True):
    """What lies below a root, by the watcher's table: a page of at most `limit`, after the path `after`."""

    after: str = ""
    limit: int = 1000


class ScanRoot(msgspec.Struct, frozen=True, kw_only=True):
    """How is a root? With `look`, a scan is begun first. Of the files that wait, a page of at most `limit` is named,
    after the path `after`."""

    look: bool = False
    after: str = ""
    limit: int = 20


class WaitingFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is not let in yet: why, in a sentence, and since when it waits (Unix seconds)."""

    path: FilePath
    why: str
    since: float


class RootState(msgspec.Struct, frozen=True, kw_only=True):
    """A root by the watcher's table. `looks` scans are complete; the one that was asked for is number `look`. `folders`
    counts those that were looked at since the watcher started.

    Of `files`, `waiting` are not known to be complete yet, `refused` can't be models, and `unhashed` are on the way;
    `problems` are sentences about what can't be looked at, or was refused (the first of them). `waits` names those that
    are waiting, by path, a page of them.
    """

    root: str
    look: int
    looks: int
    files: int
    waiting: int
    refused: int
    unhashed: int
    problems: tuple[str, ...] = ()
    waits: tuple[WaitingFile, ...] = ()
    folders: int = 0


class ListedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A settled file, and what is known of its content (None while its hash is on the way)."""

    path: FilePath
    key: str
    stat: Stat
    known: Known | None = None


class FileList(msgspec.Struct, frozen=True, kw_only=True):
    """Settled files by path, as they were at `at` (Unix seconds of the watcher's clock); `more` follow."""

    files: tuple[ListedFile, ...]
    at: float
    more: bool = False
