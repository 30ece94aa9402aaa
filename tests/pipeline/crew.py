"""A crew: watcher, hasher and migrator, each a process of its own, that can be stopped or killed one by one."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO

from bus.server import end_with_parent

AGENTS = ("watcher", "hasher", "migrator")


class Crew:
    """The three on one bus. What they log goes to one file, whose end is shown when a test fails."""

    def __init__(self, url: str, data: Path, roots: Mapping[str, Path], settings: Mapping[str, str]) -> None:
        self.url, self.data = url, data
        named = ", ".join(f'"{name}": "{folder}"' for name, folder in roots.items())
        self.environment = os.environ | {"DARKROOM_ROOTS": f"{{{named}}}", "HF_HUB_OFFLINE": "1", **settings}
        self.log_path = data / "agents.log"
        self.running: dict[str, subprocess.Popen[str]] = {}

    def start(self) -> list[str]:
        """Start whoever does not run, side by side; returns their names when each has said that it is ready."""
        missing = [name for name in AGENTS if name not in self.running]
        with self.log_path.open("a") as log:
            for name in missing:
                self.running[name] = self._started(name, log)
        for name in missing:
            pipe = self.running[name].stdout
            assert pipe is not None
            line = pipe.readline()
            assert line.startswith(f"ready {name}"), self._because(f"{name} did not become ready: {line!r}")
        return missing

    def stop(self, names: Iterable[str]) -> None:
        """SIGTERM, and wait for the end, which has to be a clean one."""
        for name in self._end(names, signal.SIGTERM):
            code = self._ended(name)
            assert code == 0, self._because(f"{name} ended with {code} at SIGTERM")

    def kill(self, names: Iterable[str]) -> None:
        """SIGKILL, and wait for the end."""
        for name in self._end(names, signal.SIGKILL):
            self._ended(name)

    def assert_alive(self) -> None:
        """Nobody ended by itself."""
        for name, process in self.running.items():
            assert process.poll() is None, self._because(f"{name} ended by itself with {process.returncode}")

    def last_words(self) -> list[str]:
        """The end of what the agents logged."""
        return self.log_path.read_text().splitlines()[-20:]

    def _because(self, what: str) -> str:
        return "\n".join((what, *self.last_words()))

    def _started(self, name: str, log: IO[str]) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "agents.cli.app", "run", name, "--nats", self.url, "--data", str(self.data)]
        return subprocess.Popen(
            command,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            preexec_fn=end_with_parent(),
        )

    def _end(self, names: Iterable[str], number: signal.Signals) -> list[str]:
        """Send a signal to those of these who run."""
        self.assert_alive()
        ending = [name for name in names if name in self.running]
        for name in ending:
            self.running[name].send_signal(number)
        return ending

    def _ended(self, name: str) -> int:
        process = self.running.pop(name)
        try:
            return process.wait(10)
        finally:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()
