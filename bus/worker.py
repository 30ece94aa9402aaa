"""One job from delivery to decision: the lease, the attempts, and the only place where a job is acknowledged."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import anyio
import nats.errors
import structlog
from nats.aio.msg import Msg

from bus import trace
from bus.client import Bus, encode, worker_name
from bus.dead_letters import dead_letter
from bus.errors import BadSubject, Fail, Full, NoAnswer, Reject, Retry, Taken, Undecodable
from bus.ids import digest_id
from bus.subjects import ATTEMPT_FAILED, ATTEMPT_RELEASED, ATTEMPT_STARTED, JOB_RELEASED, JOB_STARTED, Subject
from schemas.jobs import AttemptFailed, Released, Started

log = structlog.get_logger()

T = TypeVar("T")

NOT_AN_ATTEMPT = (Retry, Full, NoAnswer)
"""What a handler raises where something else is missing: its job comes back."""
_LONGEST_ERROR = 2000
"""Characters."""
_LONGEST_RETRY = 30.0
"""Seconds; a missing dependency is asked for ever more rarely, up to this."""


Release = Callable[[str], Awaitable[None]]
"""From here on a job only waits, for the reason given: who dies meanwhile leaves no attempt. Raises Retry, Full."""


async def nothing_begun(why: str) -> None:
    """`Release` of a delivery whose attempt has not begun."""


@dataclass(frozen=True)
class Delivery:
    """Where a message came from: its subject's tokens, its place in the stream, how often it was delivered. `first`:
    nobody has ever begun this job before, by the stored attempts."""

    subject: str
    tokens: dict[str, str]
    seq: int
    delivered: int
    first: bool = False
    release: Release = nothing_begun

    @property
    def id(self) -> str:
        """The job's id."""
        return self.tokens["id"]


Handler = Callable[[T, Delivery], Awaitable[None]]


@dataclass(frozen=True)
class Work(Generic[T]):
    """A queue of jobs and what is done with them.

    `ended` is true where nothing is left to do for a job (it has its result); `give_up` ends a job that can't succeed,
    with a status (failed or rejected), a stable reason and a sentence. `asked_again` is for jobs whose id comes back,
    each time a job of its own: attempts at one that ended well do not count for the next.
    """

    subject: Subject[T]
    handle: Handler[T]
    ended: Callable[[Delivery], Awaitable[object]]
    give_up: Callable[[Delivery, str, str, str], Awaitable[None]]
    asked_again: bool = False

    def counted_as(self, delivery: Delivery) -> str:
        """The id under which attempts at a job are counted. A job that is delivered again keeps its sequence."""
        return digest_id(delivery.id, delivery.seq) if self.asked_again else delivery.id

    @property
    def kind(self) -> str:
        """hash, prepare, generate, encode, import."""
        return self.subject.template.split(".")[1]


async def no_result(delivery: Delivery) -> bool:
    """`Work.ended` of jobs that have no result besides their fact."""
    return False


@asynccontextmanager
async def lease(bus: Bus, message: Msg) -> AsyncIterator[None]:
    """Hold a message: its lease is renewed every heartbeat, whatever the handler's threads do."""
    bus.leases[message.reply] = message
    try:
        yield
    finally:
        bus.leases.pop(message.reply, None)


async def process(bus: Bus, work: Work[T], message: Msg) -> None:
    """Handle one job and decide what becomes of it. The single place where jobs are acknowledged.

    Returned: ack. Retry, or a shutdown: back to the queue, no attempt. Reject (Fail): ended as rejected (failed), ack.
    Undecodable: dead letter, term. Anything else: an attempt; after `max_attempts` dead letter, ended as failed, term.
    When even the decision can't be carried out (the bus is away), the job goes back to the queue.
    """
    async with lease(bus, message):
        with trace.continued(message.headers):
            try:
                try:
                    delivery = _delivery(work.subject, message)
                except BadSubject as error:
                    await dead_letter(bus, work.kind, "bad_subject", digest_id(message.subject), message, str(error))
                    await message.term()
                    return
                with structlog.contextvars.bound_contextvars(job=delivery.id):
                    await _decide(bus, work, message, delivery)
            except Exception:
                log.exception("decision not carried out, job put back", subject=message.subject)
                with suppress(nats.errors.Error):  # then its lease runs out
                    await message.nak(delay=bus.settings.retry_delay)


