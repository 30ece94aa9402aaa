"""Jobs: done at least once, ended exactly once, whatever the handlers and the server do."""

import functools
import signal
import time

import anyio
import msgspec
import pytest

from bus.client import Bus, connect
from bus.errors import Full, Reject, Retry, Taken
from bus.ids import new_id
from bus.queues import LanePicker, enqueue, serve, was_last
from bus.results import cancel, end, ended, give_up, result_of, watched
from bus.server import LocalServer, local_server
from bus.subjects import ATTEMPT_STARTED, DEAD, GENERATE, JOB_FINISHED, PREFIX, PREPARE, RESULT
from bus.worker import Delivery, Work, attempts, process
from schemas.jobs import Request, Started
from schemas.settings import BusSettings
from tests.conftest import QUICK, running


def work(bus: Bus, handle) -> Work[Request]:
    return Work(
        PREPARE,
        handle,
        ended=lambda delivery: ended(bus, delivery.id),
        give_up=functools.partial(give_up, bus),
    )


async def ask(bus: Bus, prompt: str = "a cat", id: str | None = None) -> str:
    id = id or new_id()
    await bus.publish(PREPARE, Request(prompt=prompt), lane="normal", tenant="t0", id=id)
    return id


async def result(bus: Bus, id: str):
    """The result of a job, waited for by listening."""
    async with watched(bus, id) as done:
        with anyio.fail_after(20):
            await anyio.to_thread.run_sync(done.wait, 20)
    return await result_of(bus, id)


async def until_forgotten(bus: Bus, id: str) -> None:
    """The queue no longer holds a job (acks travel one way, so this is a moment later than its result)."""
    with anyio.fail_after(10):
        while await bus.waiting("PREPARE", PREPARE(lane="normal", tenant="t0", id=id)):
            await bus.flush()


async def test_a_job_that_returns_is_acknowledged_and_gone(bus: Bus):
    async def handle(request: Request, delivery: Delivery) -> None:
        await end(bus, delivery.id, "failed", "test", request.prompt)

    async with running(functools.partial(serve, bus, work(bus, handle), "w")):
        id = await ask(bus, "a dog")
        assert (await result(bus, id)).error == "a dog"
        await until_forgotten(bus, id)
    assert (await bus.last(JOB_FINISHED, id=id)).payload.status == "failed"


async def test_the_same_request_three_times_is_one_result(bus: Bus):
    seen = []

    async def handle(request: Request, delivery: Delivery) -> None:
        seen.append(delivery.id)
        await end(bus, delivery.id, "failed", "test", f"run {len(seen)}")

    id = await ask(bus)
    for _ in range(2):
        with pytest.raises(Taken):
            await ask(bus, id=id)
    async with running(functools.partial(serve, bus, work(bus, handle), "w")):
        assert (await result(bus, id)).error == "run 1"
        await until_forgotten(bus, id)
        await ask(bus, id=id)  # long after: the queue has forgotten it, the result has not
        later = await ask(bus)
        await result(bus, later)
    assert seen == [id, later]


async def test_a_retry_is_no_attempt_however_often(bus: Bus):
    tries = []

    async def handle(request: Request, delivery: Delivery) -> None:
        tries.append(delivery.delivered)
        if len(tries) < 6:
            raise Retry("the catalog is away")
        await end(bus, delivery.id, "failed", "done", "at last")

    async with running(functools.partial(serve, bus, work(bus, handle), "w")):
        id = await ask(bus)
        assert (await result(bus, id)).reason == "done"
    assert len(tries) == 6


async def test_a_job_that_keeps_failing_ends_failed_with_a_dead_letter_and_the_others_go_on(bus: Bus):
    tries = []

    async def handle(request: Request, delivery: Delivery) -> None:
        if request.prompt == "poison":
            tries.append(delivery.delivered)
            raise RuntimeError("boom")
        await end(bus, delivery.id, "failed", "fine", "")

    async with running(functools.partial(serve, bus, work(bus, handle), "w")):
        poison, good = await ask(bus, "poison"), await ask(bus, "good")
        assert (await result(bus, good)).reason == "fine"
        bad = await result(bus, poison)
    assert (bad.status, bad.reason, len(tries)) == ("failed", "exhausted", 3)
    assert "boom" in bad.error
    letter = await bus.last(DEAD, kind="prepare", reason="exhausted", id=poison)
    assert msgspec.json.decode(bytes(letter.payload), type=Request).prompt == "poison"


