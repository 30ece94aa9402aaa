"""The fault tests that concern the bus: a real server, real processes, and everything that can happen to them.

Whatever happens: each job ends once, nothing acknowledged is lost, and nobody idles silently.
"""

import contextlib
import functools
import signal
from collections import Counter
from pathlib import Path

import anyio
import nats.errors
import pytest
from anyio.streams.memory import MemoryObjectReceiveStream
from nats.aio.msg import Msg

from agents import preprocess
from bus.client import Bus, connect
from bus.errors import Full, Retry, Taken
from bus.followers import Fact, follow
from bus.ids import new_id
from bus.queues import LanePicker, enqueue, serve
from bus.results import end, ended, give_up, result_of
from bus.server import LocalServer
from bus.subjects import DEAD, GENERATE, IMAGE_ENCODED, JOB_STARTED, PREPARE, RESULT
from bus.worker import Delivery, Work, attempts, process
from schemas.images import Encoded
from schemas.jobs import Request, Started
from schemas.settings import BusSettings, LimitSettings
from tests.bus.faults import Server, Worker, ask, play_catalog, result, until, work
from tests.conftest import QUICK, running

SOON = 1.0
"""Seconds from a reconnect to the next job."""


async def ended_once(bus: Bus, ids: list[str]) -> None:
    """Each job has its one result, and the queue forgot it."""
    for id in ids:
        await result(bus, id)
    assert set((await bus.waiting("RESULTS", RESULT.filter())).values()) == {1}

    async def forgotten() -> bool:
        return not await bus.waiting("PREPARE", PREPARE.filter())

    await until(forgotten)


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
async def test_nothing_acknowledged_is_lost_however_often_the_server_is_killed_under_load(tmp_path: Path, kills: int):
    acknowledged: set[str] = set()
    stop = anyio.Event()
    with Server(tmp_path / "nats") as server:
        async with connect(server.url, QUICK, name="test") as bus:

            async def publisher() -> None:
                while not stop.is_set():
                    id = new_id()
                    with contextlib.suppress(Full):
                        await enqueue(bus, PREPARE, Request(prompt="x"), lane="low", tenant="t1", id=id)
                        acknowledged.add(id)
                    with contextlib.suppress(Taken):
                        await bus.publish(
                            IMAGE_ENCODED, Encoded(id=id, pictures=(), seconds=0, at=0), first=True, id=id
                        )

            async with anyio.create_task_group() as tasks:
                for _ in range(8):
                    tasks.start_soon(publisher)
                for _ in range(kills):
                    enough = len(acknowledged) + 100

                    async def more(enough: int = enough) -> bool:
                        await anyio.lowlevel.checkpoint()
                        return len(acknowledged) >= enough

                    await until(more)
                    await server.restart()
                stop.set()
            stored = await bus.waiting("PREPARE", PREPARE.filter())
            facts = await bus.waiting("EVENTS", IMAGE_ENCODED.filter())
    assert len(acknowledged) >= 100 * kills
    assert {PREPARE(lane="low", tenant="t1", id=id) for id in acknowledged} <= set(stored)
    assert {IMAGE_ENCODED(id=id) for id in acknowledged} <= set(facts)
    assert set(facts.values()) == {1}


async def test_a_retried_publish_whose_answer_was_lost_is_no_refusal_and_is_stored_once(bus: Bus, monkeypatch):
    stored, lost, publish = [], [], bus.js.publish

    async def publish_and_lose_the_first_answer(subject, *args, **kwargs):
        answer = await publish(subject, *args, **kwargs)
        stored.append(answer.seq)
        if subject not in lost:
            lost.append(subject)
            raise nats.errors.TimeoutError
        return answer

    monkeypatch.setattr(bus.js, "publish", publish_and_lose_the_first_answer)
    id = new_id()
    assert await bus.publish(PREPARE, Request(prompt="x"), lane="low", tenant="t1", id=id) == stored[0]
    fact = Encoded(id=id, pictures=(), seconds=0, at=0)
    assert await bus.publish(IMAGE_ENCODED, fact, first=True, id=id) == stored[1]
    with pytest.raises(Taken):
        await bus.publish(PREPARE, Request(prompt="another"), lane="low", tenant="t1", id=id)
    await bus.publish(JOB_STARTED, Started(id=id, attempt=1, worker="w", at=0.0), id=id)
    assert await attempts(bus, "generate", id) == 1


