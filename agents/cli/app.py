"""The command line: bars on a terminal, plain lines otherwise, JSON where a script wants it, errors in one line."""

import sys
from pathlib import Path
from typing import Annotated, Any

import anyio
import msgspec
import typer

from agents.cli import tags as tagcli
from agents.cli import trash
from agents.cli.options import Config, Data, Json, Nats, exit_with, read_settings
from bus.errors import DarkroomError, UserError
from bus.worker import sole

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Drop a checkpoint into a folder, ask for pictures: an event-driven pipeline for image models.",
)

app.add_typer(tagcli.app, name="tags")
app.add_typer(trash.app, name="trash")

USER_ERROR, FAILED = 2, 1


@app.command()
def up(
    data: Data = None,
    nats: Nats = None,
    config: Config = None,
    host: Annotated[str | None, typer.Option(help="Where the page and the API listen.")] = None,
    port: Annotated[int | None, typer.Option(help="Its port; 0 takes a free one.")] = None,
) -> None:
    """Run everything on this machine: the local bus, all agents, the page."""
    from agents.cli.jobs import up as command

    anyio.run(command, read_settings(data, nats, config, **{"http.host": host, "http.port": port}))


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
    from agents.cli.jobs import run as command
    from agents.cli.jobs import run_supervised

    if supervised:
        anyio.run(run_supervised, agents, nats or "")
    else:
        anyio.run(command, agents, read_settings(data, nats, config, **{"http.port": port}))


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
    from agents.cli.jobs import generate as command
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
    exit_with(anyio.run(command, read_settings(data, nats, config), request, output, json))


