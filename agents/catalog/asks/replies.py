"""Impossible: what was asked of the catalog was understood and can't be done. The answer says why."""

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from agents.catalog.database import Database
from agents.catalog.errors import Impossible
from schemas.asks import Problem

P = ParamSpec("P")
R = TypeVar("R")


def told_in(
    reply: Callable[..., R],
) -> Callable[[Callable[Concatenate[Database, P], Awaitable[R]]], Callable[Concatenate[Database, P], Awaitable[R]]]:
    """An answer that raises Impossible is the reply with that problem instead. Of its transaction, which the error goes
    through, nothing stays."""

    def decorate(
        answer: Callable[Concatenate[Database, P], Awaitable[R]],
    ) -> Callable[Concatenate[Database, P], Awaitable[R]]:
        @wraps(answer)
        async def answering(db: Database, /, *args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return await answer(db, *args, **kwargs)
            except Impossible as error:
                return reply(problem=Problem(reason=error.reason, error=str(error)))

        return answering

    return decorate
