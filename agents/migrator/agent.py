"""Migrator: consumes evt.file.*, evt.image.*, evt.job.*, job.import and job.prepare, keeps the catalog, publishes
evt.model.*, evt.tag.*, evt.pending.*, evt.catalog.changed and job.picture; answers ask.catalog.*.

It owns the catalog's file and is the only writer of the CATALOG stream: one per bus, a second refuses to start. A fact
is applied, remembered as applied and what follows from it put into the outbox in one transaction; the outbox is
published in order. A kill anywhere between the two repeats nothing and loses nothing.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import anyio
import anyio.abc
import msgspec
import nats.errors
import structlog
from anyio import to_thread

from agents.catalog.asks.pending import list_pending
from agents.catalog.database import Database
from agents.catalog.errors import IMPOSSIBLE, CatalogTaken
from agents.catalog.facts import apply, forget_messages
from agents.catalog.promotion import promote_present
from agents.catalog.resolve import list_models, resolve
from agents.migrator import answers, jobs, pictures
from agents.migrator.drift import DriftCheck
from agents.migrator.imports import serve_imports
from agents.migrator.jobs import JobRecords
from agents.migrator.pictures import ModelPictures
from agents.migrator.relay import CatalogOutbox
from agents.migrator.replay import prepare
from agents.storage.database import owned
from bus.client import Bus, encode
from bus.errors import Declined, NoAnswer, Undecodable
from bus.followers import Fact, dead_letter_fact, follow
from bus.ids import digest_id
from bus.relay import relay
from bus.subjects import (
    ASK_COMPARE,
    ASK_HELLO,
    ASK_JOBS,
    ASK_MODELS,
    ASK_PENDING,
    ASK_PROMOTE,
    ASK_RESOLVE,
    EVENTS_OF_IMAGES,
    EVERYTHING,
    FILE_DESCRIBED,
    FILE_HASH_FAILED,
    FILE_HASHED,
    FILE_MOVED,
    FILE_REFUSED,
    FILE_REMOVED,
    FILE_SETTLED,
    JOB_FINISHED,
    Subject,
)
from bus.wakeup import Wakeup
from schemas.asks import Hello, ListModels, ModelList, Nothing
from schemas.catalog import ListPending, PendingList, ResolveModel, ResolveReply, Strategy
from schemas.fitting import ANSWER_BYTES, ITEM_BYTES, cut, fitted
from schemas.models import Model
from schemas.settings import MigratorSettings

log = structlog.get_logger()

NAME = "migrator"
FILES, EVENTS = "FILES", "EVENTS"
FOLLOWED: tuple[Subject[Any], ...] = (
    FILE_SETTLED,
    FILE_HASHED,
    FILE_MOVED,
    FILE_REMOVED,
    FILE_REFUSED,
    FILE_HASH_FAILED,
    FILE_DESCRIBED,
)
RIVAL_SECONDS = 0.3
RIVAL_ASKS = 5
"""How long migrators that start at the same moment listen for each other, and how often they ask."""
LISTED = 1000
"""Models in one answer at most."""
REMEMBERED_SECONDS = 30 * 24 * 3600.0
"""How long the inbox remembers a message; a repeat that comes later finds its effect in the state."""
_FOLLOWED = "files_followed"
_DEFAULTS = MigratorSettings()


async def run(
    bus: Bus,
    path: Path,
    roots: Mapping[str, str] = MappingProxyType({}),
    settings: MigratorSettings = _DEFAULTS,
    *,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Keep the catalog at `path`, and it the same as what the watchers of `roots`, and of the roots it knows, have.

    Ready when every fact stored before has been applied and asks are answered.

    The file is compared with its history first, and made of that where it is missing, damaged or older.

    Raises CatalogTaken when another migrator answers on this bus, CatalogUnusable or CatalogTooNew for the file,
    CatalogApart when it belongs to another history, and UserError when another has it, on whatever bus.
    """
    await _refuse_to_be_second(bus)
    with owned(path):
        await _keep(bus, path, roots, settings, task_status)


