"""`darkroom doctor`: everything that Darkroom needs, a line each, with what to do where something is wrong."""

import os
import shutil
import sqlite3
import sys
from collections.abc import AsyncIterator
from importlib import metadata
from pathlib import Path

import msgspec

from agents.cli import console
from agents.client import scans
from agents.runtime.instance import find
from bus.client import Bus, connect
from bus.errors import DarkroomError, UserError
from bus.server import find_server, version_of
from bus.subjects import ASK_HELLO, DEAD
from bus.worker import sole
from schemas.asks import Hello, Nothing
from schemas.settings import Settings

WAL_RESET_FIXED = (3, 51, 3)
_NAMED = 20
"""Files that wait, of all roots."""

_LOW_DISK = 5 * 1024**3


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing looked at. Only "wrong" makes the doctor's exit status 1."""

    what: str
    state: str
    detail: str


async def doctor(settings: Settings, as_json: bool = False) -> int:
    """Print what was found; 1 when something is wrong."""
    findings = [finding async for finding in _look(settings)]
    if as_json:
        console.json(findings)
    else:
        for finding in findings:
            console.line(f"{finding.state:5}  {finding.what}: {finding.detail}")
    return 1 if any(finding.state == "wrong" for finding in findings) else 0


async def _look(settings: Settings) -> AsyncIterator[Finding]:
    yield Finding(what="python", state="ok", detail=sys.version.split()[0])
    for package in ("torch", "diffusers", "transformers", "nats-py", "pillow"):
        try:
            yield Finding(what=package, state="ok", detail=metadata.version(package))
        except metadata.PackageNotFoundError:
            yield Finding(what=package, state="wrong", detail="not installed: `pip install -e .` installs it")
    yield _sqlite()
    yield _data(Path(settings.data_dir))
    for name, folder in settings.roots.items():
        there = os.access(folder, os.R_OK | os.X_OK)
        detail = folder if there else f"{folder} can't be read: make it, or mount its disk, or correct `roots`"
        yield Finding(what=f"root {name}", state="ok" if there else "warn", detail=detail)
    async for finding in _bus(settings):
        yield finding


def _sqlite() -> Finding:
    if sqlite3.sqlite_version_info < WAL_RESET_FIXED:
        detail = (
            f"{sqlite3.sqlite_version} has a rare WAL-reset fault, fixed in 3.51.3; Darkroom avoids it by writing each "
            "database over one connection"
        )
        return Finding(what="sqlite", state="warn", detail=detail)
    return Finding(what="sqlite", state="ok", detail=sqlite3.sqlite_version)


def _data(data: Path) -> Finding:
    place = next(folder for folder in (data, *data.parents) if folder.exists())
    if not os.access(place, os.W_OK):
        return Finding(what="data", state="wrong", detail=f"{place} can't be written: choose another with --data")
    free = shutil.disk_usage(place).free
    state = "ok" if free > _LOW_DISK else "warn"
    return Finding(what="data", state=state, detail=f"{data}, {free / 1e9:,.1f} GB free")


async def _waiting(bus: Bus, settings: Settings) -> AsyncIterator[Finding]:
    """The files that are not let in yet, the first of them by name."""
    found = await scans.waiting(bus, settings.roots, limit=_NAMED)
    for root in found.unknown:
        yield Finding(what=f"root {root}", state="warn", detail="no watcher answers for it")
    for file in found.files:
        yield Finding(what=f"file in {file.path.root}", state="warn", detail=console.printable(scans.line(file)))
    more = found.waiting - len(found.files)
    detail = f"{found.waiting:,}" + (f", {more:,} of them not named here (see scan --json)" if more else "")
    yield Finding(what="files waiting", state="warn" if found.waiting else "ok", detail=detail)


async def _bus(settings: Settings) -> AsyncIterator[Finding]:
    try:
        program = find_server()
        version = ".".join(map(str, version_of(program)))
        yield Finding(what="nats-server", state="ok", detail=f"{version} ({program.name})")
    except UserError as error:
        yield Finding(what="nats-server", state="warn" if settings.nats_url else "wrong", detail=str(error))
    running = find(Path(settings.data_dir))
    url = settings.nats_url or (running.nats_url if running else "")
    if not url:
        yield Finding(what="service", state="ok", detail="not running: `darkroom up` starts it")
        return
    try:
        async with connect(url, settings.bus, name="doctor", topology_too=False) as bus:
            yield Finding(what="bus", state="ok", detail=f"{url}, server {bus.nc.connected_server_version}")
            hello = await bus.ask(ASK_HELLO, Nothing(), Hello)
            yield Finding(what="catalog", state="ok", detail=f"answers ({hello.instance})")
            dead = sum((await bus.waiting("DLQ", DEAD.filter())).values())
            yield Finding(what="dead letters", state="warn" if dead else "ok", detail=str(dead))
            async for finding in _waiting(bus, settings):
                yield finding
    except (DarkroomError, ExceptionGroup) as error:
        yield Finding(what="service", state="wrong", detail=str(sole(error)))
