"""The native front door: jobs, models, samplers, pictures, the page, health and metrics.

POST /api/jobs                  a job (schemas.jobs.Request, strict); ?lane=high|normal|low; Idempotency-Key
GET  /api/jobs                  the newest jobs; ?limit=
GET  /api/jobs/{id}             one job
GET  /api/jobs/{id}/events      its life as server-sent events; Last-Event-ID goes on from there
POST /api/jobs/{id}/cancel      end it
GET  /api/models, /api/samplers
GET  /images/{path}             finished pictures
GET  /livez, /readyz, /metrics
GET  /                          the page
"""

import os
import re
import stat
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from agents.diffusion.samplers import SAMPLERS, SCHEDULES
from agents.http.errors import BadRequest, answer_to, problem
from agents.http.events import EventStream, frame
from agents.http.security import CALLER
from agents.http.views import JobView, Service, UnknownJob
from bus.errors import DarkroomError
from schemas import jobs
from schemas.models import Model

BODY_SECONDS = 30.0
MAX_LISTED = 500
_ID = re.compile(r"[0-9a-f]{32}")
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_SEQUENCE = re.compile(r"[0-9]{1,18}")
_PICTURES = (".webp", ".png", ".jpg")
_REASONS = {404: "not-found", 405: "method-not-allowed"}


