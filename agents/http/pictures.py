"""Pictures of models, the gallery, and the files of finished pictures, over HTTP.

GET    /api/images/{sha}          a model's pictures in order
POST   /api/images/{sha}          one more: the picture itself as body, or a form with one file
DELETE /api/images/{sha}?seq=     one less; those after it move up
PUT    /api/images/{sha}/order    {"numbers": […]}: all of them, in the order they shall have
GET    /api/images/{sha}.webp     the file: ?quality=high|medium|low of the one at the place ?seq=, or with the number
                                  ?number= (whose file never changes), else of the first that is finished
GET    /api/outputs               generated pictures, newest first: ?q= words of what made them, model, limit, cursor
GET    /images/{path}             the file of one
GET    /images/{path}.txt         the infotext that this file holds
"""

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import msgspec
from anyio import to_thread
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from agents.client import catalog as client
from agents.http import parsing
from agents.http.errors import BadRequest
from agents.http.uploads import uploaded
from agents.images import infotext
from agents.images.decode import BadPicture, PictureTooLarge, UnknownFormat
from agents.images.model_pictures import picture_names
from agents.storage.layout import OUTPUTS
from bus.client import Bus
from bus.errors import Declined
from schemas import catalog
from schemas.catalog import ModelPicture, OutputPage, Pictures

UPLOAD_SECONDS = 120.0
UPLOADS_AT_ONCE = 4
"""Bodies of pictures in memory, at most."""
MAX_LISTED = 500
MAX_WORDS = 500

_UNCHANGING = {"Cache-Control": "private, max-age=31536000, immutable"}
_FINISHED = (".webp", ".png", ".jpg")
TIERS = ("high", "medium", "low")
_DIGITS = re.compile(r"[0-9a-fA-F]{0,64}")


class OrderBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The numbers of all of a model's pictures, in the order they shall have."""

    numbers: tuple[int, ...]


_order = msgspec.json.Decoder(OrderBody)


def routes(bus: Bus, data: Path) -> list[Route]:
    """The routes of pictures, below /api. Their files are below the data directory `data`."""
    here = _Pictures(bus, data, anyio.Semaphore(UPLOADS_AT_ONCE))
    return [
        Route("/images/{sha}.webp", here.file),
        Route("/images/{sha}", here.list),
        Route("/images/{sha}", here.add, methods=["POST"]),
        Route("/images/{sha}", here.drop, methods=["DELETE"]),
        Route("/images/{sha}/order", here.order, methods=["PUT"]),
        Route("/outputs", here.outputs),
    ]


def finished(outputs: Path) -> list[Route]:
    """The routes of finished pictures, which lie below `outputs`. Their files never change."""

    async def found(request: Request) -> Path:
        if (file := await to_thread.run_sync(_inside, outputs, request.path_params["path"])) is None:
            raise HTTPException(404)
        return file

    async def picture(request: Request) -> Response:
        return FileResponse(await found(request), headers=_UNCHANGING)

    async def text(request: Request) -> Response:
        held = await to_thread.run_sync(_infotext, await found(request))
        return Response(held, headers=_UNCHANGING, media_type="text/plain")

    return [Route("/images/{path:path}.txt", text), Route("/images/{path:path}", picture)]


def picture_document(sha256: str, picture: ModelPicture) -> dict[str, Any]:
    """A picture as JSON, with the addresses of its files once they are there."""
    here = f"/api/images/{sha256}.webp?number={picture.number}"
    urls = {tier: f"{here}&quality={tier}" for tier in TIERS} if picture.state == "ready" else {}
    return {**msgspec.to_builtins(picture), "urls": urls}


