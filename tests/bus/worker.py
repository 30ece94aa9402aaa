"""A worker process for the fault tests: `python -m tests.bus.worker URL NAME` serves PREPARE until SIGTERM.

What it does with a job stands in the job's prompt. It tells on standard output what happens, a line each.
"""

import functools
import os
import signal
import sys
import time

import anyio
import anyio.to_thread

from bus.client import Bus, connect
from bus.queues import serve
from bus.results import end, ended, give_up
from bus.subjects import PREPARE
from bus.worker import Delivery, Work
from schemas.jobs import Request
from tests.conftest import QUICK


def say(*words: object) -> None:
    """One line, at once."""
    print(*words, flush=True)


async def handle(bus: Bus, name: str, request: Request, delivery: Delivery) -> None:
    """quick: end it. hold: when a line comes in. block: hold the loop first. die: end the process. forever: never."""
    say("began", delivery.id)
    match request.prompt:
        case "hold" if name == "slow":
            await anyio.to_thread.run_sync(sys.stdin.readline)
        case "block" if name == "slow":
            time.sleep(2 * QUICK.ack_wait)  # noqa: ASYNC251 (that is the fault)
        case "die":
            os._exit(9)
        case "forever" if name == "slow":
            await anyio.sleep_forever()
    stands = await end(bus, delivery.id, "failed", name, f"ended by {name}")
    say("stands", stands.reason)


async def main(url: str, name: str) -> None:
    """Serve until SIGTERM."""
    async with anyio.create_task_group() as outer:

        async def until_signalled() -> None:
            with anyio.open_signal_receiver(signal.SIGTERM) as signals:
                async for _ in signals:
                    outer.cancel_scope.cancel()

        outer.start_soon(until_signalled)
        async with connect(url, QUICK, name=name) as bus, anyio.create_task_group() as tasks:
            work = Work(
                PREPARE,
                functools.partial(handle, bus, name),
                ended=lambda delivery: ended(bus, delivery.id),
                give_up=functools.partial(give_up, bus),
            )
            await tasks.start(functools.partial(serve, bus, work, "worker"))
            say("ready")
            await anyio.sleep_forever()


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:])
