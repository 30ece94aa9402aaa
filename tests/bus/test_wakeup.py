"""When a queue is looked at, and when the job that came in is enough to know."""

import anyio
from nats.aio.msg import Msg

from bus.client import Bus
from bus.ids import new_id
from bus.subjects import PREPARE
from bus.wakeup import LONGEST, Found, IdleBackoff


def arrival(bus: Bus, tenant: str = "t0") -> Msg:
    return Msg(_client=bus.nc, subject=PREPARE(lane="normal", tenant=tenant, id=new_id()))


async def test_one_arrival_is_named_and_several_are_looked_for(bus: Bus):
    send, receive = anyio.create_memory_object_stream[Msg](8)
    with send, receive:
        backoff = IdleBackoff(PREPARE, receive)
        assert await backoff.wait(Found.SOME) is None, "there may be more: look at once"
        send.send_nowait(arrival(bus, "t3"))
        named = await backoff.wait(Found.NOTHING)
        assert named and named["tenant"] == "t3"
        for _ in range(2):
            send.send_nowait(arrival(bus))
        assert await backoff.wait(Found.ALL) is None
        assert receive.statistics().current_buffer_used == 0


async def test_however_often_jobs_come_in_one_by_one_a_look_is_due_every_second(bus: Bus):
    send, receive = anyio.create_memory_object_stream[Msg](8)
    with send, receive:
        backoff = IdleBackoff(PREPARE, receive)
        assert await backoff.wait(Found.SOME) is None
        backoff.looked -= LONGEST
        send.send_nowait(arrival(bus))
        assert await backoff.wait(Found.ALL) is None, "what was released is found by looks alone"


async def test_a_job_that_is_not_there_yet_is_looked_for_soon(bus: Bus):
    send, receive = anyio.create_memory_object_stream[Msg](8)
    with send, receive:
        backoff = IdleBackoff(PREPARE, receive)
        assert await backoff.wait(Found.SOME) is None
        send.send_nowait(arrival(bus))
        assert await backoff.wait(Found.NOTHING) is not None
        with anyio.fail_after(LONGEST / 2):
            for _ in range(3):
                assert await backoff.wait(Found.NOTHING) is None
