"""`darkroom tail`: what is published on the bus, as it comes."""

from typing import Annotated

import msgspec
import typer

from agents.cli import console
from agents.cli.service import running_bus
from agents.telemetry import tail as telemetry
from schemas.settings import Settings


async def tail(
    settings: Settings,
    pattern: Annotated[str, typer.Argument(help="Which subjects, as in the table: evt.job.>, tick.*.*, …")] = ">",
    as_json: bool = False,
) -> None:
    """Follow the bus until interrupted."""
    async with running_bus(settings) as bus:
        async for message in telemetry.tail(bus, pattern):
            if as_json:
                console.json({"subject": message.subject, "payload": msgspec.Raw(message.data)})
            else:
                console.line(telemetry.line(message.subject, message.data, message.at))
