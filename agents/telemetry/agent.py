"""Telemetry: hears tick.* and evt.*, keeps Prometheus metrics, and says them when asked (ask.telemetry.metrics).

`tail` and `line` show the same messages to people. What is heard is lossy and may come twice; what must count once is
told apart by its message id or its subject. No label carries a path, a prompt or an id.
"""

import json
import re
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import anyio
import anyio.abc
import msgspec
import nats.errors
import structlog
from nats.aio.msg import Msg
from nats.js.errors import APIError
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

from bus.client import Bus
from bus.errors import Retry, Undecodable, UserError
from bus.subjects import (
    ALL,
    ASK_METRICS,
    FILE_HASHED,
    IMAGE_ENCODED,
    JOB_FINISHED,
    JOB_PLANNED,
    JOB_STARTED,
    PREFIX,
    TICK_AGENT,
    TICK_HASH,
    TICK_PREVIEW,
    TICK_STEP,
    row_of,
)
from schemas.asks import Metrics, Nothing
from schemas.files import Hashed
from schemas.images import Encoded
from schemas.jobs import Finished
from schemas.settings import Settings
from schemas.ticks import AgentTick

log = structlog.get_logger()

POLL_SECONDS = 5.0
AGENT_GONE_SECONDS = 15.0
LAG_EVERY_SECONDS = 0.5
_REMEMBERED = 20_000
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
_STREAMS = tuple(sorted({row.stream for row in ALL if row.stream}))


class Meters:
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
        self.facts = Counter("darkroom_facts_total", "Facts heard, by kind", ["kind"], **kept)
        self.undecodable = Counter("darkroom_undecodable_total", "Messages that can't be read", **kept)
        self.agents = Gauge("darkroom_agents_up", "Instances of an agent heard in the last 15 s", ["name"], **kept)
        self.agent_lag = Gauge("darkroom_agent_lag_seconds", "Worst loop lag an agent told last", ["name"], **kept)
        self.agent_memory = Gauge("darkroom_agent_memory_bytes", "Memory of an agent's process", ["name"], **kept)
        self.waiting = Gauge("darkroom_stream_messages", "Messages a stream holds", ["stream"], **kept)
        self.stored = Gauge("darkroom_stream_bytes", "Bytes a stream holds", ["stream"], **kept)
        self.dead = Gauge("darkroom_dead_letters", "Jobs kept as dead letters", **kept)
        self.lag = Gauge("darkroom_loop_lag_seconds", "Worst lag of this agent's loop since asked last", **kept)
        self.connected = Gauge("darkroom_bus_connected", "Is there a connection to the bus?", **kept)
        Info("darkroom_build", "What runs here", registry=self.registry).info({"version": build})


@dataclass
class Teller:
    """What was heard, turned into numbers."""

    bus: Bus
    meters: Meters
    agents: dict[str, tuple[AgentTick, float]] = field(default_factory=dict)
    seen: "OrderedDict[str, None]" = field(default_factory=OrderedDict)
    worst_lag: float = 0.0

    async def heard(self, message: Msg) -> None:
        """Count one message. Raises Retry when the bus can't tell what a fact refers to."""
        row = row_of(message.subject)
        if row is None:
            return
        if row.stream is not None:
            if self._again(message):
                return
            self.meters.facts.labels(".".join(row.template.split(".")[1:3])).inc()
        try:
            payload = row.decode(message.data)
        except Undecodable:
            self.meters.undecodable.inc()
            return
        match payload:
            case AgentTick() if row.parse(message.subject) == {"name": payload.name, "instance": payload.instance}:
                self._agent(payload)
            case Encoded():
                self.meters.images.inc(len(payload.pictures))
                self.meters.image_bytes.inc(sum(picture.bytes for picture in payload.pictures))
                self.meters.encode_seconds.observe(payload.seconds)
            case Hashed():
                self.meters.hashed.inc()
                self.meters.hashed_bytes.inc(payload.stat.size)
                self.meters.hash_seconds.inc(payload.seconds)
            case Finished():
                await self._finished(payload)
            case _ if row is JOB_STARTED:
                self.meters.starts.inc()

    def _again(self, message: Msg) -> bool:
        """Was this fact heard before? A refused repeat reaches listeners too. Without a message id, only one that is
        said once for its noun can be told."""
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
            self.agents[tick.instance] = (tick, time.monotonic())
            self.forget_the_gone()

    async def _finished(self, fact: Finished) -> None:
        self.meters.jobs.labels(fact.status).inc()
        if (planned := await self.bus.last(JOB_PLANNED, id=fact.id)) is not None:
            plan = planned.payload
            self.meters.job_seconds.labels(fact.status).observe(max(0.0, fact.at - plan.created_at))
            if fact.status == "succeeded":  # not counted from ticks: those may be left out
                self.meters.steps.inc(plan.steps * len(plan.seeds))

    def forget_the_gone(self) -> None:
        """Agents that have said nothing for a while are not up."""
        now = time.monotonic()
        self.agents = {key: known for key, known in self.agents.items() if now - known[1] <= AGENT_GONE_SECONDS}

    def text(self) -> str:
        """Prometheus text of now."""
        self.forget_the_gone()
        for gauge in (self.meters.agents, self.meters.agent_lag, self.meters.agent_memory):
            gauge.clear()
        for tick, _ in self.agents.values():
            self.meters.agents.labels(tick.name).inc()
            self.meters.agent_memory.labels(tick.name).inc(tick.rss)
            lag = max(known.lag for known, _ in self.agents.values() if known.name == tick.name)
            self.meters.agent_lag.labels(tick.name).set(lag)
        self.meters.lag.set(self.worst_lag)
        self.worst_lag = 0.0
        self.meters.connected.set(self.bus.nc.is_connected)
        return generate_latest(self.meters.registry).decode()


