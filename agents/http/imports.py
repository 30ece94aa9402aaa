"""Taking over a legacy catalog, over HTTP, and what waits for its file.

POST /api/migration/migrate_legacy_db   {legacy_db_path, legacy_images_dir, dry_run, wait} → the report, or 202
GET  /api/migration/imports/{id}        how far that is
GET  /api/migration/pending             records whose file is not hashed yet: ?after=&limit=
POST /api/migration/import_models       {id: […], conflict_strategy} → what became of each
POST /api/migration/scan                what lies in the roots and nobody has hashed becomes pending
POST /api/models/sha256                 {path, pending_status, wait} → {sha256, migrated}, or 202
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from anyio import to_thread
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agents.client import catalog as client
from agents.http import parsing
from agents.http.errors import RETRY_SECONDS, BadRequest
from bus.client import Bus
from schemas.catalog import ListPending, Outcome, Outcomes, PendingList, Promote, Strategy
from schemas.imports import Import, ImportState

DEFAULT_WAIT = 30.0
MAX_LISTED = 1000
PROMOTED_AT_ONCE = 50
"""Records in one question: each is a transaction of its own."""

_ID = re.compile(r"[0-9a-f]{32}")

Wait = Annotated[float, Meta(ge=0, le=parsing.MAX_WAIT)]
Path = Annotated[str, Meta(min_length=1, max_length=4096, pattern=r"^/[^\x00]*$")]


class LegacyBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A legacy catalog to take over: absolute paths, as the migrator sees them."""

    legacy_db_path: Path
    legacy_images_dir: Path | Literal[""] = ""
    dry_run: bool = False
    wait: Wait = DEFAULT_WAIT


class ChosenBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Pending records to promote, and what to do where a model is described already."""

    id: Annotated[tuple[Annotated[int, Meta(ge=1, le=2**63 - 1)], ...], Meta(max_length=MAX_LISTED)]
    conflict_strategy: Strategy = "report"


class FileBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file below a configured root, by its absolute path. `ignore` leaves the records that wait for it."""

    path: Path
    pending_status: Literal["pending", "ignore"] = "pending"
    wait: Wait = DEFAULT_WAIT


class NoBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Nothing, in braces."""


_legacy = msgspec.json.Decoder(LegacyBody)
_chosen = msgspec.json.Decoder(ChosenBody)
_file = msgspec.json.Decoder(FileBody)
_nothing = msgspec.json.Decoder(NoBody)


def routes(bus: Bus, roots: Mapping[str, str], import_roots: Sequence[str]) -> list[Route]:
    """The routes of migration, below /api. `roots` are the configured folders by name; legacy catalogs and their
    pictures are taken from `import_roots` only."""
    here = _Imports(bus, roots, tuple(import_roots))
    return [
        Route("/migration/migrate_legacy_db", here.take_over, methods=["POST"]),
        Route("/migration/imports/{id}", here.state),
        Route("/migration/pending", here.pending),
        Route("/migration/import_models", here.promote, methods=["POST"]),
        Route("/migration/scan", here.scan, methods=["POST"]),
        Route("/models/sha256", here.sha256, methods=["POST"]),
    ]


@dataclass(frozen=True)
class _Imports:
    bus: Bus
    roots: Mapping[str, str]
    import_roots: tuple[str, ...]

    async def take_over(self, request: Request) -> Response:
        body = await parsing.decoded(request, _legacy)
        database = await to_thread.run_sync(self._allowed, body.legacy_db_path, "legacy_db_path")
        images = ""
        if body.legacy_images_dir:
            images = await to_thread.run_sync(self._allowed, body.legacy_images_dir, "legacy_images_dir")
        job = Import(id="", database=database, images=images, dry_run=body.dry_run)
        id = await client.submit_import(self.bus, job)
        state = await client.followed(self.bus, id, body.wait)
        here = {"Location": f"/api/migration/imports/{id}"}
        if state.state == "failed":
            raise BadRequest(422, "import-failed", state.report.error or "The import failed.")
        if state.state == "done":
            return parsing.json(_document(state), 200, here)
        return parsing.json(_document(state), 202, {**here, "Retry-After": str(RETRY_SECONDS)})

    def _allowed(self, path: str, field: str) -> str:
        """The real path, if it lies below a folder that imports are allowed from. Raises BadRequest, whatever is there
        or not: who may not read a folder does not learn what is in it."""
        real = os.path.realpath(path)
        for root in self.import_roots:
            if os.path.commonpath([real, folder := os.path.realpath(root)]) == folder:
                return real
        raise BadRequest(
            403,
            "outside-import-roots",
            f"{field} is in no folder that imports may come from: add one to the setting http.import_roots, or use "
            "`darkroom import`.",
            field,
        )

    async def state(self, request: Request) -> Response:
        parsing.query(request)
        id: str = request.path_params["id"]
        state = await client.import_state(self.bus, id) if _ID.fullmatch(id) else None
        if state is None:
            raise BadRequest(404, "unknown-import", "Nobody asked for an import with this id.")
        return parsing.json(_document(state))

    async def pending(self, request: Request) -> Response:
        given = parsing.query(request, "after", "limit")
        limit = parsing.number(given, "limit", 200, least=1, most=MAX_LISTED)
        after = parsing.number(given, "after", 0)
        page = await client.ask(self.bus, ListPending(after=after, limit=limit), PendingList)
        return parsing.json({"pending": page.records, "next": page.records[-1].id if page.more else None})

    async def promote(self, request: Request) -> Response:
        body = await parsing.decoded(request, _chosen)
        ids = tuple(dict.fromkeys(body.id))
        outcomes: list[Outcome] = []
        for first in range(0, len(ids), PROMOTED_AT_ONCE):
            chosen = Promote(ids=ids[first : first + PROMOTED_AT_ONCE], strategy=body.conflict_strategy)
            outcomes += (await client.ask(self.bus, chosen, Outcomes)).outcomes
        return parsing.json({"outcomes": outcomes})

    async def scan(self, request: Request) -> Response:
        if await parsing.body(request):
            await parsing.decoded(request, _nothing)
        found = await client.adopt(self.bus)
        return parsing.json({"added": found.added, "pending": found.pending})

    async def sha256(self, request: Request) -> Response:
        body = await parsing.decoded(request, _file)
        promote = body.pending_status == "pending"
        file = await to_thread.run_sync(client.placed, body.path, self.roots)
        found = await client.hash_of(self.bus, file, promote=promote, wait=body.wait)
        answer = {"sha256": found.sha256, "migrated": promote and bool(found.promoted)}
        if found.sha256 is None:
            return parsing.json(answer, 202, {"Retry-After": str(RETRY_SECONDS)})
        return parsing.json(answer)


def _document(state: ImportState) -> dict[str, Any]:
    """An import as JSON: the migrator knows nothing of one that is still `queued`."""
    made: dict[str, Any] = msgspec.to_builtins(state)
    return made | {"state": "queued" if state.state == "unknown" else state.state}
