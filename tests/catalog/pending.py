"""Pending records for tests, as an import leaves them."""

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

from agents.catalog.database import Database
from agents.catalog.names import fold
from tests.catalog.sql import execute


async def add_pending(
    db: Database,
    id: int,
    path: str,
    *,
    size: int | None = None,
    rel: str | None = None,
    details: dict[str, Any] | None = None,
    tags: tuple[str, ...] = (),
    images: tuple[bytes, ...] = (),
    data: Path | None = None,
) -> None:
    """One record with its tags and its pictures, whose originals are put below `data`."""
    async with db.atomic() as sql:
        run = partial(execute, db)
        await run(
            "INSERT INTO pending_import"
            " (id, legacy_id, path, root, rel, folded, name, size, details, origin, state, sha256, created_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'import', 'waiting', NULL, 1.0)",
            (
                id,
                id,
                path,
                None if rel is None else "models",
                rel,
                fold(path.rsplit("/", 1)[-1]),
                "name",
                size,
                json.dumps(details or {"title": f"record {id}"}),
            ),
        )
        for tag in tags:
            await run("INSERT INTO tags (name, color, created_at) VALUES (?, '', 1.0) ON CONFLICT DO NOTHING", (tag,))
            await run("INSERT INTO pending_model_tags SELECT ?, id FROM tags WHERE name = ?", (id, tag))
        for n, content in enumerate(images):
            file = f"{id}-{n}.png"
            await run(
                "INSERT INTO pending_images (pending_id, n, file, source) VALUES (?, ?, ?, ?)",
                (id, n, file, hashlib.sha256(content).hexdigest()),
            )
            if data is not None:
                (data / "images" / "pending").mkdir(parents=True, exist_ok=True)
                (data / "images" / "pending" / file).write_bytes(content)
        assert sql is not None
