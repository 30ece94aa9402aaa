"""Telemetry: consumes tick.* and evt.*, keeps Prometheus metrics of them, and answers ask.telemetry.metrics.

What it receives is lossy and may come twice; what must count once is recognised by its message id or its subject. No
label has a path, a prompt or an id in it.
"""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import anyio
import anyio.abc
import nats.errors
import structlog
from nats.js.errors import APIError

from agents.telemetry.metrics import MetricsCollector, ServiceMetrics
from bus.client import Bus
from bus.errors import Retry
from bus.subjects import ALL, ASK_METRICS, PREFIX
from schemas.asks import Metrics, Nothing

log = structlog.get_logger()

POLL_SECONDS = 5.0
LAG_EVERY_SECONDS = 0.5
_STREAMS = tuple(sorted({row.stream for row in ALL if row.stream}))


async def run(bus: Bus, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
    """Listen and answer until cancelled; ready when both are so."""
    collector = MetricsCollector(bus, ServiceMetrics(_build()))

    async def metrics(_: Nothing) -> Metrics:
        return Metrics(text=collector.text())

    async with bus.listen(PREFIX + "evt.>", buffer=8192) as facts, bus.listen(PREFIX + "tick.>", buffer=8192) as ticks:
        await _poll(collector)
        async with anyio.create_task_group() as tasks:
            await tasks.start(bus.answer, ASK_METRICS, metrics)
            tasks.start_soon(_count, collector, facts.receive)
            tasks.start_soon(_count, collector, ticks.receive)
            tasks.start_soon(_keep_polling, collector)
            tasks.start_soon(_measure_lag, collector)
            task_status.started()


def _build() -> str:
    try:
        return version("darkroom")
    except PackageNotFoundError:
        return "unknown"


async def _count(collector: MetricsCollector, receive: Callable[[], Any]) -> None:
    while True:
        message = await receive()
        try:
            await collector.count(message)
        except Retry as error:
            log.info("not measured", subject=message.subject, why=str(error))


async def _poll(collector: MetricsCollector) -> None:
    for name in _STREAMS:
        try:
            state = (await collector.bus.js.stream_info(name)).state
        except (nats.errors.Error, APIError, TimeoutError) as error:
            log.info("queue length unknown", stream=name, error=str(error))
            continue
        collector.metrics.waiting.labels(name).set(state.messages)
        collector.metrics.stored.labels(name).set(state.bytes)
        if name == "DLQ":
            collector.metrics.dead.set(state.messages)


async def _keep_polling(collector: MetricsCollector) -> None:
    while True:
        await anyio.sleep(POLL_SECONDS)
        await _poll(collector)


async def _measure_lag(collector: MetricsCollector) -> None:
    while True:
        before = collector.bus.clock.steady()
        await anyio.sleep(LAG_EVERY_SECONDS)
        collector.worst_lag = max(collector.worst_lag, collector.bus.clock.steady() - before - LAG_EVERY_SECONDS)
