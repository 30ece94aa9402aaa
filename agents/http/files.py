"""Files that are no models yet, over HTTP.

GET    /api/files/waiting         what is not let in yet, why and since when, by path: ?limit=&cursor=
"""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agents.client.views import Library
from agents.http import parsing
from agents.http.errors import BadRequest

MAX_LISTED = 1000
_LISTED = 200
_CURSOR_LENGTH = 16_384


def routes(library: Library) -> list[Route]:
    """The routes of files, below /api."""

    async def waiting(request: Request) -> Response:
        given = parsing.query(request, "limit", "cursor")
        limit = parsing.number(given, "limit", _LISTED, least=1, most=MAX_LISTED)
        cursor = given.get("cursor", "")
        if len(cursor) > _CURSOR_LENGTH:
            raise BadRequest(422, "invalid", "cursor is the `next` of another answer", "cursor")
        return parsing.json(await library.waiting(after=cursor, limit=limit))

    return [Route("/files/waiting", waiting)]
