"""The pictures of models, asked of the encoder, a few at a time, and written down when they are there; and
the gallery of what was generated.

A picture that waits is a row of the catalog, so a kill loses none: what waits is asked for again at start, and a job
that is queued already is taken for the same.
"""

import sqlite3
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import nats.errors
import structlog
from anyio import to_thread

from agents.catalog.asks.pending import promote_chosen
from agents.catalog.asks.pictures import drop_picture
from agents.catalog.database import Database, Statements
from agents.catalog.descriptions import (
    Waiting,
    forget_originals,
    images_waiting,
    originals_used,
    pending_originals,
    picture_encoded,
    picture_refused,
    pictures_used,
    trash_originals,
)
from agents.catalog.errors import IMPOSSIBLE
from agents.catalog.facts import note_cursor
from agents.catalog.outputs import add_outputs
from agents.catalog.position import judge
from agents.catalog.promotion import drop_promoted, unused_originals
from agents.images import infotext
from agents.images.decode import BadPicture
from agents.images.model_pictures import remove_picture, tidy
from agents.migrator.replay import stream_of
from agents.storage.layout import OUTPUTS
from agents.storage.trash import empty
from bus.client import Bus
from bus.errors import DarkroomError, Undecodable
from bus.followers import Fact, dead_letter_fact
from bus.ids import digest_id
from bus.queues import enqueue
from bus.subjects import IMAGE_ENCODED, IMAGE_REFUSED, JOB_PLANNED, PICTURE, Subject
from bus.wakeup import Wakeup
from schemas.catalog import DropPicture, Outcomes, Pictures, Promote
from schemas.images import Encoded, EncodePicture, PictureRefused

log = structlog.get_logger()

FOLLOWED: tuple[Subject[Any], ...] = (IMAGE_ENCODED, IMAGE_REFUSED)
STREAM = "EVENTS"
UNDER_WAY = 32
"""Pictures of models in the encoder's queue at most: generated ones must find room there at any time."""
TIDY_SECONDS = 3600.0
TRASH_DAYS = 30.0
DAY = 24 * 3600.0
ASK_AGAIN_SECONDS = 600.0
"""What was asked for and has not come since is asked for once more."""