async def test_a_worker_stopped_past_its_lease_can_not_overwrite_what_another_finished(
    bus: Bus, nats_server: LocalServer
):
    async with Worker(nats_server.url, "slow") as slow:
        id = await ask(bus, "hold")
        assert await slow.hear("began") == id
        slow.process.send_signal(signal.SIGSTOP)
        async with Worker(nats_server.url, "quick"):
            assert (await result(bus, id)).reason == "quick"
            slow.process.send_signal(signal.SIGCONT)
            slow.go_on()
            assert await slow.hear("stands") == "quick"
            await ended_once(bus, [id, await ask(bus)])


async def test_a_loop_blocked_for_twice_its_lease_ends_no_job_twice(bus: Bus, nats_server: LocalServer):
    async with Worker(nats_server.url, "slow") as slow:
        id = await ask(bus, "block")
        assert await slow.hear("began") == id
        async with Worker(nats_server.url, "quick"):  # the redelivery goes to either of them
            told = await result(bus, id)
            assert await slow.hear("stands") == told.reason
        later = await ask(bus)
        await ended_once(bus, [id, later])
        assert (await result_of(bus, later)).reason == "slow"  # it works on


@pytest.mark.parametrize("seconds", [3.0, pytest.param(60.0, marks=pytest.mark.slow)])
async def test_a_server_frozen_for_a_while_delays_and_loses_nothing(tmp_path: Path, seconds: float):
    with Server(tmp_path / "nats") as server:
        async with connect(server.url, QUICK, name="test") as bus:

            async def handle(request: Request, delivery: Delivery) -> None:
                await end(bus, delivery.id, "failed", "done", "")

            async with running(functools.partial(serve, bus, work(bus, handle), "w")):
                ids = [await ask(bus)]
                async with anyio.create_task_group() as tasks:
                    with server.frozen(), anyio.move_on_after(seconds):
                        for _ in range(20):
                            ids.append(new_id())
                            tasks.start_soon(functools.partial(ask, bus, id=ids[-1]))
                        await anyio.sleep_forever()
                await ended_once(bus, ids)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_parked_pulls_hear_the_next_job_within_a_second_of_a_reconnect(tmp_path: Path, number: int):
    with Server(tmp_path / "nats") as server:
        async with connect(server.url, QUICK, name="test") as bus, connect(server.url, QUICK, name="asker") as asker:
            done: dict[str, float] = {}
            back: list[float] = []

            async def handle(request: Request, delivery: Delivery) -> None:
                done[delivery.id] = anyio.current_time()

            bus.on_reconnect.add(lambda: back.append(anyio.current_time()))
            async with running(functools.partial(serve, bus, work(bus, handle), "w")):
                for _ in range(2):
                    back.clear()
                    await server.restart(number)
                    id = await ask(asker)

                    async def is_done(id: str = id) -> bool:
                        await bus.flush()
                        return id in done

                    await until(is_done)
                    assert done[id] - back[0] < SOON


async def planned_is(planned: MemoryObjectReceiveStream[Msg], id: str) -> None:
    """A job is queued for a generator. (Others may be said again: their preparing was interrupted.)"""
    with anyio.fail_after(10):
        while GENERATE.parse((await planned.receive()).subject)["id"] != id:
            pass


async def test_those_who_pick_hear_the_next_job_within_a_second_of_a_reconnect(tmp_path: Path):
    with Server(tmp_path / "nats") as server:
        async with connect(server.url, QUICK, name="test") as bus, connect(server.url, QUICK, name="asker") as asker:
            back: list[float] = []
            bus.on_reconnect.add(lambda: back.append(anyio.current_time()))
            plan = functools.partial(preprocess.run, bus, LimitSettings())
            async with running(functools.partial(play_catalog, bus), plan):
                for _ in range(3):
                    back.clear()
                    await server.restart()
                    async with asker.listen(GENERATE.filter()) as planned:
                        id = await ask(asker)
                        await planned_is(planned, id)
                    assert anyio.current_time() - back[0] < SOON