@dataclass(frozen=True)
class _Pictures:
    bus: Bus
    data: Path
    uploads: anyio.Semaphore

    async def list(self, request: Request) -> Response:
        parsing.query(request)
        sha256 = parsing.sha_of(request)
        return _listed(sha256, await self._pictures(sha256))

    async def _pictures(self, sha256: str) -> Pictures:
        return await client.ask(self.bus, catalog.ListPictures(sha256=sha256), Pictures)

    async def add(self, request: Request) -> Response:
        parsing.query(request)
        sha256 = parsing.sha_of(request)
        async with self.uploads:
            data = uploaded(request.headers["content-type"], await parsing.body(request, UPLOAD_SECONDS))
            try:
                reply = await client.add_picture(self.bus, self.data, sha256, data)
            except BadPicture as error:
                raise _bad(error) from error
        picture = next(one for one in reply.pictures if one.number == reply.number)
        return parsing.json(picture_document(sha256, picture), 201 if reply.added else 200)

    async def drop(self, request: Request) -> Response:
        given = parsing.query(request, "seq")
        if "seq" not in given:
            raise BadRequest(422, "invalid", "name the picture: ?seq=0 is the first", "seq")
        sha256, seq = parsing.sha_of(request), parsing.number(given, "seq", 0)
        return _listed(sha256, await client.ask(self.bus, catalog.DropPicture(sha256=sha256, seq=seq), Pictures))

    async def order(self, request: Request) -> Response:
        sha256, body = parsing.sha_of(request), await parsing.decoded(request, _order)
        order = catalog.OrderPictures(sha256=sha256, numbers=body.numbers)
        return _listed(sha256, await client.ask(self.bus, order, Pictures))

    async def file(self, request: Request) -> Response:
        given = parsing.query(request, "seq", "number", "quality")
        sha256, tier = parsing.sha_of(request), parsing.one_of(given, "quality", *TIERS)
        by_number = "number" in given
        is_named = by_number or "seq" in given
        if by_number and "seq" in given:
            raise BadRequest(422, "invalid", "a picture is named by its place (seq) or by its number, not both", "seq")
        wanted = parsing.number(given, "number" if by_number else "seq", 0)
        picture = await self._wanted(sha256, wanted, by_number=by_number) if is_named else await self._first(sha256)
        # A place may hold another picture tomorrow; what has a number is that picture for good.
        cached = _UNCHANGING if by_number else {"Cache-Control": "private, no-cache"}
        headers = {"ETag": f'"{sha256[:16]}-{picture.number}-{tier}"', **cached}
        if {headers["ETag"], "*"} & {tag.strip().removeprefix("W/") for tag in _none_match(request).split(",")}:
            return Response(status_code=304, headers=headers)
        file = self.data / picture_names(sha256, picture.number)[tier]
        if not await to_thread.run_sync(_is_file, file):
            raise Declined("unknown-picture", "The picture's file is gone; `darkroom verify` lists such.")
        return FileResponse(file, media_type="image/webp", headers=headers)

    async def _first(self, sha256: str) -> ModelPicture:
        """The model's picture: the first that is finished. Raises Declined."""
        pictures = (await self._pictures(sha256)).pictures
        for picture in pictures:
            if picture.state == "ready":
                return picture
        if not pictures:
            raise Declined("unknown-picture", "The model has no picture.")
        raise _not_there(pictures[0])

    async def _wanted(self, sha256: str, wanted: int, *, by_number: bool) -> ModelPicture:
        """The finished picture at a place, or with a number. Raises Declined."""
        for picture in (await self._pictures(sha256)).pictures:
            if wanted == (picture.number if by_number else picture.seq):
                if picture.state == "ready":
                    return picture
                raise _not_there(picture)
        raise Declined("unknown-picture", f"The model has no picture {wanted}.")

    async def outputs(self, request: Request) -> Response:
        given = parsing.query(request, "q", "model", "limit", "cursor")
        text, model = given.get("q", ""), given.get("model", "")
        if len(text) > MAX_WORDS:
            raise BadRequest(422, "invalid", f"q has {MAX_WORDS} characters at most", "q")
        if not _DIGITS.fullmatch(model):
            raise BadRequest(422, "invalid", "model is a SHA-256, or its beginning", "model")
        limit = parsing.number(given, "limit", 100, least=1, most=MAX_LISTED)
        ask = catalog.ListOutputs(text=text, model=model, limit=limit, cursor=given.get("cursor", ""))
        page = await client.ask(self.bus, ask, OutputPage)
        outputs = [{**msgspec.to_builtins(one), "url": _address(one.file)} for one in page.outputs]
        return parsing.json({"outputs": outputs, "next": page.next})


def _not_there(picture: ModelPicture) -> Declined:
    why = picture.error or "It is still being encoded; ask again in a moment."
    return Declined("unknown-picture", f"The picture is not there: {why}")


def _listed(sha256: str, reply: Pictures) -> Response:
    return parsing.json({"pictures": [picture_document(sha256, one) for one in reply.pictures]})


def _bad(error: BadPicture) -> BadRequest:
    match error:
        case UnknownFormat():
            return BadRequest(415, "not-a-picture", str(error))
        case PictureTooLarge():
            return BadRequest(413, "too-large", str(error))
        case _:
            return BadRequest(422, "broken-picture", str(error))


def _none_match(request: Request) -> str:
    return request.headers.get("if-none-match", "")


def _address(file: str) -> str:
    return "/images/" + quote(file.removeprefix(f"{OUTPUTS}/"))


def _inside(outputs: Path, path: str) -> Path | None:
    """The real path of a finished picture, or None for anything else."""
    if not path.endswith(_FINISHED) or any(part.startswith(".") for part in path.split("/")):
        return None
    try:
        root, found = outputs.resolve(strict=True), (outputs / path.lstrip("/")).resolve(strict=True)
        regular = stat.S_ISREG(os.lstat(found).st_mode)
    except (OSError, ValueError, RuntimeError):
        return None
    return found if regular and found.is_relative_to(root) and found.suffix in _FINISHED else None


def _infotext(file: Path) -> str:
    """What a picture's file holds of how it was made, or "". Raises Declined for a file that is no picture."""
    try:
        return infotext.read_file(file)
    except (BadPicture, OSError) as error:
        raise Declined("broken-picture", "The picture's file is damaged; `darkroom verify` lists such.") from error


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False
