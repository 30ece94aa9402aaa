"""Plain SQL on an open catalog's writing connection, for what no query of the product does."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agents.catalog.database import Database


async def execute(db: Database, statement: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[Any]:
    """Run one statement; all its rows."""
    return await db._writer.do(lambda sql: sql.execute(statement, values))


async def execute_many(db: Database, statement: str, values: Iterable[Sequence[Any]]) -> None:
    """Run one statement once for each of these."""
    await db._writer.do(lambda sql: sql.connection.executemany(statement, values))