async def _keep(
    bus: Bus,
    path: Path,
    roots: Mapping[str, str],
    settings: MigratorSettings,
    task_status: anyio.abc.TaskStatus[None],
) -> None:
    """The same, with the file our own."""
    to_publish, to_draw = Wakeup(), Wakeup()

    def changed() -> None:
        to_publish.set()
        to_draw.set()

    async with anyio.create_task_group() as greeters:  # ends last: the place is free when the file is closed
        instance = await _claim(bus, greeters)
        opening = await prepare(bus, path, bus.clock.now())
        opened = Database.open(path, clock=bus.clock, changed=changed, begin=opening.begin, after=opening.after)
        async with opened as db, anyio.create_task_group() as tasks:
            await forget_messages(db, before=bus.clock.now() - REMEMBERED_SECONDS)
            files_from, images_from, jobs_from = await _starts(db)
            tasks.start_soon(relay, bus, CatalogOutbox(bus, db), to_publish)
            files = partial(_apply_files, bus, db, settings.conflicts)
            images = ModelPictures(bus, db, path.parent, settings.trash_days)
            await tasks.start(partial(follow, bus, FILES, FOLLOWED, NAME, files, pattern=EVERYTHING, afresh=files_from))
            # Until the catalog has all the facts there are, "no such model" would be a lie that ends jobs.
            await _catch_up(bus)
            tasks.start_soon(images.keep_asking, to_draw)
            write_down = partial(follow, bus, EVENTS, pictures.FOLLOWED, f"{NAME}-images", images.write_down)
            await tasks.start(partial(write_down, pattern=EVENTS_OF_IMAGES, afresh=images_from))
            records = JobRecords(bus, db, settings.jobs_days)
            await tasks.start(records.unfinished.keep)
            write_down = partial(follow, bus, EVENTS, jobs.FOLLOWED, f"{NAME}-jobs", records.write_down)
            await tasks.start(partial(write_down, pattern=JOB_FINISHED.filter(), afresh=jobs_from))
            tasks.start_soon(records.keep_pruned)
            await db.put_meta(_FOLLOWED, "yes")
            drift = DriftCheck(bus, db, frozenset(roots), partial(_catch_up, bus))
            tasks.start_soon(drift.keep_checking)
            tasks.start_soon(images.keep_tidy)
            await images.forget_leftovers()
            promote = partial(_promote, db, settings.conflicts)
            await promote()
            await tasks.start(serve_imports, bus, db, path.parent, roots, promote)
            await tasks.start(bus.answer, ASK_COMPARE, drift.answer)
            await tasks.start(bus.answer, ASK_PROMOTE, images.promote)
            await tasks.start(bus.answer, ASK_JOBS, records.list)
            for subject, reply in ANSWERS.items():
                await tasks.start(bus.answer, subject, partial(reply, db))
            for subject, reply in answers.answers(db, images, roots, settings.conflicts).items():
                await tasks.start(bus.answer, subject, reply)
            log.info("catalog ready", path=str(path), instance=instance)
            task_status.started()


async def _starts(db: Database) -> tuple[int | None, int | None, int | None]:
    """Where a new or rebuilt catalog begins to read the facts about files, about pictures and about jobs: after those
    whose effects are in it. None for one that was read into before: its durables know."""
    if await db.meta(_FOLLOWED) is not None:
        return None, None, None
    files, events, finished = [int(await db.meta(f"cursor.{one}") or 0) + 1 for one in (FILES, EVENTS, jobs.CURSOR)]
    return files, events, finished


async def _apply_files(bus: Bus, db: Database, strategy: Strategy, facts: list[Fact]) -> None:
    await _apply(bus, db, facts, strategy)


async def _promote(db: Database, strategy: Strategy) -> None:
    """Files that were hashed before there was a record of them."""
    if promoted := await promote_present(db, strategy, db.clock.now()):
        log.info("pending records promoted", count=promoted)


async def _which(db: Database, ask: ResolveModel) -> ResolveReply:
    return ResolveReply(model=cut(await resolve(db, ask.name), ITEM_BYTES))


async def _models(db: Database, ask: ListModels) -> msgspec.Raw:
    limit = max(1, min(ask.limit, LISTED))
    page = await list_models(db, kind=ask.kind, missing=ask.missing, after=ask.after, limit=limit + 1)
    return await to_thread.run_sync(listing, page, limit, ANSWER_BYTES)


