"""A proxy between agents and their nats-server that notes every message which a client publishes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec


@dataclass
class Wire:
    """Where clients connect to, and what they have published so far: (the connection's name, subject)."""

    url: str = ""
    published: list[tuple[str, str]] = field(default_factory=list)


class _Hello(msgspec.Struct):
    name: str = ""


@asynccontextmanager
async def proxied(server_url: str) -> AsyncIterator[Wire]:
    """A port in front of the server, for as long as the body runs."""
    host, port = server_url.removeprefix("nats://").rsplit(":", 1)
    wire, open_ones = Wire(), set[asyncio.Task[None]]()

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(host, int(port))
        me = asyncio.current_task()
        assert me is not None
        open_ones.add(me)
        try:
            await asyncio.gather(_noted(reader, back, wire), _copied(there, writer))
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # one side is gone, or the test is over
        finally:
            open_ones.discard(me)
            for end in (writer, back):
                end.close()

    server = await asyncio.start_server(accepted, "127.0.0.1", 0)
    async with server:
        wire.url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield wire
        for task in tuple(open_ones):
            task.cancel()


async def _copied(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def _noted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wire: Wire) -> None:
    """The client's half of the protocol: lines, those of PUB and HPUB with a payload after them."""
    name = ""
    while line := await reader.readline():
        words = line.decode().split()
        verb = words[0].upper() if words else ""
        payload = b""
        if verb == "CONNECT":
            name = msgspec.json.decode(line.split(b" ", 1)[1], type=_Hello).name
        elif verb in ("PUB", "HPUB"):
            payload = await reader.readexactly(int(words[-1]) + 2)
            wire.published.append((name, words[1]))
        writer.write(line + payload)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
    writer.close()
