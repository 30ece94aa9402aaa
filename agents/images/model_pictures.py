"""Pictures of models: an original's bytes into three tiers, by the names that the catalog gave them.

Synchronous, for a worker thread. Encoding the same bytes again gives the same files, so a run after a crash writes what
is missing and reports the same.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Collection
from pathlib import Path

from agents.images.decode import MAX_BYTES, Broken, picture, upright_size
from agents.images.tiers import TIERS, tier_sizes, webp_tiers
from agents.storage import atomic, blobs
from agents.storage.layout import BLOBS, IMAGES, PENDING, DataDir
from agents.storage.trash import TrashBatch
from bus.errors import UserError
from schemas.images import EncodePicture, Picture

_ORIGINAL = re.compile(rf"{BLOBS}/[0-9a-f]{{64}}|{PENDING}/[A-Za-z0-9][A-Za-z0-9._-]{{0,127}}")
_PICTURE = re.compile(r"([0-9a-f]{64})_([0-9]+)_(?:high|medium|low)\.webp")
_SHA256 = re.compile(r"[0-9a-f]{64}")
KEEP_BLOBS = 48 * 3600.0
KEEP_LOOSE = 3600.0
"""Seconds that blobs, and files which the catalog does not know, are kept: it may be about to."""


class BadJob(UserError):
    """A job's names could lead out of their folders."""


class NotTheOriginal(UserError):
    """The original is gone, or has other bytes than when it was catalogued."""


class NameTaken(UserError):
    """Other pictures lie under this picture's names."""


def picture_names(sha256: str, number: int) -> dict[str, str]:
    """The three files of a model's picture by tier, below the data directory. Raises BadJob."""
    if not _SHA256.fullmatch(sha256) or number < 0:
        raise BadJob(f"{sha256!r} and {number!r} name no picture of a model")
    return {tier.name: f"{IMAGES}/{sha256}_{number}_{tier.name}.webp" for tier in TIERS}


def encode_picture(job: EncodePicture, data_dir: Path) -> Picture:
    """Write the three tiers of one picture of a model, and return what was written.

    Raises BadPicture (no picture that can be used, with its kin), NotTheOriginal, NameTaken, BadJob, all UserErrors,
    and OSError (a full disk), leaving complete files only.
    """
    names = picture_names(job.sha256, job.number)
    if not _ORIGINAL.fullmatch(job.original):
        raise BadJob(f"{job.original!r} is no place for an original")
    data = original_bytes(data_dir / job.original, job.source)
    width, height = upright_size(data)
    if not width * height:
        raise Broken("the picture has no pixels")
    high = tier_sizes(width, height)["high"]
    image = picture(data, enough=high)
    tiers = webp_tiers(image, of=(width, height))
    for tier, encoded in tiers.items():
        final = data_dir / names[tier]
        if not atomic.place(final, encoded, names_too=False) and final.read_bytes() != encoded:
            raise NameTaken(f"{final.name} is there already and is another picture")
    atomic.sync_folder(DataDir(data_dir).images)
    width, height = high
    return Picture(
        index=job.number,
        seed=0,
        width=width,
        height=height,
        file=names["high"],
        bytes=sum(map(len, tiers.values())),
        sha256=hashlib.sha256(tiers["high"]).hexdigest(),
        tiers=names,
    )


def original_bytes(path: Path, source: str) -> bytes:
    """The bytes of an original whose SHA-256 is `source`. Raises NotTheOriginal, Broken, or OSError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise NotTheOriginal(f"{path.name}, the original, is gone: there is none in {path.parent}") from error
    if len(data) > MAX_BYTES:
        raise Broken(f"the original has more than {MAX_BYTES >> 20} MiB")
    if hashlib.sha256(data).hexdigest() != source:
        raise NotTheOriginal(f"{path.name}, the original, has other bytes than it had (in {path.parent})")
    return data


def remove_picture(data: Path, sha256: str, number: int) -> None:
    """Remove the files of one picture of a model, as far as they are there. Raises BadJob, or OSError."""
    for file in picture_names(sha256, number).values():
        (data / file).unlink(missing_ok=True)


def tidy(
    data: Path,
    originals: Collection[str],
    pictures: Collection[tuple[str, int]],
    now: float,
    *,
    since: float = 0.0,
) -> int:
    """Move to the trash what a whole catalog does not need: files of pictures that are not among `pictures` (model,
    number), pending originals not among `originals` (paths below `data`), and blobs that are not, once they are old
    enough that nobody can be about to mention them. How many; `now` is seconds since 1970. What is older than `since`,
    the beginning of the catalog, is another's and is left alone. Raises OSError.

    A file's age counts from when it last got a name or was touched (ctime): an import may give its copy of a picture,
    hours old, the name of a pending original only now."""
    trash = TrashBatch(data, now)
    used = {path.rpartition("/")[2] for path in originals}
    blobs.sweep(data, used, since=since, before=now - KEEP_BLOBS, trash=trash)

    def is_loose(folder: str, name: str) -> bool:
        if folder == PENDING:
            return f"{folder}/{name}" not in originals
        found = _PICTURE.fullmatch(name)
        return found is not None and (found[1], int(found[2])) not in pictures

    for folder in (IMAGES, PENDING):
        with contextlib.suppress(FileNotFoundError), os.scandir(data / folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    is_old = since <= entry.stat(follow_symlinks=False).st_ctime < now - KEEP_LOOSE
                    if is_old and entry.is_file(follow_symlinks=False) and is_loose(folder, entry.name):
                        trash.move(f"{folder}/{entry.name}")
    return trash.moved