async def died(bus: Bus, id: str, attempt: int) -> None:
    """An attempt whose worker ended with it."""
    fact = Started(id=id, attempt=attempt, worker="test:1", at=time.time())
    await bus.publish(ATTEMPT_STARTED, fact, kind="prepare", id=id)


async def test_a_job_that_failed_and_whose_worker_died_then_ends_with_why_it_failed(bus: Bus):
    tries = []

    async def handle(request: Request, delivery: Delivery) -> None:
        tries.append(delivery.delivered)
        if len(tries) == 2:
            await died(bus, delivery.id, 3)  # as if another worker had taken it meanwhile
        raise RuntimeError("boom")

    async with running(functools.partial(serve, bus, work(bus, handle), "w")):
        id = await ask(bus)
        told = await result(bus, id)
    assert (told.status, told.reason, len(tries)) == ("failed", "exhausted", 2)
    assert "after 3 attempts: RuntimeError: boom" in told.error and "died 1 time while" in told.error
    letter = await bus.raw("DLQ", DEAD(kind="prepare", reason="exhausted", id=id))
    assert letter


@pytest.mark.parametrize("retried", [False, True])
async def test_only_a_job_whose_every_worker_died_is_told_so(bus: Bus, retried: bool):
    async def handle(request: Request, delivery: Delivery) -> None:
        for attempt in range(3):
            await died(bus, delivery.id, attempt)
        raise Retry("the catalog is away", delay=0.1)

    async with running(functools.partial(serve, bus, work(bus, handle), "w")):
        id = new_id()
        if not retried:
            for attempt in range(3):
                await died(bus, id, attempt)
        await ask(bus, id=id)
        told = await result(bus, id)
    assert told.error == "given up after 3 attempts: its worker died 3 times while it ran"


async def test_a_reject_inside_a_task_group_still_means_reject(bus: Bus):
    async def handle(request: Request, delivery: Delivery) -> None:
        async with anyio.create_task_group():
            raise Reject("unknown-model", "no such model")

    async with running(functools.partial(serve, bus, work(bus, handle), "w")):
        id = await ask(bus)
        told = await result(bus, id)
    assert (told.status, told.reason, told.error) == ("rejected", "unknown-model", "no such model")


async def test_several_errors_at_once_that_are_no_attempts_are_none_together(bus: Bus):
    tries = 0

    async def handle(request: Request, delivery: Delivery) -> None:
        nonlocal tries
        if (tries := tries + 1) <= 4:
            raise ExceptionGroup("of two tasks", [Full("no room"), Retry("no answer")])
        await end(bus, delivery.id, "failed", "done", "")

    async with running(functools.partial(serve, bus, work(bus, handle), "w")):
        told = await result(bus, await ask(bus))
    assert (told.reason, tries) == ("done", 5)


async def test_what_can_not_be_decoded_is_a_dead_letter_and_a_rejected_result(bus: Bus):
    id = new_id()
    await bus.publish_raw(PREPARE(lane="normal", tenant="t0", id=id), b'{"prompt": 7}')

    async def handle(request: Request, delivery: Delivery) -> None:
        raise AssertionError("never called")

    async with running(functools.partial(serve, bus, work(bus, handle), "w")):
        assert (await result(bus, id)).reason == "undecodable"
    assert await bus.last(DEAD, reason="undecodable", id=id)


async def test_a_subject_nobody_could_take_becomes_a_dead_letter(bus: Bus):
    await bus.publish_raw(PREFIX + "job.prepare.normal.t0.NOT-AN-ID", b"{}")
    await bus.publish_raw(PREFIX + "job.prepare.someday", b"{}")
    picker = LanePicker(bus, PREPARE)
    id = await ask(bus)
    assert [tokens["id"] for tokens in await picker.waiting()] == [id]
    assert len(await bus.waiting("DLQ", PREFIX + "dlq.prepare.bad_subject.*")) == 2
    assert list(await bus.waiting("PREPARE", PREFIX + "job.>")) == [PREPARE(lane="normal", tenant="t0", id=id)]


async def test_a_stopped_worker_gives_its_jobs_back_at_once(bus: Bus):
    begun = anyio.Event()

    async def stuck(request: Request, delivery: Delivery) -> None:
        begun.set()
        await anyio.sleep_forever()

    async def handle(request: Request, delivery: Delivery) -> None:
        await end(bus, delivery.id, "failed", "done", "")

    async with running(functools.partial(serve, bus, work(bus, stuck), "w", window=8)):
        ids = [await ask(bus) for _ in range(5)]
        await begun.wait()
    async with running(functools.partial(serve, bus, work(bus, handle), "w")):
        with anyio.fail_after(QUICK.ack_wait * 0.9):  # sooner than their leases would have run out
            ends = [await result(bus, id) for id in ids]
    assert [(end.id, end.reason) for end in ends] == [(id, "done") for id in ids]