async def _decide(bus: Bus, work: Work[T], message: Msg, delivery: Delivery) -> None:
    started, counted, before, id = False, False, 0, work.counted_as(delivery)

    async def release(why: str) -> None:
        nonlocal counted
        if counted:
            await _publish_released(bus, work.kind, id, why)
            counted = False

    try:
        if await work.ended(delivery):
            await message.ack()
            return
        payload = work.subject.decode(message.data)
        first, before = await _start(bus, work.kind, id)
        if before >= bus.settings.max_attempts:
            await _exhausted(bus, work, message, delivery, await _why_failed(bus, work.kind, id, before))
            return
        started = counted = True
        await work.handle(payload, replace(delivery, first=first, release=release))
    except anyio.get_cancelled_exc_class():
        with anyio.CancelScope(shield=True), suppress(Exception):  # what ends us is the shutdown
            with anyio.move_on_after(3):
                await release("shutdown")
            await message.nak(delay=0.2)  # not at once: our own pull may still be open and would get it
        raise
    except Exception as raised:
        match error := sole(raised):
            case Undecodable() if not started:  # the job itself; what a handler can't read is an attempt
                await dead_letter(bus, work.kind, "undecodable", delivery.id, message, words(error))
                await work.give_up(delivery, "rejected", "undecodable", words(error))
                await message.term()
            case Reject():
                status = "failed" if isinstance(error, Fail) else "rejected"
                await work.give_up(delivery, status, error.reason, words(error))
                await message.ack()
            case _ if isinstance(error, NOT_AN_ATTEMPT):
                log.info("job put back", why=words(error))
                await release(words(error))
                pause = min(bus.settings.retry_delay * delivery.delivered, _LONGEST_RETRY)
                await message.nak(delay=getattr(error, "delay", None) or pause)
            case _ if before + 1 >= bus.settings.max_attempts:
                log.exception("job failed for good", attempt=before + 1)
                await _exhausted(bus, work, message, delivery, f"{type(error).__name__}: {words(error)}")
            case _:
                log.exception("job failed, will be tried again", attempt=before + 1)
                if started:
                    if not counted:
                        await _start(bus, work.kind, id)
                    why = f"{type(error).__name__}: {words(error)}"
                    await attempt_failed(bus, work.kind, id, why, once=f"{delivery.seq}-{before}")
                await message.nak(delay=bus.settings.retry_delay * 2**before)
    else:
        await message.ack()


def words(error: BaseException) -> str:
    """An error's message, fit for the bus: not too long, and without the bytes of a file name that are not UTF-8."""
    return str(error).encode("utf-8", "backslashreplace").decode()[:_LONGEST_ERROR]


def sole(error: BaseException) -> BaseException:
    """The one error inside groups of one (task groups wrap even a single error), or of several that all mean to try
    again; else the error itself."""
    while isinstance(error, BaseExceptionGroup):
        if len(error.exceptions) > 1 and not all(isinstance(one, NOT_AN_ATTEMPT) for one in error.exceptions):
            break
        error = error.exceptions[0]
    return error


async def _exhausted(bus: Bus, work: Work[Any], message: Msg, delivery: Delivery, why: str) -> None:
    await dead_letter(bus, work.kind, "exhausted", delivery.id, message, why)
    most = bus.settings.max_attempts
    error = f"given up after {most} attempt{'s' * (most != 1)}: {why}"
    await work.give_up(delivery, "failed", "exhausted", error)
    await message.term()


def _delivery(subject: Subject[Any], message: Msg) -> Delivery:
    meta = message.metadata
    return Delivery(message.subject, subject.parse(message.subject), meta.sequence.stream, meta.num_delivered or 1)


async def attempts(bus: Bus, kind: str, id: str) -> int:
    """Stored starts of a job, less those it was given back from unharmed."""
    started, released = _started_subject(kind, id), _released_subject(kind, id)
    counts = await bus.waiting("EVENTS", started.replace(".started.", ".*."))
    return counts.get(started, 0) - counts.get(released, 0)


async def _start(bus: Bus, kind: str, id: str) -> tuple[bool, int]:
    """Store that an attempt begins, unless it would be one too many; returns whether it is the first ever, and how many
    went before (those that were released are not counted).

    The first is stored as the first on its subject, which spares the look at those before it.
    """
    subject = _started_subject(kind, id)

    def fact(attempt: int) -> bytes:
        return encode(Started(id=id, attempt=attempt, worker=worker_name(), at=bus.clock.now()))

    try:
        await bus.publish_raw(subject, fact(1), first=True)
        return True, 0
    except Taken:
        before = await attempts(bus, kind, id)
    if before < bus.settings.max_attempts:
        await bus.publish_raw(subject, fact(before + 1))
    return False, before


async def attempt_failed(bus: Bus, kind: str, id: str, why: str, *, once: str) -> None:
    """Store why an attempt at a job came to nothing, for the sentence that ends the job if none succeeds; `once` is
    different for each attempt. Raises Full, Retry."""
    fact = AttemptFailed(id=id, worker=worker_name(), why=why[:_LONGEST_ERROR], at=bus.clock.now())
    await bus.publish(ATTEMPT_FAILED, fact, msg_id=f"{kind}-{id}-failed-{once}", kind=kind, id=id)


async def _why_failed(bus: Bus, kind: str, id: str, attempts: int) -> str:
    """Why so many attempts at a job came to nothing: the last reason that is stored. Those without one ended with their
    worker. Raises Retry."""
    subject = ATTEMPT_FAILED(kind=kind, id=id)
    reasons = (await bus.waiting("EVENTS", subject)).get(subject, 0)
    try:
        last = await bus.last(ATTEMPT_FAILED, kind=kind, id=id) if reasons else None
    except Undecodable as error:
        return f"its attempts failed, and nobody here can read why ({error})"
    deaths = attempts - reasons
    died = f"its worker died {deaths} time{'s' * (deaths != 1)} while it ran"
    if last is None:
        return died
    return f"{last.payload.why} (and {died})" if deaths > 0 else last.payload.why


def _started_subject(kind: str, id: str) -> str:
    return JOB_STARTED(id=id) if kind == "generate" else ATTEMPT_STARTED(kind=kind, id=id)


def _released_subject(kind: str, id: str) -> str:
    return JOB_RELEASED(id=id) if kind == "generate" else ATTEMPT_RELEASED(kind=kind, id=id)


async def _publish_released(bus: Bus, kind: str, id: str, why: str) -> None:
    fact = Released(id=id, worker=worker_name(), why=why[:500], at=bus.clock.now())
    await bus.publish_raw(_released_subject(kind, id), encode(fact))
