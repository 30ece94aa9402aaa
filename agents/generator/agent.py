"""Generator: hears job.generate, draws the pictures of a plan on one device, says ticks and job.encode.

Torch runs in a worker thread; leases, ticks and cancellation live on the loop. A worker drains the queue of the model
it has in memory, for a while; then the model with the oldest waiting job goes. The next job is taken as soon as the
device is free, while the last one's pixels are still being written.
"""

import functools
import io
import os
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.abc
import numpy as np
import structlog
import torch
from anyio import to_thread
from nats.aio.msg import Msg

from agents.diffusion.engine import Engine
from agents.diffusion.loading import pick_device
from agents.diffusion.sampling import BrokenPicture, CannotSample, PixelArray, StepProgress, Stopped
from agents.diffusion.weights import CannotLoad, FileGone
from agents.generator.progress import ProgressTicks
from agents.storage.atomic import place
from agents.storage.errors import IngestError
from agents.storage.layout import DataDir
from agents.storage.paths import resolve
from bus.client import Bus
from bus.errors import INTERNAL, Declined, Fail, NoAnswer, Retry, UserError
from bus.queues import LanePicker, enqueue
from bus.results import ended, give_up, watched
from bus.subjects import ASK_RESOLVE, ENCODE, GENERATE
from bus.wakeup import IdleBackoff
from bus.worker import Delivery, Work, process
from schemas.catalog import ResolveModel, ResolveReply
from schemas.files import FilePath
from schemas.images import Encode, Pixels
from schemas.jobs import LANES, Plan
from schemas.settings import GeneratorSettings

log = structlog.get_logger()

_FINISHING = 4
"""Jobs at once, the drawing one too: while the encoders are behind, no more pictures pile up in memory and on disk."""


@dataclass(frozen=True)
class Warm:
    """The model in memory: its token, jobs done with it in a row, and since when (seconds)."""

    model: str = ""
    jobs: int = 0
    since: float = 0.0


def order(waiting: Mapping[str, int], warm: Warm, settings: GeneratorSettings, now: float) -> list[str]:
    """The models with waiting jobs (by the sequence of their oldest), the one to serve first. Pure."""
    oldest_first = sorted(waiting, key=lambda model: waiting[model])
    tired = warm.jobs >= settings.affinity_jobs or now - warm.since >= settings.affinity_seconds
    if warm.model in waiting and not tired:
        oldest_first.sort(key=lambda model: model != warm.model)
    return oldest_first