async def test_a_lease_outlasts_a_thread_that_hogs_the_interpreter(bus: Bus):
    runs = []

    def hog(until: float) -> None:
        while time.monotonic() < until:
            sum(range(1000))

    async def handle(request: Request, delivery: Delivery) -> None:
        runs.append(delivery.delivered)
        await anyio.to_thread.run_sync(hog, time.monotonic() + 2.5 * QUICK.ack_wait)
        await end(bus, delivery.id, "failed", "done", "")

    async with running(functools.partial(serve, bus, work(bus, handle), "w", concurrency=2)):
        await result(bus, await ask(bus))
    assert runs == [1]


async def test_a_stale_worker_can_not_overwrite_the_result(bus: Bus):
    id = new_id()
    first = await end(bus, id, "cancelled", "cancelled", "by the user")
    second = await end(bus, id, "failed", "late", "a worker that was away")
    assert first == second
    assert (await result_of(bus, id)).status == "cancelled"
    assert await bus.waiting("RESULTS", RESULT(id=id)) == {RESULT(id=id): 1}


async def test_a_full_queue_is_waited_for_and_nothing_is_lost(nats_server: LocalServer):
    small = BusSettings(prepare_queue=2, store_bytes=256 * 1024 * 1024, ack_wait=2, heartbeat=0.5)
    seen = []
    async with connect(nats_server.url, small, name="test") as bus:
        await ask(bus)
        await ask(bus)
        with pytest.raises(Full, match="no room"):
            await ask(bus)
        all_seen = anyio.Event()

        async def handle(request: Request, delivery: Delivery) -> None:
            seen.append(delivery.id)
            if len(seen) == 8:
                all_seen.set()

        async with anyio.create_task_group() as tasks:
            for _ in range(6):
                tasks.start_soon(
                    lambda: enqueue(bus, PREPARE, Request(prompt="x"), lane="low", tenant="t1", id=new_id())
                )
            await tasks.start(functools.partial(serve, bus, work(bus, handle), "w"))
            with anyio.fail_after(20):
                await all_seen.wait()
            tasks.cancel_scope.cancel()
    assert len(set(seen)) == 8


async def test_who_dies_while_a_job_waits_for_room_leaves_no_attempt(nats_server: LocalServer):
    small = BusSettings(generate_queue=1, store_bytes=256 * 1024 * 1024, ack_wait=2, heartbeat=0.5)
    place = {"lane": "low", "model": "0" * 12}
    async with connect(nats_server.url, small, name="test") as bus:
        await bus.publish(GENERATE, {}, **place, id="0" * 32)
        asked, counted = await ask(bus), []

        async def handle(request: Request, delivery: Delivery) -> None:
            counted.append(await attempts(bus, "prepare", delivery.id))
            await enqueue(bus, GENERATE, {}, **place, id=delivery.id, release=delivery.release)

        async with running(functools.partial(serve, bus, work(bus, handle), "w")):
            with anyio.fail_after(20):
                while not counted or await attempts(bus, "prepare", asked):
                    await bus.flush()
            assert [*await bus.waiting("GENERATE", GENERATE.filter())] == [GENERATE(**place, id="0" * 32)]
            await bus.js.purge_stream("GENERATE")
            await until_forgotten(bus, asked)
        assert [*await bus.waiting("GENERATE", GENERATE.filter())] == [GENERATE(**place, id=asked)]
        assert (counted, await attempts(bus, "prepare", asked)) == ([1], 0)


async def test_a_job_that_waited_for_room_and_was_shut_down_is_released_once(nats_server: LocalServer):
    small = BusSettings(generate_queue=1, store_bytes=256 * 1024 * 1024, ack_wait=2, heartbeat=0.5)
    place = {"lane": "low", "model": "0" * 12}
    async with connect(nats_server.url, small, name="test") as bus:
        await bus.publish(GENERATE, {}, **place, id="0" * 32)
        asked, waits = await ask(bus), anyio.Event()

        async def handle(request: Request, delivery: Delivery) -> None:
            async def release(why: str) -> None:
                await delivery.release(why)
                waits.set()

            await enqueue(bus, GENERATE, {}, **place, id=delivery.id, release=release)

        async with running(functools.partial(serve, bus, work(bus, handle), "w")):
            with anyio.fail_after(20):
                await waits.wait()
        assert await attempts(bus, "prepare", asked) == 0


