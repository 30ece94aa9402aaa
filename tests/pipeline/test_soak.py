"""A soak: a thousand files change, move, get sidecars and lose them, for as long as one likes; then the catalog says
what lies on the disk, its history makes the same, and nothing is done any more.

`SOAK_SECONDS=3600 pytest -m slow tests/pipeline/test_soak.py -s` is the whole hour.
"""

import hashlib
import io
import json
import os
import random
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import httpx
import psutil
import pytest
from PIL import Image
from watchfiles import watch

from tests.ingest.making import model
from tests.pipeline.test_up import darkroom, family, up

FILES = 1000
A_SECOND = float(os.environ.get("SOAK_RATE", "12"))
"""Things that happen in a second."""
IDLE_SECONDS = 60.0
IDLE_SHARE = 0.02
"""Of the machine, by all processes together, when nothing changes."""


class Soak:
    """A root of models, and what people and programs do to it; each operation takes one file of it."""

    def __init__(self, models: Path, http: str, draw: random.Random) -> None:
        self.models, self.http, self.draw = models, http, draw
        self.count = 0
        self.done: Counter[str] = Counter()

    def content(self) -> bytes:
        """A model that was not there before."""
        self.count += 1
        return model(metadata={"n": str(self.count)}, fill=self.count % 250 + 1)

    def path(self) -> Path:
        """A name that is free."""
        while True:
            path = self.models / f"f{self.draw.randrange(8)}" / f"m{self.draw.randrange(10**6)}.safetensors"
            if not path.exists():
                return path

    def files(self) -> list[Path]:
        return sorted(self.models.rglob("*.safetensors"))

    def put(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.draw.random() < 0.5:  # as browsers do
            part = path.with_name(path.name + ".crdownload")
            part.write_bytes(content)
            part.rename(path)
        else:
            path.write_bytes(content)

    def change(self, at: Path) -> None:
        self.put(at, self.content())

    def move(self, at: Path) -> None:
        """The model alone, or with all that lies next to it."""
        to = self.path()
        to.parent.mkdir(exist_ok=True)
        for file in at.parent.glob(f"{at.stem}.*") if self.draw.random() < 0.7 else [at]:
            file.rename(to.parent / file.name.replace(at.stem, to.stem, 1))

    def copy(self, at: Path) -> None:
        """A copy; another file goes, so that there are as many as before."""
        self.put(self.path(), at.read_bytes())
        self.draw.choice(self.files()).unlink()

    def replace(self, at: Path) -> None:
        at.unlink()
        self.put(self.path(), self.content())

    def describe(self, at: Path) -> None:
        words = {"description": f"word{self.draw.randrange(50)}", "tags": [f"tag{self.draw.randrange(9)}"]}
        at.with_suffix(".json").write_text(json.dumps(words))

    def describe_with_rubbish(self, at: Path) -> None:
        at.with_suffix(".civitai.info").write_bytes(self.draw.randbytes(40))

    def show(self, at: Path) -> None:
        file = io.BytesIO()
        colour = tuple(self.draw.randrange(256) for _ in range(3))
        Image.new("RGB", (32, 32), colour).save(file, "PNG")
        at.with_suffix(self.draw.choice((".preview.png", ".PNG"))).write_bytes(file.getvalue())

    def strip(self, at: Path) -> None:
        for file in at.parent.glob(f"{at.stem}.*"):
            if file != at:
                file.unlink()

    def touch(self, at: Path) -> None:
        os.utime(at, (self.draw.choice((0, -5, 1.5, 9_300_000_000, time.time())),) * 2)

    def tag(self, at: Path) -> None:
        """A user's word, on a model that is hashed already or is not."""
        sha256 = hashlib.sha256(at.read_bytes()).hexdigest()
        if self.draw.random() < 0.5:
            httpx.post(f"{self.http}/api/models/{sha256}/tags", json={"tags": ["mine"]})
        else:
            httpx.delete(f"{self.http}/api/models/{sha256}/tags", params={"tag": f"tag{self.draw.randrange(9)}"})

    def one(self) -> None:
        """Something happens."""
        operations: tuple[Callable[[Path], None], ...] = (
            self.change, self.move, self.move, self.copy, self.replace, self.describe, self.describe,
            self.describe_with_rubbish, self.show, self.strip, self.touch, self.tag,
        )  # fmt: skip
        operation = self.draw.choice(operations)
        operation(self.draw.choice(self.files()))
        self.done[operation.__name__] += 1

    def truth(self) -> dict[str, str]:
        """Every path, and the SHA-256 of what lies there."""
        return {
            path.relative_to(self.models).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self.files()
        }

    def descriptions(self) -> dict[str, str]:
        """What is said next to the paths of each content: of the first path, in order, that says anything."""
        said: dict[str, str] = {}
        for rel, sha256 in sorted(self.truth().items()):
            sidecar = (self.models / rel).with_suffix(".json")
            if sidecar.exists() and sha256 not in said:
                said[sha256] = json.loads(sidecar.read_text())["description"]
        return said


def catalogued(catalog: Path) -> dict[str, str]:
    with closing(sqlite3.connect(f"file:{catalog}?mode=ro", uri=True)) as db:
        return dict(db.execute("SELECT rel, sha256 FROM paths WHERE present = 1").fetchall())


def described(catalog: Path) -> dict[str, str]:
    """The description that sidecars give each model that lies anywhere."""
    with closing(sqlite3.connect(f"file:{catalog}?mode=ro", uri=True)) as db:
        rows = db.execute(
            "SELECT sha256, details ->> 'description' FROM descriptions WHERE layer = 'sidecar'"
            " AND details ->> 'description' <> '' AND sha256 IN (SELECT sha256 FROM paths WHERE present = 1)"
        )
        return dict(rows.fetchall())


def processor_seconds(process: "subprocess.Popen[str]") -> float:
    return sum(sum(one.cpu_times()[:2]) for one in [psutil.Process(process.pid), *family(process)])


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_after_a_soak_the_catalog_is_what_the_disk_and_its_history_say(tmp_path: Path):
    seconds, seed = float(os.environ.get("SOAK_SECONDS", "120")), int(os.environ.get("SOAK_SEED", "1"))
    data = tmp_path / "data"
    soak = Soak(data / "models", "", random.Random(seed))
    for _ in range(FILES):
        soak.put(soak.path(), soak.content())
    with up(data) as (process, http, _):
        soak.http = http
        began = time.monotonic()
        for n in range(int(seconds * A_SECOND)):
            soak.one()
            time.sleep(max(0.0, began + (n + 1) / A_SECOND - time.monotonic()))
        print(f"\n{sum(soak.done.values())} things in {time.monotonic() - began:.0f} s: {dict(soak.done)}")
        scanned = darkroom("scan", "--data", str(data), seconds=180)
        print(scanned.stdout, scanned.stderr)
        assert scanned.returncode == 0 and " 0 refused" in scanned.stdout, scanned.stdout
        settle(data, soak)
        before, at = processor_seconds(process), time.monotonic()
        with pytest.raises(subprocess.TimeoutExpired):  # it goes on
            process.wait(IDLE_SECONDS)
        idle = (processor_seconds(process) - before) / (time.monotonic() - at)  # of one core
        rebuilt = darkroom("rebuild", "--data", str(data), seconds=180)
        print(f"idle: {idle:.2%} of a core\n{rebuilt.stdout}{rebuilt.stderr}")
        assert rebuilt.returncode == 0, rebuilt.stdout
        verified = darkroom("verify", "--data", str(data), seconds=180)
        print(verified.stdout, verified.stderr)
        assert verified.returncode == 0, verified.stdout
        assert idle / psutil.cpu_count() < IDLE_SHARE


def settle(data: Path, soak: Soak) -> None:
    """Look whenever the catalog's files change, until it says what the disk says and no picture waits."""
    catalog, deadline = data / "catalog.db", time.monotonic() + 120
    truth, said = soak.truth(), soak.descriptions()
    for _ in watch(data, recursive=False, watch_filter=None, debounce=200, rust_timeout=1000, yield_on_timeout=True):
        found, words = catalogued(catalog), described(catalog)
        with closing(sqlite3.connect(f"file:{catalog}?mode=ro", uri=True)) as db:
            [(waiting,)] = db.execute("SELECT count(*) FROM images WHERE state = 'waiting'")
        if (found, words, waiting) == (truth, said, 0):
            return
        if time.monotonic() > deadline:
            wrong = {rel for rel in truth.keys() | found.keys() if truth.get(rel) != found.get(rel)}
            other = {sha for sha in said.keys() | words.keys() if said.get(sha) != words.get(sha)}
            pytest.fail(
                f"{len(wrong)} paths differ: {sorted(wrong)[:5]}; {waiting} pictures wait; {len(other)} descriptions "
                f"differ: {[(sha[:12], said.get(sha), words.get(sha)) for sha in sorted(other)[:5]]}"
            )
