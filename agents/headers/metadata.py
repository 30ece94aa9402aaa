"""Metadata: what trainers and tools wrote into a header, cut down to what a bus message and a catalogue row can
hold."""

import json
from collections import Counter
from typing import Any

METADATA_BYTES = 32 << 10
"""All keys and values together, as JSON."""

_VALUE_BYTES = 8 << 10
_LEAST_BYTES = len('"":"",')
_COUNTED = 4 << 20
"""Characters of tag counts at most; those of a training set of 10,000 pictures are one million or so."""

_WORDS = 24
_WORD_LENGTH = 120
_BULKY = frozenset(("modelspec.thumbnail", "ss_bucket_info", "ss_tag_frequency", "ss_dataset_dirs", "ss_datasets"))
"""Kept last: pictures and statistics nobody reads as text."""


def bounded(metadata: dict[str, str]) -> dict[str, str]:
    """As much of the metadata as fits METADATA_BYTES: modelspec first, then training facts, the bulky ones last.

    A value that is too long is left out, not cut: half a JSON text is of no use to anybody.
    """
    kept: dict[str, str] = {}
    room = METADATA_BYTES
    for key in sorted(metadata, key=_rank):
        if room < _LEAST_BYTES:
            break
        key, value = _clean(key), _clean(metadata[key])
        cost = (
            len(json.dumps(key, ensure_ascii=False).encode()) + len(json.dumps(value, ensure_ascii=False).encode()) + 2
        )
        if cost <= min(room, _VALUE_BYTES):
            kept[key] = value
            room -= cost
    return kept


def trigger_words(metadata: dict[str, str]) -> tuple[str, ...]:
    """Words that call up what a LoRA was trained on: the author's own phrases, else the commonest training tags."""
    own = metadata.get("modelspec.trigger_phrase", "") or metadata.get("ss_trigger_words", "")
    counted = metadata.get("ss_tag_frequency", "")
    words = own.split(",") if own else _commonest(counted if len(counted) <= _COUNTED else "")
    cleaned = (_clean(word).strip()[:_WORD_LENGTH] for word in words)
    return tuple(dict.fromkeys(word for word in cleaned if word))[:_WORDS]


def _commonest(text: str) -> list[str]:
    """The tags of ss_tag_frequency ({folder: {tag: count}}) by falling count; whatever else it holds is passed over."""
    try:
        folders: Any = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return []
    counts: Counter[str] = Counter()
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if type(count) is int and 0 < count < 1 << 40:
                counts[tag.strip()] += count
    return [tag for tag, _ in counts.most_common(_WORDS)]


def _rank(key: str) -> tuple[int, str]:
    if key in _BULKY:
        return (3, key)
    return (0 if key.startswith("modelspec.") else 1 if key.startswith("ss_") else 2, key)


def _clean(text: str) -> str:
    """Text that UTF-8 can hold: JSON allows halves of a surrogate pair, the bus does not."""
    return text.encode("utf-8", "replace").decode("utf-8")
