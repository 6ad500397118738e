"""Takes a query on the catalogue apart: SQL conditions, alternatives of a state, and what only memory can tell.

Refuses unknown filters and bad values with a sentence. Filters and sorts: docs/views.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from walytis_vault.projections import paging
from walytis_vault.projections.base import AWAY, ERASED, HERE
from walytis_vault.projections.catalogue_rows import EXPIRING, GOING
from walytis_vault.projections.store import Value
from walytis_vault.projections.wanted import Wanted

STATES: Final = ("available", "pending", "forgetting", "forgotten", "retracted", "all")
SORTS: Final = ("-order", "order", "-time", "time", "-size", "size")
FILTERS: Final = (
    *("content_id", "author", "state", "since", "until", "min_size", "max_size", "revises", "current", "conflict"),
    *("name", "media_type", "label", "text", "sort"),
)
ORDER: Final[dict[str, tuple[tuple[str, ...], tuple[type, ...]]]] = {
    "order": (("ord",), (bytes,)),
    "time": (("time_ms", "position"), (int, int)),
    "size": (("padded", "position"), (int, int)),
}
"""Sort without sign -> columns, and what a cursor holds of them."""


class Condition(msgspec.Struct, frozen=True):
    """SQL over the rows `r`, and the values for its `?`."""

    sql: str
    values: tuple[Value, ...] = ()
    column: str | None = None
    """The column of whole numbers whose index would answer it, where another index may be the better one."""

    @property
    def loose(self) -> Condition:
        """The same, written so that its index is not used."""
        if self.column is None:
            return self
        return Condition(self.sql.replace(f"r.{self.column} ", f"r.{self.column} + 0 "), self.values)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A query taken apart."""

    indexed: tuple[Condition, ...]
    """Conditions that an index answers without walking the order. They and the others all hold."""
    other: tuple[Condition, ...]
    states: tuple[Condition, ...]
    """Alternatives that exclude each other, each with an index of its own; empty for no condition."""
    wanted: Wanted
    state: str | None
    min_size: int | None
    max_size: int | None
    sort: str
    at: tuple[Any, ...] | None
    """Where to go on: values of the order's columns."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the order."""
        return ORDER[self.sort.lstrip("-")][0]

    def without_states(self) -> Plan:
        """The same, where what is here cannot be noted: every row is judged, and none left out before."""
        indexed = tuple(c for c in self.indexed if c.column != "kept")
        return msgspec.structs.replace(self, indexed=indexed, states=())

    def loosened(self, tight: Condition | None) -> tuple[Condition, ...]:
        """All that hold, without the alternatives: only the index of `tight` may be used."""
        return (*(c if c is tight else c.loose for c in self.indexed), *self.other)

    def walked(self) -> Condition | None:
        """The condition whose index walks in the wanted order, with the fewest rows to leave out."""
        by_column = {c.column: c for c in self.indexed}
        kind = self.sort.lstrip("-")
        if kind == "order" and "author" in by_column and self.state in (None, "all", "available"):
            return by_column["author"]
        return by_column.get("kept") or by_column.get({"order": "", "time": "time_ms", "size": "padded"}[kind])

    @property
    def down(self) -> bool:
        """Whether the order is a descending one."""
        return self.sort.startswith("-")


