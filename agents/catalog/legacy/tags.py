"""Tags of a legacy catalog: with their ids where those are free, and never over a tag that is there already."""

import json
from typing import Any, NamedTuple

from anyio import to_thread

from agents.catalog.database import Statements
from agents.catalog.legacy.plan import DISPLACED
from agents.catalog.legacy.report import ImportTally
from agents.catalog.legacy.rows import NO_NAME, LegacyTag
from agents.catalog.legacy.source import ODD

MAPPED = "A tag of this name has another id: links to it go there."
ID_TAKEN = "Its id is taken by another tag, or impossible: it got a new one."


async def take_tags(sql: Statements, rows: list[LegacyTag], tally: ImportTally, *, now: float, largest: int) -> None:
    """Take over some tags; `largest` is the largest id that any legacy tag will keep, after which new ones are given.
    Raises sqlite3.Error."""
    ids, names = json.dumps([row.id for row in rows]), json.dumps([row.name for row in rows])
    met = await sql.rows("tags_met", ids=ids, names=names)
    [(last,)] = await sql.rows("largest_tag")
    plan = TagPlan({str(name): KnownTag(int(id), str(color)) for id, name, color in met}, max(int(last), largest) + 1)
    await to_thread.run_sync(plan.take, rows, tally, now)
    await sql.many("add_tag", plan.added.values())
    await sql.many("color_tag", plan.coloured.values())


class KnownTag(NamedTuple):
    """A tag as the catalog has it, or will."""

    id: int
    color: str


class TagPlan:
    """What some legacy tags change: rows to add, and colours to fill in, by name. `free` is the next id to give."""

    def __init__(self, known: dict[str, KnownTag], free: int) -> None:
        self._known, self._free = known, free
        self._taken = {tag.id for tag in known.values()}
        self.added: dict[str, dict[str, Any]] = {}
        self.coloured: dict[str, dict[str, Any]] = {}

    def take(self, rows: list[LegacyTag], tally: ImportTally, now: float) -> None:
        """Plan them, in order."""
        for row in rows:
            for why, detail in row.notes:
                tally.note("tags", row.id, why, detail)
            if not row.name:
                tally.count("tags", "failed")
                tally.note("tags", row.id, NO_NAME)
            elif row.name in self._known:
                self._meet(row, tally)
            else:
                self._add(row, tally, now)

    def _add(self, row: LegacyTag, tally: ImportTally, now: float) -> None:
        id = row.id
        if not 0 < id < DISPLACED or id in self._taken:
            id, self._free = self._free, self._free + 1
            if row.id < ODD:
                tally.note("tags", row.id, ID_TAKEN, f"{row.name}: {id}")
        created_at = now if row.created_at is None else row.created_at
        self.added[row.name] = {"id": id, "name": row.name, "color": row.color, "created_at": created_at}
        self._known[row.name] = KnownTag(id, row.color)
        self._taken.add(id)
        tally.count("tags", "inserted")

    def _meet(self, row: LegacyTag, tally: ImportTally) -> None:
        """A tag that is there by name keeps its id, and its colour if it has one."""
        known = self._known[row.name]
        filled = bool(row.color and not known.color)
        if known.id != row.id:
            tally.note("tags", row.id, MAPPED, f"{row.name}: {known.id}")
        if filled:
            self._known[row.name] = KnownTag(known.id, row.color)
            if row.name in self.added:
                self.added[row.name]["color"] = row.color
            else:
                self.coloured[row.name] = {"id": known.id, "color": row.color}
        tally.count("tags", "merged" if filled or known.id != row.id else "skipped")