async def run(
    bus: Bus, settings: Settings, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
) -> None:
    """Listen and answer until cancelled; ready when both are so."""
    teller = Teller(bus, Meters(_build()))

    async def metrics(_: Nothing) -> Metrics:
        return Metrics(text=teller.text())

    async with bus.listen(PREFIX + "evt.>", buffer=8192) as facts, bus.listen(PREFIX + "tick.>", buffer=8192) as ticks:
        await _poll(teller)
        async with anyio.create_task_group() as tasks:
            await tasks.start(bus.answer, ASK_METRICS, metrics)
            tasks.start_soon(_count, teller, facts.receive)
            tasks.start_soon(_count, teller, ticks.receive)
            tasks.start_soon(_keep_polling, teller)
            tasks.start_soon(_feel_lag, teller)
            task_status.started()


def _build() -> str:
    try:
        return version("darkroom")
    except PackageNotFoundError:
        return "unknown"


async def _count(teller: Teller, receive: "Callable[[], Any]") -> None:
    while True:
        message = await receive()
        try:
            await teller.heard(message)
        except Retry as error:
            log.info("not measured", subject=message.subject, why=str(error))


async def _poll(teller: Teller) -> None:
    for name in _STREAMS:
        try:
            state = (await teller.bus.js.stream_info(name)).state
        except (nats.errors.Error, APIError, TimeoutError) as error:
            log.info("queue length not told", stream=name, error=str(error))
            continue
        teller.meters.waiting.labels(name).set(state.messages)
        teller.meters.stored.labels(name).set(state.bytes)
        if name == "DLQ":
            teller.meters.dead.set(state.messages)


async def _keep_polling(teller: Teller) -> None:
    while True:
        await anyio.sleep(POLL_SECONDS)
        await _poll(teller)


async def _feel_lag(teller: Teller) -> None:
    while True:
        before = time.monotonic()
        await anyio.sleep(LAG_EVERY_SECONDS)
        teller.worst_lag = max(teller.worst_lag, time.monotonic() - before - LAG_EVERY_SECONDS)


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """One message of the bus, with the Unix time at which it was heard."""

    subject: str
    data: bytes
    at: float


def pattern_of(text: str) -> str:
    """The full pattern that a person means: `evt.job.>`, `tick.*.*` or the same with the prefix; empty means all.

    Raises UserError for one that is no pattern, or that nothing in the table of subjects can ever match.
    """
    short = (text.strip() or ">").removeprefix(PREFIX)
    tokens = short.split(".")
    if not all(re.fullmatch(r"[a-z0-9_-]{1,64}|\*|>", token) for token in tokens) or ">" in tokens[:-1]:
        raise UserError(f"{text!r} is no pattern: words of a to z, 0 to 9, '_' and '-', `*` for one, `>` for the rest")
    if not any(_can_match(tokens, row.template.split(".")) for row in ALL):
        kinds = sorted({".".join(row.template.split(".")[:2]) for row in ALL})
        raise UserError(f"nothing on the bus is called {text!r}; there are {', '.join(f'{kind}.>' for kind in kinds)}")
    return PREFIX + short


