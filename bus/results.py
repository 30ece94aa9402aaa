"""How a job ends: exactly one result, the first writer wins, and a finished fact follows it."""

import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Self

import anyio
import msgspec
import structlog

from bus.client import Bus
from bus.errors import Retry, Taken, Undecodable
from bus.subjects import JOB_FINISHED, RESULT
from bus.wakeup import SHORTEST
from bus.worker import Delivery
from schemas.jobs import Finished, Result, Status

log = structlog.get_logger()


async def result_of(bus: Bus, id: str) -> Result | None:
    """The result of a job, or None while it has none. Raises Retry.

    One that nobody can read is an end all the same, since no other can be written: the job counts as failed.
    """
    try:
        found = await bus.last(RESULT, id=id)
    except Undecodable as error:
        return Result(id=id, status="failed", ended_at=bus.clock.now(), reason="undecodable-result", error=str(error))
    if found is None or found.payload.id == id:
        return found.payload if found else None
    return msgspec.structs.replace(found.payload, id=id)


async def finish(bus: Bus, result: Result) -> Result:
    """End a job. Returns the result that stands: this one, or the one somebody wrote before. Raises Retry."""
    stands = result
    try:
        await bus.publish(RESULT, result, wait=True, id=result.id)
    except Taken:
        stands = await result_of(bus, result.id) or result
    await publish_finished(bus, stands)
    return stands


async def publish_finished(bus: Bus, result: Result) -> None:
    """Publish, once, that a job's result is written. Raises Retry."""
    fact = Finished(id=result.id, status=result.status, at=result.ended_at)
    try:
        await bus.publish(JOB_FINISHED, fact, first=True, id=result.id)
    except Taken:
        return


async def ended(bus: Bus, id: str) -> Result | None:
    """A job's result if it is written; then the finished fact is made sure of as well. Raises Retry."""
    if (result := await result_of(bus, id)) is not None:
        await publish_finished(bus, result)
    return result


async def end(bus: Bus, id: str, status: Status, reason: str, error: str) -> Result:
    """End a job without pictures: failed, rejected or cancelled. Returns the result that stands."""
    return await finish(bus, Result(id=id, status=status, ended_at=bus.clock.now(), reason=reason, error=error))


async def cancel(bus: Bus, id: str) -> Result:
    """Cancel a job by writing its result. Returns the result that stands (it may have ended otherwise before)."""
    return await end(bus, id, "cancelled", "cancelled", "cancelled by request")


async def give_up(bus: Bus, delivery: Delivery, status: str, reason: str, error: str) -> None:
    """What a generation job's workers do with one that can't succeed."""
    await end(bus, delivery.id, "rejected" if status == "rejected" else "failed", reason, error)


@asynccontextmanager
async def watched(bus: Bus, id: str) -> AsyncIterator[threading.Event]:
    """An event, good in any thread, that is set when the job has its result, at once or meanwhile. Looked up at the
    start, and again every heartbeat, because listening is lossy; soon and then ever later after an arrival, because a
    subscriber gets a result before its stream has stored it. Raises Retry at the start."""
    stop, scope = threading.Event(), anyio.CancelScope()
    async with bus.listen(RESULT(id=id), buffer=4, flush=False) as arrivals:  # the look is asked for after it

        async def watch() -> None:
            pause = bus.settings.heartbeat
            while not stop.is_set():
                with anyio.move_on_after(pause):
                    await arrivals.receive()
                    pause = SHORTEST
                try:
                    if await result_of(bus, id):
                        stop.set()
                    pause = min(pause * 4, bus.settings.heartbeat)
                except Retry as error:
                    log.warning("unknown yet whether the job was ended", error=str(error))
                    pause = bus.settings.retry_delay

        async def until_left() -> None:
            with scope:
                await watch()

        if await result_of(bus, id):
            stop.set()
        else:
            bus.tasks.start_soon(until_left)
        try:
            yield stop
        finally:
            scope.cancel()


class Watch:
    """One job's result, looked up once when the job is taken (`ended`) and watched until the context ends. `stop` is
    set, in any thread, when it is there."""

    def __init__(self, bus: Bus) -> None:
        self.bus, self.stop = bus, threading.Event()
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    async def ended(self, delivery: Delivery) -> bool:
        """`Work.ended`: is the result written? Then the finished fact is made sure of as well. Raises Retry."""
        self.stop = await self._open.enter_async_context(watched(self.bus, delivery.id))
        if self.stop.is_set():
            await ended(self.bus, delivery.id)
        return self.stop.is_set()
