"""What a job costs the bus: every message that a client publishes for it, counted on the wire."""

from pathlib import Path
from statistics import median

import anyio

from bus.client import Bus, connect
from bus.server import LocalServer
from bus.subjects import ENCODE, GENERATE, JOB_FINISHED, PREPARE, RESULT
from schemas.settings import BusSettings
from tests.pipeline.conftest import Agents, ask, drop
from tests.pipeline.wire import Wire, proxied

CALM = BusSettings(store_bytes=512 * 1024 * 1024)
"""Leases are not renewed within a job's time."""
JOBS = 5


async def test_a_job_takes_22_messages_at_most_from_its_request_to_its_result(nats_server: LocalServer, tmp_path: Path):
    """Counted: all that clients publish, questions, answers, pulls and acknowledgements too, for one job at a time in a
    warm service, up to its result, and until every queue has forgotten it. Not counted: ticks, what the server sends,
    and how the catalog reads the facts that are stored."""
    data = tmp_path / "data"
    (data / "models").mkdir(parents=True)
    async with proxied(nats_server.url) as wire:
        agents = Agents(wire.url, data, CALM)
        try:
            for names in (("migrator",), ("watcher", "hasher"), ("preprocess",), ("encoder",), ("generator",)):
                await anyio.to_thread.run_sync(agents.start, *names)
            async with (
                connect(wire.url, CALM, name="client") as client,
                connect(nats_server.url, CALM, name="aside") as aside,
            ):
                await drop(aside, agents)
                await one_job(client, aside, wire)  # loads the model, makes the consumers
                taken = [await one_job(client, aside, wire) for _ in range(JOBS)]
        finally:
            await anyio.to_thread.run_sync(agents.stop)
    to_result, in_all = zip(*taken, strict=True)
    assert median(map(len, to_result)) <= 22, "\n".join(map(str, to_result[-1]))
    assert median(map(len, in_all)) <= 24, "\n".join(map(str, in_all[-1]))


async def one_job(client: Bus, aside: Bus, wire: Wire) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The messages of one job: up to its result, and until every queue has forgotten it."""
    async with aside.listen(RESULT.filter()) as results:
        before = len(wire.published)
        id = await ask(client, steps=1)
        with anyio.fail_after(60):
            await results.receive()
        until_result = len(wire.published)
    with anyio.fail_after(60):
        while await queued(aside, id) or await aside.last(JOB_FINISHED, id=id) is None:
            await aside.flush()
    return counted(wire.published[before:until_result]), counted(wire.published[before:])


async def queued(bus: Bus, id: str) -> bool:
    rows = (PREPARE, GENERATE, ENCODE)
    return any([await bus.waiting(row.stream or "", row.filter(id=id)) for row in rows])


def counted(published: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Nor what the catalog does with the stored facts of this job or the one before: of it, its answers count."""

    def counts(name: str, subject: str) -> bool:
        return ".tick." not in subject and (name != "darkroom-migrator" or subject.startswith("_INBOX."))

    return [one for one in published if counts(*one)]
