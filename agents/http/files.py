"""Files that are no models yet, over HTTP.

GET    /api/files/waiting         what is not let in yet, why and since when, by path: ?limit=&cursor=
"""

from collections.abc import Iterable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agents.client import scans
from agents.http import parsing
from agents.http.errors import BadRequest
from bus.client import Bus

MAX_LISTED = 1000
_LISTED = 200
_CURSOR_LENGTH = 16_384


def routes(bus: Bus, roots: Iterable[str]) -> list[Route]:
    """The routes of files, below /api; `roots` are the configured folders by name."""

    async def waiting(request: Request) -> Response:
        given = parsing.query(request, "limit", "cursor")
        limit = parsing.number(given, "limit", _LISTED, least=1, most=MAX_LISTED)
        cursor = given.get("cursor", "")
        if len(cursor) > _CURSOR_LENGTH:
            raise BadRequest(422, "invalid", "cursor is the `next` of another answer", "cursor")
        return parsing.json(await scans.waiting(bus, roots, after=cursor, limit=limit))

    return [Route("/files/waiting", waiting)]
