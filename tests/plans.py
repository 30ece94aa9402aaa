"""A plan as preprocess makes them, for tests that need one and not how it is made."""

from typing import Any

import msgspec

from schemas.files import FilePath
from schemas.jobs import ModelRef, Plan, SchedulerSpec

MODEL = ModelRef(sha256="a" * 64, name="tiny", family="sd15", path=FilePath(root="models", rel="tiny.safetensors"))


def plan(id: str = "0" * 32, prompt: str = "a cat", **fields: Any) -> Plan:
    """A job of one picture of 64×64 pixels in four steps; `fields` are of a Plan, in place of those here."""
    made = Plan(
        id=id,
        lane="normal",
        tenant="t0",
        day="2027-01-15",
        created_at=1_800_000_000.0,
        model=MODEL,
        prompt=prompt,
        negative_prompt="",
        steps=4,
        cfg_scale=7.0,
        width=64,
        height=64,
        sampler="euler",
        scheduler="normal",
        spec=SchedulerSpec(class_name="EulerDiscreteScheduler"),
        seeds=(1,),
        format="webp",
        quality=90,
        lossless=False,
    )
    return msgspec.structs.replace(made, **fields)
