"""Job ids: 32 hex digits; UUIDv7 where we draw them, so that they sort by time. Time and randomness are arguments."""

import hashlib
import secrets
import time
from datetime import UTC, datetime


def new_id(now: float | None = None, randomness: bytes | None = None) -> str:
    """A UUIDv7 (RFC 9562) as 32 hex digits: 48 bits of Unix milliseconds, then 74 random bits (10 bytes are taken)."""
    milliseconds = int((time.time() if now is None else now) * 1000)
    noise = int.from_bytes(secrets.token_bytes(10) if randomness is None else randomness)
    high, low = noise >> 68, noise & ((1 << 62) - 1)
    return f"{milliseconds & ((1 << 48) - 1):012x}{0x7000 | high & 0xFFF:04x}{(1 << 63) | low:016x}"


def digest_id(*parts: object) -> str:
    """32 hex digits that are a function of the parts: the same thing gets the same id."""
    return hashlib.blake2b("\0".join(map(str, parts)).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def time_of(job_id: str) -> float | None:
    """The Unix time inside a UUIDv7, in seconds; None for any other 32 hex digits."""
    if job_id[12] != "7" or job_id[16] not in "89ab":
        return None
    return int(job_id[:12], 16) / 1000


def day_of(job_id: str, otherwise: float) -> str:
    """The UTC date (YYYY-MM-DD) of a job id, or of `otherwise` where the id holds no plausible time (2020 to 2100)."""
    at = time_of(job_id)
    if at is None or not 1_577_836_800 <= at < 4_102_444_800:
        at = otherwise
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")
