"""Facts about files, as the watcher and the hasher say them; what a test does not care about is filled in."""

import hashlib

from schemas.files import FilePath, Hashed, Identity, Known, Moved, Removed, Settled, Stat

CHECKPOINT = Identity(kind="checkpoint", family="sd15", dtypes=("F16",), parameters=1_000)
LORA = Identity(kind="lora", family="sd15", dtypes=("F16",))
PICKLE = Identity(kind="checkpoint", unsafe=True)
BROKEN = Identity(kind="checkpoint", problem="The file is encrypted.")


def sha(content: str) -> str:
    """The SHA-256 that stands for a content."""
    return hashlib.sha256(content.encode()).hexdigest()


def at_path(rel: str, root: str = "models") -> FilePath:
    return FilePath(root=root, rel=rel)


def stat(content: str, *, ino: int | None = None, version: int = 1, mtime: int | None = None) -> Stat:
    """The Stat of a content in a file of its own (by `ino` in another one); a higher version was changed later."""
    ino = int(sha(content)[:8], 16) if ino is None else ino
    return Stat(dev=1, ino=ino, size=len(content), mtime_ns=version if mtime is None else mtime, ctime_ns=version)


def key(of: Stat) -> str:
    return hashlib.md5(f"{of.dev}-{of.ino}".encode()).hexdigest()


def hashed(
    rel: str, content: str, at: float = 10.0, *, stat: Stat | None = None, identity: Identity = CHECKPOINT
) -> Hashed:
    of = stat or globals()["stat"](content)
    path = at_path(rel)
    return Hashed(key=key(of), path=path, stat=of, sha256=sha(content), identity=identity, seconds=0.1, at=at)


def settled(
    rel: str, of: Stat, at: float = 10.0, *, content: str | None = None, identity: Identity = CHECKPOINT
) -> Settled:
    """Settled; with `content`, the hash cache knows it."""
    known = None if content is None else Known(sha256=sha(content), identity=identity)
    return Settled(key=key(of), path=at_path(rel), stat=of, proof="complete", at=at, known=known)


def moved(old: str, rel: str, of: Stat, at: float = 20.0, *, content: str | None = None) -> Moved:
    known = None if content is None else Known(sha256=sha(content), identity=CHECKPOINT)
    return Moved(key=key(of), old=at_path(old), path=at_path(rel), stat=of, at=at, known=known)


def removed(rel: str, of: Stat, at: float = 30.0) -> Removed:
    return Removed(key=key(of), path=at_path(rel), at=at)
