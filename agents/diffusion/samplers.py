"""Samplers and schedules: two tables, and one function that turns the names users know into a diffusers class and its
arguments. Nothing here imports torch.

A name nobody knows, or a pair its class can't run, is an error that lists what exists; nothing is ever substituted.
Every row runs with what Darkroom installs, and every pair of the table draws its own picture (a test runs them all).
Left out for that reason: LMS and the beta schedule (need scipy), DPM++ SDE (needs torchsde), Restart (diffusers has
none), and for LCM and TCD every schedule but their own, since these classes ignore them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from schemas.jobs import SchedulerSpec


class UnknownSampler(ValueError):
    """A sampler or schedule name nobody knows, or two that do not go together. The message lists what exists."""


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A diffusers scheduler class with the arguments that make it this sampler, and the schedules it can follow."""

    id: str
    label: str
    aliases: tuple[str, ...] = ()
    class_name: str
    args: dict[str, Any] = field(default_factory=dict)
    schedules: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How the noise levels are spread over the steps: arguments that go over a sampler's own."""

    id: str
    label: str
    aliases: tuple[str, ...] = ()
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """Canonical ids, and what to build."""

    sampler: str
    scheduler: str
    spec: SchedulerSpec


# "normal" is the class's own spacing: even over all timesteps for most, and for DDIM and its kin even from the low end.
SCHEDULES: tuple[Schedule, ...] = (
    Schedule(id="normal", label="Normal", aliases=("automatic", "auto", "default", "simple", "linear")),
    Schedule(id="karras", label="Karras", args={"use_karras_sigmas": True}),
    Schedule(id="exponential", label="Exponential", aliases=("exp",), args={"use_exponential_sigmas": True}),
    Schedule(
        id="sgm_uniform",
        label="SGM uniform",
        aliases=("uniform", "sgm", "trailing"),
        args={"timestep_spacing": "trailing"},
    ),
    Schedule(id="ddim_uniform", label="DDIM uniform", aliases=("leading",), args={"timestep_spacing": "leading"}),
)

_ALL = ("normal", "karras", "exponential", "sgm_uniform", "ddim_uniform")
_SIGMAS = ("normal", "karras", "exponential")
_SPACED = ("normal", "sgm_uniform", "ddim_uniform")
_LEADING = ("normal", "sgm_uniform")

