"""The supervisor of a machine's agents: what they end with later is in the log."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agents.runtime import supervisor
from schemas.settings import Settings


@pytest.mark.parametrize("was_ready", [False, True])
async def test_why_agents_give_up_after_they_were_ready_is_logged_each_time(tmp_path: Path, was_ready: bool):
    group = supervisor.Group(names=("nobody",))
    if was_ready:
        group.all_ready.set()
    with capture_logs() as logs:
        status = await supervisor._run_child(group, "nats://127.0.0.1:1", Settings(data_dir=str(tmp_path)), str)
    assert status == supervisor.USER_ERROR
    why = group.failed if not was_ready else logs[0]["why"]
    assert "no agent 'nobody'" in why
    assert bool(group.failed) is not was_ready
