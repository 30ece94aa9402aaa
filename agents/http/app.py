"""The HTTP API, its pictures and its page, as one app.

/api/jobs, /api/samplers        jobs.py
/api/models, /api/tags          models.py
/api/images, /api/outputs       pictures.py, as /images: finished pictures
/api/migration                  imports.py
/api/files                      files.py
/livez, /readyz, /metrics       health.py
/                               the page
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Mount, Route, Router
from starlette.staticfiles import StaticFiles

from agents.http import files, health, imports, jobs, models, pictures
from agents.http.errors import answer_to, problem
from agents.storage.layout import DataDir
from bus.client import Bus
from bus.errors import INTERNAL, DarkroomError
from schemas.settings import Settings

_REASONS = {404: "not-found", 405: "method-not-allowed"}


def app(bus: Bus, settings: Settings, *, page: Path, stopping: anyio.Event) -> Starlette:
    """The ASGI app (to be put into `security.Guard`). `page` holds the files of the page; event streams end when
    `stopping` is set."""
    data = Path(settings.data_dir)
    api = [
        *jobs.routes(bus, settings.limits, stopping),
        *imports.routes(bus, settings.roots, settings.http.import_roots),
        *models.routes(bus),
        *pictures.routes(bus, data),
        *files.routes(bus, settings.roots),
    ]
    return Starlette(
        routes=[
            Mount("/api", app=Router(api, redirect_slashes=False)),
            *pictures.finished(DataDir(data).outputs),
            *health.routes(bus, data),
            Mount("/", StaticFiles(directory=page, html=True, check_dir=False)),
        ],
        exception_handlers={HTTPException: partial(_refused, api), DarkroomError: _failed, Exception: _broken},
    )


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
    return problem(500, INTERNAL, "Something went wrong here; the log has the reason.")
