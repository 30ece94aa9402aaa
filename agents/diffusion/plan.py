"""From a request to a plan: all chosen and drawn, or a reason why it can't be. Pure, and without torch."""

import hashlib

import msgspec

from agents.diffusion.families.table import load_family, supported
from agents.diffusion.samplers import Resolved, UnknownSampler, labels, resolve
from agents.images.infotext import of_plan
from bus.errors import Reject
from schemas.images import Pixels
from schemas.jobs import Lane, ModelRef, Plan, Request
from schemas.models import Model
from schemas.settings import LimitSettings

LARGEST_PLAN = 56 * 1024
"""Bytes of JSON; a plan rides the bus, where 64 KiB do."""
SEED_END = 2**63


def check(request: Request, limits: LimitSettings) -> Resolved:
    """Everything about a request that can be judged without knowing its model. Raises Reject."""
    if not request.prompt.strip():
        raise Reject("empty-prompt", "the prompt is empty: describe what the picture should show")
    for name, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt)):
        if len(text) > limits.max_prompt:
            raise Reject("prompt-too-long", f"{name} has {len(text):,} characters; at most {limits.max_prompt:,} do")
    _check_number("steps", request.steps, 1, limits.max_steps)
    _check_number("n", request.n, 1, limits.max_images)
    _check_number("quality", request.quality, 1, 100)
    if not 0 <= request.cfg_scale <= 100:  # NaN fails this too
        raise Reject("bad-cfg_scale", f"cfg_scale is {request.cfg_scale}; it goes from 0 to 100")
    if request.seed is not None and request.seed + request.n > SEED_END:
        raise Reject("bad-seed", f"seed is {request.seed}; it goes up to 2^63 - 1, counting one up for each picture")
    for name, side in (("width", request.width), ("height", request.height)):
        if side is not None and (side % 8 or not 64 <= side <= limits.max_side):
            raise Reject("bad-size", f"{name} is {side}; it must be a multiple of 8 from 64 to {limits.max_side}")
    if (request.width or 0) * (request.height or 0) > limits.max_pixels:
        raise Reject("bad-size", f"{request.width}×{request.height} is over {limits.max_pixels:,} pixels")
    try:
        return resolve(request.sampler, request.scheduler)
    except UnknownSampler as error:
        raise Reject("unknown-sampler", str(error)) from error


def _check_number(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise Reject(f"bad-{name}", f"{name} is {value}; it goes from {low} to {high}")


def seeds(id: str, request: Request) -> tuple[int, ...]:
    """One seed per picture: counted up from the one given, else a function of the job's id and the picture's index."""
    if request.seed is not None and request.seed >= 0:
        return tuple(request.seed + index for index in range(request.n))
    return tuple(
        int.from_bytes(hashlib.blake2b(f"{id}:{index}".encode(), digest_size=4).digest()) for index in range(request.n)
    )


def make_plan(
    id: str, lane: Lane, tenant: str, request: Request, model: Model, limits: LimitSettings, *, day: str, now: float
) -> Plan:
    """The plan of a request for the model that its name was resolved to. Raises Reject."""
    resolved = check(request, limits)
    family = model.identity.family
    if family not in supported() or model.identity.variant:
        what = " ".join(filter(None, (family or "of an unknown family", model.identity.variant)))
        raise Reject(
            "unsupported-family",
            f"model {model.name} is {what}, which can't be run yet; families that can: {', '.join(supported())}",
        )
    native = load_family(family).size
    width, height = request.width or native, request.height or native
    if width * height > limits.max_pixels:
        raise Reject("bad-size", f"{width}×{height} is over {limits.max_pixels:,} pixels")
    plan = Plan(
        id=id,
        lane=lane,
        tenant=tenant,
        day=day,
        created_at=now,
        model=ModelRef(sha256=model.sha256, name=model.name, family=family, path=model.paths[0]),
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        steps=request.steps,
        cfg_scale=request.cfg_scale,
        width=width,
        height=height,
        sampler=resolved.sampler,
        scheduler=resolved.scheduler,
        spec=resolved.spec,
        seeds=seeds(id, request),
        format=request.format,
        quality=request.quality,
        lossless=request.lossless,
        retry_of=request.retry_of,
    )
    if (size := len(msgspec.json.encode(plan))) > LARGEST_PLAN:
        raise Reject("prompt-too-long", f"the plan takes {size:,} bytes; over {LARGEST_PLAN:,}: shorten the prompts")
    return plan


def with_infotext(pixels: tuple[Pixels, ...], plan: Plan) -> tuple[Pixels, ...]:
    """The pixels of a plan's pictures, each with the text that its files carry."""
    sampler, scheduler = labels(plan.sampler, plan.scheduler)

    def labelled(one: Pixels) -> Pixels:
        text = of_plan(plan, seed=one.seed, width=one.width, height=one.height, sampler=sampler, scheduler=scheduler)
        return msgspec.structs.replace(one, infotext=text)

    return tuple(map(labelled, pixels))
