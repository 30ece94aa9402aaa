"""Encoder: consumes job.encode, writes pictures at full size and in three tiers; publishes evt.image.encoded and the
result. Consumes job.picture, writes a model's picture in three tiers; publishes evt.image.encoded or evt.image.refused.

Pixels come from `data/work`, files go to `data/outputs`; encoding runs in threads, so the loop stays free.
"""

import contextlib
import functools
import socket
from pathlib import Path

import anyio
import anyio.abc
import msgspec
import structlog
from anyio import to_thread

from agents.diffusion.plan import with_infotext
from agents.images.model_pictures import NameTaken, encode_picture
from agents.images.outputs import BadName, PixelsGone, encode_pictures
from agents.storage.atomic import sweep
from agents.storage.layout import DataDir
from agents.storage.pixels import BadPixels
from bus.client import Bus
from bus.errors import Fail, Retry, Taken, Undecodable, UserError
from bus.queues import serve
from bus.results import ended, finish, give_up
from bus.subjects import DEAD, ENCODE, GENERATE, IMAGE_ENCODED, IMAGE_REFUSED, JOB_PLANNED, PICTURE
from bus.worker import Delivery, Work, attempt_failed, no_result, words
from schemas.images import Encode, Encoded, EncodePicture, Picture, PictureRefused
from schemas.jobs import Plan, Result
from schemas.settings import EncoderSettings

log = structlog.get_logger()

KEEP_PIXELS = 48 * 3600.0
KEEP_TEMPORARY = 3600.0
_SWEEP_EVERY = 3600.0