class ModelPictures:
    """The pictures of one catalog, whose files lie below `data`."""

    def __init__(self, bus: Bus, db: Database, data: Path, trash_days: float = TRASH_DAYS) -> None:
        self.bus, self.db, self.data = bus, db, data
        self.trash_days = trash_days
        self.asked: set[str] = set()

    async def keep_asking(self, wakeup: Wakeup) -> None:
        """Ask for what waits, oldest first, for ever."""
        while True:
            try:
                waiting = await images_waiting(self.db, limit=UNDER_WAY)
                self.asked &= {job_id(one) for one in waiting}
                for one in waiting:
                    await self._ask(one)
            except (DarkroomError, sqlite3.Error) as error:
                log.warning("pictures not asked for yet", error=str(error))
                wakeup.set()
                await anyio.sleep(self.bus.settings.retry_delay)
            with anyio.move_on_after(ASK_AGAIN_SECONDS) as waited:
                await wakeup.wait()
            if waited.cancelled_caught:
                self.asked.clear()

    async def _ask(self, one: Waiting) -> None:
        if (id := job_id(one)) in self.asked:
            return
        job = EncodePicture(id=id, sha256=one.sha256, number=one.number, original=one.original, source=one.source)
        await enqueue(self.bus, PICTURE, job, id=id)
        self.asked.add(id)

    async def write_down(self, facts: list[Fact]) -> None:
        """Write down what was encoded, and what could not be: all of it at once where possible. A fact that no row can
        hold becomes a dead letter, and the others go on."""
        try:
            await self._write_down(facts)
        except IMPOSSIBLE as error:
            if len(facts) == 1:
                await dead_letter_fact(self.bus, facts[0], error)
            else:
                for fact in facts:
                    await self.write_down([fact])

    async def _write_down(self, facts: list[Fact]) -> None:
        outputs = [await self._with_infotext(fact.payload) for fact in facts if _is_generated(fact.payload)]
        done: list[str] = []
        async with self.db.atomic() as sql:
            for fact in facts:
                if not _is_generated(fact.payload) and not await _is_of_this_catalog(sql, fact.payload):
                    log.warning("picture of another catalog", job=fact.payload.id)
                elif _is_refused(fact):
                    log.warning("picture refused", sha256=fact.payload.sha256, error=fact.payload.error)
                    await picture_refused(sql, fact.payload)
                elif fact.payload.model:
                    done += await picture_encoded(sql, fact.payload)
            for encoded, model, texts in outputs:
                await add_outputs(sql, encoded, model, texts)
            await note_cursor(sql, {STREAM: facts[-1].seq})
            models = {fact.payload.sha256 if _is_refused(fact) else fact.payload.model for fact in facts} - {""}
            done += await drop_promoted(sql, models, self.bus.clock.now())
        await self.forget(done)

    async def promote(self, ask: Promote) -> Outcomes:
        """Promote the pending records that somebody chose."""
        outcomes, originals = await promote_chosen(self.db, ask.ids, ask.strategy, self.bus.clock.now())
        await self.forget(originals)
        return Outcomes(outcomes=outcomes)

    async def drop(self, ask: DropPicture) -> Pictures:
        """Take a picture off a model, and then its files off the disk. One that is being encoded meanwhile leaves files
        that nothing in the catalog needs; see `keep_tidy`. Raises Declined (unknown-model, unknown-picture)."""
        reply, originals = await drop_picture(self.db, ask)
        assert reply.number is not None
        await self.forget(originals)
        await to_thread.run_sync(remove_picture, self.data, ask.sha256, reply.number)
        return reply

    async def keep_tidy(self) -> None:
        """Every hour, move pictures and originals that nothing in the catalog needs (a kill leaves such) to the trash,
        and remove what lies there for too long. Without a catalog that is shown to be at the end of its
        history, nothing is judged: what it does not know may be what it lost."""
        while True:
            try:
                if (since := await self._whole_since()) is None:
                    log.warning("pictures not tidied: the catalog is not at the end of its history")
                else:
                    originals = frozenset(await originals_used(self.db))
                    pictures = frozenset(await pictures_used(self.db))
                    sweep = partial(tidy, self.data, originals, pictures, self.bus.clock.now(), since=since)
                    moved = await to_thread.run_sync(sweep)
                    if moved:
                        log.info("unused pictures moved to the trash", files=moved)
                before = self.bus.clock.now() - self.trash_days * DAY
                files, size = await to_thread.run_sync(partial(empty, self.data, before=before))
                if files:
                    log.info("old files removed from the trash", files=files, bytes=size)
            except (OSError, sqlite3.Error, DarkroomError, nats.errors.Error) as error:
                log.warning("pictures not tidied", error=str(error))
            await anyio.sleep(TIDY_SECONDS)

    async def _whole_since(self) -> float | None:
        """When the catalog began (seconds since 1970), if it is what its history on the bus has: a transaction on its
        way there is no difference."""
        file = await self.db.standing()
        if file.position is None or judge(file, await stream_of(self.bus)).verdict != "current":
            return None
        return file.position.begun

    async def forget_leftovers(self) -> None:
        """At start, before anything is imported: move originals to the trash that a kill left between a commit and
        this."""
        if (since := await self._whole_since()) is not None:
            originals = await to_thread.run_sync(pending_originals, self.data, since)
            async with self.db.atomic() as sql:
                unused = await unused_originals(sql, originals)
                await to_thread.run_sync(trash_originals, self.data, unused, self.bus.clock.now())

    async def forget(self, originals: list[str]) -> None:
        """Remove those pending originals that nothing needs any more: within a transaction, so that no import can give
        one of the names to another picture meanwhile."""
        if originals:
            async with self.db.atomic() as sql:
                unused = await unused_originals(sql, originals)
                await to_thread.run_sync(forget_originals, self.data, unused)

    async def _with_infotext(self, fact: Encoded) -> tuple[Encoded, str, list[str]]:
        """A job's pictures, their checkpoint by its plan, and the text that each file carries: empty where the plan or
        the file can't be read any more."""
        model = ""
        try:
            if stored := await self.bus.last(JOB_PLANNED, id=fact.id):
                model = stored.payload.model.sha256
        except Undecodable as error:
            log.warning("pictures without their plan", job=fact.id, error=str(error))
        return fact, model, [await to_thread.run_sync(self._infotext, one.file) for one in fact.pictures]

    def _infotext(self, file: str) -> str:
        try:
            if file.startswith(f"{OUTPUTS}/") and ".." not in file:
                return infotext.read_file(self.data / file)
        except (BadPicture, OSError, ValueError) as error:
            log.warning("picture without its infotext", file=file, error=str(error))
        return ""


def job_id(one: Waiting) -> str:
    """The same picture is the same job."""
    return digest_id("picture", one.sha256, one.number, one.source)


async def _is_of_this_catalog(sql: Statements, payload: Encoded | PictureRefused) -> bool:
    """Whether every picture in it is one whose job this is. After a catalog was lost, or an older one put in
    its place, a number can be another picture's than when the encoder got it."""
    if isinstance(payload, PictureRefused):
        sha256, numbers = payload.sha256, [payload.number]
    else:
        sha256, numbers = payload.model, [picture.index for picture in payload.pictures]
    for number in numbers:
        for original, source in await sql.rows("image_source", sha256=sha256, number=number):
            one = Waiting(sha256=sha256, number=number, original=original, source=source)
            if job_id(one) != payload.id:
                return False
    return True


def _is_refused(fact: Fact) -> bool:
    return isinstance(fact.payload, PictureRefused)


def _is_generated(payload: Encoded | PictureRefused) -> bool:
    return isinstance(payload, Encoded) and not payload.model
