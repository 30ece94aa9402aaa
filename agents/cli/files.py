"""`darkroom hash`, as sha256sum does it, and `inspect`, which shows what a header holds. They need no bus."""

import importlib.util
import os
import stat
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from agents.headers.errors import HeaderUnread
from agents.headers.sandbox import identify
from agents.ingest.errors import ChangedWhileHashing
from agents.ingest.hashing.digests import Algorithm, Digests, Progress, hash_file
from agents.ingest.hashing.reading import Cores
from agents.ingest.scanning.names import MODEL_SUFFIXES
from agents.ingest.sidecars.parse import Sidecars, read_sidecars
from agents.storage.errors import IngestError
from agents.storage.paths import encode, stat_of
from bus.errors import UserError
from schemas.files import Identity, Stat
from schemas.settings import Settings

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

VALUE_LENGTH = 200
"""Characters of one value that `inspect` shows; with --json it is whole."""


class Hashes(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One file as `hash --json` writes it; what does not apply, or was not asked for, is left out. A path that is not
    UTF-8 is in %XX form."""

    path: str
    size: int
    sha256: str
    autov2: str
    autov3: str = ""
    blake3: str = ""
    crc32: str = ""
    seconds: float


def hash_files(
    settings: Settings,
    files: Annotated[list[str], typer.Argument(help="Files of any kind.")],
    as_json: Annotated[bool, typer.Option("--json", help="All hashes as JSON: AutoV2, AutoV3, CRC32, BLAKE3.")] = False,
) -> int:
    """Hashes of files, in the order given, `hasher.parallel` read side by side; 1 when some could not be hashed."""
    stop, cores = threading.Event(), Cores()
    status, found = 0, []
    algorithms = _algorithms() if as_json else ("sha256",)
    pool = ThreadPoolExecutor(settings.hasher.parallel, "hash")
    with pool, _Bar(files, shown=sys.stderr.isatty()) as bar:
        work = [pool.submit(_hashed, name, algorithms, bar, stop, cores) for name in files]
        try:
            for name, future in zip(files, work, strict=True):
                try:
                    digests, size = future.result()
                except (UserError, IngestError) as error:
                    bar.write(sys.stderr.fileno(), _complaint(name, error))
                    status = 1
                    continue
                if as_json:
                    found.append(_hashes(name, size, digests))
                else:
                    bar.write(sys.stdout.fileno(), sum_line(digests.sha256, os.fsencode(name)))
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if as_json:
        _write(sys.stdout.fileno(), msgspec.json.encode(found) + b"\n")
    return status


def sum_line(sha256: str, name: bytes) -> bytes:
    """A line as sha256sum writes it: with a backslash before the digest where some are in the name."""
    escaped = name.replace(b"\\", rb"\\").replace(b"\n", rb"\n").replace(b"\r", rb"\r")
    return b"\\" * (escaped != name) + sha256.encode() + b"  " + escaped + b"\n"


def _hashed(
    name: str, algorithms: tuple[Algorithm, ...], bar: "_Bar", stop: threading.Event, cores: Cores
) -> tuple[Digests, int]:
    """In a thread. Digests and size in bytes; raises UserError or IngestError."""
    expected = _regular(name)
    share = bar.share(expected.size)
    try:
        digests = hash_file(
            os.fsencode(name),
            expected=expected,
            on_progress=share.show,
            cancelled=stop.is_set,
            algorithms=algorithms,
            cores=cores,
        )
    except ChangedWhileHashing as error:
        raise UserError("It was written while it was read; try again when that has ended.") from error
    finally:
        share.ended()
    return digests, expected.size


def _algorithms() -> tuple[Algorithm, ...]:
    """All there are; BLAKE3 only where its package is."""
    return ("sha256", "autov3", "crc32", *(("blake3",) if importlib.util.find_spec("blake3") else ()))


def _hashes(name: str, size: int, digests: Digests) -> Hashes:
    fields = msgspec.structs.asdict(digests) | {"seconds": round(digests.seconds, 6)}
    return Hashes(path=_text(name), size=size, **fields)


def inspect_files(files: Annotated[list[str], typer.Argument(help="Model files.")], as_json: bool = False) -> int:
    """What is in the headers of model files and in their sidecars; 1 when some could not be read at all."""
    status, reports = 0, []
    for name in files:
        try:
            size = _regular(name).size
            identity = _identified(name)
        except (UserError, OSError, HeaderUnread) as error:
            _write(sys.stderr.fileno(), _complaint(name, error))
            status = 1
            continue
        sidecars = read_sidecars(name)
        reports.append(_report(name, size, identity, sidecars))
        if not as_json:
            _show(rows(_text(name), size, identity, sidecars), first=len(reports) == 1)
    if as_json:
        _write(sys.stdout.fileno(), msgspec.json.encode(reports) + b"\n")
    return status


def _identified(name: str) -> Identity:
    """What is in a file's header. Raises OSError, or UserError for what is no model by its name."""
    raw = os.fsencode(name)
    if not raw.lower().endswith(MODEL_SUFFIXES):
        raise UserError(f"This is no model by its name; those end in {b', '.join(MODEL_SUFFIXES).decode()}.")
    return identify(raw)


def _report(name: str, size: int, identity: Identity, sidecars: Sidecars) -> dict[str, Any]:
    """One file as `inspect --json` writes it. Of the sidecars only what they hold."""
    found = {field: value for field, value in msgspec.structs.asdict(sidecars).items() if value not in ("", (), None)}
    found.pop("thumbnail")
    if sidecars.previews:
        found["previews"] = [_text(str(file)) for file in sidecars.previews]
    return {"path": _text(name), "size": size, **msgspec.structs.asdict(identity), "sidecars": found}


def rows(path: str, size: int, identity: Identity, sidecars: Sidecars) -> list[tuple[str, str]]:
    """What is known of one file, as keys and values of one line each; what is not known is left out."""
    known: dict[str, object] = {
        "file": path,
        "problem": identity.problem,
        "kind": identity.kind + (" (unsafe)" if identity.unsafe else ""),
        "family": identity.family,
        "edition": identity.edition,
        "guess": identity.guess,
        "variant": identity.variant,
        "dtypes": " ".join(identity.dtypes),
        "parameters": f"{identity.parameters:,}" if identity.parameters else "",
        "size": f"{size:,} bytes",
        **{f"component {name}": f"{count:,} bytes" for name, count in identity.components.items()},
        "trigger words": ", ".join(identity.trigger_words),
        **{f"metadata {name}": value for name, value in identity.metadata.items()},
        **_sidecar_rows(sidecars),
    }
    return [(_line(key), line) for key, value in known.items() if (line := _line(value))]


def _sidecar_rows(sidecars: Sidecars) -> Mapping[str, object]:
    return {
        "sidecar name": sidecars.name,
        "sidecar base model": sidecars.base_model,
        "sidecar trigger words": ", ".join(sidecars.trigger_words),
        "sidecar tags": ", ".join(sidecars.tags),
        "sidecar nsfw": {None: "", True: "yes", False: "no"}[sidecars.nsfw],
        "sidecar source": sidecars.source_url,
        "sidecar description": sidecars.description,
        "sidecar notes": sidecars.notes,
        "sidecar previews": ", ".join(_text(file.name) for file in sidecars.previews),
        "sidecar problems": " ".join(sidecars.problems),
    }


def _show(lines: Sequence[tuple[str, str]], *, first: bool) -> None:
    """A table on a terminal, `key: value` elsewhere; an empty line between two files."""
    between = "" if first else "\n"
    if not sys.stdout.isatty():
        _write(sys.stdout.fileno(), (between + "".join(f"{key}: {value}\n" for key, value in lines)).encode())
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    for key, value in lines:
        table.add_row(Text(key, style="bold"), Text(value))
    console = Console()
    console.print(between, table, sep="", end="")


def _regular(name: str) -> Stat:
    """The Stat of a regular file. Raises UserError for everything else."""
    if name == "-":
        raise UserError("Standard input is not read here; a file of this name is ./-")
    try:
        found = Path(name).stat()
    except (OSError, ValueError) as error:
        raise UserError(f"It can't be read ({getattr(error, 'strerror', None) or error}).") from error
    if stat.S_ISDIR(found.st_mode):
        raise UserError("This is a folder; name the files in it.")
    if not stat.S_ISREG(found.st_mode):
        raise UserError("This is no regular file, and is not read.")
    return stat_of(found)


def _complaint(name: str, error: Exception) -> bytes:
    why = f"It can't be read ({error.strerror})." if isinstance(error, OSError) else str(error)
    return f"darkroom: {_line(_text(name)) or ascii(name)}: {why}\n".encode()


def _text(name: str) -> str:
    """A name as UTF-8; one that is not is written in the form that paths have on the bus."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return encode(os.fsencode(name))
    return name


def _line(value: object) -> str:
    """Anything of a file's own on one line, cut to VALUE_LENGTH, with nothing in it that a terminal would obey."""
    text = " ".join(str(value).split())
    text = "".join(sign if sign.isprintable() else "\ufffd" for sign in text[: VALUE_LENGTH + 1])
    return text if len(text) <= VALUE_LENGTH else text[:VALUE_LENGTH] + "…"


def _write(fd: int, data: bytes) -> None:
    """All of it, at once: several processes may share a pipe, and a reader wants a line when it is there."""
    while data:
        data = data[os.write(fd, data) :]


class _FileShare:
    """One file's share of the bar."""

    def __init__(self, bar: "_Bar", size: int) -> None:
        self.bar, self.size, self.done = bar, size, 0

    def show(self, progress: Progress) -> None:
        self.bar.advance(progress.done - self.done)
        self.done = progress.done

    def ended(self) -> None:
        self.bar.advance(self.size - self.done)


class _Bar:
    """All files' bytes as one bar on standard error, where that is a terminal; lines are written above it."""

    def __init__(self, names: Sequence[str], *, shown: bool) -> None:
        self.bars: Bars | None = None
        if not shown:
            return
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
        from rich.progress import Progress as Drawn

        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self.bars = Drawn(*columns, console=Console(stderr=True), transient=True)
        self.task = self.bars.add_task("hashing", total=sum(map(_size, names)))

    def __enter__(self) -> "_Bar":
        if self.bars:
            self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.bars:
            self.bars.stop()

    def share(self, size: int) -> _FileShare:
        return _FileShare(self, size)

    def advance(self, count: int) -> None:
        if self.bars:
            self.bars.advance(self.task, count)

    def write(self, fd: int, data: bytes) -> None:
        """To a terminal only while the bar is off it."""
        with self._away() if self.bars and os.isatty(fd) else nullcontext():
            _write(fd, data)

    @contextmanager
    def _away(self) -> Iterator[None]:
        assert self.bars is not None
        self.bars.stop()
        yield
        self.bars.start()


def _size(name: str) -> int:
    try:
        return Path(name).stat().st_size
    except (OSError, ValueError):
        return 0
