"""Asks: short requests and their replies."""

import msgspec

from schemas.models import Model


class Nothing(msgspec.Struct, frozen=True, kw_only=True):
    """An ask or a reply that carries nothing."""


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """Who answers for the catalog."""

    instance: str


class ListModels(msgspec.Struct, frozen=True, kw_only=True):
    """Models by name: all, or those of one kind; `missing` includes the ones with no file at present. A page of at most
    `limit`, after the one with the SHA-256 `after` (empty: from the first)."""

    kind: str = ""
    missing: bool = False
    after: str = ""
    limit: int = 1000


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """Models by name, without the metadata of their headers; `more` follow after the last."""

    models: tuple[Model, ...]
    more: bool = False


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """Prometheus text exposition."""

    text: str


class Compare(msgspec.Struct, frozen=True, kw_only=True):
    """How far is the comparison of the catalog with the watchers' tables? `again` begins one first."""

    again: bool = False


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """`done` comparisons are complete; the next to begin, which is the one asked for, is `number`. `mended` counts the
    differences found since the migrator started."""

    number: int
    done: int
    mended: int
