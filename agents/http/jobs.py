"""The native front door: jobs, models, samplers, pictures, the page, health and metrics.

POST /api/jobs                  a job (schemas.jobs.Request, strict); ?lane=high|normal|low; Idempotency-Key
GET  /api/jobs                  the newest jobs; ?limit=
GET  /api/jobs/{id}             one job
GET  /api/jobs/{id}/events      its life as server-sent events; Last-Event-ID goes on from there
POST /api/jobs/{id}/cancel      end it
GET  /api/samplers
/api/models, /api/tags          catalog.py; /api/images, /api/outputs: pictures.py; /api/migration: migration.py;
                                /api/files: files.py
GET  /images/{path}             finished pictures
GET  /livez, /readyz, /metrics
GET  /                          the page
"""

import os
import re
import stat
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Match, Mount, Route, Router
from starlette.staticfiles import StaticFiles

from agents.client.jobs import unknown_job
from agents.client.views import JobView, Library, Service
from agents.diffusion.samplers import SAMPLERS, SCHEDULES
from agents.http import files, imports, models, parsing, pictures
from agents.http.errors import BadRequest, answer_to, problem
from agents.http.security import CALLER
from agents.http.sse import EventStream, frame
from bus.errors import DarkroomError
from schemas import jobs

MAX_LISTED = 500
_ID = re.compile(r"[0-9a-f]{32}")
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_SEQUENCE = re.compile(r"[0-9]{1,18}")
_PICTURES = (".webp", ".png", ".jpg")
_REASONS = {404: "not-found", 405: "method-not-allowed"}


