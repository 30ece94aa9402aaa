"""`darkroom generate`, `jobs` and `cancel`."""

import shutil
import signal
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import Annotated, Any

import anyio
import typer

from agents.cli import console
from agents.cli.service import DRAWING, running_bus
from agents.client import jobs as client
from agents.client.views import JobView
from agents.runtime.supervisor import HEAVY
from bus import results
from bus.client import Bus
from bus.errors import DarkroomError, Reject, UserError
from schemas.jobs import Request, Result
from schemas.settings import Settings
from schemas.ticks import StepTick

_FORMATS = {"": "webp", ".webp": "webp", ".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}


async def generate(
    settings: Settings,
    prompt: Annotated[str, typer.Argument(help="What the picture shows.")],
    negative: Annotated[str, typer.Option(help="What it does not show.")] = "",
    model: Annotated[str, typer.Option(help="A model's name, file name or start of its SHA-256.")] = "",
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 20,
    seed: Annotated[int | None, typer.Option(help="The first picture's seed; left out, one is drawn.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels, a multiple of 8 (default: the model's own).")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels, a multiple of 8 (default: the model's own).")] = None,
    sampler: Annotated[str, typer.Option(help="euler, euler_a, dpmpp_2m, … also 'DPM++ 2M Karras'.")] = "euler",
    scheduler: Annotated[str, typer.Option(help="normal, karras, exponential, sgm_uniform, …")] = "normal",
    cfg: Annotated[float, typer.Option(help="Guidance; 1 or less turns it off.")] = 7.0,
    count: Annotated[int, typer.Option("-n", "--count", help="How many pictures.")] = 1,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Copy to this file or folder.")] = None,
    as_json: bool = False,
) -> int:
    """Submit, show progress, copy the pictures where they are wanted. Exit status 0 only when they are made."""
    request = Request(
        prompt=prompt,
        negative_prompt=negative,
        model=model,
        steps=steps,
        seed=seed,
        width=width,
        height=height,
        sampler=sampler,
        scheduler=scheduler,
        cfg_scale=cfg,
        n=count,
        format=_format(output),
    )
    return await _generate(settings, request, output, as_json)


def _format(output: Path | None) -> Any:
    suffix = output.suffix.lower() if output else ""
    if suffix not in _FORMATS:
        raise UserError(f"{output}: pictures are .webp, .png or .jpg")
    return _FORMATS[suffix]


async def _generate(settings: Settings, request: Request, output: Path | None, as_json: bool) -> int:
    try:
        request = client.checked(request, settings.limits)
    except Reject as error:
        raise UserError(str(error)) from error
    async with running_bus(settings, start=(DRAWING, HEAVY)) as bus:
        began = bus.clock.steady()
        id = await client.submit(bus, request, lane="high", tenant="t0")
        view = await _cancelled_by_interrupt(bus, id, watched(bus, id, quiet=as_json))
        seconds = bus.clock.steady() - began
    result = view.result
    if result is None:
        raise DarkroomError(f"job {id} has no result")
    copies = copy_pictures(result, Path(settings.data_dir), output) if result.images else []
    if as_json:
        console.json({"seconds": round(seconds, 3), "files": copies, "result": result})
    elif result.status == "succeeded":
        for path in copies:
            console.line(path)
        console.note(f"{console.counted(len(copies), 'picture')} in {seconds:.1f} s, job {id}")
    else:
        console.note(f"darkroom: {result.status}: {console.printable(result.error)}")
    return 0 if result.status == "succeeded" else 1


async def _cancelled_by_interrupt(bus: Bus, id: str, showing: Awaitable[JobView]) -> JobView:
    """The end of a job; the first Ctrl-C cancels it, and its end is waited for."""

    async def on_interrupt() -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for _ in signals:
                await results.cancel(bus, id)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(on_interrupt)
        view = await showing
        tasks.cancel_scope.cancel()
    return view


async def watched(bus: Bus, id: str, *, quiet: bool = False) -> JobView:
    """Follow a job to its end, showing where it is on standard error (not when `quiet`); returns its last view."""
    if quiet or not sys.stderr.isatty():
        async for event in client.events(bus, id):
            if not quiet and event.name in ("planned", "started", "released"):
                console.note(f"{event.name} {id}")
        return await _view(bus, id)
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("waiting", total=None, note="")
        async for event in client.events(bus, id):
            if isinstance(event.data, StepTick):
                tick = event.data
                done, total = tick.image * tick.steps + tick.step, tick.images * tick.steps
                note = f"picture {tick.image + 1}/{tick.images}, step {tick.step}/{tick.steps}"
                bar.update(task, description=tick.stage, completed=done, total=total, note=note)
            elif event.name in ("planned", "started"):
                bar.update(task, description=event.name)
    return await _view(bus, id)


async def _view(bus: Bus, id: str) -> JobView:
    view = await client.state(bus, id)
    assert view is not None, f"job {id} ended and is not known"
    return view


def copy_pictures(result: Result, data_dir: Path, output: Path | None) -> list[str]:
    """Where the pictures are for the user: in the data directory, or copied to `output` (a file, or a folder)."""
    sources = [data_dir / picture.file for picture in result.images]
    if output is None:
        return [str(source) for source in sources]
    if output.suffix == "" or output.is_dir():
        output.mkdir(parents=True, exist_ok=True)
        targets = [output / source.name for source in sources]
    elif len(sources) == 1:
        targets = [output]
    else:
        targets = [output.with_stem(f"{output.stem}-{index}") for index in range(len(sources))]
    for source, target in zip(sources, targets, strict=True):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        except OSError as error:
            raise UserError(f"{target} can't be written ({error.strerror}); the picture is at {source}") from error
    return [str(target) for target in targets]


async def jobs(
    settings: Settings,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, newest first.")] = 20,
    as_json: bool = False,
) -> None:
    """A table of the latest jobs."""
    async with running_bus(settings) as bus:
        found, _ = await client.jobs(bus, limit)
    if as_json:
        console.json(found)
        return
    rows = [(view.id, view.status, _model_of(view), _prompt_of(view)) for view in found]
    console.table(("job", "status", "model", "prompt"), rows, nothing="no jobs yet")


def _model_of(view: JobView) -> str:
    return view.plan.model.name if view.plan else view.request.model if view.request else ""


def _prompt_of(view: JobView) -> str:
    text = view.plan.prompt if view.plan else view.request.prompt if view.request else ""
    return " ".join(text.split())[:60]


async def cancel(settings: Settings, ids: Annotated[list[str], typer.Argument(help="The ids of jobs.")]) -> int:
    """Cancel each; the status is 1 when one had ended otherwise or is unknown."""
    status = 0
    async with running_bus(settings) as bus:
        for id in ids:
            try:
                view = await client.cancel(bus, id)
            except DarkroomError as error:
                console.note(f"darkroom: {error}")
                status = 1
                continue
            console.line(f"{id} {view.status}")
            status = status if view.status == "cancelled" else 1
    return status
