"""What the bus does with what is odd: rubbish on its subjects, answers that never come, connections that end."""

import functools
import time

import anyio
import pytest
from nats.micro.request import ERROR_CODE_HEADER, ERROR_HEADER
from structlog.testing import capture_logs

from bus.client import ERROR, ERROR_CODE, PIECE_BYTES, PIECES, Bus, connect
from bus.errors import INTERNAL, Declined, Fail, NoAnswer, NoBus, TooLarge
from bus.followers import Fact, follow
from bus.ids import new_id
from bus.queues import LanePicker, serve
from bus.results import end, result_of
from bus.server import LocalServer
from bus.streams import MAX_MESSAGE
from bus.subjects import ASK_IMPORT, ASK_METRICS, DEAD, IMAGE_ENCODED, PREFIX, PREPARE, RESULT
from bus.worker import Delivery, sole, words
from schemas.asks import Metrics, Nothing
from schemas.images import Encoded
from schemas.imports import AskImport
from schemas.jobs import Request
from tests.bus.faults import Server, ask, result, until, work
from tests.conftest import QUICK, running


def encoded(id: str) -> Encoded:
    return Encoded(id=id, pictures=(), seconds=0, at=0)


async def test_a_connection_that_the_server_ends_for_good_ends_the_agents_too(nats_server: LocalServer):
    with pytest.raises(BaseExceptionGroup) as ended:
        async with connect(nats_server.url, QUICK, name="test") as bus:
            await bus.nc.close()  # as the client does by itself on a protocol error
            await anyio.sleep_forever()
    assert isinstance(sole(ended.value), NoBus)


async def test_a_question_asked_of_a_dead_server_is_answered_when_it_is_back_not_when_its_time_is_up(tmp_path):
    with Server(tmp_path / "nats") as server:
        async with connect(server.url, QUICK, name="test") as bus:
            answered = anyio.Event()

            async def publish() -> None:
                await bus.publish(IMAGE_ENCODED, encoded(id), id=id)
                answered.set()

            id = new_id()
            async with anyio.create_task_group() as tasks:
                with server.frozen():
                    tasks.start_soon(publish)
                    await anyio.wait_all_tasks_blocked()
                    server.kill()
                await server.restart()
                with anyio.fail_after(2):
                    await answered.wait()
            assert await bus.waiting("EVENTS", IMAGE_ENCODED(id=id)) == {IMAGE_ENCODED(id=id): 1}


async def test_a_result_that_nobody_can_read_is_an_end_and_stops_no_worker(bus: Bus):
    async def handle(request: Request, delivery: Delivery) -> None:
        await end(bus, delivery.id, "failed", "done", "")

    rubbish = new_id()
    await bus.publish_raw(RESULT(id=rubbish), b'{"id": 7}')
    async with running(functools.partial(serve, bus, work(bus, handle), "w")):
        await ask(bus, id=rubbish)
        assert (await result(bus, await ask(bus))).reason == "done"

        async def forgotten() -> bool:
            return not await bus.waiting("PREPARE", PREPARE.filter())

        await until(forgotten)
    told = await result_of(bus, rubbish)
    assert (told.status, told.reason) == ("failed", "undecodable-result")


async def test_a_foreign_message_over_our_size_is_a_dead_letter_all_the_same(bus: Bus):
    async def handle(request: Request, delivery: Delivery) -> None:
        raise AssertionError("never called")

    with pytest.raises(TooLarge):
        await bus.publish_raw(PREPARE(lane="low", tenant="t0", id=new_id()), b"x" * (MAX_MESSAGE + 1))
    id = new_id()
    await bus.js.publish(PREPARE(lane="low", tenant="t0", id=id), b"x" * (MAX_MESSAGE + 1000))
    async with running(functools.partial(serve, bus, work(bus, handle), "w")):
        assert (await result(bus, id)).reason == "undecodable"
    letter = await bus.raw("DLQ", DEAD.filter(reason="undecodable", id=id))
    assert letter and len(letter.payload) == MAX_MESSAGE


@pytest.mark.parametrize("text", ["a name \udcff that is not UTF-8", "x" * 5_000, "two\nlines\r\nand a header: x"])
async def test_an_error_rides_the_bus_whatever_it_says(bus: Bus, text: str):
    async def handle(request: Request, delivery: Delivery) -> None:
        if request.prompt == "fail":
            raise Fail("broken", text)
        raise RuntimeError(text)

    async with running(functools.partial(serve, bus, work(bus, handle), "w")):
        assert (await result(bus, await ask(bus, "fail"))).error == words(ValueError(text))
        id = await ask(bus, "crash")
        assert (await result(bus, id)).reason == "exhausted"
    assert await bus.last(DEAD, reason="exhausted", id=id)


