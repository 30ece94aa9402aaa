"""Ticks out of a worker thread: progress and previews of a job, sent by the loop, dropped rather than waited for."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import anyio
import anyio.abc
import structlog

from bus.client import Bus
from bus.subjects import TICK_PREVIEW, TICK_STEP, Subject
from schemas.ticks import PreviewTick, StepTick

if TYPE_CHECKING:
    from agents.diffusion.sampling import StepProgress

log = structlog.get_logger()

LARGEST_PREVIEW = 256 * 1024
"""Bytes of JPEG."""
_STEPS_A_SECOND = 30.0


class ProgressTicks:
    """`step` may be called from any thread, at any rate: what is too much is left out, but never a stage's change."""

    def __init__(self, bus: Bus, tasks: anyio.abc.TaskGroup, previews_a_second: float) -> None:
        self.bus, self.tasks = bus, tasks
        self.loop = asyncio.get_running_loop()
        self.preview_pause = 1 / previews_a_second if previews_a_second else float("inf")
        self.send, self.receive = anyio.create_memory_object_stream[tuple[Subject[Any], Any, str]](64)
        self._last_preview = self._last_step = 0.0
        self._last: tuple[str, str, int] = ("", "", 0)

    async def __aenter__(self) -> Self:
        self.tasks.start_soon(self._sending)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.send.close()
        self.receive.close()

    async def _sending(self) -> None:
        try:
            async for subject, tick, id in self.receive:
                await self.bus.tick(subject, tick, id=id)
        except anyio.ClosedResourceError:
            return

    def step(self, job: str, progress: "StepProgress", began: float) -> None:
        """Publish where a job is. `began` is when its work began, by `bus.clock.steady`, in seconds."""
        now, here = self.bus.clock.steady(), (job, progress.stage, progress.image)
        due = now - self._last_step >= 1 / _STEPS_A_SECOND
        if here == self._last and not due and progress.step < progress.steps:
            return
        if job != self._last[0]:
            self._last_preview = now  # a short job needs none
        self._last, self._last_step = here, now
        done = progress.image * progress.steps + progress.step
        rate = done / (now - began) if done and now > began else 0.0
        left = progress.images * progress.steps - done
        tick = StepTick(
            job=job,
            step=progress.step,
            steps=progress.steps,
            image=progress.image,
            images=progress.images,
            rate=round(rate, 3),
            eta=round(left / rate, 3) if rate else 0.0,
            stage=progress.stage,
        )
        self._post(TICK_STEP, tick, job)
        if progress.stage == "denoising" and progress.step and now - self._last_preview >= self.preview_pause:
            self._last_preview = now
            self._preview(job, progress)

    def _preview(self, job: str, progress: "StepProgress") -> None:
        jpeg = progress.preview()
        if 0 < len(jpeg) <= LARGEST_PREVIEW:
            self._post(TICK_PREVIEW, PreviewTick(job=job, step=progress.step, image=progress.image, jpeg=jpeg), job)

    def _post(self, subject: Subject[Any], tick: Any, job: str) -> None:
        def put() -> None:
            try:
                self.send.send_nowait((subject, tick, job))
            except (anyio.WouldBlock, anyio.ClosedResourceError, anyio.BrokenResourceError):
                log.debug("tick dropped", subject=subject.template)

        self._soon(put)

    def _soon(self, call: Callable[[], None]) -> None:
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(call)
