"""The service's Prometheus metrics, and what messages of the bus do to them."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from nats.aio.msg import Msg
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

from bus.client import Bus
from bus.errors import Undecodable
from bus.subjects import JOB_FINISHED, JOB_PLANNED, JOB_STARTED, row_of
from schemas.files import Hashed
from schemas.images import Encoded
from schemas.jobs import Finished
from schemas.ticks import AgentTick

AGENT_GONE_SECONDS = 15.0
_REMEMBERED = 20_000
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class ServiceMetrics:
    """Every metric of the service, in a registry of its own."""

    def __init__(self, build: str) -> None:
        self.registry = CollectorRegistry()
        kept: dict[str, Any] = {"registry": self.registry}
        self.jobs = Counter("darkroom_jobs_total", "Jobs ended, by status", ["status"], **kept)
        self.job_seconds = Histogram(
            "darkroom_job_seconds", "From planned to finished", ["status"], buckets=_SECONDS, **kept
        )
        self.starts = Counter("darkroom_job_starts_total", "Attempts at generating", **kept)
        self.steps = Counter("darkroom_steps_total", "Denoising steps of jobs that succeeded", **kept)
        self.images = Counter("darkroom_images_total", "Pictures encoded", **kept)
        self.image_bytes = Counter("darkroom_images_bytes_total", "Bytes of full-size pictures encoded", **kept)
        self.encode_seconds = Histogram("darkroom_encode_seconds", "Encoding a job", buckets=_SECONDS, **kept)
        self.hashed = Counter("darkroom_hashed_files_total", "Files hashed", **kept)
        self.hashed_bytes = Counter("darkroom_hashed_bytes_total", "Bytes hashed", **kept)
        self.hash_seconds = Counter("darkroom_hash_seconds_total", "Time spent hashing", **kept)
        self.facts = Counter("darkroom_facts_total", "Facts received, by kind", ["kind"], **kept)
        self.undecodable = Counter("darkroom_undecodable_total", "Messages that can't be read", **kept)
        self.agents = Gauge("darkroom_agents_up", "Instances of an agent seen in the last 15 s", ["name"], **kept)
        self.agent_lag = Gauge("darkroom_agent_lag_seconds", "Worst loop lag an agent reported last", ["name"], **kept)
        self.agent_memory = Gauge("darkroom_agent_memory_bytes", "Memory of an agent's process", ["name"], **kept)
        self.waiting = Gauge("darkroom_stream_messages", "Messages a stream holds", ["stream"], **kept)
        self.stored = Gauge("darkroom_stream_bytes", "Bytes a stream holds", ["stream"], **kept)
        self.dead = Gauge("darkroom_dead_letters", "Jobs kept as dead letters", **kept)
        self.lag = Gauge("darkroom_loop_lag_seconds", "Worst lag of this agent's loop since asked last", **kept)
        self.connected = Gauge("darkroom_bus_connected", "Is there a connection to the bus?", **kept)
        Info("darkroom_build", "What runs here", registry=self.registry).info({"version": build})


@dataclass
class MetricsCollector:
    """Counts messages of the bus, which may come twice, and keeps the latest tick of each agent."""

    bus: Bus
    metrics: ServiceMetrics
    agents: dict[str, tuple[AgentTick, float]] = field(default_factory=dict)
    seen: "OrderedDict[str, None]" = field(default_factory=OrderedDict)
    worst_lag: float = 0.0

    async def count(self, message: Msg) -> None:
        """Count one message. Raises Retry when the bus does not answer what a fact refers to."""
        row = row_of(message.subject)
        if row is None:
            return
        if row.stream is not None:
            if self._is_repeat(message):
                return
            self.metrics.facts.labels(".".join(row.template.split(".")[1:3])).inc()
        try:
            payload = row.decode(message.data)
        except Undecodable:
            self.metrics.undecodable.inc()
            return
        match payload:
            case AgentTick() if row.parse(message.subject) == {"name": payload.name, "instance": payload.instance}:
                self._agent(payload)
            case Encoded():
                self.metrics.images.inc(len(payload.pictures))
                self.metrics.image_bytes.inc(sum(picture.bytes for picture in payload.pictures))
                self.metrics.encode_seconds.observe(payload.seconds)
            case Hashed():
                self.metrics.hashed.inc()
                self.metrics.hashed_bytes.inc(payload.stat.size)
                self.metrics.hash_seconds.inc(payload.seconds)
            case Finished():
                await self._finished(payload)
            case _ if row is JOB_STARTED:
                self.metrics.starts.inc()

    def _is_repeat(self, message: Msg) -> bool:
        """Was this fact counted before? A repeat that its stream refuses reaches listeners too. Without a message id,
        only one that is published once for its noun can be recognised."""
        head = (message.headers or {}).get("Nats-Msg-Id")
        once = JOB_FINISHED.matches(message.subject) or JOB_PLANNED.matches(message.subject)
        if (key := head or (message.subject if once else None)) is None:
            return False
        if key in self.seen:
            return True
        self.seen[key] = None
        if len(self.seen) > _REMEMBERED:
            self.seen.popitem(last=False)
        return False

    def _agent(self, tick: AgentTick) -> None:
        if tick.state == "stopping":
            self.agents.pop(tick.instance, None)
        else:
            self.agents[tick.instance] = (tick, self.bus.clock.steady())
            self.forget_the_gone()

    async def _finished(self, fact: Finished) -> None:
        self.metrics.jobs.labels(fact.status).inc()
        if (planned := await self.bus.last(JOB_PLANNED, id=fact.id)) is not None:
            plan = planned.payload
            self.metrics.job_seconds.labels(fact.status).observe(max(0.0, fact.at - plan.created_at))
            if fact.status == "succeeded":  # not counted from ticks: those may be left out
                self.metrics.steps.inc(plan.steps * len(plan.seeds))

    def forget_the_gone(self) -> None:
        """Agents that have sent no tick for a while are not up."""
        now = self.bus.clock.steady()
        self.agents = {key: known for key, known in self.agents.items() if now - known[1] <= AGENT_GONE_SECONDS}

    def text(self) -> str:
        """Prometheus text of now."""
        self.forget_the_gone()
        for gauge in (self.metrics.agents, self.metrics.agent_lag, self.metrics.agent_memory):
            gauge.clear()
        for tick, _ in self.agents.values():
            self.metrics.agents.labels(tick.name).inc()
            self.metrics.agent_memory.labels(tick.name).inc(tick.rss)
            lag = max(known.lag for known, _ in self.agents.values() if known.name == tick.name)
            self.metrics.agent_lag.labels(tick.name).set(lag)
        self.metrics.lag.set(self.worst_lag)
        self.worst_lag = 0.0
        self.metrics.connected.set(self.bus.nc.is_connected)
        return generate_latest(self.metrics.registry).decode()
