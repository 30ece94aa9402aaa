"""The table's one thread: everything that touches `data/files.sqlite3` runs there, in turn."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import TypeVar

import anyio

from agents.ingest import store
from agents.ingest.errors import WrongSchema
from agents.ingest.store import FilesDb
from bus.errors import UserError

T = TypeVar("T")


class Table:
    """A FilesDb for an event loop. Made by `opened`."""

    def __init__(self, pool: ThreadPoolExecutor, db: FilesDb) -> None:
        self.pool, self.db = pool, db

    async def do(self, work: Callable[[FilesDb], T]) -> T:
        """Run work on the table in its thread. What was begun is ended there, cancelled or not."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, work, self.db)


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Table]:
    """The table in a file, made if need be. Raises UserError."""
    loop, stack = asyncio.get_running_loop(), ExitStack()
    with ThreadPoolExecutor(1, thread_name_prefix="files") as pool:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            db = await loop.run_in_executor(pool, lambda: stack.enter_context(store.opened(path)))
        except (OSError, sqlite3.Error, WrongSchema) as error:
            raise UserError(f"{path} can't be used ({error}): free it, or choose another --data directory") from error
        try:
            yield Table(pool, db)
        finally:
            with anyio.CancelScope(shield=True):
                await loop.run_in_executor(pool, stack.close)