async def test_deleted_consumers_and_deleted_streams_are_made_again(bus: Bus, nats_server: LocalServer):
    seen: list[str] = []

    async def remember(facts: list[Fact]) -> None:
        seen.extend(fact.payload.id for fact in facts)

    async def say(id: str) -> None:
        await bus.publish(IMAGE_ENCODED, Encoded(id=id, pictures=(), seconds=0, at=0), id=id)

    async def heard(id: str) -> None:
        async def is_seen() -> bool:
            await bus.flush()
            return id in seen

        await until(is_seen)

    listening = functools.partial(
        follow, bus, "EVENTS", (IMAGE_ENCODED,), "f", remember, pattern=IMAGE_ENCODED.filter()
    )
    async with connect(nats_server.url, QUICK, name="agent") as agent:

        async def handle(request: Request, delivery: Delivery) -> None:
            await end(agent, delivery.id, "failed", "done", "")

        async with running(listening, functools.partial(serve, agent, work(agent, handle), "w")):
            await result(bus, await ask(bus))
            await say(new_id())
            await bus.js.delete_consumer("PREPARE", "w")
            await bus.js.delete_consumer("EVENTS", "f")
            await say(other := new_id())
            await result(bus, await ask(bus))
            await heard(other)
            for stream in ("PREPARE", "RESULTS", "EVENTS"):
                await bus.js.delete_stream(stream)
            await result(bus, await ask(bus))
            await say(third := new_id())
            await heard(third)
    assert [seen.count(id) for id in (other, third)] == [1, 1]


async def test_those_who_pick_get_over_a_deleted_consumer_and_a_deleted_stream(bus: Bus):
    plan = functools.partial(preprocess.run, bus, LimitSettings())
    async with running(functools.partial(play_catalog, bus), plan), bus.listen(GENERATE.filter()) as planned:
        for streams in ((), ("PREPARE", "GENERATE", "EVENTS")):
            id = await ask(bus)
            await planned_is(planned, id)
            await bus.js.delete_consumer("PREPARE", "prepare-normal-t0")
            for stream in streams:
                await bus.js.delete_stream(stream)
        id = await ask(bus)
        await planned_is(planned, id)


async def test_a_store_of_ten_megabytes_fills_up_drains_and_recovers(tmp_path: Path):
    tight = BusSettings(ack_wait=2.0, heartbeat=0.5, retry_delay=0.05, store_bytes=10 * 1024**2)
    runs: Counter[str] = Counter()
    with Server(tmp_path / "nats", store_bytes=10 * 1024**2) as server:
        async with connect(server.url, tight, name="test") as bus:

            async def handle(request: Request, delivery: Delivery) -> None:
                runs[delivery.id] += 1
                await end(bus, delivery.id, "failed", "done", "")

            large = Request(prompt="x" * 20_000)
            ids: list[str] = []
            with pytest.raises(Full):
                while True:
                    id = new_id()
                    await bus.publish(PREPARE, large, lane="low", tenant="t1", id=id)
                    ids.append(id)
            assert len(ids) > 10
            async with anyio.create_task_group() as tasks:
                for _ in range(100):
                    ids.append(new_id())
                    tasks.start_soon(
                        functools.partial(enqueue, bus, PREPARE, large, lane="low", tenant="t1", id=ids[-1])
                    )
                tasks.start_soon(functools.partial(serve, bus, work(bus, handle), "w"))
                await ended_once(bus, ids)
                tasks.cancel_scope.cancel()
            await bus.publish(PREPARE, large, lane="low", tenant="t1", id=new_id())
    assert set(runs.values()) == {1} and len(runs) == len(ids)


async def test_a_job_that_kills_its_worker_is_a_dead_letter_after_exactly_three_and_others_go_on(
    bus: Bus, nats_server: LocalServer
):
    poison = await ask(bus, "die")
    for _ in range(QUICK.max_attempts):
        async with Worker(nats_server.url, "quick") as worker:
            assert await worker.hear("began") == poison
            assert await anyio.to_thread.run_sync(worker.process.wait) == 9
    async with Worker(nats_server.url, "quick"):
        good = await ask(bus)
        assert (await result(bus, good)).reason == "quick"
        assert (await result(bus, poison)).reason == "exhausted"
    assert await attempts(bus, "prepare", poison) == QUICK.max_attempts
    assert await bus.last(DEAD, kind="prepare", reason="exhausted", id=poison)
    assert len(await bus.waiting("DLQ", DEAD.filter())) == 1


