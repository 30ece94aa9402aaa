"""A hasher that is killed while it hashes a growing file: the next one says what the file is when it is complete."""

import hashlib
import json
import os
import struct
from io import FileIO

import anyio

from bus.client import Bus
from bus.subjects import FILE_HASHED, MODEL_READY, TICK_GROWING
from tests.pipeline.conftest import Agents, bus_of, kill

SIZE = 256 * 1024**2
BLOCK = 1024**2
GROWN = 3
"""Looks of the watcher at the growing file before and after the kill."""


class Growing:
    """A safetensors file of SIZE bytes at most, written block by block."""

    def __init__(self, file: FileIO) -> None:
        table = json.dumps({"w": {"dtype": "U8", "shape": [SIZE], "data_offsets": [0, SIZE]}}).encode()
        self.left, self.block, self.digest = SIZE, os.urandom(BLOCK), hashlib.sha256()
        self.file = file
        self._write(struct.pack("<Q", len(table)) + table)

    def _write(self, data: bytes) -> None:
        self.file.write(data)
        self.digest.update(data)

    def add(self) -> None:
        if self.left:
            self._write(self.block)
            self.left -= BLOCK

    def end(self) -> None:
        """All that is left."""
        while self.left:
            self.add()


async def growing(bus: Bus, file: Growing, blocks: int) -> None:
    """Write so many blocks, and as many more as it takes for the watcher to see it grow."""
    async with bus.listen(TICK_GROWING.filter()) as heard:
        for _ in range(blocks):
            file.add()
        seen = 0
        with anyio.fail_after(20):
            while seen < GROWN:
                with anyio.move_on_after(0.05):
                    await heard.receive()
                    seen += 1
                file.add()


async def test_a_hasher_that_is_killed_in_the_middle_of_a_growing_file_leaves_it_to_the_next(agents: Agents):
    agents.start("migrator", "watcher")
    hasher = agents.start("hasher")
    path = agents.data / "models" / "large.safetensors"
    async with bus_of(agents) as bus, bus.listen(MODEL_READY.filter()) as heard:
        with path.open("wb", buffering=0) as opened:
            file = Growing(opened)
            await growing(bus, file, 80)
            kill(hasher)
            agents.start("hasher")
            await growing(bus, file, 0)
            file.end()
        with anyio.fail_after(30):
            assert MODEL_READY.decode((await heard.receive()).data).model.sha256 == file.digest.hexdigest()
        assert len(await bus.waiting("FILES", FILE_HASHED.filter())) == 1
