"""Whose turn it is."""

import functools
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from agents import preprocess
from agents.preprocess import WEIGHTS, FairQueue, Queue
from bus.client import Bus
from bus.errors import Declined
from bus.ids import new_id
from bus.subjects import ASK_RESOLVE, JOB_PLANNED, PREPARE, TENANTS
from schemas.catalog import ResolveModel, ResolveReply
from schemas.jobs import LANES, Request
from schemas.settings import LimitSettings
from tests.bus.faults import MODEL, ask, result, until
from tests.conftest import running

queues = st.sets(st.tuples(st.sampled_from(LANES), st.sampled_from(TENANTS)), min_size=1)


def serve(fair: FairQueue, waiting: set[Queue], count: int) -> list[Queue]:
    """Take jobs from queues that never run dry."""
    taken = []
    for _ in range(count):
        taken.append(fair.order(waiting)[0])
        fair.took(taken[-1], waiting)
    return taken


def test_lanes_are_served_by_their_weight_and_none_starves():
    taken = Counter(
        lane for lane, _ in serve(FairQueue(), {(lane, "t0") for lane in LANES}, 10 * sum(WEIGHTS.values()))
    )
    assert taken == {lane: 10 * weight for lane, weight in WEIGHTS.items()}


def test_a_heavy_lane_does_not_go_in_one_burst():
    lanes = [lane for lane, _ in serve(FairQueue(), {("high", "t0"), ("normal", "t0"), ("low", "t0")}, 13)]
    assert max(len(run) for run in "".join("x" if lane == "high" else " " for lane in lanes).split()) <= 3


def test_tenants_of_a_lane_take_turns():
    taken = [tenant for _, tenant in serve(FairQueue(), {("normal", tenant) for tenant in TENANTS}, 16)]
    assert sorted(taken[:8]) == sorted(taken[8:]) == sorted(TENANTS)


def test_a_newcomer_is_next_and_then_waits_its_turn():
    fair = FairQueue()
    serve(fair, {("normal", "t0")}, 1000)
    taken = serve(fair, {("normal", "t0"), ("normal", "t5")}, 10)
    assert taken[0] == ("normal", "t5")
    assert Counter(taken) == {("normal", "t0"): 5, ("normal", "t5"): 5}


def test_a_lane_that_was_idle_has_saved_up_nothing():
    fair = FairQueue()
    serve(fair, {("low", "t0")}, 1000)
    serve(fair, {("low", "t0"), ("normal", "t0")}, 5)
    taken = Counter(lane for lane, _ in serve(fair, {("low", "t0"), ("normal", "t0")}, 50))
    assert taken == {"normal": 40, "low": 10}


@given(queues)
def test_whatever_waits_every_queue_is_in_the_order_once_and_each_gets_its_share(waiting: set[Queue]):
    fair = FairQueue()
    assert sorted(fair.order(waiting)) == sorted(waiting)
    lanes = {lane for lane, _ in waiting}
    rounds = sum(WEIGHTS[lane] for lane in lanes)
    taken = Counter(serve(fair, waiting, rounds * 8))
    for lane in lanes:
        counts = [taken[queue] for queue in waiting if queue[0] == lane]
        assert sum(counts) == WEIGHTS[lane] * 8
        assert max(counts) - min(counts) <= 1


async def test_a_name_that_the_catalog_declines_rejects_the_job_and_a_bug_in_the_catalog_only_delays_it(bus: Bus):
    asked = 0

    async def answer(question: ResolveModel) -> ResolveReply:
        nonlocal asked
        asked += 1
        if question.name == "nothing":
            raise Declined("unknown-model", 'No model is called "nothing".')
        if asked < 3:
            raise ZeroDivisionError
        return ResolveReply(model=MODEL)

    async def planned() -> bool:
        return await bus.last(JOB_PLANNED, id=id) is not None

    plan = functools.partial(preprocess.run, bus, LimitSettings())
    async with running(functools.partial(bus.answer, ASK_RESOLVE, answer), plan):
        id = await ask(bus)
        await until(planned)
        assert asked == 3
        nothing = Request(prompt="quick", model="nothing")
        await bus.publish(PREPARE, nothing, lane="normal", tenant="t0", id=(other := new_id()))
        refused = await result(bus, other)
    assert (refused.status, refused.reason) == ("rejected", "unknown-model")
    assert refused.error == 'No model is called "nothing".'