class JobBody(jobs.Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The request of the bus, with keys nobody knows refused."""


_body = msgspec.json.Decoder(JobBody)


def app(
    service: Service,
    library: Library,
    *,
    data: Path,
    page: Path,
    stopping: anyio.Event,
    import_roots: Sequence[str] = (),
) -> Starlette:
    """The front door as an ASGI app (to be put behind `security.Guard`). Below `data` are the finished pictures, `page`
    holds the files of the page; event streams end when `stopping` is set. Legacy catalogs are imported from
    `import_roots` only."""
    door = _Door(service, data / "outputs", stopping)
    api = [
        Route("/jobs", door.jobs, methods=["GET", "POST"]),
        Route("/jobs/{id}", door.job),
        Route("/jobs/{id}/events", door.events),
        Route("/jobs/{id}/cancel", door.cancel, methods=["POST"]),
        Route("/samplers", _samplers),
        *imports.routes(library, import_roots),
        *models.routes(library),
        *pictures.routes(library, data),
        *files.routes(library),
    ]
    return Starlette(
        routes=[
            Mount("/api", app=Router(api, redirect_slashes=False)),
            Route("/images/{path:path}", door.picture),
            Route("/livez", _alive),
            Route("/readyz", door.ready),
            Route("/metrics", door.metrics),
            Mount("/", StaticFiles(directory=page, html=True, check_dir=False)),
        ],
        exception_handlers={HTTPException: partial(_refused, api), DarkroomError: _failed, Exception: _broken},
    )


def document(view: JobView) -> dict[str, Any]:
    """A job as JSON: the view with links, and every picture with `url` and its tiers' addresses in `tiers`."""
    made: dict[str, Any] = msgspec.to_builtins(view)
    here = f"/api/jobs/{view.id}"
    made["links"] = {"self": here, "events": f"{here}/events", "cancel": f"{here}/cancel"}
    if made["result"]:
        for picture in made["result"]["images"]:
            picture["url"] = _address(picture["file"])
            picture["tiers"] = {name: _address(file) for name, file in picture["tiers"].items()}
    return made


def _address(file: str) -> str:
    return "/images/" + file.removeprefix("outputs/")


@dataclass(frozen=True)
class _Door:
    """The routes that need something behind them."""

    service: Service
    outputs: Path
    stopping: anyio.Event

    async def jobs(self, request: Request) -> Response:
        return await (self._submit if request.method == "POST" else self._list)(request)

    async def _submit(self, request: Request) -> Response:
        lane = parsing.one_of(parsing.query(request, "lane"), "lane", "normal", *jobs.LANES)
        key = request.headers.get("idempotency-key", "")
        if key and not _KEY.fullmatch(key):
            raise BadRequest(422, "invalid", "Idempotency-Key takes 1 to 255 visible ASCII characters")
        body = await parsing.decoded(request, _body)
        asked = jobs.Request(**msgspec.structs.asdict(body))
        view = await self.service.submit(asked, lane=lane, caller=request.scope[CALLER], key=key)
        made = document(view)
        links = made["links"]
        return parsing.json({"id": view.id, "status": view.status, "links": links}, 202, {"Location": links["self"]})

    async def _list(self, request: Request) -> Response:
        limit = parsing.number(parsing.query(request, "limit"), "limit", 50, least=1, most=MAX_LISTED)
        return parsing.json({"jobs": [document(view) for view in await self.service.jobs(limit)]})

    async def job(self, request: Request) -> Response:
        return parsing.json(document(await self.service.state(_id(request))))

    async def cancel(self, request: Request) -> Response:
        return parsing.json(document(await self.service.cancel(_id(request))))

    async def events(self, request: Request) -> Response | EventStream:
        id, last = _id(request), request.headers.get("last-event-id", "0") or "0"
        if not _SEQUENCE.fullmatch(last):
            raise BadRequest(400, "bad-event-id", "Last-Event-ID is the id of an event that was sent here")
        await self.service.state(id)
        if int(last) and await self.service.heard_all(id, int(last)):
            return Response(status_code=204)  # tells an EventSource not to come back
        return EventStream(_frames(self.service, id, int(last)), self.stopping)

    async def picture(self, request: Request) -> Response:
        found = await anyio.to_thread.run_sync(_inside, self.outputs, request.path_params["path"])
        if found is None:
            raise HTTPException(404)
        return FileResponse(found, headers={"Cache-Control": "private, max-age=31536000, immutable"})

    async def ready(self, request: Request) -> Response:
        checks = await self.service.checks()
        ready = all(check.ok for check in checks.values())
        return parsing.json({"ready": ready, "checks": checks}, 200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        return Response(await self.service.metrics(), media_type="text/plain; version=0.0.4")


async def _frames(service: Service, id: str, after: int) -> AsyncGenerator[bytes, None]:
    async with aclosing(service.events(id, after)) as events:
        async for event in events:
            data = document(event.data) if isinstance(event.data, JobView) else event.data
            yield frame(event.name, msgspec.json.encode(data), event.seq)


def _id(request: Request) -> str:
    id: str = request.path_params["id"]
    if not _ID.fullmatch(id):
        raise unknown_job("A job's id has 32 hex digits, in small letters.")
    return id


def _inside(outputs: Path, path: str) -> Path | None:
    """The real path of a finished picture, or None for anything else."""
    if not path.endswith(_PICTURES) or any(part.startswith(".") for part in path.split("/")):
        return None
    try:
        root, found = outputs.resolve(strict=True), (outputs / path.lstrip("/")).resolve(strict=True)
        regular = stat.S_ISREG(os.lstat(found).st_mode)
    except (OSError, ValueError, RuntimeError):
        return None
    return found if regular and found.is_relative_to(root) and found.suffix in _PICTURES else None


async def _samplers(request: Request) -> Response:
    samplers = [{"id": row.id, "label": row.label, "schedulers": row.schedules} for row in SAMPLERS]
    schedulers = [{"id": row.id, "label": row.label} for row in SCHEDULES]
    return parsing.json({"samplers": samplers, "schedulers": schedulers})


async def _alive(request: Request) -> Response:
    return parsing.json({"alive": True})


async def _refused(api: Sequence[Route], request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    reason = _REASONS.get(error.status_code, "refused")
    headers = dict(error.headers or {})
    if "Allow" in headers and (methods := _methods(api, request)):
        headers["Allow"] = ", ".join(sorted(methods))
    return problem(error.status_code, reason, f"{error.detail}: {request.url.path}", headers=headers)


def _methods(api: Sequence[Route], request: Request) -> set[str]:
    """What an address of the API takes: it may have several routes, and the error knows the first of them alone."""
    there = [route for route in api if route.matches(request.scope)[0] is not Match.NONE]
    return {method for route in there for method in route.methods or ()}


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, DarkroomError)
    return answer_to(error)


async def _broken(request: Request, error: Exception) -> Response:
    return problem(500, "internal", "Something went wrong here; the log tells what.")