async def test_a_cancelled_job_is_told_to_stop_while_it_runs(bus: Bus):
    async with watched(bus, id := new_id()) as stop:
        assert not stop.is_set()
        await cancel(bus, id)
        assert await anyio.to_thread.run_sync(stop.wait, 5)


async def test_a_result_that_is_announced_before_it_is_stored_stops_its_job_soon(nats_server: LocalServer, monkeypatch):
    looks = []

    async def stored_late(bus: Bus, id: str):
        looks.append(id)
        return await result_of(bus, id) if len(looks) > 3 else None

    monkeypatch.setattr("bus.results.result_of", stored_late)
    slow = msgspec.structs.replace(QUICK, ack_wait=120.0, heartbeat=60.0)
    async with connect(nats_server.url, slow, name="test") as bus, watched(bus, id := new_id()) as stop:
        await cancel(bus, id)
        assert await anyio.to_thread.run_sync(stop.wait, 5), "not at the next heartbeat alone"


async def test_parked_pulls_and_jobs_survive_a_restart_of_the_server(tmp_path):
    done, handled = anyio.Event(), []

    async def handle(request: Request, delivery: Delivery) -> None:
        handled.append(delivery.id)
        done.set()

    first = local_server(tmp_path / "nats", port=0, store_bytes=1024**3)
    server = first.__enter__()
    port = int(server.url.rsplit(":", 1)[1])
    try:
        async with (
            connect(server.url, QUICK, name="test") as bus,
            running(functools.partial(serve, bus, work(bus, handle), "w")),
        ):
            server.process.send_signal(signal.SIGKILL)
            server.process.wait()
            with local_server(tmp_path / "nats", port=port, store_bytes=1024**3):
                id = await ask(bus)
                with anyio.fail_after(3):
                    await done.wait()
                assert handled == [id]
    finally:
        first.__exit__(None, None, None)


async def test_a_deleted_consumer_is_made_again(bus: Bus):
    done, handled = anyio.Event(), []

    async def handle(request: Request, delivery: Delivery) -> None:
        handled.append(delivery.id)
        done.set()

    async with running(functools.partial(serve, bus, work(bus, handle), "w")):
        await bus.js.delete_consumer("PREPARE", "w")
        id = await ask(bus)
        with anyio.fail_after(15):
            await done.wait()
    assert handled == [id]
    assert (await bus.js.consumer_info("PREPARE", "w")).name == "w"


async def test_a_picker_takes_from_the_queue_it_names_and_knows_what_is_held(bus: Bus):
    picker = LanePicker(bus, PREPARE)
    low, high = new_id(), new_id()
    await bus.publish(PREPARE, Request(prompt="low"), lane="low", tenant="t0", id=low)
    await bus.publish(PREPARE, Request(prompt="high"), lane="high", tenant="t3", id=high)
    assert await picker.take(lane="high", tenant="t0") is None
    message = await picker.take(lane="high", tenant="t3")
    seen = []

    async def handle(request: Request, delivery: Delivery) -> None:
        seen.append((request.prompt, delivery.tokens["tenant"]))

    await process(bus, work(bus, handle), message)
    assert seen == [("high", "t3")]
    assert await picker.take(lane="high", tenant="t3") is None
    assert low in [tokens["id"] for tokens in await picker.waiting()]


async def test_a_picker_waits_for_an_announced_job_that_is_not_stored_yet(bus: Bus):
    picker, taken = LanePicker(bus, PREPARE), []

    async def take() -> None:
        taken.append(await picker.take(announced=True, lane="normal", tenant="t0"))

    assert await picker.take(announced=True, lane="normal", tenant="t0") is None, "for a moment only"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(take)
        first = await ask(bus)
    assert PREPARE.parse(taken[0].subject)["id"] == first
    assert was_last(taken[0])
    await ask(bus)
    await ask(bus)
    assert not was_last(await picker.take(lane="normal", tenant="t0"))
    assert was_last(await picker.take(lane="normal", tenant="t0"))


async def test_a_handler_knows_whether_anybody_began_its_job_before(bus: Bus):
    firsts = []

    async def handle(request: Request, delivery: Delivery) -> None:
        firsts.append(delivery.first)
        if len(firsts) == 1:
            raise Retry("not now")
        await end(bus, delivery.id, "failed", "done", "")

    async with running(functools.partial(serve, bus, work(bus, handle), "w")):
        await result(bus, await ask(bus))
    assert firsts == [True, False], "a released attempt is none, but what it stored may be there"
