"""The guard in front of the whole API: who may ask, from where, and how much. Pure ASGI, so that event streams and
files pass through untouched.

Host names against DNS rebinding (421), Origin against other people's pages (403), the API key (401), JSON bodies alone,
but for uploads of pictures (415), and no larger than allowed (413). Headers that keep a browser strict go on every
response.
"""

import base64
import binascii
import ipaddress
import re
from collections.abc import Iterable
from contextlib import suppress
from secrets import compare_digest
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agents.http.errors import BadRequest, problem
from agents.http.uploads import MAX_UPLOAD_BYTES, PICTURES, is_upload
from schemas.settings import HttpSettings

MAX_BODY_BYTES = 64 * 1024
CALLER = "darkroom.caller"
"""Where in an ASGI scope the key stands that the caller presented (empty without)."""

_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_UPLOAD = re.compile(r"/api/images/[^/]*")
_WITHOUT_KEY = frozenset({"/livez", "/readyz"})
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::\d{1,5})?")
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST, PUT, PATCH, DELETE",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, X-API-Key",
    "Access-Control-Max-Age": "600",
}


def is_loopback(host: str) -> bool:
    """Does a host name or address (without port) mean this machine only?"""
    name = host.strip("[]").rstrip(".").lower()
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def host_of(value: str) -> str:
    """The name or address in a Host header, in small letters and without its port; empty when it is malformed."""
    match = _HOST.fullmatch(value.strip().lower())
    return match[1].strip("[]").rstrip(".") if match else ""


def presented_keys(headers: Headers) -> list[bytes]:
    """Every key a caller shows: Bearer, the password of Basic, X-API-Key. Empty ones don't count."""
    found = [headers.get("x-api-key", "").encode("latin-1")]  # as header bytes come here: no text is assumed
    scheme, _, value = headers.get("authorization", "").encode("latin-1").partition(b" ")
    if scheme.lower() == b"bearer":
        found.append(value.strip())
    elif scheme.lower() == b"basic":
        with suppress(binascii.Error):
            found.append(base64.b64decode(value.strip(), validate=True).partition(b":")[2])
    return [key for key in found if key]


class Guard:
    """ASGI middleware. Loopback names are always allowed; `settings` adds hosts, origins and the key."""

    def __init__(self, app: ASGIApp, settings: HttpSettings, *, max_body: int = MAX_BODY_BYTES) -> None:
        self.app, self.key, self.body_bytes = app, settings.api_key, max_body
        self.hosts = frozenset(host_of(name) for name in (*settings.hosts, settings.host))
        self.origins = frozenset(origin.rstrip("/").lower() for origin in settings.origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        extra = dict(_HEADERS)
        origin = headers.get("origin", "").lower()
        if origin in self.origins:
            extra |= {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}
            extra["Cross-Origin-Resource-Policy"] = "cross-origin"

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(extra)
            await send(message)

        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await refusal(scope, receive, sending)
            return
        scope[CALLER] = next(iter(presented_keys(headers)), b"").decode("utf-8", "replace")
        await self.app(scope, self._capped(receive, self._max_body(scope)), sending)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        if not self._known(host_of(headers.get("host", ""))):
            return problem(
                421, "unknown-host", "This service does not answer for that host name; add it to http.hosts."
            )
        if not self._same(headers):
            return problem(403, "foreign-origin", "Pages of that origin may not use this service; see http.origins.")
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            return Response(status_code=204, headers=_PREFLIGHT)
        if self.key and scope["path"] not in _WITHOUT_KEY and not self._admitted(presented_keys(headers)):
            challenge = {"WWW-Authenticate": 'Basic realm="darkroom", charset="UTF-8"'}
            return problem(401, "unauthorized", "An API key is needed: Bearer, X-API-Key or Basic.", headers=challenge)
        length, most = headers.get("content-length", "0"), self._max_body(scope)
        if not length.isdigit() or int(length) > most:
            return problem(413, "too-large", _over(most))
        if _is_upload(scope):
            if not is_upload(headers.get("content-type", "")):
                return problem(415, "not-a-picture", f"Send the picture as {', '.join(PICTURES)}, or in a form.")
        elif scope["method"] in _WITH_BODY and not _json(headers):
            return problem(415, "not-json", "Send the body as application/json.")
        return None

    def _max_body(self, scope: Scope) -> int:
        return MAX_UPLOAD_BYTES if _is_upload(scope) else self.body_bytes

    def _known(self, host: str) -> bool:
        return bool(host) and (is_loopback(host) or host in self.hosts)

    def _same(self, headers: Headers) -> bool:
        """No page at all, a page of this service, of this machine, or of a configured origin."""
        origin = headers.get("origin")
        if origin is None or origin.rstrip("/").lower() in self.origins:
            return True
        parts = urlsplit(origin.lower())
        if parts.scheme not in ("http", "https") or not parts.netloc:
            return False
        return parts.netloc == headers.get("host", "").lower() or is_loopback(host_of(parts.netloc))

    def _admitted(self, keys: Iterable[bytes]) -> bool:
        # Not `any`: every comparison is made, so that the time gives nothing away.
        return sum([compare_digest(key, self.key.encode()) for key in keys]) > 0

    def _capped(self, receive: Receive, most: int) -> Receive:
        taken = 0

        async def counting() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > most:
                raise BadRequest(413, "too-large", _over(most))
            return message

        return counting


def _over(most: int) -> str:
    return f"A request's body may have {most:,} bytes at most here."


def _is_upload(scope: Scope) -> bool:
    return scope["method"] == "POST" and _UPLOAD.fullmatch(scope["path"]) is not None


def _json(headers: Headers) -> bool:
    """Is the body JSON by its own account, or is there none?"""
    kind = headers.get("content-type")
    if kind is None:
        return headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
    name, _, parameters = kind.lower().partition(";")
    return name.strip() == "application/json" and parameters.strip() in ("", "charset=utf-8", 'charset="utf-8"')
