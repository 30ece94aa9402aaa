"""A running `darkroom up` whose children are killed at random, two hundred times, under a load of four hundred jobs
that a plain NATS client publishes: each job has one result, each picture is whole, and nothing is left over.

`KILLS=20 JOBS=40 KILL_SEED=7 pytest -m slow tests/pipeline/test_random_kills.py -s` is a short one.
"""

import json
import os
import random
import signal
import uuid
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import nats
import nats.errors
import nats.js.errors
import psutil
import pytest
from PIL import Image

from agents.diffusion.tiny_checkpoint import write_tiny_checkpoint
from bus.client import connect
from bus.subjects import PREPARE, RESULT
from schemas.settings import BusSettings
from tests.pipeline.test_up import darkroom, family, up

KILLS = int(os.environ.get("KILLS", "200"))
JOBS = int(os.environ.get("JOBS", "400"))
PAUSE = (0.5, 3.5)
"""Seconds between two kills, at least and at most."""
_AWAY = (
    nats.errors.Error,
    nats.js.errors.Error,
    OSError,
)
"""What a plain client raises while the server is down."""


async def publish(client: Any, subject: str, request: dict[str, Any]) -> None:
    """Publish, again while the server is away: the same id counts once."""
    while True:
        try:
            await client.jetstream(timeout=2).publish(subject, json.dumps(request).encode())
        except _AWAY:
            with suppress(*_AWAY):
                await client.flush(timeout=2)
        else:
            return


async def kill_children(process: Any, draw: random.Random, killed: Counter[str]) -> None:
    """SIGKILL a child of `up` now and then; which one, and when, are drawn."""
    for _ in range(KILLS):
        await anyio.sleep(draw.uniform(*PAUSE))
        children = [child for child in family(process) if child.is_running()]
        if not children:
            continue
        victim = draw.choice(children)
        with suppress(psutil.NoSuchProcess):
            words = victim.cmdline()
            name = next((word for word in ("nats-server", "generator", "watcher") if word in " ".join(words)), "other")
            victim.send_signal(signal.SIGKILL)
            killed[name] += 1


async def results(url: str, ids: list[str]) -> dict[str, Any]:
    """The result of each of these jobs, once there is one of each."""
    async with connect(url, BusSettings(), name="test") as bus, bus.listen(RESULT.filter(), buffer=JOBS) as arrivals:
        while True:
            counts = await bus.waiting("RESULTS", RESULT.filter())
            if all(counts.get(RESULT(id=id)) for id in ids):
                break
            with anyio.move_on_after(5):  # it may be announced a moment before it is stored
                await arrivals.receive()
        assert {counts[RESULT(id=id)] for id in ids} == {1}
        found = {}
        for id in ids:
            stored = await bus.last(RESULT, id=id)
            assert stored is not None
            found[id] = stored.payload
        return found


@pytest.mark.slow
@pytest.mark.timeout(0)
async def test_every_job_has_one_result_and_whole_pictures_though_children_are_killed_at_random(tmp_path: Path):
    data, draw = tmp_path / "data", random.Random(int(os.environ.get("KILL_SEED", "1")))
    (data / "models").mkdir(parents=True)
    write_tiny_checkpoint(data / "models" / "tiny.safetensors")
    ids, killed = [uuid.UUID(int=draw.getrandbits(128)).hex for _ in range(JOBS)], Counter[str]()
    with up(data) as (process, _, url):
        client = await nats.connect(url, max_reconnect_attempts=-1, reconnect_time_wait=0.2)
        began = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(kill_children, process, draw, killed)
            for n, id in enumerate(ids):
                request = {"prompt": f"picture {n}", "steps": 4, "width": 64, "height": 64, "seed": n}
                await publish(client, PREPARE(lane="normal", tenant="t0", id=id), request)
                await anyio.sleep(KILLS * sum(PAUSE) / 2 / JOBS)
        await client.close()
        with anyio.fail_after(900):
            found = await results(url, ids)
        statuses = Counter(f"{one.status} {one.reason}".strip() for one in found.values())
        print(f"\n{dict(killed)} killed in {anyio.current_time() - began:.0f} s; {JOBS} jobs: {dict(statuses)}")
        assert set(statuses) <= {"succeeded", "failed exhausted"}, statuses
        assert sum(killed.values()) >= KILLS * 0.9
        whole(data, found)
        rebuilt, verified = (darkroom(name, "--data", str(data), seconds=180) for name in ("rebuild", "verify"))
        assert rebuilt.returncode == 0, rebuilt.stdout + rebuilt.stderr
        assert verified.returncode == 0, verified.stdout + verified.stderr
        print(rebuilt.stdout, verified.stdout)
    assert not [file for file in (data / "work").rglob("*") if file.is_file()]
    assert not list((data / "outputs").rglob(".*"))


def whole(data: Path, found: dict[str, Any]) -> None:
    """Every picture of every result, and its tiers, can be decoded."""
    for one in found.values():
        assert len(one.images) == (1 if one.status == "succeeded" else 0)
        for picture in one.images:
            for file in (picture.file, *picture.tiers.values()):
                with Image.open(data / file) as image:
                    image.load()