def _can_match(tokens: list[str], template: list[str]) -> bool:
    if tokens[-1] == ">":
        if len(template) < len(tokens):
            return False
        tokens, template = tokens[:-1], template[: len(tokens) - 1]
    return len(tokens) == len(template) and all(
        token == "*" or word.startswith("<") or token == word for token, word in zip(tokens, template, strict=True)
    )


async def tail(bus: Bus, pattern: str = "") -> AsyncGenerator[Heard, None]:
    """Messages on a pattern (see `pattern_of`) from now on; some may be missed. Close it when leaving early."""
    async with bus.listen(pattern_of(pattern)) as heard:
        while True:
            message = await heard.receive()
            yield Heard(subject=message.subject, data=message.data, at=time.time())


def line(subject: str, data: bytes, at: float) -> str:
    """One message for people: local time, the subject without its prefix, the fields that matter.

    Total: whatever the bytes are, it is one line without control characters, escapes or text that turns around.
    """
    when = datetime.fromtimestamp(at).strftime("%H:%M:%S.%f")[:-3]
    told = " ".join(f"{name}={value}" for name, value in _fields(subject, data))
    return f"{when}  {_clean(subject.removeprefix(PREFIX), 120)}  {told}".rstrip()


_HIDDEN = ("id", "job", "key", "at", "instance", "jpeg", "stat", "spec")
_LONGEST = 60
_MOST_FIELDS = 12


def _fields(subject: str, data: bytes) -> list[tuple[str, str]]:
    payload: Any = None
    with suppress(ValueError, RecursionError, UnicodeDecodeError):
        payload = json.loads(data)
    if not isinstance(payload, dict):
        return [("data", _clean(data[:200].decode("utf-8", "replace"), _LONGEST))] if data else []
    shown = _SHOWN.get(row.template) if (row := row_of(subject)) else None
    named = [(name, _reach(payload, name)) for name in shown] if shown else _flat(payload)
    return [
        (_clean(name.rsplit(".", 1)[-1], _LONGEST), _value(value))
        for name, value in named
        if value not in (None, "", [], {})
    ][:_MOST_FIELDS]


_SHOWN: dict[str, tuple[str, ...]] = {
    JOB_PLANNED.template: ("prompt", "model.name", "width", "height", "steps", "sampler", "scheduler", "seeds"),
    TICK_STEP.template: ("stage", "step", "steps", "image", "images", "rate", "eta"),
    TICK_HASH.template: ("rel", "done", "total", "rate", "eta"),
    TICK_PREVIEW.template: ("step", "image"),
    TICK_AGENT.template: ("name", "state", "host", "pid", "rss", "lag"),
    FILE_HASHED.template: ("path.rel", "sha256", "stat.size", "seconds", "identity.kind", "identity.family"),
    IMAGE_ENCODED.template: ("pictures", "seconds"),
}


def _reach(payload: dict[str, Any], name: str) -> object:
    found: Any = payload
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _flat(payload: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(str(name), value) for name, value in payload.items() if name not in _HIDDEN]


def _value(value: object) -> str:
    match value:
        case float():
            return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
        case {"root": str(root), "rel": str(rel), **rest} if not rest:
            return _clean(f"{root}:{rel}", _LONGEST)
        case {"name": str(name)}:
            return _clean(name, _LONGEST)
        case dict():
            return f"{{{len(value)}}}"
        case list() if len(value) > 4 or any(isinstance(item, dict | list) for item in value):
            return f"[{len(value)}]"
        case str():
            text = _clean(value, _LONGEST)
            return '"' + text.replace('"', '\\"') + '"' if re.search(r'[ "=]', text) else text
        case _:
            return _clean(json.dumps(value), _LONGEST)


def _clean(text: str, longest: int) -> str:
    """Printable characters as they are, all others escaped, and not too many."""
    shown = "".join(c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode() for c in text[:longest])
    return shown + ("…" if len(text) > longest else "")
