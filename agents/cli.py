"""The command line: bars on a terminal, plain lines otherwise, JSON where a script wants it, errors in one line."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import anyio
import msgspec
import typer

from agents import config
from bus.errors import DarkroomError, UserError
from bus.work import sole
from schemas.settings import Settings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Drop a checkpoint into a folder, ask for pictures: an event-driven pipeline for image models.",
)

Data = Annotated[Path | None, typer.Option("--data", help="The data directory (default: data).")]
Nats = Annotated[str | None, typer.Option("--nats", help="A NATS server's URL; left out, a local one is used.")]
Config = Annotated[Path | None, typer.Option("--config", help="A settings file (default: ./darkroom.toml).")]
Json = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]

USER_ERROR, FAILED = 2, 1


def _settings(data: Path | None, nats: str | None, file: Path | None, **flags: Any) -> Settings:
    from agents.runner import configure_logging

    tree = {"data_dir": str(data) if data else None, "nats_url": nats, **flags}
    settings = config.load(tree, os.environ, file)
    configure_logging(settings.log_level)
    return settings


@app.command()
def up(
    data: Data = None,
    nats: Nats = None,
    config: Config = None,
    host: Annotated[str | None, typer.Option(help="Where the page and the API listen.")] = None,
    port: Annotated[int | None, typer.Option(help="Its port; 0 takes a free one.")] = None,
) -> None:
    """Run everything on this machine: the local bus, all agents, the page."""
    from agents.commands import up as command

    anyio.run(command, _settings(data, nats, config, **{"http.host": host, "http.port": port}))


@app.command()
def run(
    agents: Annotated[list[str], typer.Argument(help="watcher, hasher, migrator, preprocess, generator, encoder, …")],
    data: Data = None,
    nats: Nats = None,
    config: Config = None,
    port: Annotated[int | None, typer.Option(help="The bridge's port; 0 takes a free one.")] = None,
    supervised: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Run some agents here, on a bus that is running (--nats, or that of the data directory's service)."""
    from agents.commands import run as command
    from agents.commands import run_supervised

    if supervised:
        anyio.run(run_supervised, agents, nats or "")
    else:
        anyio.run(command, agents, _settings(data, nats, config, **{"http.port": port}))


@app.command()
def generate(
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
    data: Data = None,
    nats: Nats = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Make pictures and wait for them; Ctrl-C cancels."""
    from agents.commands import generate as command
    from schemas.jobs import Request

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
    _exit(anyio.run(command, _settings(data, nats, config), request, output, json))


def _format(output: Path | None) -> Any:
    suffix = output.suffix.lower() if output else ""
    formats = {"": "webp", ".webp": "webp", ".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}
    if suffix not in formats:
        raise UserError(f"{output}: pictures are .webp, .png or .jpg")
    return formats[suffix]


@app.command()
def models(
    data: Data = None,
    nats: Nats = None,
    config: Config = None,
    json: Json = False,
    missing: Annotated[bool, typer.Option("--missing", help="Also those whose file is not there now.")] = False,
) -> None:
    """List the models in the catalog."""
    from agents.commands import models as command

    _exit(anyio.run(command, _settings(data, nats, config), missing, json))


@app.command()
def scan(data: Data = None, nats: Nats = None, config: Config = None, json: Json = False) -> None:
    """Look at the roots now, and wait until every file in them is settled and hashed, or refused."""
    from agents.commands import scan as command

    _exit(anyio.run(command, _settings(data, nats, config), json))


@app.command()
def jobs(
    data: Data = None,
    nats: Nats = None,
    config: Config = None,
    json: Json = False,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, newest first.")] = 20,
) -> None:
    """List the latest jobs."""
    from agents.commands import jobs as command

    _exit(anyio.run(command, _settings(data, nats, config), limit, json))


@app.command()
def cancel(
    ids: Annotated[list[str], typer.Argument(help="The ids of jobs.")],
    data: Data = None,
    nats: Nats = None,
    config: Config = None,
) -> None:
    """Cancel jobs, waiting or running."""
    from agents.commands import cancel as command

    _exit(anyio.run(command, _settings(data, nats, config), ids))


@app.command()
def tail(
    pattern: Annotated[str, typer.Argument(help="Which subjects, as in the table: evt.job.>, tick.*.*, …")] = ">",
    data: Data = None,
    nats: Nats = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Follow what is said on the bus, a line each."""
    from agents.commands import tail as command

    _exit(anyio.run(command, _settings(data, nats, config), pattern, json))


@app.command()
def doctor(data: Data = None, nats: Nats = None, config: Config = None, json: Json = False) -> None:
    """Check what Darkroom needs and say what is wrong."""
    from agents.doctor import doctor as command

    _exit(anyio.run(command, _settings(data, nats, config), json))


@app.command()
def hash(
    files: Annotated[list[str], typer.Argument(help="Files of any kind.")],
    parallel: Annotated[int | None, typer.Option(min=1, help="How many are read side by side.")] = None,
    config: Config = None,
    json: Annotated[bool, typer.Option("--json", help="All hashes as JSON: AutoV2, AutoV3, CRC32, BLAKE3.")] = False,
) -> None:
    """Hash files, a line each as sha256sum writes it; needs no service."""
    from agents.filecommands import hash_files as command

    settings = _settings(None, None, config, **{"hasher.parallel": parallel})
    _exit(command(files, settings.hasher.parallel, json))


@app.command()
def inspect(files: Annotated[list[str], typer.Argument(help="Model files.")], json: Json = False) -> None:
    """Say what model files are by their headers and sidecars, without loading a weight; needs no service."""
    from agents.filecommands import inspect_files as command

    _exit(command(files, json))


@app.command()
def demo(
    data: Data = None,
    once: Annotated[bool, typer.Option("--once", help="Exit when the pictures are made.")] = False,
    port: Annotated[int | None, typer.Option(help="The page's port.")] = None,
) -> None:
    """See it work: a tiny checkpoint is dropped into the models folder and makes two pictures."""
    from agents.demo import demo as command

    anyio.run(command, _settings(data, None, None, **{"http.port": port}), once)


def _exit(status: int | None) -> None:
    if status:
        raise typer.Exit(status)


def main() -> None:
    """The console script: every error that its user can mend is one line, and the exit status is not zero."""
    try:
        sys.exit(app(standalone_mode=False))  # which returns the status of typer.Exit
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BaseException as raised:
        error = sole(raised)
        if isinstance(error, SystemExit):
            raise error from None
        if isinstance(error, KeyboardInterrupt):
            sys.exit(130)
        if callable(show := getattr(error, "show", None)):  # a wrong flag, told by the parser
            show()
            sys.exit(USER_ERROR)
        if isinstance(error, DarkroomError | msgspec.ValidationError):
            print(f"darkroom: {error}", file=sys.stderr)
            sys.exit(USER_ERROR if isinstance(error, UserError) else FAILED)
        raise


if __name__ == "__main__":
    main()
