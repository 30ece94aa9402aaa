"""How a job ends: exactly one result, the first writer wins, and a finished fact follows it."""

import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import msgspec
import structlog

from bus.client import Bus
from bus.errors import Retry, Taken, Undecodable
from bus.subjects import JOB_FINISHED, RESULT
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
        return Result(id=id, status="failed", ended_at=time.time(), reason="undecodable-result", error=str(error))
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
    await say_finished(bus, stands)
    return stands


async def say_finished(bus: Bus, result: Result) -> None:
    """Say, once, that a job's result is written. Raises Retry."""
    fact = Finished(id=result.id, status=result.status, at=result.ended_at)
    try:
        await bus.publish(JOB_FINISHED, fact, first=True, id=result.id)
    except Taken:
        return


async def ended(bus: Bus, id: str) -> bool:
    """Is a job's result written? Then the finished fact is made sure of as well. Raises Retry."""
    if (result := await result_of(bus, id)) is None:
        return False
    await say_finished(bus, result)
    return True


async def end(bus: Bus, id: str, status: Status, reason: str, error: str) -> Result:
    """End a job without pictures: failed, rejected or cancelled. Returns the result that stands."""
    return await finish(bus, Result(id=id, status=status, ended_at=time.time(), reason=reason, error=error))


async def cancel(bus: Bus, id: str) -> Result:
    """Cancel a job by writing its result. Returns the result that stands (it may have ended otherwise before)."""
    return await end(bus, id, "cancelled", "cancelled", "cancelled by request")


async def give_up(bus: Bus, delivery: Delivery, status: str, reason: str, error: str) -> None:
    """What a generation job's workers do with one that can't succeed."""
    await end(bus, delivery.id, "rejected" if status == "rejected" else "failed", reason, error)


@asynccontextmanager
async def watched(bus: Bus, id: str) -> AsyncIterator[threading.Event]:
    """An event, good in any thread, that is set when somebody ends the job meanwhile. Looked up again every heartbeat,
    because hearing is lossy."""
    stop, scope = threading.Event(), anyio.CancelScope()

    async def look_and_listen() -> None:
        async with bus.listen(RESULT(id=id), buffer=4) as heard:
            while await result_of(bus, id) is None:
                with anyio.move_on_after(bus.settings.heartbeat):
                    await heard.receive()
            stop.set()

    async def listening() -> None:
        with scope:
            while not stop.is_set():
                try:
                    await look_and_listen()
                except Retry as error:
                    log.warning("can't tell yet whether the job was ended", error=str(error))
                    await anyio.sleep(bus.settings.retry_delay)

    bus.tasks.start_soon(listening)
    try:
        yield stop
    finally:
        scope.cancel()