def _format(output: Path | None) -> Any:
    suffix = output.suffix.lower() if output else ""
    formats = {"": "webp", ".webp": "webp", ".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}
    if suffix not in formats:
        raise UserError(f"{output}: pictures are .webp, .png or .jpg")
    return formats[suffix]


@app.command()
def models(
    query: Annotated[str, typer.Argument(help="Words, each the beginning of one in a name, tag or description.")] = "",
    kind: Annotated[str, typer.Option(help="checkpoint, lora, vae, … as the header tells.")] = "",
    type: Annotated[str, typer.Option(help="What it is said to be; where nobody says, its kind.")] = "",
    family: Annotated[str, typer.Option(help="sd15, sdxl, flux, …")] = "",
    tag: Annotated[list[str] | None, typer.Option(help="With this tag; may be repeated.")] = None,
    not_tag: Annotated[list[str] | None, typer.Option(help="Without this tag; may be repeated.")] = None,
    missing: Annotated[bool, typer.Option("--missing", help="Also those whose file is not there now.")] = False,
    newest: Annotated[bool, typer.Option("--newest", help="Newest first, not by name.")] = False,
    data: Data = None,
    nats: Nats = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """List the models in the catalog, or those that fit."""
    from agents.cli.catalog import models as command
    from schemas.catalog import SearchModels

    search = SearchModels(
        text=query,
        kind=kind,
        type=type,
        family=family,
        tags=tuple(tag or ()),
        without=tuple(not_tag or ()),
        missing="yes" if missing else "no",
        sort="newest" if newest else "name",
        limit=1000,
    )
    exit_with(anyio.run(command, read_settings(data, nats, config), search, json))


@app.command()
def show(
    model: Annotated[str, typer.Argument(help="Its name, a file name, or 8 or more digits of a hash.")],
    data: Data = None,
    nats: Nats = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Show all that is known of one model: files, header, details, tags, pictures."""
    from agents.cli.catalog import show as command

    exit_with(anyio.run(command, read_settings(data, nats, config), model, json))


@app.command()
def pending(data: Data = None, nats: Nats = None, config: Config = None, json: Json = False) -> None:
    """List the records of models whose file is not hashed yet."""
    from agents.cli.catalog import pending as command

    exit_with(anyio.run(command, read_settings(data, nats, config), json))


@app.command()
def promote(
    ids: Annotated[list[int], typer.Argument(min=1, max=2**63 - 1, help="The ids of pending records.")],
    strategy: Annotated[str, typer.Option(help="For a described model: merge, override, ignore, delete.")] = "report",
    data: Data = None,
    nats: Nats = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Make pending records whose files are hashed part of their models."""
    from agents.cli.catalog import promote as command

    exit_with(anyio.run(command, read_settings(data, nats, config), ids, strategy, json))


@app.command("import")
def take_over(
    database: Annotated[Path, typer.Argument(help="The legacy catalog; it is only read.")],
    images: Annotated[Path | None, typer.Option(help="The folder with its pictures.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do it to a copy, and report the same.")] = False,
    data: Data = None,
    nats: Nats = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Take over a legacy catalog: tags, models, pictures; what is not hashed waits for its file."""
    from agents.cli.catalog import take_over as command

    exit_with(anyio.run(command, read_settings(data, nats, config), database, images, dry_run, json))


@app.command()
def scan(data: Data = None, nats: Nats = None, config: Config = None, json: Json = False) -> None:
    """Look at the roots now, and wait until every file in them is settled and hashed, or refused."""
    from agents.cli.jobs import scan as command

    exit_with(anyio.run(command, read_settings(data, nats, config), json))


@app.command()
def jobs(
    data: Data = None,
    nats: Nats = None,
    config: Config = None,
    json: Json = False,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, newest first.")] = 20,
) -> None:
    """List the latest jobs."""
    from agents.cli.jobs import jobs as command

    exit_with(anyio.run(command, read_settings(data, nats, config), limit, json))


@app.command()
def cancel(
    ids: Annotated[list[str], typer.Argument(help="The ids of jobs.")],
    data: Data = None,
    nats: Nats = None,
    config: Config = None,
) -> None:
    """Cancel jobs, waiting or running."""
    from agents.cli.jobs import cancel as command

    exit_with(anyio.run(command, read_settings(data, nats, config), ids))


@app.command()
def tail(
    pattern: Annotated[str, typer.Argument(help="Which subjects, as in the table: evt.job.>, tick.*.*, …")] = ">",
    data: Data = None,
    nats: Nats = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Follow what is said on the bus, a line each."""
    from agents.cli.jobs import tail as command

    exit_with(anyio.run(command, read_settings(data, nats, config), pattern, json))


@app.command()
def doctor(data: Data = None, nats: Nats = None, config: Config = None, json: Json = False) -> None:
    """Check what Darkroom needs and say what is wrong."""
    from agents.cli.doctor import doctor as command

    exit_with(anyio.run(command, read_settings(data, nats, config), json))


@app.command()
def verify(
    data: Data = None,
    config: Config = None,
    quick: Annotated[bool, typer.Option("--quick", help="Models by their size alone.")] = False,
    json: Json = False,
) -> None:
    """Check the catalog against the disk: every file that it refers to is there, and is what it was."""
    from agents.cli.verify import verify as command

    exit_with(anyio.run(command, read_settings(data, None, config), quick, json))


@app.command()
def rebuild(
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The new file (default: DATA/catalog.rebuilt.db)."),
    ] = None,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Put it in the live one's place, which goes to the trash; nothing may run."),
    ] = False,
    data: Data = None,
    nats: Nats = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Make the catalog anew of its history alone, and compare it with the live one row for row."""
    from agents.cli.verify import rebuild as command

    if replace and output:
        raise UserError("--replace puts the new catalog in the live one's place: it takes no --output")
    exit_with(anyio.run(command, read_settings(data, nats, config), output, json, replace))


@app.command("new-history")
def new_history(
    empty: Annotated[
        bool, typer.Option("--empty", help="With an empty catalog; the one there goes to the trash.")
    ] = False,
    data: Data = None,
    nats: Nats = None,
    config: Config = None,
) -> None:
    """Begin a new history with what the catalog holds: for one that does not go with the history on its bus. The old
    history stays on the bus, and is no longer replayed. Nothing may run."""
    from agents.cli.verify import new_history as command

    exit_with(anyio.run(command, read_settings(data, nats, config), empty))


@app.command()
def hash(
    files: Annotated[list[str], typer.Argument(help="Files of any kind.")],
    parallel: Annotated[int | None, typer.Option(min=1, help="How many are read side by side.")] = None,
    config: Config = None,
    json: Annotated[bool, typer.Option("--json", help="All hashes as JSON: AutoV2, AutoV3, CRC32, BLAKE3.")] = False,
) -> None:
    """Hash files, a line each as sha256sum writes it; needs no service."""
    from agents.cli.files import hash_files as command

    settings = read_settings(None, None, config, **{"hasher.parallel": parallel})
    exit_with(command(files, settings.hasher.parallel, json))


@app.command()
def inspect(files: Annotated[list[str], typer.Argument(help="Model files.")], json: Json = False) -> None:
    """Say what model files are by their headers and sidecars, without loading a weight; needs no service."""
    from agents.cli.files import inspect_files as command

    exit_with(command(files, json))


@app.command()
def demo(
    data: Data = None,
    once: Annotated[bool, typer.Option("--once", help="Exit when the pictures are made.")] = False,
    port: Annotated[int | None, typer.Option(help="The page's port.")] = None,
) -> None:
    """See it work: a tiny checkpoint is dropped into the models folder and makes two pictures."""
    from agents.cli.demo import demo as command

    anyio.run(command, read_settings(data, None, None, **{"http.port": port}), once)


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
            from agents.cli.console import printable

            print(f"darkroom: {printable(str(error))}", file=sys.stderr)
            sys.exit(USER_ERROR if isinstance(error, UserError) else FAILED)
        raise


if __name__ == "__main__":
    main()