async def run(
    bus: Bus,
    data_dir: Path,
    roots: Mapping[str, str],
    settings: GeneratorSettings,
    *,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Generate until cancelled. Ready when the device answers and new jobs are heard. Raises UserError (no device)."""
    try:
        device = pick_device(settings.device)
    except ValueError as error:
        raise UserError(f"generator.device: {error}") from error
    # The loop shares the interpreter with the drawing thread: it must not wait 5 ms for each of its turns.
    sys.setswitchinterval(0.0005)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    await to_thread.run_sync(lambda: torch.zeros(1, device=device).sum().item())
    async with anyio.create_task_group() as tasks, ProgressTicks(bus, tasks, settings.previews) as ticks:
        generator = Generator(bus, data_dir, roots, settings, Engine(device), ticks, tasks)
        tasks.start_soon(generator.stop_on_shutdown)
        async with bus.listen(GENERATE.filter(), buffer=1) as heard:
            log.info("device ready", device=str(device))
            task_status.started()
            patience = IdleBackoff()
            while True:
                served = await generator.take_next()
                await patience.wait(heard, served=served)


class Generator:
    """One engine and the queue it drains."""

    def __init__(
        self,
        bus: Bus,
        data_dir: Path,
        roots: Mapping[str, str],
        settings: GeneratorSettings,
        engine: Engine,
        ticks: ProgressTicks,
        tasks: anyio.abc.TaskGroup,
    ) -> None:
        self.bus, self.data_dir, self.roots, self.settings = bus, data_dir, roots, settings
        self.engine, self.ticks, self.tasks = engine, ticks, tasks
        self.picker = LanePicker(bus, GENERATE)
        self.warm = Warm()
        self.device_free = anyio.Event()
        self.finishing = anyio.Semaphore(_FINISHING)
        self.shutdown = threading.Event()
        self.work = Work(
            GENERATE,
            self.generate,
            ended=lambda delivery: ended(bus, delivery.id),
            give_up=functools.partial(give_up, bus),
        )

    async def stop_on_shutdown(self) -> None:
        """A thread can't be cancelled: tell it, so that it stops between two steps."""
        try:
            await anyio.sleep_forever()
        finally:
            self.shutdown.set()

    async def take_next(self) -> bool:
        """Take one job and wait until the device is free again; False when none is to be had."""
        async with self.finishing:  # a free place
            pass
        try:
            message = await self._next_message()
        except Retry as error:
            log.warning("queue not seen", error=str(error))
            return False
        if message is None:
            return False
        self.device_free = anyio.Event()
        self.tasks.start_soon(self._process, message, self.device_free)
        await self.device_free.wait()
        return True

    async def _process(self, message: Msg, device_free: anyio.Event) -> None:
        try:
            async with self.finishing:
                await process(self.bus, self.work, message)
        finally:
            device_free.set()

    async def _next_message(self) -> Msg | None:
        models = {tokens["model"] for tokens in await self.picker.waiting()}
        waiting = dict.fromkeys(models, 0)
        if len(models) > 1:
            waiting = {model: seq for model in models if (seq := await self.picker.oldest(model=model)) is not None}
        for model in order(waiting, self.warm, self.settings, time.monotonic()):
            for lane in LANES:
                if message := await self.picker.take(lane=lane, model=model):
                    new = model != self.warm.model
                    since = time.monotonic() if new else self.warm.since
                    self.warm = Warm(model, 1 if new else self.warm.jobs + 1, since)
                    return message
        return None

    async def generate(self, plan: Plan, delivery: Delivery) -> None:
        """Draw a plan's pictures, store their pixels, hand them to the encoder. Raises Fail, Retry."""
        began = time.monotonic()
        path = await self._path(plan)
        async with watched(self.bus, plan.id) as ended_meanwhile:
            try:
                pictures = await to_thread.run_sync(self._draw, plan, path, ended_meanwhile)
            finally:
                self.device_free.set()
            if pictures is None:
                if not ended_meanwhile.is_set():  # shutting down: be cancelled here, so that the job is given back
                    await anyio.sleep_forever()
                log.info("stopped, the job has its result", job=plan.id)
                return
            try:
                pixels = await to_thread.run_sync(store_pixels, self.data_dir, plan, pictures)
            except OSError as error:
                raise Retry(f"pixels can't be written to {self.data_dir}: {error.strerror}", delay=5.0) from error
        job = Encode(
            id=plan.id,
            day=plan.day,
            format=plan.format,
            quality=plan.quality,
            lossless=plan.lossless,
            pixels=pixels,
        )
        await enqueue(self.bus, ENCODE, job, lane=plan.lane, id=plan.id)
        log.info("drawn", pictures=len(pixels), model=plan.model.name, seconds=round(time.monotonic() - began, 3))

    def _draw(self, plan: Plan, path: str, ended_meanwhile: threading.Event) -> list[PixelArray] | None:
        """In the worker thread. None when the job was stopped. Raises Fail."""
        began = time.monotonic()

        def on_step(progress: StepProgress) -> None:
            self.ticks.step(plan.id, progress, began)

        def stop() -> bool:
            return ended_meanwhile.is_set() or self.shutdown.is_set()

        try:
            return self.engine.generate(plan, path, on_step, stop)
        except Stopped:
            return None
        except FileGone as error:
            raise Fail("model-file-gone", str(error)) from error
        except CannotLoad as error:
            raise Fail("cannot-load", str(error)) from error
        except CannotSample as error:
            raise Fail("cannot-sample", str(error)) from error
        except BrokenPicture as error:
            raise Fail("broken-picture", str(error)) from error
        except torch.OutOfMemoryError:
            pass  # the memory is still held by the error's frames here: clean up after leaving it
        self.engine.unload()
        raise Fail("out-of-memory", f"{plan.width}×{plan.height} does not fit into the device's memory: ask for less")

    async def _path(self, plan: Plan) -> str:
        """Where the plan's model lies now: where the plan says, else where the catalog says. Raises Fail, Retry."""
        if found := self._visible(plan.model.path):
            return found
        places = [plan.model.path]
        try:
            reply = await self.bus.ask(ASK_RESOLVE, ResolveModel(name=plan.model.sha256), ResolveReply)
            places += reply.model.paths
        except NoAnswer as error:
            raise Retry("the catalog does not answer: is the migrator running?") from error
        except Declined as error:  # it knows of no other place
            if error.reason == INTERNAL:
                raise Retry(str(error)) from error
        for path in places:
            if found := self._visible(path):
                return found
        if not any(path.root in self.roots for path in places):
            raise Retry(f"root {plan.model.path.root} is not one of this generator's: left to another", delay=5.0)
        raise Fail(
            "model-file-gone",
            f"the file of model {plan.model.name} is gone ({plan.model.path.root}/{plan.model.path.rel}): put it back "
            "into the models folder and ask again",
        )

    def _visible(self, path: FilePath) -> str | None:
        if path.root not in self.roots:
            return None
        try:
            real = resolve(self.roots[path.root], path.rel)
        except IngestError:
            return None
        return os.fsdecode(real) if Path(os.fsdecode(real)).is_file() else None


def store_pixels(data_dir: Path, plan: Plan, pictures: list[PixelArray]) -> tuple[Pixels, ...]:
    """Write each picture to `work/<job>-<n>.npy`; the encoder has lost ones drawn again. Raises OSError."""
    stored = []
    for index, (picture, seed) in enumerate(zip(pictures, plan.seeds, strict=True)):
        data = io.BytesIO()
        np.save(data, picture, allow_pickle=False)
        name = f"{plan.id}-{index}.npy"
        place(DataDir(data_dir).work / name, data.getvalue(), durable=False)
        height, width = picture.shape[:2]
        stored.append(Pixels(index=index, file=name, seed=seed, width=width, height=height))
    return tuple(stored)