def make_plan(
    filters: dict[str, Any],
    cursor: str | None,
    *,
    author: Callable[[str], int],
    now_ms: int,
) -> Plan:
    """Take a query apart; the names of the filters were checked.

    Args:
        author: the number of a DID, one that no row has for a stranger.
    Raises:
        MisuseError: a bad value or cursor.
    """
    given = {k: v for k, v in filters.items() if v is not None}
    indexed: list[Condition] = []
    other: list[Condition] = []
    if "content_id" in given:
        indexed.append(Condition("r.content_id = ?", (paging.hex_id("content_id", given["content_id"]),)))
    if "author" in given:
        indexed.append(Condition("r.author = ?", (author(paging.text("author", given["author"])),), "author"))
    if "revises" in given:
        original = paging.hex_id("revises", given["revises"])
        indexed.append(Condition("r.original = ? AND r.parent IS NOT NULL", (original,)))
    if "current" in given:
        other.append(Condition(f"r.head = {int(paging.flag('current', given['current']))}"))
    if "conflict" in given:
        wanted = paging.flag("conflict", given["conflict"])
        (indexed if wanted else other).append(Condition(f"r.conflict = {int(wanted)}"))
    smallest = paging.count("min_size", given["min_size"]) if "min_size" in given else None
    largest = paging.count("max_size", given["max_size"]) if "max_size" in given else None
    indexed += _ranges(given, smallest, largest)
    state = paging.choice("state", given["state"], STATES) if "state" in given else None
    kept, more, alternatives = _states(state, now_ms)
    indexed += kept
    other += more
    sort = paging.choice("sort", given.get("sort", "-order"), SORTS)
    at = None if cursor is None else paging.read_cursor(cursor, "catalogue", sort, ORDER[sort.lstrip("-")][1])
    return Plan(
        indexed=tuple(indexed),
        other=tuple(other),
        states=alternatives,
        wanted=Wanted(**{n: paging.text(n, given[n]) for n in ("name", "media_type", "label", "text") if n in given}),
        state=state,
        min_size=smallest,
        max_size=largest,
        sort=sort,
        at=None if at is None else tuple(at),
    )


def _ranges(given: dict[str, Any], smallest: int | None, largest: int | None) -> list[Condition]:
    """Conditions on indexed ranges. Padmé adds up to 12 % and removes nothing; exact sizes are checked later."""
    times: list[Condition] = []
    if "since" in given:
        times.append(Condition("r.time_ms >= ?", (paging.moment("since", given["since"]),)))
    if "until" in given:
        times.append(Condition("r.time_ms < ?", (paging.moment("until", given["until"]),)))
    sizes: list[Condition] = []
    if smallest is not None:
        sizes.append(Condition("r.padded >= ?", (smallest,)))
    if largest is not None:
        sizes.append(Condition("r.padded <= ?", (largest + largest // 8 + 4096,)))
    ranges = ((times, "time_ms"), (sizes, "padded"))
    return [msgspec.structs.replace(all_of(part), column=column) for part, column in ranges if part]


def _states(state: str | None, now_ms: int) -> tuple[list[Condition], list[Condition], tuple[Condition, ...]]:
    """What a state means for the stored rows: conditions with an index and without, alternatives of which one holds.

    The rows of the alternatives are judged once more, by what is true when they are read.
    """
    lives = "r.forgetting = 0 AND (r.expires_ms IS NULL OR r.expires_ms > ?)"
    if state in ("available", "pending"):
        here = HERE if state == "available" else AWAY
        return [_kept(here)], [Condition(f"{lives} AND r.retracted = 0", (now_ms,))], ()
    if state == "forgotten":
        return [_kept(ERASED)], [], ()
    if state == "retracted":
        return [], [], (Condition(f"r.retracted = 1 AND {lives}", (now_ms,)),)
    if state == "forgetting":
        going, expiring = (" AND ".join(f"r.{part}" for part in c.split(" AND ")) for c in (GOING, EXPIRING))
        expired = Condition(f"{expiring} AND r.expires_ms <= ? AND r.forgetting = 0", (now_ms,))
        # They repeat the conditions of the partial indexes, word by word.
        return [], [], (Condition(f"{going} AND r.forgetting = 2"), Condition(f"{going} AND r.forgetting = 1"), expired)
    return [], [], ()


def _kept(kept: int) -> Condition:
    return Condition(f"r.kept = {kept}", (), "kept")


def all_of(conditions: list[Condition] | tuple[Condition, ...]) -> Condition:
    """One condition that holds when all do."""
    return Condition(" AND ".join(c.sql for c in conditions), tuple(v for c in conditions for v in c.values))


def any_of(conditions: tuple[Condition, ...]) -> Condition:
    """One condition that holds when one does."""
    sql = " OR ".join(f"({c.sql})" for c in conditions)
    return Condition(f"({sql})", tuple(v for c in conditions for v in c.values))
