"""Names: which files may be models, which are still under way, and which mark another one as such."""

MODEL_SUFFIXES = (b".safetensors", b".ckpt", b".pt", b".pth", b".bin", b".gguf")

TEMPORARY_SUFFIXES = (
    b".part",
    b".partial",
    b".crdownload",
    b".download",
    b".opdownload",
    b".incomplete",
    b".tmp",
    b".temp",
    b".!qb",
    b".!ut",
    b".aria2",
    b".aria2__temp",
    b".filepart",
    b".st",
)
"""Endings of names under which a browser or downloader writes, and of the control files it keeps with its target."""

_PICTURES = (b".png", b".jpg", b".jpeg", b".webp", b".gif", b".avif")

PREVIEW_SUFFIXES = (*(b".preview" + suffix for suffix in _PICTURES), *_PICTURES, b".swarmpreview.jpg", b".thumb.jpg")
"""Of a model's pictures, in small letters, in the order in which they are shown."""

WORD_SUFFIXES = (b".json", b".metadata.json", b".swarm.json", b".cm-info.json", b".civitai.info")
"""Of a model's JSON: what people write into it themselves goes before what was downloaded with it."""

_SIDECAR_SUFFIXES = frozenset((*WORD_SUFFIXES, *PREVIEW_SUFFIXES))
"""What other programs add to a model's name, less its extension, for files that describe it: one part or two."""

_SYNCTHING = (b".syncthing.", b"~syncthing~")


def why_ignored(name: bytes) -> str:
    """Why a file of this name (no folders) is not looked at, as a sentence; empty when it may be a model."""
    lower = name.lower()
    if lower.startswith(_SYNCTHING):
        return "a temporary name of syncthing: the file appears under its own name when it is complete"
    if lower.endswith(TEMPORARY_SUFFIXES):
        return "a temporary name: the file appears under its own name when it is complete"
    if lower.startswith(b"."):
        return "a hidden name: rsync's temporary files and the shadow files of other systems look like this"
    if not lower.endswith(MODEL_SUFFIXES):
        return "not a model's extension: " + ", ".join(suffix.decode() for suffix in MODEL_SUFFIXES)
    return ""


def described_by(name: bytes) -> tuple[bytes, ...]:
    """The names, without extensions, of the models that the file `name` would describe: several when one ending
    is the end of another one; none when it is no sidecar."""
    lower = name.lower()
    last = lower.rfind(b".")
    both = lower.rfind(b".", 0, max(last, 0))
    return tuple(name[:dot] for dot in (both, last) if dot > 0 and lower[dot:] in _SIDECAR_SUFFIXES)


def is_skipped_folder(name: bytes) -> bool:
    """Hidden folders (caches, trash), and the folders in which some browsers keep an unfinished download."""
    lower = name.lower()
    return lower.startswith(b".") or lower.endswith(TEMPORARY_SUFFIXES)


def control_names(name: bytes) -> tuple[bytes, ...]:
    """The names of the files that, while they exist, mark `name` as not complete."""
    return tuple(name + suffix for suffix in _CONTROL_SPELLINGS)


def controlled_by(name: bytes) -> bytes:
    """The name whose completeness the file `name` denies, or nothing when it is no control file."""
    lower = name.lower()
    for suffix in TEMPORARY_SUFFIXES:
        if lower.endswith(suffix):
            return name[: -len(suffix)]
    return b""


_CONTROL_SPELLINGS = (*TEMPORARY_SUFFIXES, b".!qB", b".!uT")