async def _pending(db: Database, ask: ListPending) -> PendingList:
    limit = max(1, min(ask.limit, LISTED))
    records = await list_pending(db, after=ask.after, limit=limit + 1)
    page = await to_thread.run_sync(fitted, records[:limit])
    return PendingList(records=page, more=len(page) < len(records))


ANSWERS: dict[Subject[Any], Callable[..., Awaitable[Any]]] = {
    ASK_RESOLVE: _which,
    ASK_MODELS: _models,
    ASK_PENDING: _pending,
}
"""What is asked of the catalog, and who answers from it."""


def listing(models: tuple[Model, ...], limit: int, room: int) -> msgspec.Raw:
    """The first `limit` models as one answer of at most `room` bytes, and whether more follow. The metadata of their
    headers, which can be 32 KiB each, is left out; so is the end of what is too long for a list."""
    slim = [
        msgspec.structs.replace(model, identity=msgspec.structs.replace(model.identity, metadata={}))
        for model in models[:limit]
    ]
    page = fitted(slim, room - len(encode(ModelList(models=()))))
    return msgspec.Raw(encode(ModelList(models=page, more=len(page) < len(models))))


async def _apply(bus: Bus, db: Database, facts: list[Fact], strategy: Strategy) -> int:
    """Apply facts, all at once where possible. One that no row can hold (a path out of its root, for example) becomes a
    dead letter and the others go on. Returns how many facts went into the outbox."""
    # A fact holds the time it was true: the same words again, by whatever way, are the same fact.
    batch = [(digest_id(fact.row.template, encode(fact.payload)), fact.payload) for fact in facts]
    try:
        return await apply(db, batch, now=bus.clock.now(), strategy=strategy, cursor={FILES: facts[-1].seq})
    except IMPOSSIBLE as error:
        if len(batch) > 1:
            return sum([await _apply(bus, db, [fact], strategy) for fact in facts])
        await dead_letter_fact(bus, facts[0], error)
        return 0


async def _catch_up(bus: Bus) -> None:
    """Wait until every fact is applied that was stored when this began."""
    last = None
    while True:
        with suppress(nats.errors.Error):
            if last is None:
                last = (await bus.js.stream_info(FILES)).state.last_seq
            info = await bus.js.consumer_info(FILES, NAME)
            if info.ack_floor.stream_seq >= last or not (info.num_pending or info.num_ack_pending):
                return
        await anyio.sleep(0.05)


async def _refuse_to_be_second(bus: Bus) -> None:
    """Raises CatalogTaken when somebody answers, or could but does not."""
    try:
        other = await bus.ask(ASK_HELLO, Nothing(), Hello)
    except NoAnswer as error:
        if isinstance(error.__cause__, nats.errors.NoRespondersError):
            return
        raise CatalogTaken(
            "A migrator is connected to this bus and does not answer: end it (or wait until the bus has noticed that "
            "it is gone), then start this one."
        ) from error
    except (Declined, Undecodable) as error:
        raise CatalogTaken from error
    raise CatalogTaken(f"{CatalogTaken.__doc__} It is instance {other.instance}.")


async def _claim(bus: Bus, tasks: anyio.abc.TaskGroup) -> str:
    """Answer from now on, and listen for others that start at this moment: the oldest instance stays. Returns ours.

    The id is drawn when asks arrive already, and holds the time: whoever has a smaller one gets our ask.
    Raises CatalogTaken.
    """
    drawn = anyio.Event()

    async def hello(_: Nothing) -> Hello:
        await drawn.wait()
        return Hello(instance=instance)

    await tasks.start(bus.answer, ASK_HELLO, hello)
    instance = bus.clock.new_id()
    drawn.set()
    inbox = bus.nc.new_inbox()
    async with bus.listen(inbox) as answers:
        for _ in range(RIVAL_ASKS):
            await bus.nc.publish(ASK_HELLO(), encode(Nothing()), reply=inbox)
            with anyio.move_on_after(RIVAL_SECONDS / RIVAL_ASKS):
                async for message in answers:
                    other = msgspec.json.decode(message.data, type=Hello).instance
                    if other < instance:
                        raise CatalogTaken(f"{CatalogTaken.__doc__} It is instance {other}.")
    return instance
