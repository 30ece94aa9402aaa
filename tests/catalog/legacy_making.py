"""Legacy catalogs, made from a seed: any size, and every odd shape that such a catalog can have."""

import hashlib
import io
import json
import random
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from PIL import Image

SCHEMA = """
CREATE TABLE models (
    id INTEGER PRIMARY KEY AUTOINCREMENT, path TEXT NOT NULL UNIQUE, name TEXT, type TEXT NOT NULL, size_bytes INTEGER,
    hash_hex TEXT NOT NULL, created_at INTEGER NOT NULL, meta_json TEXT, extra_json TEXT
);
CREATE TABLE tags (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, color TEXT, created_at INTEGER);
CREATE TABLE model_tags (model_id INTEGER, tag_id INTEGER, PRIMARY KEY (model_id, tag_id));
CREATE TABLE directories (id INTEGER PRIMARY KEY, path TEXT);
CREATE TABLE schema_version (version INTEGER);
INSERT INTO schema_version VALUES (2);
"""
LENIENT = SCHEMA.replace("hash_hex TEXT NOT NULL", "hash_hex TEXT")
SPARE = """
CREATE TABLE models (id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, type TEXT NOT NULL, hash_hex TEXT);
CREATE TABLE tags (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE model_tags (model_id INTEGER, tag_id INTEGER, PRIMARY KEY (model_id, tag_id)) WITHOUT ROWID;
CREATE TABLE schema_version (version INTEGER);
INSERT INTO schema_version VALUES (2);
"""
"""Without any column that may be missing."""

WHEN = 1_700_000_000_000
"""Milliseconds."""

TYPES = ("checkpoint", "lora", "vae", "embedding", "controlnet")
ODD_EXTRA = (None, "null", "[]", '["a", 1]', "{broken", "", '"text"', "17", '{"images": null}', '{"images": "{name}"}',
             "{}", '{"prompts": "both"}', '{"description": null, "prompts": null}', "NaN", "[" * 500)  # fmt: skip


def sha(content: object) -> str:
    """The SHA-256 that stands for a content."""
    return hashlib.sha256(str(content).encode()).hexdigest()


def said(
    description: str = "", links: str = "", images: object = (), positive: str = "", negative: str = "", **more: object
) -> str:
    """extra_json, as the legacy program writes it."""
    prompts = {"positive": positive, "negative": negative}
    return json.dumps(
        {"description": description, "community_links": links, "images": images, "prompts": prompts, **more}
    )


def model(id: int | None, path: object, hash: object = "", **columns: Any) -> dict[str, Any]:
    """A row of `models`; what is not said is filled in."""
    row = {"id": id, "path": path, "name": f"Model {id}", "type": "checkpoint", "size_bytes": 1000}
    return row | {"hash_hex": hash, "created_at": WHEN, "meta_json": None, "extra_json": said()} | columns


def make(
    path: Path,
    models: Iterable[dict[str, Any]] = (),
    tags: Iterable[Sequence[Any]] = (),
    links: Iterable[tuple[Any, Any]] = (),
    *,
    schema: str = LENIENT,
    wal: bool = False,
) -> Path:
    """A legacy catalog with these rows (a tag is id, name, and perhaps colour and time)."""
    with closing(sqlite3.connect(path)) as db:
        if wal:
            db.execute("PRAGMA journal_mode = WAL")
        db.executescript(schema)
        fill(db, models, tags, links)
    return path


def fill(
    db: sqlite3.Connection,
    models: Iterable[dict[str, Any]] = (),
    tags: Iterable[Sequence[Any]] = (),
    links: Iterable[tuple[Any, Any]] = (),
) -> None:
    """Add rows, with the columns there are, and commit them."""
    has = {table: [row[1] for row in db.execute(f"PRAGMA table_info({table})")] for table in ("models", "tags")}
    for row in models:
        row = {name: value for name, value in row.items() if name in has["models"]}
        db.execute(f"INSERT INTO models ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", [*row.values()])
    for tag in tags:
        values = (*tag, None, None)[: len(has["tags"])] if len(tag) == 2 else (*tag, WHEN)[: len(has["tags"])]
        db.execute(f"INSERT INTO tags VALUES ({', '.join('?' * len(values))})", values)
    for link in links:
        db.execute("INSERT INTO model_tags VALUES (?, ?)", link)
    db.commit()


