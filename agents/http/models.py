"""Models and their tags over HTTP.

GET    /api/models                a page of models: ?q= words, kind, type, family, tag (all of them), not_tag (none of
                                  them), missing=yes|no|only, sort=name|newest, limit, cursor
GET    /api/models/{sha}          one model with all that hangs on it
PATCH  /api/models/{sha}          what you set of it (schemas.catalog.DetailsEdit); null gives a field back
POST   /api/models/{sha}/tags     {"tags": […]} are put on it
DELETE /api/models/{sha}/tags     ?tag= are taken off it
GET    /api/tags                  tags by name: ?after=&limit=
POST   /api/tags                  {"name", "color"} makes one
PATCH  /api/tags/{id}             renames or colours it
DELETE /api/tags/{id}             off every model
"""

import re
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agents.client import catalog as client
from agents.http import parsing
from agents.http.errors import BadRequest
from agents.http.pictures import picture_document
from bus.client import Bus
from bus.errors import Declined
from schemas import catalog
from schemas.catalog import ModelPage, ModelReply, Tagged, TagPage, TagReply
from schemas.models import Model

MAX_LISTED = 1000
MAX_TAGS = 200
MAX_WORDS = 500
"""Of what is searched for, in characters."""

_ID = re.compile(r"[1-9][0-9]{0,17}")
_FILTERS = ("q", "kind", "type", "family", "tag", "not_tag", "missing", "sort", "limit", "cursor")