class JobBody(jobs.Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The request of the bus, with keys nobody knows refused."""


_body = msgspec.json.Decoder(JobBody)


def app(service: Service, *, outputs: Path, page: Path, stopping: anyio.Event) -> Starlette:
    """The front door as an ASGI app (to be put behind `security.Guard`). `outputs` holds the finished pictures, `page`
    the files of the page; event streams end when `stopping` is set."""
    door = _Door(service, outputs, stopping)
    return Starlette(
        routes=[
            Mount(
                "/api",
                routes=[
                    Route("/jobs", door.jobs, methods=["GET", "POST"]),
                    Route("/jobs/{id}", door.job),
                    Route("/jobs/{id}/events", door.events),
                    Route("/jobs/{id}/cancel", door.cancel, methods=["POST"]),
                    Route("/models", door.models),
                    Route("/samplers", _samplers),
                ],
            ),
            Route("/images/{path:path}", door.picture),
            Route("/livez", _alive),
            Route("/readyz", door.ready),
            Route("/metrics", door.metrics),
            Mount("/", StaticFiles(directory=page, html=True, check_dir=False)),
        ],
        exception_handlers={HTTPException: _refused, DarkroomError: _failed, Exception: _broken},
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
        wanted = _query(request, "lane").get("lane", "normal")
        lane = next((lane for lane in jobs.LANES if lane == wanted), None)
        if lane is None:
            raise BadRequest(422, "invalid", f"lane {wanted!r}: there are {', '.join(jobs.LANES)}", "lane")
        key = request.headers.get("idempotency-key", "")
        if key and not _KEY.fullmatch(key):
            raise BadRequest(422, "invalid", "Idempotency-Key takes 1 to 255 visible ASCII characters")
        asked = _decoded(await _read(request))
        view = await self.service.submit(asked, lane=lane, caller=request.scope[CALLER], key=key)
        made = document(view)
        links = made["links"]
        return _json({"id": view.id, "status": view.status, "links": links}, 202, {"Location": links["self"]})

    async def _list(self, request: Request) -> Response:
        limit = _query(request, "limit").get("limit", "50")
        if not re.fullmatch(r"[0-9]{1,3}", limit) or not 1 <= int(limit) <= MAX_LISTED:
            raise BadRequest(422, "invalid", f"limit is a number from 1 to {MAX_LISTED}", "limit")
        return _json({"jobs": [document(view) for view in await self.service.jobs(int(limit))]})

    async def job(self, request: Request) -> Response:
        return _json(document(await self.service.state(_id(request))))

    async def cancel(self, request: Request) -> Response:
        return _json(document(await self.service.cancel(_id(request))))

    async def events(self, request: Request) -> Response | EventStream:
        id, last = _id(request), request.headers.get("last-event-id", "0") or "0"
        if not _SEQUENCE.fullmatch(last):
            raise BadRequest(400, "bad-event-id", "Last-Event-ID is the id of an event that was sent here")
        await self.service.state(id)
        if int(last) and await self.service.heard_all(id, int(last)):
            return Response(status_code=204)  # tells an EventSource not to come back
        return EventStream(_frames(self.service, id, int(last)), self.stopping)

    async def models(self, request: Request) -> Response:
        return _json({"models": [_model(model) for model in await self.service.models()]})

    async def picture(self, request: Request) -> Response:
        found = await anyio.to_thread.run_sync(_inside, self.outputs, request.path_params["path"])
        if found is None:
            raise HTTPException(404)
        return FileResponse(found, headers={"Cache-Control": "private, max-age=31536000, immutable"})

    async def ready(self, request: Request) -> Response:
        checks = await self.service.checks()
        ready = all(check.ok for check in checks.values())
        return _json({"ready": ready, "checks": checks}, 200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        return Response(await self.service.metrics(), media_type="text/plain; version=0.0.4")


async def _frames(service: Service, id: str, after: int) -> AsyncGenerator[bytes, None]:
    async with aclosing(service.events(id, after)) as events:
        async for event in events:
            data = document(event.data) if isinstance(event.data, JobView) else event.data
            yield frame(event.name, msgspec.json.encode(data), event.seq)


async def _read(request: Request) -> bytes:
    try:
        with anyio.fail_after(BODY_SECONDS):
            return await request.body()
    except TimeoutError:
        raise BadRequest(408, "slow-body", f"The body did not come within {BODY_SECONDS:.0f} s.") from None
    except ClientDisconnect:
        raise BadRequest(400, "gone", "The client went away.") from None


def _decoded(body: bytes) -> jobs.Request:
    try:
        return jobs.Request(**msgspec.structs.asdict(_body.decode(body)))
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at ")
        field = path.strip("`") or "$" + "".join(f".{name}" for name in re.findall(r"field `(\w+)`", message))
        raise BadRequest(422, "invalid", f"{message} at {field}", field) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(400, "bad-json", f"The body is not JSON: {error}") from None


def _query(request: Request, *known: str) -> dict[str, str]:
    if unknown := set(request.query_params) - set(known):
        raise BadRequest(422, "invalid", f"unknown parameter {min(unknown)!r}; there are {', '.join(known)}")
    return dict(request.query_params)


def _id(request: Request) -> str:
    id: str = request.path_params["id"]
    if not _ID.fullmatch(id):
        raise UnknownJob("A job's id has 32 hex digits, in small letters.")
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


def _model(model: Model) -> dict[str, Any]:
    known = model.identity
    return {
        "sha256": model.sha256,
        "name": model.name,
        "kind": known.kind,
        "family": known.family,
        "variant": known.variant,
        "size": model.size,
        "missing": model.missing,
        "unsafe": known.unsafe,
        "problem": known.problem,
        "paths": model.paths,
        "created_at": model.created_at,
    }


async def _samplers(request: Request) -> Response:
    samplers = [{"id": row.id, "label": row.label, "schedulers": row.schedules} for row in SAMPLERS]
    return _json({"samplers": samplers, "schedulers": [{"id": row.id, "label": row.label} for row in SCHEDULES]})


async def _alive(request: Request) -> Response:
    return _json({"alive": True})


def _json(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    body = msgspec.json.encode(content)
    return Response(body, status, {"Cache-Control": "no-store", **(headers or {})}, "application/json")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    reason = _REASONS.get(error.status_code, "refused")
    return problem(error.status_code, reason, f"{error.detail}: {request.url.path}", headers=error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, DarkroomError)
    return answer_to(error)


async def _broken(request: Request, error: Exception) -> Response:
    return problem(500, "internal", "Something went wrong here; the log tells what.")
