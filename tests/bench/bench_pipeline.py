"""A whole service with the tiny checkpoint at 64×64: what it adds to the model's time, and what it does under load.

One request at a time, published on the bus, until its result is heard. In turns with it, in this process: the same plan
through the same engine, and the WebP encoding of its picture (full size and three tiers, in memory). What is left of
the request's time is the pipeline's own: hops, durable facts, and files that are on the disk before anybody is told of
them. In turns with it too: one bare hop, nats-py's publish to nats-py's `fetch(1)`, on the same server. Budget: the
pipeline's own is at most 12 such hops at the median. The stages are read from the stored facts' times on the server.

Under load: pictures a second of as many queued requests as fit a generate queue, against a plain diffusers pipeline
that makes as many pictures in a loop and writes none of them, in turns. Budget: at least 1.0 × on a CPU.

Torch has one thread on both sides.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any

import anyio
import diffusers.utils.logging
import numpy as np
import torch
from anyio import to_thread
from nats.aio.msg import Msg
from nats.js.api import DiscardPolicy, StreamConfig

from agents.diffusion.engine import Engine
from agents.diffusion.families.table import load_family
from agents.diffusion.sampling import build_scheduler
from agents.diffusion.tiny_checkpoint import write_tiny_checkpoint
from agents.images import infotext
from agents.images.outputs import encode_pictures, full_size
from agents.images.tiers import as_image, webp_tiers
from agents.runtime.supervisor import service
from bus.client import Bus, connect
from bus.ids import new_id
from bus.subjects import (
    ATTEMPT_STARTED,
    IMAGE_ENCODED,
    JOB_PLANNED,
    JOB_STARTED,
    MODEL_READY,
    PREPARE,
    RESULT,
    Subject,
)
from schemas.images import Encode, Pixels
from schemas.jobs import Plan, Request
from schemas.settings import GeneratorSettings, HttpSettings, Settings
from tests.bench.bench_bus import Hop, bare_client, bare_fetch
from tests.bench.figures import Figure, p50, p99, ratios, seconds
from tests.diffusion.plain import plain_pipeline

THREADS = 1
SIDE = 64
STEPS, REQUESTS = 2, 60
"""Few steps: the less there is to take away, the less its noise hides what is left."""
BURST_STEPS, BURST, BURSTS = 4, 16, 5
PAUSE = 0.03
"""Seconds after a result, in which the service finishes what follows it."""
PATIENCE = 60.0
HOPS = 3
"""Bare hops after each request."""

# A stage ends when the fact is stored; the last one when the result is heard here.
STAGES: tuple[tuple[str, Subject[Any], dict[str, str]], ...] = (
    ("preprocess takes it", ATTEMPT_STARTED, {"kind": "prepare"}),
    ("is planned", JOB_PLANNED, {}),
    ("generator takes it", JOB_STARTED, {}),
    ("encoder takes it", ATTEMPT_STARTED, {"kind": "encode"}),
    ("is encoded", IMAGE_ENCODED, {}),
)

OTHERS = {"encoder takes it": "model", "is encoded": "encode"}
"""What was measured alone and is taken away from a stage."""


async def figures(folder: Path) -> list[Figure]:
    """Start the service, load every model once, measure."""
    torch.set_num_threads(THREADS)
    settings = Settings(
        data_dir=str(folder / "data"),
        roots={"models": str(folder / "data" / "models")},
        log_level="error",
        http=HttpSettings(port=0),
        generator=GeneratorSettings(threads=THREADS),
    )
    async with service(settings) as running, connect(running.nats_url, settings.bus, name="bench") as bus:
        checkpoint = await dropped(bus, Path(settings.roots["models"]))
        async with Caller(bus).listening() as caller:
            await caller.finished([await caller.ask(0)])
            plan = await planned(bus, caller.latest)
            alone = Alone(plan, checkpoint, folder)
            async with bare_hops(running.nats_url) as hop:
                own = await added(caller, alone, hop)
            return [*own, await under_load(caller, plan, checkpoint, folder)]


@asynccontextmanager
async def bare_hops(url: str) -> AsyncIterator[Hop]:
    """nats-py's publish to nats-py's `fetch(1)`, on a stream of its own."""
    async with bare_client(url) as reader, bare_client(url) as writer, anyio.create_task_group() as tasks:
        wanted = StreamConfig(name="BARE_FILES", subjects=["FILES.>"], max_bytes=1024**2, discard=DiscardPolicy.OLD)
        await writer.jetstream().add_stream(wanted)
        yield await bare_fetch(tasks, reader.jetstream(), writer.jetstream())
        tasks.cancel_scope.cancel()


async def dropped(bus: Bus, models: Path) -> Path:
    """The tiny checkpoint in the models folder, catalogued."""
    made = models / ".tiny.part"
    await to_thread.run_sync(write_tiny_checkpoint, made)
    sha256 = hashlib.sha256(made.read_bytes()).hexdigest()
    async with bus.listen(MODEL_READY.filter(sha256=sha256)) as heard:
        checkpoint = made.rename(models / "tiny.safetensors")
        with anyio.fail_after(PATIENCE):
            await heard.receive()
    return checkpoint


async def planned(bus: Bus, id: str) -> Plan:
    stored = await bus.last(JOB_PLANNED, id=id)
    assert stored
    return stored.payload


class Caller:
    """Somebody who publishes requests and listens for results; when each was heard, by the wall clock."""

    def __init__(self, bus: Bus) -> None:
        self.bus, self.latest = bus, ""
        self.asked: dict[str, float] = {}
        self.heard: dict[str, float] = {}
        self.news = asyncio.Condition()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["Caller"]:
        async def arrived(message: Msg) -> None:
            result = RESULT.decode(message.data)
            assert result.status == "succeeded", result.error
            self.heard[result.id] = time.time()
            async with self.news:
                self.news.notify_all()

        subscription = await self.bus.nc.subscribe(RESULT.filter(), cb=arrived)
        yield self
        await subscription.unsubscribe()

    async def ask(self, seed: int, steps: int = STEPS) -> str:
        """Publish one request; its id."""
        self.latest = id = new_id()
        request = Request(prompt="a red fox in the snow", model="tiny", steps=steps, seed=seed, width=SIDE, height=SIDE)
        self.asked[id] = time.time()
        await self.bus.publish(PREPARE, request, lane="normal", tenant="t0", id=id)
        return id

    async def finished(self, ids: list[str]) -> None:
        """Wait for the results of all."""
        with anyio.fail_after(PATIENCE):
            async with self.news:
                await self.news.wait_for(lambda: all(id in self.heard for id in ids))


class Alone:
    """The parts that are not the pipeline's: the engine with the model in memory, and the encoder."""

    def __init__(self, plan: Plan, checkpoint: Path, folder: Path) -> None:
        self.plan, self.checkpoint, self.folder = plan, checkpoint, folder
        self.engine = Engine(torch.device("cpu"))
        (folder / "work").mkdir()
        self.pictures = self.draw()

    def draw(self) -> list[Any]:
        return self.engine.generate(self.plan, self.checkpoint, lambda progress: None, lambda: False)

    def encode(self) -> None:
        """The four files of a picture, in memory."""
        image, text = as_image(self.pictures[0]), "a red fox in the snow"
        full_size(image, self.job(""), text)
        webp_tiers(image, exif=infotext.exif(text))

    def job(self, file: str) -> Encode:
        pixels = Pixels(index=0, file=file, seed=1, width=SIDE, height=SIDE, infotext="a red fox in the snow")
        plan = self.plan
        return Encode(id=new_id(), day=plan.day, format="webp", quality=90, lossless=False, pixels=(pixels,))

    def encode_to_disk(self) -> float:
        """Seconds that the encoder's library takes for them, with files that are on the disk."""
        file = f"{new_id()}.npy"
        np.save(self.folder / "work" / file, self.pictures[0])
        return seconds(lambda: encode_pictures(self.job(file), self.folder))


