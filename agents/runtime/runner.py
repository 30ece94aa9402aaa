"""Running agents in this process: one bus, one task group, a line on standard output for each that is ready."""

import functools
import gc
import importlib
import os
import resource
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import structlog

from agents.storage.layout import DataDir
from bus.client import Bus, connect
from bus.clock import Clock
from bus.errors import UserError
from bus.subjects import TICK_AGENT
from schemas.settings import Settings
from schemas.ticks import AgentTick

log = structlog.get_logger()

Agent = Callable[..., Coroutine[Any, Any, None]]

_TICK_EVERY = 5.0
_LAG_EVERY = 0.5

# What each agent is given besides the bus: its slice of the settings.
AGENTS: dict[str, Callable[[Settings], tuple[Any, ...]]] = {
    "watcher": lambda s: (Path(s.data_dir), s.roots, s.watcher),
    "hasher": lambda s: (s.roots, s.hasher),
    "migrator": lambda s: (DataDir(Path(s.data_dir)).catalog, s.roots, s.migrator),
    "preprocess": lambda s: (s.limits,),
    "generator": lambda s: (Path(s.data_dir), s.roots, s.generator),
    "encoder": lambda s: (Path(s.data_dir), s.encoder),
    "telemetry": lambda s: (),
    "bridge": lambda s: (s,),
}


async def run_agents(
    names: Sequence[str], url: str, settings: Settings, report: Callable[[str], None], *, stdin_ends_us: bool = False
) -> None:
    """Run these agents on the bus at `url` until SIGTERM or SIGINT; `report` gets `ready NAME` as each becomes ready.

    Raises UserError, NoBus, and whatever an agent dies of.
    """
    for name in names:
        if name not in AGENTS:
            raise UserError(f"there is no agent {name!r}; there are: {', '.join(AGENTS)}")
    async with anyio.create_task_group() as outer:
        outer.start_soon(until_signalled, outer.cancel_scope)
        if stdin_ends_us:
            outer.start_soon(_until_parent_ends, outer.cancel_scope)
        title = "+".join(names) if len(names) < 3 else "agents"
        async with connect(url, settings.bus, name=title) as bus, anyio.create_task_group() as tasks:
            if "generator" in names:
                # Torch's threads spin while they wait for each other; on a busy machine that made a picture of the tiny
                # model take 5 s instead of 0.4 s (two cores, load 3). It is read when torch is imported.
                os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
            lag = _Lag(bus.clock)
            tasks.start_soon(lag.sample)
            for name in names:
                agent = _agent(name)
                detail: object = await tasks.start(functools.partial(agent, bus, *AGENTS[name](settings)), name=name)
                report(f"ready {name} {detail or ''}".rstrip())
                tasks.start_soon(_publish_alive, bus, name, lag)
            # What is here now stays. Looking at it again would hold up the loop for 10 ms at every full collection
            # (57,000 objects of the agents without torch; 0 ms after this).
            gc.collect()
            gc.freeze()
        outer.cancel_scope.cancel()


def _agent(name: str) -> Agent:
    """The `run` in the file of this name, or in `agent.py` of the folder of this name."""
    module = importlib.import_module(f"agents.{name}")
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"agents.{name}.agent")
    run: Agent = module.run
    return run


async def until_signalled(scope: anyio.CancelScope) -> None:
    """Cancel a scope at SIGTERM or SIGINT."""
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("stopping", signal=signal.Signals(number).name)
            scope.cancel()


async def _until_parent_ends(scope: anyio.CancelScope) -> None:
    """The parent holds our standard input open; its end is the end of us."""
    await anyio.wait_readable(sys.stdin.fileno())
    scope.cancel()


class _Lag:
    """How late the loop wakes: sampled once for all agents in it, since an idle loop pays for each waking."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._worst = dict[str, float]()

    async def sample(self) -> None:
        """Measure, for ever."""
        while True:
            now = self.clock.steady()
            await anyio.sleep(_LAG_EVERY)
            late = self.clock.steady() - now - _LAG_EVERY
            for name, worst in self._worst.items():
                self._worst[name] = max(worst, late)

    def worst(self, name: str) -> float:
        """The worst since this agent asked last, in seconds."""
        worst = self._worst.get(name, 0.0)
        self._worst[name] = 0.0
        return worst


async def _publish_alive(bus: Bus, name: str, lag: _Lag) -> None:
    """A tick at once and every few seconds, with the loop's worst lag since the last."""
    instance = bus.instance.rsplit("-", 1)[-1]
    while True:
        tick = AgentTick(
            name=name,
            instance=instance,
            state="ready",
            pid=os.getpid(),
            host=os.uname().nodename,
            rss=memory_bytes(),
            lag=round(lag.worst(name), 4),
        )
        await bus.tick(TICK_AGENT, tick, name=name, instance=instance)
        await anyio.sleep(_TICK_EVERY)


def memory_bytes() -> int:
    """Resident memory of this process now (Linux), else its peak."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
