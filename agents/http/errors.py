"""Errors over HTTP: one JSON form for all of them."""

from collections.abc import Mapping

import msgspec
from starlette.responses import Response

from bus.errors import INTERNAL, DarkroomError, Declined, Full, NoAnswer, Reject, Retry, TooLarge

RETRY_SECONDS = 2
FULL_RETRY_SECONDS = 10

_STATUS = {
    "unknown-job": 404,
    "unknown-model": 404,
    "unknown-tag": 404,
    "unknown-picture": 404,
    "unknown-file": 404,
    "outside-roots": 403,
    "tag-exists": 409,
    "stale-order": 409,
    INTERNAL: 500,
}
"""What the reasons of Declined are in HTTP; any other is 422."""


class BadRequest(DarkroomError):
    """The request is not in the form this address takes: `status` and `reason` class it, `path` names the bad field."""

    def __init__(self, status: int, reason: str, message: str, path: str = "") -> None:
        super().__init__(message)
        self.status, self.reason, self.path = status, reason, path


def problem(
    status: int, reason: str, message: str, *, path: str = "", headers: Mapping[str, str] | None = None
) -> Response:
    """An error as JSON: `{"error": {"reason", "message"}}`, with `path` where a field of the request is to blame."""
    error = {"reason": reason, "message": message} | ({"path": path} if path else {})
    body = msgspec.json.encode({"error": error})
    return Response(body, status, {"Cache-Control": "no-store", **(headers or {})}, "application/json")


def answer_to(error: DarkroomError) -> Response:
    """The response that an error of the bus or of a route becomes; 500 for one with no meaning to a caller."""
    message = str(error)
    match error:
        case BadRequest():
            return problem(error.status, error.reason, message, path=error.path)
        case Reject():
            return problem(422, error.reason, message)
        case Declined():
            return problem(_STATUS.get(error.reason, 422), error.reason, message)
        case TooLarge():
            return problem(413, "too-large", message)
        case Full():
            wait = {"Retry-After": str(FULL_RETRY_SECONDS)}
            return problem(
                429, "queue-full", "The queue is full; ask again when it has drained a little.", headers=wait
            )
        case NoAnswer():
            return problem(503, "no-answer", message, headers={"Retry-After": str(RETRY_SECONDS)})
        case Retry():
            return problem(503, "bus-away", message, headers={"Retry-After": str(RETRY_SECONDS)})
        case _:
            return problem(500, INTERNAL, message)
