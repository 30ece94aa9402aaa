"""From a request to a plan: bounds, seeds, and what is refused with which reason."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.diffusion.plan import LARGEST_PLAN, SEED_END, check, make_plan, seeds
from bus.errors import Reject
from schemas.files import FilePath, Identity
from schemas.jobs import Plan, Request
from schemas.models import Model
from schemas.settings import LimitSettings

LIMITS = LimitSettings()
ID = "0123456789abcdef0123456789abcdef"
MODEL = Model(
    sha256="ab" * 32,
    name="tiny",
    size=1,
    identity=Identity(kind="checkpoint", family="sd15"),
    paths=(FilePath(root="models", rel="tiny.safetensors"),),
    missing=False,
    created_at=0.0,
)


def request(**fields: object) -> Request:
    return msgspec.structs.replace(Request(prompt="a fox"), **fields)


def plan(asked: Request, model: Model = MODEL, limits: LimitSettings = LIMITS) -> Plan:
    return make_plan(ID, "normal", "t0", asked, model, limits, day="2024-01-01", now=1.0)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"prompt": ""}, "empty-prompt"),
        ({"prompt": " \n\t"}, "empty-prompt"),
        ({"prompt": "x" * 8_001}, "prompt-too-long"),
        ({"negative_prompt": "x" * 8_001}, "prompt-too-long"),
        ({"steps": 0}, "bad-steps"),
        ({"steps": 151}, "bad-steps"),
        ({"n": 0}, "bad-n"),
        ({"n": 17}, "bad-n"),
        ({"quality": 0}, "bad-quality"),
        ({"quality": 101}, "bad-quality"),
        ({"cfg_scale": -0.1}, "bad-cfg_scale"),
        ({"cfg_scale": 100.1}, "bad-cfg_scale"),
        ({"cfg_scale": float("nan")}, "bad-cfg_scale"),
        ({"cfg_scale": float("inf")}, "bad-cfg_scale"),
        ({"seed": SEED_END}, "bad-seed"),
        ({"seed": SEED_END - 1, "n": 2}, "bad-seed"),
        ({"width": 65}, "bad-size"),
        ({"width": 56}, "bad-size"),
        ({"height": 0}, "bad-size"),
        ({"height": -64}, "bad-size"),
        ({"height": 2056}, "bad-size"),
        ({"sampler": "nope"}, "unknown-sampler"),
        ({"scheduler": "nope"}, "unknown-sampler"),
    ],
)
def test_what_is_out_of_bounds_is_rejected_with_a_reason(fields: dict[str, object], reason: str):
    with pytest.raises(Reject) as refused:
        check(request(**fields), LIMITS)
    assert refused.value.reason == reason


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "x" * 8_000},
        {"steps": 1},
        {"steps": 150},
        {"n": 16},
        {"cfg_scale": 0.0},
        {"cfg_scale": 100.0},
        {"seed": SEED_END - 1},
        {"seed": -(2**63)},
        {"width": 64, "height": 2048},
        {"width": 2048, "height": 2048},
    ],
)
def test_the_bounds_themselves_are_allowed(fields: dict[str, object]):
    assert len(plan(request(**fields)).seeds) == fields.get("n", 1)


def test_the_pixels_count_also_where_a_side_is_the_models_own():
    few = LimitSettings(max_pixels=512 * 512)
    with pytest.raises(Reject, match="pixels"):
        plan(request(width=1024), limits=few)
    assert (plan(request(), limits=few).width, plan(request(), limits=few).height) == (512, 512)


def test_a_given_seed_counts_up_and_a_drawn_one_is_a_function_of_the_job():
    assert seeds(ID, request(seed=7, n=3)) == (7, 8, 9)
    drawn = seeds(ID, request(n=16))
    assert drawn == seeds(ID, request(n=16, prompt="another")) and len(set(drawn)) == 16
    assert drawn == seeds(ID, request(n=16, seed=-1)) != seeds(ID[::-1], request(n=16))
    assert drawn[:2] == seeds(ID, request(n=2))


@given(st.text(min_size=1, max_size=8_000).filter(str.strip), st.integers(1, 16), st.none() | st.integers(-1, 2**40))
def test_a_plan_is_the_same_every_time_and_fits_on_the_bus(prompt: str, n: int, seed: int | None):
    asked = Request(prompt=prompt, n=n, seed=seed)
    try:
        planned = plan(asked)
    except Reject as error:
        assert error.reason == "prompt-too-long"
        return
    assert planned == plan(asked)
    assert len(msgspec.json.encode(planned)) <= LARGEST_PLAN
    assert all(0 <= one < SEED_END for one in planned.seeds) and len(planned.seeds) == n


def test_prompts_that_are_short_in_characters_and_long_in_bytes_must_be_shortened():
    with pytest.raises(Reject, match="shorten") as refused:
        plan(request(prompt="\N{FOX FACE}" * 8_000, negative_prompt="\N{FOX FACE}" * 8_000))
    assert refused.value.reason == "prompt-too-long"


@pytest.mark.parametrize("identity", [Identity(), Identity(family="sdxl"), Identity(family="sd15", variant="inpaint")])
def test_a_model_that_can_not_be_run_is_rejected_with_what_can(identity: Identity):
    with pytest.raises(Reject, match="sd15") as refused:
        plan(request(), msgspec.structs.replace(MODEL, identity=identity))
    assert refused.value.reason == "unsupported-family"


def test_a_plan_is_bound_to_the_content_and_not_to_the_name():
    planned = plan(request(model="something", retry_of=ID))
    assert (planned.model.sha256, planned.model.name, planned.retry_of) == (MODEL.sha256, "tiny", ID)
    assert (planned.id, planned.lane, planned.tenant, planned.day, planned.created_at) == (
        ID,
        "normal",
        "t0",
        "2024-01-01",
        1.0,
    )
