"""Jobs over HTTP.

POST /api/jobs                  a job (schemas.jobs.Request, strict); ?lane=high|normal|low; Idempotency-Key
GET  /api/jobs                  the newest jobs: ?q= words of prompt, model or id, status, limit, before (the `next` of
                                the page before)
GET  /api/jobs/{id}             one job
GET  /api/jobs/{id}/events      its life as server-sent events; Last-Event-ID goes on from there
POST /api/jobs/{id}/cancel      end it
GET  /api/samplers
"""

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import anyio
import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agents.client import jobs as client
from agents.client.views import JobView
from agents.diffusion.samplers import SAMPLERS, SCHEDULES
from agents.http import parsing
from agents.http.errors import BadRequest
from agents.http.security import CALLER
from agents.http.sse import Event, EventStream
from agents.storage.layout import OUTPUTS
from bus.client import Bus
from schemas import jobs
from schemas.settings import LimitSettings

MAX_LISTED = 500
MAX_WORDS = 500
_ID = re.compile(r"[0-9a-f]{32}")
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_SEQUENCE = re.compile(r"[0-9]{1,18}")
_STATUSES: tuple[jobs.AnyStatus, ...] = ("", *jobs.UNDER_WAY, *jobs.ENDED)


class JobBody(jobs.Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The request of the bus, with keys nobody knows refused."""


_body = msgspec.json.Decoder(JobBody)


def routes(bus: Bus, limits: LimitSettings, stopping: anyio.Event) -> list[Route]:
    """The routes of jobs, below /api. Event streams end when `stopping` is set."""
    here = _Jobs(bus, limits, stopping)
    return [
        Route("/jobs", here.list),
        Route("/jobs", here.submit, methods=["POST"]),
        Route("/jobs/{id}", here.job),
        Route("/jobs/{id}/events", here.events),
        Route("/jobs/{id}/cancel", here.cancel, methods=["POST"]),
        Route("/samplers", _samplers),
    ]


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
    return "/images/" + file.removeprefix(f"{OUTPUTS}/")


@dataclass(frozen=True)
class _Jobs:
    bus: Bus
    limits: LimitSettings
    stopping: anyio.Event

    async def submit(self, request: Request) -> Response:
        lane = parsing.one_of(parsing.query(request, "lane"), "lane", "normal", *jobs.LANES)
        key = request.headers.get("idempotency-key", "")
        if key and not _KEY.fullmatch(key):
            raise BadRequest(422, "invalid", "Idempotency-Key takes 1 to 255 visible ASCII characters")
        body = await parsing.decoded(request, _body)
        asked = jobs.Request(**msgspec.structs.asdict(body))
        view = await self._submitted(asked, lane, request.scope[CALLER], key)
        links = document(view)["links"]
        return parsing.json({"id": view.id, "status": view.status, "links": links}, 202, {"Location": links["self"]})

    async def _submitted(self, request: jobs.Request, lane: jobs.Lane, caller: str, key: str) -> JobView:
        """The job, queued; the same `caller` and `key` (unless empty) name the same job."""
        asked = client.checked(request, self.limits)
        id = client.id_of(caller, key) if key else None
        id = await client.submit(self.bus, asked, lane=lane, tenant=client.tenant_of(caller), id=id)
        view = await client.state(self.bus, id) if key else None
        return view or JobView(id=id, status="queued", request=request)

    async def list(self, request: Request) -> Response:
        given = parsing.query(request, "q", "status", "before", "limit")
        limit = parsing.number(given, "limit", 50, least=1, most=MAX_LISTED)
        status = parsing.one_of(given, "status", *_STATUSES)
        text, before = given.get("q", ""), given.get("before", "")
        if len(text) > MAX_WORDS:
            raise BadRequest(422, "invalid", f"q has {MAX_WORDS} characters at most", "q")
        views, following = await client.jobs(self.bus, limit, text=text, status=status, before=before)
        return parsing.json({"jobs": [document(view) for view in views], "next": following})

    async def job(self, request: Request) -> Response:
        return parsing.json(document(await self._state(_id(request))))

    async def _state(self, id: str) -> JobView:
        if (view := await client.state(self.bus, id)) is None:
            raise client.unknown_job()
        return view

    async def cancel(self, request: Request) -> Response:
        return parsing.json(document(await client.cancel(self.bus, _id(request))))

    async def events(self, request: Request) -> Response | EventStream:
        id, last = _id(request), request.headers.get("last-event-id", "0") or "0"
        if not _SEQUENCE.fullmatch(last):
            raise BadRequest(400, "bad-event-id", "Last-Event-ID is the id of an event that was sent here")
        await self._state(id)
        if int(last) and await client.ended_by(self.bus, id, int(last)):
            return Response(status_code=204)  # an EventSource does not come back
        return EventStream(_frames(self.bus, id, int(last)), self.stopping)


async def _frames(bus: Bus, id: str, after: int) -> AsyncGenerator[Event, None]:
    async with aclosing(client.events(bus, id, after)) as events:
        async for event in events:
            data = document(event.data) if isinstance(event.data, JobView) else event.data
            here = {} if event.seq is None else {"id": str(event.seq)}
            yield {"event": event.name, "data": msgspec.json.encode(data).decode(), **here}


def _id(request: Request) -> str:
    id: str = request.path_params["id"]
    if not _ID.fullmatch(id):
        raise client.unknown_job("A job's id has 32 hex digits, in small letters.")
    return id


async def _samplers(request: Request) -> Response:
    samplers = [{"id": row.id, "label": row.label, "schedulers": row.schedules} for row in SAMPLERS]
    schedulers = [{"id": row.id, "label": row.label} for row in SCHEDULES]
    return parsing.json({"samplers": samplers, "schedulers": schedulers})
