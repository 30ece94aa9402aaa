"""Bridge: serves HTTP. Consumes nothing; publishes job.prepare, job.import and results of cancelled jobs, asks
ask.catalog.*, ask.files.* and ask.telemetry.metrics, and answers with what the bus holds.

It keeps nothing that a restart could lose: jobs, events and results are read from the streams each time. The routes are
in http/; what they do with the bus is client/'s.
"""

from pathlib import Path

import anyio
import anyio.abc
import structlog

from agents.http.app import app
from agents.http.server import Server, base_url, bound
from bus.client import Bus
from schemas.settings import Settings

log = structlog.get_logger()

PAGE = Path(__file__).parent / "web"


async def run(
    bus: Bus,
    settings: Settings,
    *,
    task_status: anyio.abc.TaskStatus[str] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve HTTP until cancelled; ready, with the base URL, when connections are accepted.

    Raises UserError for an address that can't be bound and for one beyond loopback without an API key.
    """
    listener, stopping = bound(settings.http), anyio.Event()
    server = Server(app(bus, settings, page=PAGE, stopping=stopping), settings.http)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve_on, listener)
        try:
            await server.accepting.wait()
            url = base_url(listener)
            log.info("bridge", url=url)
            task_status.started(url)
            await anyio.sleep_forever()
        finally:
            stopping.set()
            server.end()