def large(path: Path, *, models: int, tags: int, links: int, seed: int = 0, unhashed: float = 0.3) -> Path:
    """A large legacy catalog of ordinary rows, without pictures."""
    draw = random.Random(seed)
    with closing(sqlite3.connect(path)) as db:
        db.executescript(SCHEMA)
        db.executemany(
            "INSERT INTO tags VALUES (?, ?, ?, ?)",
            ((n, f"tag {n}", f"#{n % 4096:03x}", WHEN) for n in range(1, tags + 1)),
        )
        words = [f"word{n}" for n in range(2000)]

        def rows() -> Iterable[tuple[Any, ...]]:
            for n in range(1, models + 1):
                type = TYPES[n % len(TYPES)]
                extra = said(
                    " ".join(draw.choices(words, k=20)), f"https://example.org/{n}", [], *draw.choices(words, k=2)
                )
                digest = "" if draw.random() < unhashed else f"{draw.getrandbits(256):064x}"
                yield (
                    n,
                    f"/old/{type}/model {n}.safetensors",
                    f"Model {n}",
                    type,
                    n * 1000,
                    digest,
                    WHEN + n,
                    None,
                    extra,
                )

        db.executemany("INSERT INTO models VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows())
        each = links // models
        db.executemany(
            "INSERT OR IGNORE INTO model_tags VALUES (?, ?)",
            ((n, draw.randint(1, tags)) for n in range(1, models + 1) for _ in range(each)),
        )
        db.commit()
    return path


def odd(path: Path, images: Path, *, seed: int = 0, count: int = 120) -> Path:
    """A legacy catalog in which everything is odd, with its folder of pictures: some there, some missing, some no
    pictures."""
    draw = random.Random(seed)
    images.mkdir(exist_ok=True)
    tags = [(n, f"tag {n}", draw.choice((None, "", "#fff")), WHEN) for n in range(1, 30)]
    tags += [(40, "", None, None), (41, "TAG 3", "#abc", -5), (-2, "negative", None, 0), (1 << 50, "far", None, WHEN)]
    tags += [(n + 100, type, "#123", WHEN) for n, type in enumerate(TYPES)]
    rows, links = [], []
    for n in range(1, count + 1):
        names = [_picture(images, draw, n, k) for k in range(draw.choice((0, 0, 1, 1, 3)))]
        extra = draw.choice(
            (said(f"words {n}", images=names), said(images=names, params={"n": n}), draw.choice(ODD_EXTRA))
        )
        if extra and "{name}" in extra and names:
            extra = extra.replace("{name}", names[0])
        digest = draw.choice(("", None, sha(n), sha(n), sha(n // 7), sha(n).upper(), "not a hash", sha(n)[:40]))
        rows.append(
            model(
                n if n % 50 else -n,
                draw.choice((f"/old/{n}.safetensors", f"C:\\models\\{n}.ckpt", f"relative/{n}.pt", f"/old/ü{n}.bin")),
                digest,
                name=draw.choice((f"Model {n}", "", None, "long " * 400)),
                type=draw.choice((*TYPES, "Textual Inversion", "what?")),
                size_bytes=draw.choice((n, None, -1, "large", 1 << 62)),
                created_at=draw.choice((WHEN, 0, -1, 1 << 60, "yesterday")),
                meta_json=draw.choice((None, '{"rating": 5, "nested": {"a": [1, null]}}', "null", "{")),
                extra_json=extra,
            )
        )
        links += {(n, draw.choice((draw.randint(1, 35), 41, -2, 1 << 50))) for _ in range(3)}
    links += [(count + 1000, 1), ("text", 1), (1, "text")]
    return make(path, rows, tags, links)


def _picture(images: Path, draw: random.Random, n: int, k: int) -> str:
    """A picture's name as it is written, and, unless it is missing, its file."""
    kind = draw.choice(("png", "png", "jpg", "webp", "same", "cut", "text", "missing", "path"))
    name = f"model_{n}_{WHEN}_{k}.{kind}"
    if kind == "path":
        return f"/media/../{name}"
    if kind != "missing":
        data = png(7 if kind == "same" else n * 10 + k, format={"jpg": "JPEG", "webp": "WEBP"}.get(kind, "PNG"))
        data = b"<html>" if kind == "text" else data[: len(data) // 2] if kind == "cut" else data
        (images / name).write_bytes(data)
    return draw.choice(("/media/", "")) + name


def png(seed: int, size: tuple[int, int] = (40, 30), format: str = "PNG") -> bytes:
    """A small picture, another for every seed."""
    noise = random.Random(seed).randbytes(size[0] * size[1] * 3)
    file = io.BytesIO()
    Image.frombytes("RGB", size, noise).save(file, format)
    return file.getvalue()