class EditBody(catalog.DetailsEdit, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The edit of the bus, with keys nobody knows refused."""


class TagsBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tags to put on a model, by name."""

    tags: tuple[str, ...]


class NewTag(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tag to make."""

    name: str
    color: str = ""


class TagEdit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to change of a tag."""

    name: str | None = None
    color: str | None = None


_edit = msgspec.json.Decoder(EditBody)
_tags = msgspec.json.Decoder(TagsBody)
_new_tag = msgspec.json.Decoder(NewTag)
_tag_edit = msgspec.json.Decoder(TagEdit)


def routes(bus: Bus) -> list[Route]:
    """The routes of models and tags, below /api."""
    here = _Models(bus)
    return [
        Route("/models", here.models),
        Route("/models/{sha}", here.show),
        Route("/models/{sha}", here.edit, methods=["PATCH"]),
        Route("/models/{sha}/tags", here.put_tags, methods=["POST"]),
        Route("/models/{sha}/tags", here.take_tags, methods=["DELETE"]),
        Route("/tags", here.tags),
        Route("/tags", here.make_tag, methods=["POST"]),
        Route("/tags/{id}", here.change_tag, methods=["PATCH"]),
        Route("/tags/{id}", here.drop_tag, methods=["DELETE"]),
    ]


@dataclass(frozen=True)
class _Models:
    bus: Bus

    async def models(self, request: Request) -> Response:
        given = parsing.query(request, *_FILTERS)
        search = catalog.SearchModels(
            text=_short(given, "q"),
            kind=_short(given, "kind"),
            type=_short(given, "type"),
            family=_short(given, "family"),
            tags=_names(request, "tag"),
            without=_names(request, "not_tag"),
            missing=parsing.one_of(given, "missing", "yes", "no", "only"),
            sort=parsing.one_of(given, "sort", "name", "newest"),
            cursor=given.get("cursor", ""),
            limit=parsing.number(given, "limit", MAX_LISTED, least=1, most=MAX_LISTED),
        )
        page = await client.ask(self.bus, search, ModelPage)
        found = [_model(model) | ({"cut": model.cut} if model.cut else {}) for model in page.models]
        return parsing.json({"models": found, "next": page.next})

    async def show(self, request: Request) -> Response:
        parsing.query(request)
        return _whole(await client.ask(self.bus, catalog.ShowModel(name=parsing.sha_of(request)), ModelReply))

    async def edit(self, request: Request) -> Response:
        sha256, body = parsing.sha_of(request), await parsing.decoded(request, _edit)
        edit = catalog.DetailsEdit(**msgspec.structs.asdict(body))
        return _whole(await client.ask(self.bus, catalog.EditModel(sha256=sha256, edit=edit), ModelReply))

    async def put_tags(self, request: Request) -> Response:
        sha256, body = parsing.sha_of(request), await parsing.decoded(request, _tags)
        return await self._tagged(catalog.TagModels(models=(sha256,), put=body.tags))

    async def take_tags(self, request: Request) -> Response:
        parsing.query(request, "tag")
        names = _names(request, "tag")
        if not names:
            raise BadRequest(422, "invalid", "name the tags to take off: ?tag=one&tag=other", "tag")
        return await self._tagged(catalog.TagModels(models=(parsing.sha_of(request),), take=names))

    async def _tagged(self, change: catalog.TagModels) -> Response:
        reply = await client.ask(self.bus, change, Tagged)
        return parsing.json({"tags": reply.tags[0], "changed": bool(reply.changed)})

    async def tags(self, request: Request) -> Response:
        given = parsing.query(request, "after", "limit")
        limit = parsing.number(given, "limit", MAX_LISTED, least=1, most=MAX_LISTED)
        page = await client.ask(self.bus, catalog.ListTags(after=_short(given, "after"), limit=limit), TagPage)
        return parsing.json({"tags": page.tags, "next": page.tags[-1].name if page.more else ""})

    async def make_tag(self, request: Request) -> Response:
        body = await parsing.decoded(request, _new_tag)
        reply = await client.ask(self.bus, catalog.PutTag(name=body.name, color=body.color), TagReply)
        return parsing.json(reply.tag, 201, {"Location": f"/api/tags/{reply.tag.id}"})

    async def change_tag(self, request: Request) -> Response:
        id, body = _id(request), await parsing.decoded(request, _tag_edit)
        reply = await client.ask(self.bus, catalog.PutTag(id=id, name=body.name, color=body.color), TagReply)
        return parsing.json(reply.tag)

    async def drop_tag(self, request: Request) -> Response:
        reply = await client.ask(self.bus, catalog.DropTag(id=_id(request)), TagReply)
        return parsing.json(reply.tag)


def _id(request: Request) -> int:
    id: str = request.path_params["id"]
    if not _ID.fullmatch(id):
        raise Declined("unknown-tag", "A tag's id is a whole number from 1.")
    return int(id)


def _short(given: dict[str, str], name: str) -> str:
    text = given.get(name, "")
    if len(text) > MAX_WORDS:
        raise BadRequest(422, "invalid", f"{name} has {MAX_WORDS} characters at most", name)
    return text


def _names(request: Request, name: str) -> tuple[str, ...]:
    names = request.query_params.getlist(name)
    if len(names) > MAX_TAGS or any(len(one) > MAX_WORDS for one in names):
        raise BadRequest(422, "invalid", f"{name}: {MAX_TAGS} of {MAX_WORDS} characters at most", name)
    return tuple(names)


def _whole(reply: ModelReply) -> Response:
    whole = reply.model
    made = {**_model(whole.model), "identity": whole.model.identity, "details": whole.model.details}
    made |= {"paths": [{"root": one.path.root, "rel": one.path.rel, "present": one.present} for one in whole.paths]}
    made |= {"more_paths": whole.more_paths, "layers": whole.layers, "tags": whole.tags, "digests": whole.model.digests}
    made |= {
        "sidecar_problems": [
            {"root": one.path.root, "rel": one.path.rel, "problem": one.problem} for one in whole.sidecar_problems
        ]
    }
    made |= {"pictures": [picture_document(whole.model.sha256, one) for one in whole.pictures]}
    return parsing.json(made)


def _model(model: Model) -> dict[str, Any]:
    known = model.identity
    return {
        "sha256": model.sha256,
        "name": model.name,
        "kind": known.kind,
        "family": known.family,
        **{name: text for name, text in (("edition", known.edition), ("guess", known.guess)) if text},
        "variant": known.variant,
        "size": model.size,
        "missing": model.missing,
        "unsafe": known.unsafe,
        "problem": known.problem,
        "paths": model.paths,
        "created_at": model.created_at,
        "title": model.details.title,
        "type": model.details.type,
        "tags": model.tags,
        "pictures": model.pictures,
    }