async def added(caller: Caller, alone: Alone, hop: Hop) -> list[Figure]:
    """One request at a time, and in turns with it what the model, the encoding and a bare hop take alone."""
    took: dict[str, list[float]] = {"latency": [], "model": [], "encode": [], "to disk": [], "hop": []}
    stages: dict[str, list[float]] = {}
    for turn in range(REQUESTS):
        id = await caller.ask(turn)
        await caller.finished([id])
        await asyncio.sleep(PAUSE)
        took["latency"].append(caller.heard[id] - caller.asked[id])
        took["model"].append(seconds(alone.draw))
        took["encode"].append(seconds(alone.encode))
        took["to disk"].append(alone.encode_to_disk())
        for _ in range(HOPS):
            took["hop"].append(await hop())
            await asyncio.sleep(PAUSE)
        for name, took_seconds in (await staged(caller, id)).items():
            stages.setdefault(name, []).append(took_seconds)
    p50s = {name: p50(values) * 1e3 for name, values in took.items()}
    rest = [whole - model - encode for whole, model, encode in zip(*list(took.values())[:3], strict=True)]
    found = [
        Figure(
            what="request → result, less model and WebP, p50 / a bare hop",
            value=p50(rest) / p50(took["hop"]),
            at_most=12.0,
            aside=f"{p50(rest) * 1e3:.1f} ms, hop {p50s['hop']:.2f}; whole p50 {p50s['latency']:.1f}, "
            f"p99 {p99(took['latency']) * 1e3:.1f}; model {p50s['model']:.1f}; WebP {p50s['encode']:.1f}, "
            f"to the disk {p50s['to disk']:.1f} ms",
        ),
        Figure(what="request → result, less model and WebP, p99", value=p99(rest) * 1e3, unit="ms"),
    ]
    for name, values in stages.items():
        less = (
            [value - part for value, part in zip(values, took[OTHERS[name]], strict=True)] if name in OTHERS else values
        )
        aside = f"p50 {p50(values) * 1e3:.1f} ms with {OTHERS[name]}" if name in OTHERS else ""
        found.append(Figure(what=f"  … {name}", value=p50(less) * 1e3, unit="ms", aside=aside))
    return found