async def run(
    bus: Bus,
    data_dir: Path,
    settings: EncoderSettings,
    *,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Encode until cancelled. Ready when jobs can arrive."""
    work = Work(
        ENCODE,
        functools.partial(encode, bus, data_dir),
        ended=functools.partial(_ended, bus, data_dir),
        give_up=functools.partial(give_up, bus),
    )
    model_pictures = Work(
        PICTURE,
        functools.partial(encode_model_picture, bus, data_dir),
        ended=no_result,
        give_up=functools.partial(_refuse, bus),
        asked_again=True,
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_sweep_work, bus, data_dir)
        # Each kind has its own place in the queue: a thousand pictures of models hold up no generated one.
        await tasks.start(functools.partial(serve, bus, work, "encoder", concurrency=settings.parallel))
        await tasks.start(
            functools.partial(serve, bus, model_pictures, "encoder-pictures", concurrency=settings.parallel)
        )
        task_status.started()


async def encode(bus: Bus, data_dir: Path, job: Encode, delivery: Delivery) -> None:
    """Write the pictures of one job and end it as succeeded. Raises Fail, Retry (a full disk)."""
    began = bus.clock.steady()
    job = await _with_infotext(bus, job)
    try:
        pictures = await to_thread.run_sync(encode_pictures, job, data_dir)
    except (BadPixels, PixelsGone) as error:
        await _draw_again(bus, data_dir, delivery, error)
        return
    except (BadName, ValueError) as error:
        raise Fail("cannot-encode", str(error)) from error
    except OSError as error:
        raise Retry(f"the pictures can't be written to {data_dir}: {error.strerror}", delay=5.0) from error
    seconds = bus.clock.steady() - began
    async with (
        anyio.create_task_group() as tasks
    ):  # where a kill leaves the one alone, `_ended` makes sure of the other
        tasks.start_soon(_publish_encoded, bus, job.id, pictures, seconds)
        await finish(bus, Result(id=job.id, status="succeeded", ended_at=bus.clock.now(), images=pictures))
    await to_thread.run_sync(remove_pixels, data_dir, job.id)
    log.info("pictures written", pictures=len(pictures), seconds=round(seconds, 3))


async def _publish_encoded(bus: Bus, id: str, pictures: tuple[Picture, ...], seconds: float) -> None:
    """Publish, once, that a job's pictures are written. Raises Retry."""
    fact = Encoded(id=id, pictures=pictures, seconds=seconds, at=bus.clock.now())
    with contextlib.suppress(Taken):
        await bus.publish(IMAGE_ENCODED, fact, first=True, id=id)


async def encode_model_picture(bus: Bus, data_dir: Path, job: EncodePicture, delivery: Delivery) -> None:
    """Write one picture of a model. One that can't be encoded is refused. Raises Retry (a full disk)."""
    began = bus.clock.steady()
    try:
        picture = await to_thread.run_sync(encode_picture, job, data_dir)
    except UserError as error:
        await _publish_refused(bus, job, str(error), delivery, taken=isinstance(error, NameTaken))
        return
    except OSError as error:
        raise Retry(f"the picture can't be written to {data_dir}: {error.strerror}", delay=5.0) from error
    took = bus.clock.steady() - began
    fact = Encoded(id=job.id, model=job.sha256, pictures=(picture,), seconds=took, at=bus.clock.now())
    await bus.publish(IMAGE_ENCODED, fact, msg_id=f"{job.id}-encoded-{delivery.seq}", id=job.id)


async def _publish_refused(
    bus: Bus, job: EncodePicture, error: str, delivery: Delivery, *, taken: bool = False
) -> None:
    fact = PictureRefused(id=job.id, sha256=job.sha256, number=job.number, error=error, at=bus.clock.now(), taken=taken)
    await bus.publish(IMAGE_REFUSED, fact, msg_id=f"{job.id}-refused-{delivery.seq}", id=job.id)


async def _refuse(bus: Bus, delivery: Delivery, status: str, reason: str, error: str) -> None:
    """A picture that no attempt could encode; its job is in the dead letter, if it is one."""
    log.error("picture given up", job=delivery.id, reason=reason, error=error)
    letter = await bus.raw("DLQ", DEAD(kind="picture", reason=reason, id=delivery.id))
    with contextlib.suppress(Undecodable):
        if letter is not None:
            await _publish_refused(bus, PICTURE.decode(letter.payload), error, delivery)


async def _draw_again(bus: Bus, data_dir: Path, delivery: Delivery, error: Exception) -> None:
    """Pixels are not flushed to disk, so a power cut can lose them: the plan goes back to the generators, who count it
    as another attempt. Where each attempt ends like this, the job ends with what was missing. Raises Fail, Retry."""
    log.warning("pixels lost, drawing again", error=str(error))
    id, why = delivery.id, f"the encoder on {socket.gethostname()} did not find the pixels: {words(error)}"
    plan = await _plan(bus, id)
    if isinstance(error, BadPixels):  # a damaged file is never written over
        await to_thread.run_sync(remove_pixels, data_dir, id)
    for kind in ("generate", "encode"):  # stored before: a generator may take the job at once
        await attempt_failed(bus, kind, id, why, once=f"{delivery.seq}-pixels")
    try:
        await bus.publish(GENERATE, plan, wait=True, lane=plan.lane, model=plan.model.sha256[:12], id=id)
    except Taken as taken:  # its generator has not let go of it yet: this job may not go before that one has
        raise Retry("the job is with a generator still") from taken


async def _plan(bus: Bus, id: str) -> Plan:
    if (stored := await bus.last(JOB_PLANNED, id=id)) is None:
        raise Fail("plan-gone", "the job's plan is no longer stored, so how its pictures were made is not known")
    return stored.payload


async def _with_infotext(bus: Bus, job: Encode) -> Encode:
    if all(pixels.infotext for pixels in job.pixels):
        return job
    return msgspec.structs.replace(job, pixels=with_infotext(job.pixels, await _plan(bus, job.id)))


async def _ended(bus: Bus, data_dir: Path, delivery: Delivery) -> bool:
    if (result := await ended(bus, delivery.id)) is None:
        return False
    if result.status == "succeeded":
        await _publish_encoded(bus, delivery.id, result.images, 0.0)
    await to_thread.run_sync(remove_pixels, data_dir, delivery.id)
    return True


def remove_pixels(data_dir: Path, id: str) -> None:
    """The raw pixels of a job whose result is written."""
    for file in DataDir(data_dir).work.glob(f"{id}-*.npy"):
        file.unlink(missing_ok=True)


async def _sweep_work(bus: Bus, data_dir: Path) -> None:
    """Remove pixels older than 48 h that no queued job will ask for, and temporary files left by a kill."""
    while True:
        try:
            generating = await bus.waiting("GENERATE", GENERATE.filter())
            encoding = await bus.waiting("ENCODE", ENCODE.filter())
            queued = {subject.rsplit(".", 1)[1] for subject in (*generating, *encoding)}
            await to_thread.run_sync(_sweep, data_dir, queued, bus.clock.now())
        except (Retry, OSError) as error:
            log.warning("work folder not swept", error=str(error))
        await anyio.sleep(_SWEEP_EVERY)


def _sweep(data_dir: Path, queued: set[str], now: float) -> None:
    data = DataDir(data_dir)
    for folder in (data.work, data.images, data.pending, data.blobs, *data.outputs.glob("*-*-*")):
        sweep(folder, before=now - KEEP_TEMPORARY)
    for file in data.work.glob("*.npy"):
        with contextlib.suppress(FileNotFoundError):  # its job ended meanwhile
            if file.stat().st_mtime < now - KEEP_PIXELS and file.name.split("-")[0] not in queued:
                file.unlink()
                log.info("stale pixels removed", file=file.name)