SAMPLERS: tuple[Sampler, ...] = (
    Sampler(
        id="euler", label="Euler", aliases=("euler_discrete",), class_name="EulerDiscreteScheduler", schedules=_ALL
    ),
    Sampler(
        id="euler_a",
        label="Euler a",
        aliases=("euler_ancestral", "euler_ancestral_discrete"),
        class_name="EulerAncestralDiscreteScheduler",
        schedules=_SPACED,
    ),
    Sampler(id="heun", label="Heun", aliases=("heun_discrete",), class_name="HeunDiscreteScheduler", schedules=_ALL),
    Sampler(
        id="dpm2",
        label="DPM2",
        aliases=("dpm_2", "kdpm2", "kdpm2_discrete"),
        class_name="KDPM2DiscreteScheduler",
        schedules=_ALL,
    ),
    Sampler(
        id="dpm2_a",
        label="DPM2 a",
        aliases=("dpm2_ancestral", "dpm_2_ancestral", "kdpm2_a", "kdpm2_ancestral"),
        class_name="KDPM2AncestralDiscreteScheduler",
        schedules=_ALL,
    ),
    Sampler(
        id="dpmpp_2m",
        label="DPM++ 2M",
        aliases=("dpm_pp_2m", "dpmsolver_multistep"),
        class_name="DPMSolverMultistepScheduler",
        schedules=_ALL,
    ),
    Sampler(
        id="dpmpp_2m_sde",
        label="DPM++ 2M SDE",
        aliases=("dpm_pp_2m_sde", "dpmpp_2m_sde_gpu", "dpm_pp_2m_sde_gpu"),
        class_name="DPMSolverMultistepScheduler",
        args={"algorithm_type": "sde-dpmsolver++"},
        schedules=_ALL,
    ),
    Sampler(
        id="dpmpp_3m_sde",
        label="DPM++ 3M SDE",
        aliases=("dpm_pp_3m_sde", "dpmpp_3m_sde_gpu", "dpm_pp_3m_sde_gpu"),
        class_name="DPMSolverMultistepScheduler",
        args={"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
        schedules=_ALL,
    ),
    Sampler(
        id="dpmpp_2s",
        label="DPM++ 2S",
        aliases=("dpm_pp_2s", "dpmsolver_singlestep"),
        class_name="DPMSolverSinglestepScheduler",
        args={"lower_order_final": True},
        schedules=_SIGMAS,
    ),
    Sampler(
        id="uni_pc",
        label="UniPC",
        aliases=("unipc", "unipc_multistep", "uni_pc_bh2"),
        class_name="UniPCMultistepScheduler",
        schedules=_ALL,
    ),
    Sampler(id="deis", label="DEIS", aliases=("deis_multistep",), class_name="DEISMultistepScheduler", schedules=_ALL),
    Sampler(id="ddim", label="DDIM", class_name="DDIMScheduler", schedules=_LEADING),
    Sampler(id="ddpm", label="DDPM", class_name="DDPMScheduler", schedules=_LEADING),
    Sampler(id="plms", label="PLMS", aliases=("pndm",), class_name="PNDMScheduler", schedules=_LEADING),
    Sampler(id="lcm", label="LCM", class_name="LCMScheduler", schedules=("normal",)),
    Sampler(id="tcd", label="TCD", class_name="TCDScheduler", schedules=("normal",)),
)

# A schedule's name where a sampler's belongs: one list of the five systems knew both under one name.
_ALONE = {"normal": "euler", "karras": "dpmpp_2m", "exponential": "dpmpp_2m", "sgm_uniform": "dpmpp_2m"}


def resolve(sampler: str, scheduler: str = "normal") -> Resolved:
    """What a sampler's and a schedule's name mean, however they are spelled.

    Case, spaces and punctuation don't count and '++' is 'pp'. A schedule at the end of the sampler's name is split off
    ("DPM++ 2M Karras", "dpmpp_2m_karras"); it may be named a second time in `scheduler`, but not contradicted there.
    UnknownSampler for a name nobody knows, for a contradiction and for a pair the class can't run.
    """
    row, suffix = _find_sampler(sampler)
    named = _find_schedule(scheduler, row)
    if suffix and named.id not in ("normal", suffix.id):
        raise UnknownSampler(f"Sampler {sampler!r} asks for {suffix.id} and scheduler {scheduler!r} for {named.id}.")
    schedule = suffix or named
    if schedule.id not in row.schedules:
        raise UnknownSampler(
            f"Sampler {row.id} can't follow schedule {schedule.id}; it follows: {', '.join(row.schedules)}."
        )
    spec = SchedulerSpec(class_name=row.class_name, args={**row.args, **schedule.args})
    return Resolved(sampler=row.id, scheduler=schedule.id, spec=spec)


def pairs() -> Iterator[tuple[Sampler, Schedule]]:
    """Every sampler with every schedule it can follow."""
    for sampler in SAMPLERS:
        for schedule in SCHEDULES:
            if schedule.id in sampler.schedules:
                yield sampler, schedule


def class_names() -> frozenset[str]:
    """The diffusers classes a plan may name."""
    return frozenset(sampler.class_name for sampler in SAMPLERS)


def normalised(name: str) -> str:
    """A name without case, spaces and punctuation; '++' is 'pp'."""
    return re.sub(r"[\W_]+", "", name.casefold().replace("++", "pp"))


def _find_sampler(name: str) -> tuple[Sampler, Schedule | None]:
    """The row a name means, and the schedule at its end if there is one. A whole name goes before a split one."""
    word = normalised(name)
    rows = {normalised(known): row for row in SAMPLERS for known in (row.id, row.label, *row.aliases)}
    if word in rows:
        return rows[word], None
    schedules = _schedule_words()
    if word in schedules and schedules[word].id in _ALONE:
        return rows[normalised(_ALONE[schedules[word].id])], schedules[word]
    for ending, schedule in schedules.items():
        if word.endswith(ending) and word.removesuffix(ending) in rows:
            return rows[word.removesuffix(ending)], schedule
    raise UnknownSampler(f"Unknown sampler {name!r}; there are: {', '.join(row.id for row in SAMPLERS)}.")


def _find_schedule(name: str, row: Sampler) -> Schedule:
    """The schedule a name means; the sampler may be spelled out in front of it ("dpm_pp_2m_karras")."""
    word, words = normalised(name), _schedule_words()
    if not word:
        return SCHEDULES[0]
    if word in words:
        return words[word]
    try:
        sampler, schedule = _find_sampler(name)
    except UnknownSampler:
        raise UnknownSampler(
            f"Unknown scheduler {name!r}; there are: {', '.join(row.id for row in SCHEDULES)}."
        ) from None
    if sampler is not row:
        raise UnknownSampler(f"Scheduler {name!r} belongs to sampler {sampler.id}, not to {row.id}.")
    return schedule or SCHEDULES[0]


def _schedule_words() -> dict[str, Schedule]:
    return {normalised(known): row for row in SCHEDULES for known in (row.id, row.label, *row.aliases)}


def labels(sampler: str, scheduler: str) -> tuple[str, str]:
    """How people write a sampler's and a schedule's id; an id that is no longer listed stays as it is."""
    samplers = {row.id: row.label for row in SAMPLERS}
    schedules = {row.id: row.label for row in SCHEDULES}
    return samplers.get(sampler, sampler), schedules.get(scheduler, scheduler)
