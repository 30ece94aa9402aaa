"""Generator: consumes job.generate, draws the pictures of a plan on one device; publishes ticks and job.encode.

Torch runs in a worker thread; leases, ticks and cancellation live on the loop. A worker drains the queue of the model
it has in memory, for a while; then the model with the oldest waiting job goes. The next job is taken as soon as the
device is free, while the last one's pixels are still being written.
"""

import functools
import io
import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import anyio.abc
import msgspec
import numpy as np
import structlog
import torch
from anyio import to_thread
from nats.aio.msg import Msg

from agents.diffusion.engine import Engine
from agents.diffusion.loading import pick_device
from agents.diffusion.plan import with_infotext
from agents.diffusion.sampling import BrokenPicture, CannotSample, PixelArray, StepProgress, Stopped
from agents.diffusion.weights import CannotLoad, FileGone
from agents.generator.progress import ProgressTicks
from agents.storage.atomic import place
from agents.storage.errors import IngestError
from agents.storage.layout import DataDir
from agents.storage.paths import resolve
from bus.client import Bus, encode
from bus.errors import INTERNAL, Declined, Fail, NoAnswer, Retry, UserError
from bus.queues import LanePicker, enqueue, was_last
from bus.results import Watch, give_up
from bus.streams import MAX_MESSAGE
from bus.subjects import ASK_RESOLVE, ENCODE, GENERATE
from bus.wakeup import Found, IdleBackoff
from bus.worker import Delivery, Work, process
from schemas.catalog import ResolveModel, ResolveReply
from schemas.files import FilePath
from schemas.images import Encode, Pixels
from schemas.jobs import LANES, Plan
from schemas.settings import GeneratorSettings

log = structlog.get_logger()

_FINISHING = 4
"""Jobs at once, the drawing one too: while the encoders lag, no more pictures pile up in memory and on disk."""


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
    """Generate until cancelled. Ready when the device answers and jobs are noticed. Raises UserError (no device)."""
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
        async with bus.listen(GENERATE.filter(), buffer=8) as arrivals:
            log.info("device ready", device=str(device))
            task_status.started()
            backoff, found = IdleBackoff(GENERATE, arrivals), Found.SOME
            while True:
                found = await generator.take_next(await backoff.wait(found))


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
        self.under_way = set[str]()

    async def stop_on_shutdown(self) -> None:
        """A thread can't be cancelled: set its event, so that it stops between two steps."""
        try:
            await anyio.sleep_forever()
        finally:
            self.shutdown.set()

    async def take_next(self, announced: Mapping[str, str] | None) -> Found:
        """Take one job, the announced one or one that a look finds, and wait until the device is free again."""
        async with self.finishing:  # a free place
            pass
        try:
            message = await (self._announced(announced) if announced else self._looked_for())
        except Retry as error:
            log.warning("queue not seen", error=str(error))
            return Found.NOTHING
        if message is None:
            return Found.NOTHING
        self.device_free = anyio.Event()
        self.tasks.start_soon(self._process, message, self.device_free)
        await self.device_free.wait()
        return Found.ALL if announced and was_last(message) else Found.SOME

    async def _process(self, message: Msg, device_free: anyio.Event) -> None:
        id = message.subject.rsplit(".", 1)[1]
        self.under_way.add(id)
        try:
            async with self.finishing, Watch(self.bus) as watch:
                generate, refuse = functools.partial(self.generate, watch), functools.partial(give_up, self.bus)
                await process(self.bus, Work(GENERATE, generate, ended=watch.ended, give_up=refuse), message)
        finally:
            self.under_way.discard(id)
            device_free.set()

    async def _announced(self, tokens: Mapping[str, str]) -> Msg | None:
        return await self._taken(tokens["lane"], tokens["model"], announced=True)

    async def _looked_for(self) -> Msg | None:
        free = [tokens for tokens in await self.picker.waiting() if tokens["id"] not in self.under_way]
        queues = {(tokens["lane"], tokens["model"]) for tokens in free}
        waiting = {model: 0 for _, model in queues}
        if len(waiting) > 1:
            waiting = {model: seq for model in waiting if (seq := await self.picker.oldest(model=model)) is not None}
        for model in order(waiting, self.warm, self.settings, self.bus.clock.steady()):
            for lane in LANES:
                if (lane, model) in queues and (message := await self._taken(lane, model)):
                    return message
        return None

    async def _taken(self, lane: str, model: str, *, announced: bool = False) -> Msg | None:
        message = await self.picker.take(announced=announced, lane=lane, model=model)
        if message and model == self.warm.model:
            self.warm = replace(self.warm, jobs=self.warm.jobs + 1)
        elif message:
            self.warm = Warm(model, 1, self.bus.clock.steady())
        return message

    async def generate(self, watch: Watch, plan: Plan, delivery: Delivery) -> None:
        """Draw a plan's pictures, store their pixels, hand them to the encoder. Raises Fail, Retry."""
        began = self.bus.clock.steady()
        path = await self._path(plan)
        try:
            pictures = await to_thread.run_sync(self._draw, plan, path, watch.stop)
        finally:
            self.device_free.set()
        if pictures is None:
            if not watch.stop.is_set():  # shutting down: be cancelled here, so that the job is given back
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
            pixels=with_infotext(pixels, plan),
        )
        if len(encode(job)) > MAX_MESSAGE:  # the encoder reads the plan then
            job = msgspec.structs.replace(job, pixels=pixels)
        await enqueue(self.bus, ENCODE, job, lane=plan.lane, id=plan.id, release=delivery.release)
        seconds = round(self.bus.clock.steady() - began, 3)
        log.info("drawn", pictures=len(pixels), model=plan.model.name, seconds=seconds)

    def _draw(self, plan: Plan, path: str, ended_meanwhile: threading.Event) -> list[PixelArray] | None:
        """In the worker thread. None when the job was stopped. Raises Fail."""
        began = self.bus.clock.steady()

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
        """Where the plan's model lies now: where the plan has it, else where the catalog has it. Raises Fail, Retry."""
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
