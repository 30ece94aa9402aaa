"""The gallery: every generated picture, with the text that describes how it was made."""

from agents.catalog.database import Statements
from schemas.images import Encoded


async def add_outputs(sql: Statements, fact: Encoded, model: str, texts: list[str]) -> None:
    """Write down the pictures of one job, made with the checkpoint `model` (its SHA-256), each with its infotext; those
    written down before stay as they are. Raises sqlite3.Error."""
    await sql.many(
        "add_output",
        [
            {
                "job": fact.id,
                "n": one.index,
                "file": one.file,
                "digest": one.sha256,
                "width": one.width,
                "height": one.height,
                "bytes": one.bytes,
                "seed": one.seed,
                "model": model,
                "infotext": text,
                "created_at": fact.at,
            }
            for one, text in zip(fact.pictures, texts, strict=True)
        ],
    )
