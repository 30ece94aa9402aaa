"""Requests read strictly, and answers written: what every noun of the API does the same way."""

import re
from collections.abc import Mapping
from typing import TypeVar

import anyio
import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from agents.http.errors import BadRequest
from bus.errors import Declined

BODY_SECONDS = 30.0
MAX_WAIT = 300.0
"""Seconds that a request may want to be waited for."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NUMBER = re.compile(r"[0-9]{1,18}")

T = TypeVar("T")


def json(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Something as JSON, not to be cached."""
    body = msgspec.json.encode(content)
    return Response(body, status, {"Cache-Control": "no-store", **(headers or {})}, "application/json")


async def body(request: Request, seconds: float = BODY_SECONDS) -> bytes:
    """All of a request's body. Raises BadRequest (slow-body, gone)."""
    try:
        with anyio.fail_after(seconds):
            return await request.body()
    except TimeoutError:
        raise BadRequest(408, "slow-body", f"The body did not come within {seconds:.0f} s.") from None
    except ClientDisconnect:
        raise BadRequest(400, "gone", "The client went away.") from None


async def decoded(request: Request, form: msgspec.json.Decoder[T]) -> T:
    """A request's JSON. Raises BadRequest, with the field that is to blame."""
    try:
        return form.decode(await body(request))
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at ")
        field = path.strip("`") or "$" + "".join(f".{name}" for name in re.findall(r"field `(\w+)`", message))
        raise BadRequest(422, "invalid", f"{message} at {field}", field) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(400, "bad-json", f"The body is not JSON: {error}") from None


def query(request: Request, *known: str) -> dict[str, str]:
    """The parameters after the question mark, the last of each name. Raises BadRequest for one that is not known."""
    if unknown := set(request.query_params) - set(known):
        there = f"there are {', '.join(known)}" if known else "this address takes none"
        raise BadRequest(422, "invalid", f"unknown parameter {min(unknown)!r}; {there}")
    return dict(request.query_params)


def number(given: Mapping[str, str], name: str, default: int, *, least: int = 0, most: int = 2**53) -> int:
    """A parameter that is a whole number. Raises BadRequest."""
    text = given.get(name, str(default))
    if not _NUMBER.fullmatch(text) or not least <= int(text) <= most:
        raise BadRequest(422, "invalid", f"{name} is a number from {least} to {most}", name)
    return int(text)


def one_of(given: Mapping[str, str], name: str, *words: T) -> T:
    """A parameter that is one of these words, by default the first. Raises BadRequest, which lists those not empty."""
    for word in words:
        if given.get(name, words[0]) == word:
            return word
    there = ", ".join(str(word) for word in words if word)
    raise BadRequest(422, "invalid", f"{name} {given[name][:100]!r}: there are {there}", name)


def sha_of(request: Request) -> str:
    """The SHA-256 in a request's path. Raises Declined (unknown-model) for anything else."""
    sha: str = request.path_params["sha"]
    if not _SHA256.fullmatch(sha):
        raise Declined("unknown-model", "A model is known by its SHA-256: 64 hex digits, in small letters.")
    return sha
