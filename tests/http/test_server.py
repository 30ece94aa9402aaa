"""The address it listens on, and who may reach it."""

import socket
from pathlib import Path

import pytest

from agents import bridge
from agents.http.server import base_url, bound
from bus.client import Bus
from bus.errors import UserError
from schemas.settings import HttpSettings, Settings


async def test_a_port_in_use_is_an_error_that_says_what_to_do(bus: Bus, tmp_path: Path):
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = Settings(data_dir=str(tmp_path), http=HttpSettings(port=port))
        with pytest.raises(UserError, match=rf"port {port} on 127.0.0.1 is in use: .*--port N.*--port 0"):
            await bridge.run(bus, settings)
    first = bound(HttpSettings(port=0))
    with first, pytest.raises(UserError, match="in use"):
        bound(HttpSettings(port=first.getsockname()[1]))


def test_an_address_that_others_can_reach_needs_a_key():
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(UserError, match="key"):
            bound(HttpSettings(host=host, port=0))
    with bound(HttpSettings(host="0.0.0.0", port=0, api_key="k")) as listener:
        assert base_url(listener).startswith("http://127.0.0.1:")
    with pytest.raises(UserError, match=r"192\.0\.2\.1"):
        bound(HttpSettings(host="192.0.2.1", port=0, api_key="k"))
    with pytest.raises(UserError, match=r"no-such-host\.invalid"):
        bound(HttpSettings(host="no-such-host.invalid", port=0, api_key="k"))