async def test_two_who_look_make_one_dead_letter_of_a_stray_and_neither_minds(bus: Bus):
    await bus.publish_raw(PREFIX + "job.prepare.someday", b"{}")
    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(LanePicker(bus, PREPARE).waiting)
    assert len(await bus.waiting("DLQ", DEAD.filter())) == 1
    assert await bus.waiting("PREPARE", PREFIX + "job.>") == {}


async def test_a_job_that_comes_after_its_picker_gave_up_goes_straight_back(bus: Bus):
    picker = LanePicker(bus, PREPARE)
    assert await picker.take(lane="normal", tenant="t0") is None
    id = await ask(bus)
    for _ in range(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(functools.partial(picker.take, lane="normal", tenant="t0"))
            await anyio.lowlevel.checkpoint()  # its question is out
            tasks.cancel_scope.cancel()
    with anyio.fail_after(QUICK.ack_wait * 0.9):  # sooner than its lease would have run out
        while (message := await picker.take(lane="normal", tenant="t0")) is None:
            await bus.flush()
    assert message.subject.endswith(id)


async def test_facts_are_heard_in_order_and_once_though_a_delivery_was_lost(bus: Bus):
    heard: list[int] = []
    ids = [new_id() for _ in range(60)]

    async def remember(facts: list[Fact]) -> None:
        heard.extend(fact.seq for fact in facts)

    async def all_heard() -> bool:
        await bus.flush()
        return len(set(heard)) >= len(ids)

    following = functools.partial(
        follow, bus, "EVENTS", (IMAGE_ENCODED,), "f", remember, pattern=IMAGE_ENCODED.filter(), batch=4
    )
    async with running(following):
        for id in ids[:30]:
            await bus.publish(IMAGE_ENCODED, encoded(id), id=id)
        # Some deliveries end elsewhere, as those do that were on their way when a connection was lost.
        stolen = bus.nc.new_inbox()
        await bus.nc.publish("$JS.API.CONSUMER.MSG.NEXT.EVENTS.f", b'{"batch": 5, "expires": 2000000000}', reply=stolen)
        for id in ids[30:]:
            await bus.publish(IMAGE_ENCODED, encoded(id), id=id)
        await until(all_heard)
    assert heard == sorted(heard) and len(heard) == len(ids)


async def test_a_follower_whose_loop_was_blocked_past_its_leases_applies_nothing_twice(bus: Bus):
    heard: list[int] = []

    async def remember(facts: list[Fact]) -> None:
        if not heard:
            time.sleep(1.5 * QUICK.ack_wait)  # noqa: ASYNC251 (that is the fault)
        heard.extend(fact.seq for fact in facts)

    following = functools.partial(
        follow, bus, "EVENTS", (IMAGE_ENCODED,), "f", remember, pattern=IMAGE_ENCODED.filter(), batch=4
    )
    for _ in range(12):
        await bus.publish(IMAGE_ENCODED, encoded(id := new_id()), id=id)

    async def settled() -> bool:
        info = await bus.js.consumer_info("EVENTS", "f")
        return len(heard) >= 12 and not info.num_ack_pending and not info.num_pending

    async with running(following):
        await until(settled)
    assert heard == sorted(set(heard)) and len(heard) == 12


async def test_a_follower_begins_again_where_it_stopped_and_afresh_from_the_beginning(bus: Bus):
    heard: list[str] = []

    async def remember(facts: list[Fact]) -> None:
        heard.extend(fact.payload.id for fact in facts)

    async def hear(count: int, afresh: int | None = None) -> None:
        async def enough() -> bool:
            await bus.flush()
            return len(heard) >= count

        heard.clear()
        rows, pattern = (IMAGE_ENCODED,), IMAGE_ENCODED.filter()
        following = functools.partial(follow, bus, "EVENTS", rows, "f", remember, pattern=pattern, afresh=afresh)
        async with running(following):
            await until(enough)

    first, second = new_id(), new_id()
    await bus.publish(IMAGE_ENCODED, encoded(first), id=first)
    await hear(1)
    await bus.publish(IMAGE_ENCODED, encoded(second), id=second)
    await hear(1)
    assert heard == [second]
    await hear(2, afresh=1)
    assert heard == [first, second]
    await hear(1, afresh=2)
    assert heard == [second]
    await hear(2, afresh=99)
    assert heard == [first, second], "a stream that is shorter is another one"


@pytest.mark.parametrize("length", [0, PIECE_BYTES - 11, PIECE_BYTES - 10, 2_500_000, 9_000_000])
async def test_an_answer_of_any_length_comes_whole(bus: Bus, length: int):
    text = "x" * length

    async def answer(_: Nothing) -> Metrics:
        return Metrics(text=text)

    async with running(functools.partial(bus.answer, ASK_METRICS, answer)):
        assert (await bus.ask(ASK_METRICS, Nothing(), Metrics)).text == text


async def test_two_long_answers_at_once_do_not_mix(bus: Bus):
    async def answer(ask: AskImport) -> Metrics:
        return Metrics(text=ask.id * 700_000)

    async def check(id: str) -> None:
        assert (await bus.ask(ASK_IMPORT, AskImport(id=id), Metrics, timeout=10)).text == id * 700_000

    async with running(functools.partial(bus.answer, ASK_IMPORT, answer)), anyio.create_task_group() as tasks:
        for id in ("ab", "cd", "ef"):
            tasks.start_soon(check, id)


async def test_an_answer_that_stops_half_way_is_no_answer(bus: Bus):
    async with bus.listen(ASK_METRICS()) as asked, anyio.create_task_group() as tasks:

        async def half() -> None:
            message = await asked.receive()
            await bus.nc.publish(message.reply, b'{"text":', headers={PIECES: "2"})

        tasks.start_soon(half)
        with pytest.raises(NoAnswer):
            await bus.ask(ASK_METRICS, Nothing(), Metrics, timeout=0.2)


@pytest.mark.parametrize(
    "message",
    [
        "There is no tag 'a'.",
        "two\r\nlines\tand a tab",
        "a rötes 🦊, 100 % of %41",
        "\0",
        "x: y",
        "Ω" * 10_000,
        "\udcff",
    ],
    ids=ascii,
)
async def test_an_error_of_who_was_asked_is_raised_where_it_was_asked_without_waiting_for_the_time_out(
    bus: Bus, message: str
):
    async def answer(_: Nothing) -> Metrics:
        raise Declined("unknown-tag", message)

    async with running(functools.partial(bus.answer, ASK_METRICS, answer)):
        with anyio.fail_after(10), pytest.raises(Declined) as raised:
            await bus.ask(ASK_METRICS, Nothing(), Metrics, timeout=60)
    sent = message.encode("utf-8", "replace").decode()[:4000]
    assert (raised.value.reason, str(raised.value)) == ("unknown-tag", sent)


async def test_a_bug_in_who_was_asked_is_logged_there_and_is_neither_absence_nor_the_end_of_answering(bus: Bus):
    async def answer(ask: AskImport) -> Metrics:
        return Metrics(text={"known": "yes"}[ask.id])

    async with running(functools.partial(bus.answer, ASK_IMPORT, answer)):
        with capture_logs() as logs, anyio.fail_after(10), pytest.raises(Declined, match="its log") as raised:
            await bus.ask(ASK_IMPORT, AskImport(id="other"), Metrics, timeout=60)
        assert raised.value.reason == INTERNAL
        assert [log["exc_info"] for log in logs if log["event"] == "ask failed"] == [True]
        assert (await bus.ask(ASK_IMPORT, AskImport(id="known"), Metrics)).text == "yes"


async def test_a_question_that_can_not_be_decoded_is_declined_in_the_headers_of_nats_services(bus: Bus):
    async def answer(ask: AskImport) -> Metrics:
        raise AssertionError

    async with running(functools.partial(bus.answer, ASK_IMPORT, answer)):
        reply = await bus.nc.request(ASK_IMPORT(), b"rubbish", timeout=10)
    assert reply.headers[ERROR_CODE] == "400" and "JSON" in reply.headers[ERROR] and not reply.data
    assert (ERROR, ERROR_CODE) == (ERROR_HEADER, ERROR_CODE_HEADER)


async def test_a_question_that_no_message_holds_is_declined(bus: Bus):
    with pytest.raises(TooLarge):
        await bus.ask(ASK_IMPORT, AskImport(id="x" * (bus.nc.max_payload + 1)), Metrics)