async def test_jobs_published_three_times_at_once_and_again_long_after_run_once(bus: Bus):
    runs: Counter[str] = Counter()

    async def handle(request: Request, delivery: Delivery) -> None:
        runs[delivery.id] += 1
        await end(bus, delivery.id, "failed", "done", "")

    ids = [new_id() for _ in range(40)]
    async with anyio.create_task_group() as tasks:
        await tasks.start(functools.partial(serve, bus, work(bus, handle), "w", concurrency=4))
        for _ in range(2):  # the second time the queue has forgotten them: jobs carry no message id, so no window ends
            async with anyio.create_task_group() as publishing:
                for id in ids * 3:
                    publishing.start_soon(
                        functools.partial(enqueue, bus, PREPARE, Request(prompt="x"), lane="low", tenant="t1", id=id)
                    )
            await ended_once(bus, ids)
        tasks.cancel_scope.cancel()
    assert runs == dict.fromkeys(ids, 1)


async def test_a_flood_from_one_tenant_delays_anothers_single_job_by_its_share_alone(nats_server: LocalServer):
    short = BusSettings(ack_wait=2.0, heartbeat=0.5, retry_delay=0.05, generate_queue=2, store_bytes=512 * 1024**2)
    async with connect(nats_server.url, short, name="test") as bus:
        for _ in range(100):
            await ask(bus, tenant="t0")

        async def draw(plan, delivery: Delivery) -> None:
            await end(bus, delivery.id, "failed", "done", "")

        plan = functools.partial(preprocess.run, bus, LimitSettings())
        async with running(functools.partial(play_catalog, bus), plan):

            async def queue_full() -> bool:
                return len(await bus.waiting("GENERATE", GENERATE.filter())) == 2

            await until(queue_full)
            single = await ask(bus, tenant="t5")
            drawn = await drain(bus, draw, until_id=single)
    assert len(drawn) <= 6, "two were queued, one was being planned, and then it is the others' turn"


async def drain(bus: Bus, draw, until_id: str) -> list[str]:
    """Draw what is planned, one at a time, until a job had its turn."""
    picker, drawn = LanePicker(bus, GENERATE), []
    done = Work(GENERATE, draw, ended=lambda d: ended(bus, d.id), give_up=functools.partial(give_up, bus))
    with anyio.fail_after(15):
        while until_id not in drawn:
            if message := await picker.take(lane="normal", model="ab" * 6):
                drawn.append(GENERATE.parse(message.subject)["id"])
                await process(bus, done, message)
    return drawn


async def test_a_worker_told_to_stop_gives_its_long_job_back_and_no_attempt_is_used_up(
    bus: Bus, nats_server: LocalServer
):
    id = await ask(bus, "forever")
    for _ in range(QUICK.max_attempts + 1):
        async with Worker(nats_server.url, "slow") as slow:
            assert await slow.hear("began", seconds=QUICK.ack_wait * 0.9) == id  # before its lease would have run out
            slow.process.send_signal(signal.SIGTERM)
            with anyio.fail_after(5):
                assert await anyio.to_thread.run_sync(slow.process.wait, abandon_on_cancel=True) == 0
    assert await attempts(bus, "prepare", id) == 0
    async with Worker(nats_server.url, "quick"):
        assert (await result(bus, id)).reason == "quick"


async def test_a_dependency_that_is_away_is_no_attempt(bus: Bus):
    tries = []

    async def handle(request: Request, delivery: Delivery) -> None:
        tries.append(delivery.delivered)
        if len(tries) < 5:
            raise (Full("downstream"), Retry("catalog"))[len(tries) % 2]
        await end(bus, delivery.id, "failed", "done", "")

    async with running(functools.partial(serve, bus, work(bus, handle), "w")):
        assert (await result(bus, await ask(bus))).reason == "done"
