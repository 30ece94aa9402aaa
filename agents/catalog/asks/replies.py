"""Impossible: what was asked of the catalog was understood and can't be done. The answer says why."""

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from agents.catalog.database import Database
from bus.errors import DarkroomError
from schemas.asks import Problem

P = ParamSpec("P")
R = TypeVar("R")


class Impossible(DarkroomError):
    """The catalog can't do that. `reason` is a stable word for programs."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class NoSuchModel(Impossible):
    """There is no model with this SHA-256."""

    def __init__(self, sha256: str) -> None:
        super().__init__("unknown-model", f"There is no model with the SHA-256 {sha256[:64]!r}.")


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
