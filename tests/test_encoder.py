"""The encoder on a real bus: what it does when the pixels it is asked for are not there."""

import functools
from pathlib import Path

import anyio

from agents import encoder
from bus.client import Bus
from bus.ids import new_id
from bus.queues import LanePicker, enqueue, serve
from bus.results import ended, finish, give_up, result_of
from bus.subjects import ATTEMPT_RELEASED, ENCODE, GENERATE, IMAGE_ENCODED, JOB_PLANNED
from bus.worker import Delivery, Work
from schemas.images import Encode, Picture, Pixels
from schemas.jobs import Plan, Result
from schemas.settings import EncoderSettings
from tests.conftest import running
from tests.plans import plan


async def test_lost_pixels_are_drawn_again_even_while_their_generator_has_not_let_go(bus: Bus, tmp_path: Path):
    made = plan(new_id())
    model = made.model.sha256[:12]
    await bus.publish(JOB_PLANNED, made, id=made.id)
    await bus.publish(GENERATE, made, lane="normal", model=model, id=made.id)
    held = await LanePicker(bus, GENERATE).take(lane="normal", model=model)
    assert held is not None
    pixels = Pixels(index=0, file=f"{made.id}-0.npy", seed=1, width=64, height=64)
    job = Encode(id=made.id, day=made.day, format="webp", quality=90, lossless=False, pixels=(pixels,))
    await enqueue(bus, ENCODE, job, lane="normal", id=made.id)
    async with running(functools.partial(encoder.run, bus, tmp_path, EncoderSettings())):
        with anyio.fail_after(10):  # it is seen, and put back
            while not await bus.waiting("EVENTS", JOB_PLANNED.filter()) or not await released(bus, made.id):
                await bus.flush()
        await held.ack()
        with anyio.fail_after(10):
            while await bus.waiting("ENCODE", ENCODE.filter()):
                await bus.flush()
    assert list(await bus.waiting("GENERATE", GENERATE.filter())) == [GENERATE(lane="normal", model=model, id=made.id)]
    assert await result_of(bus, made.id) is None


async def test_a_job_whose_pixels_are_missing_each_time_ends_with_what_is_missing_and_where(bus: Bus, tmp_path: Path):
    made, draws = plan(new_id()), []
    pixels = Pixels(index=0, file=f"{made.id}-0.npy", seed=1, width=64, height=64)
    job = Encode(id=made.id, day=made.day, format="webp", quality=90, lossless=False, pixels=(pixels,))

    async def draw(plan: Plan, delivery: Delivery) -> None:
        """A generator with a data directory of its own."""
        draws.append(delivery.seq)
        await enqueue(bus, ENCODE, job, lane="normal", id=plan.id)

    drawing = Work(
        GENERATE, draw, ended=lambda delivery: ended(bus, delivery.id), give_up=functools.partial(give_up, bus)
    )
    await bus.publish(JOB_PLANNED, made, id=made.id)
    await bus.publish(GENERATE, made, lane="normal", model=made.model.sha256[:12], id=made.id)
    encoding = functools.partial(encoder.run, bus, tmp_path, EncoderSettings())
    async with running(encoding, functools.partial(serve, bus, drawing, "generator")):
        with anyio.fail_after(20):
            while (told := await result_of(bus, made.id)) is None:
                await bus.flush()
    assert (told.status, told.reason, len(draws)) == ("failed", "exhausted", 3)
    assert f"there is no {pixels.file} in {tmp_path / 'work'}" in told.error and "died" not in told.error


async def released(bus: Bus, id: str) -> bool:
    return bool(await bus.waiting("EVENTS", ATTEMPT_RELEASED(kind="encode", id=id)))


async def test_a_kill_between_the_result_and_its_fact_leaves_no_picture_unknown(bus: Bus, tmp_path: Path):
    made = plan(new_id())
    tiers = {"high": "h", "medium": "m", "low": "l"}
    picture = Picture(index=0, seed=1, width=64, height=64, file="f", bytes=1, sha256="ab" * 32, tiers=tiers)
    await finish(bus, Result(id=made.id, status="succeeded", ended_at=1.0, images=(picture,)))
    pixels = Pixels(index=0, file=f"{made.id}-0.npy", seed=1, width=64, height=64)
    job = Encode(id=made.id, day=made.day, format="webp", quality=90, lossless=False, pixels=(pixels,))
    await enqueue(bus, ENCODE, job, lane="normal", id=made.id)
    async with running(functools.partial(encoder.run, bus, tmp_path, EncoderSettings())):
        with anyio.fail_after(10):
            while await bus.waiting("ENCODE", ENCODE.filter()):
                await bus.flush()
    fact = await bus.last(IMAGE_ENCODED, id=made.id)
    assert fact and fact.payload.pictures == (picture,)
    assert await bus.waiting("EVENTS", IMAGE_ENCODED(id=made.id)) == {IMAGE_ENCODED(id=made.id): 1}