async def staged(caller: Caller, id: str) -> dict[str, float]:
    """How long each stage of a job took, from the times at which its facts were stored."""
    taken, before = {}, caller.asked[id]
    for name, row, tokens in STAGES:
        stored = await caller.bus.js.get_msg("EVENTS", subject=row(**tokens, id=id))
        assert stored.time
        taken[name], before = stored.time.timestamp() - before, stored.time.timestamp()
    taken["result heard"] = caller.heard[id] - before
    return taken


async def under_load(caller: Caller, plan: Plan, checkpoint: Path, folder: Path) -> Figure:
    """A burst of requests and a loop of as many pictures, in turns."""
    diffusers.utils.logging.disable_progress_bar()
    pipeline = await to_thread.run_sync(plain_pipeline, checkpoint, folder / "configs")
    pipeline.scheduler = build_scheduler(load_family("sd15"), plan.spec)

    def plain_loop(count: int) -> None:
        for seed in range(count):
            pipeline(
                plan.prompt,
                num_inference_steps=BURST_STEPS,
                guidance_scale=plan.cfg_scale,
                width=plan.width,
                height=plan.height,
                generator=torch.Generator("cpu").manual_seed(seed),
            )

    plain_loop(1)
    ours, plain = [], []
    for _ in range(BURSTS):
        began = time.time()
        ids = await asyncio.gather(*(caller.ask(seed, BURST_STEPS) for seed in range(BURST)))
        await caller.finished(list(ids))
        ours.append(BURST / (max(caller.heard[id] for id in ids) - began))
        await asyncio.sleep(PAUSE)
        plain.append(BURST / seconds(lambda: plain_loop(BURST)))
    return Figure(
        what=f"pictures a second, {BURST} queued / plain diffusers loop",
        value=median(ratios(ours, plain)),
        at_least=1.0,
        aside=f"{median(ours):.1f}/s, plain {median(plain):.1f}/s",
    )
