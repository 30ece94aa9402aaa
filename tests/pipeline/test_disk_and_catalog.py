"""The real agents over a real disk: whatever is done to folders and agents, the catalog is what the disk is."""

import functools
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.effort import ALL, SEED
from tests.pipeline.crew import AGENTS
from tests.pipeline.elders import FIRST
from tests.pipeline.folders import ROOTS, At
from tests.pipeline.world import World, world

EXAMPLES = int(os.environ.get("EXAMPLES", "200" if ALL else "12"))
"""Histories to try: a few, others every day; all, which are always the same; or as many as one asks for by hand."""
BY_HAND = "EXAMPLES" in os.environ
STEPS = 12
PATIENCE, LITTLE_PATIENCE = 15.0, 4.0
"""Seconds for the agents to catch up with the disk, on a machine that may be busy."""
NAMES = (
    *("a.safetensors", "A.safetensors", "b.ckpt", "c.safetensors.part"),
    *("x/a.safetensors", "x/y/100%.ckpt", "x/\udcff.pt"),
)
PLACES = st.builds(At, st.sampled_from(ROOTS), st.sampled_from(NAMES))
ANYWHERE = PLACES | st.sampled_from(FIRST)
FOLDERS = st.builds(At, st.sampled_from(ROOTS), st.sampled_from(("x", "x/y", "z", "old")))
WHO = st.sampled_from((AGENTS, *((name,) for name in AGENTS)))
MESSAGES = st.integers(0, 8)


class Worlds:
    """The world of the next example is that of the last one, unless something went wrong in it: a new one, with old
    files in it, takes four seconds. After the first failure less patience is had: the same is tried again and again, to
    make it smaller."""

    def __init__(self, home: Path) -> None:
        self.home, self.numbers = home, itertools.count()
        self.patience = PATIENCE
        self.stack = ExitStack()
        self.now: World | None = None

    def get(self) -> World:
        if self.now is None:
            self.now = self.stack.enter_context(world(self.home / str(next(self.numbers)), self.patience))
        return self.now

    def end(self) -> None:
        self.now = None
        self.stack.close()


class Disk(RuleBasedStateMachine):
    """Everything that happens to folders and to agents, in any order."""

    def __init__(self, worlds: Worlds) -> None:
        super().__init__()
        self.worlds = worlds
        self.world = worlds.get()
        self.folders = self.world.folders

    def act(self, what: Callable[..., None], *arguments: object) -> None:
        """Do something; a world in which it goes wrong has come to its end."""
        try:
            what(*arguments)
        except BaseException:
            self.worlds.end()
            self.worlds.patience = LITTLE_PATIENCE
            raise

    def in_folders(self, what: str, *arguments: object) -> None:
        self.act(self.world.do, getattr(self.folders, what), *arguments)

    @initialize(files=st.lists(PLACES, max_size=3))
    def begin(self, files: list[At]) -> None:
        self.act(self.world.begin)
        for at in files:
            self.in_folders("write", at)

    @rule(what=st.sampled_from(("write", "write_half", "begin", "replace", "recreate")), at=PLACES)
    def come(self, what: str, at: At) -> None:
        self.in_folders(what, at)

    @rule(what=st.sampled_from(("grow", "overwrite_and_restore_date", "change_case", "delete")), at=ANYWHERE)
    def change(self, what: str, at: At) -> None:
        self.in_folders(what, at)

    @rule(what=st.sampled_from(("rename", "swap", "copy", "hard_link", "symlink")), one=ANYWHERE, other=ANYWHERE)
    def go(self, what: str, one: At, other: At) -> None:
        self.in_folders(what, one, other)

    @rule(what=st.sampled_from(("go_on", "finish")))
    def write_on(self, what: str) -> None:
        self.in_folders(what)

    @rule(old=FOLDERS, new=FOLDERS)
    def move_folder(self, old: At, new: At) -> None:
        self.in_folders("move_folder", old, new)

    @rule(at=FOLDERS)
    def move_in(self, at: At) -> None:
        self.in_folders("move_in", at)

    @rule(what=st.sampled_from(("unmount", "mount")), root=st.sampled_from(ROOTS))
    def disk(self, what: str, root: str) -> None:
        self.in_folders(what, root)

    @rule(count=MESSAGES)
    def work(self, count: int) -> None:
        self.act(self.world.start)
        self.act(self.world.hear, count)

    @rule()
    def check(self) -> None:
        self.act(self.world.start)
        self.act(self.world.check)

    @rule(who=WHO)
    def stop(self, who: tuple[str, ...]) -> None:
        self.act(self.world.stop, who)

    @rule(who=WHO, after=MESSAGES)
    def kill(self, who: tuple[str, ...], after: int) -> None:
        self.act(self.world.kill, who, after)

    def teardown(self) -> None:
        if self.worlds.now is self.world:  # else something went wrong in it
            self.act(self.world.end)


@pytest.fixture
def worlds(tmp_path: Path) -> Iterator[Worlds]:
    made = Worlds(tmp_path)
    yield made
    made.end()


@pytest.mark.timeout(900)  # a failure is made smaller for up to five minutes before it is shown
def test_after_any_history_of_disk_and_agents_the_catalog_is_what_the_disk_is(worlds: Worlds):
    histories: Callable[[], Disk] = functools.partial(Disk, worlds)
    run_state_machine_as_test(
        histories if ALL or BY_HAND else seed(SEED)(histories),
        settings=settings(
            max_examples=EXAMPLES,
            derandomize=ALL and not BY_HAND,
            stateful_step_count=STEPS,
            deadline=None,
            phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
