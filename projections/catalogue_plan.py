"""Takes a query on the catalogue apart: SQL conditions, alternatives of a state, and what only memory can tell.

Refuses unknown filters and bad values with a sentence. Filters and sorts: docs/views.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from walytis_vault.projections import paging
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


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A query taken apart."""

    where: tuple[Condition, ...]
    """All of them hold."""
    indexed: tuple[Condition, ...]
    """Those among them, and alternatives, that an index answers without walking the order."""
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
    past: bool,
) -> Plan:
    """Take a query apart; the names of the filters were checked.

    Args:
        author: the number of a DID, one that no row has for a stranger.
        past: the view shows an earlier moment.
    Raises:
        MisuseError: a bad value or cursor.
    """
    given = {k: v for k, v in filters.items() if v is not None}
    indexed: list[Condition] = []
    other: list[Condition] = []
    if "content_id" in given:
        indexed.append(Condition("r.content_id = ?", (paging.hex_id("content_id", given["content_id"]),)))
    if "author" in given:
        indexed.append(Condition("r.author = ?", (author(paging.text("author", given["author"])),)))
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
    states = _states(state, now_ms, past)
    sort = paging.choice("sort", given.get("sort", "-order"), SORTS)
    at = None if cursor is None else paging.read_cursor(cursor, "catalogue", sort, ORDER[sort.lstrip("-")][1])
    return Plan(
        where=(*indexed, *other),
        indexed=tuple(indexed),
        states=states,
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
    return [all_of(part) for part in (times, sizes) if part]


def _states(state: str | None, now_ms: int, past: bool) -> tuple[Condition, ...]:
    """Narrow down by what the log says; what only this node knows is checked row by row."""
    # The first halves repeat the conditions of the partial indexes, word by word.
    carried = Condition("r.forgetting > 0 AND r.forgetting = 2")
    opened = Condition("r.forgetting > 0 AND r.forgetting = 1")
    expired = Condition("r.expires_ms IS NOT NULL AND r.expires_ms <= ? AND r.forgetting = 0", (now_ms,))
    lives = "r.forgetting = 0 AND (r.expires_ms IS NULL OR r.expires_ms > ?)"
    if state in ("available", "pending"):
        return (Condition(f"{lives} AND r.retracted = 0", (now_ms,)),)
    if state == "retracted":
        return (Condition(f"r.retracted = 1 AND {lives}", (now_ms,)),)
    if state == "forgetting" or (state == "forgotten" and not past):
        return carried, opened, expired
    return ()


def all_of(conditions: list[Condition] | tuple[Condition, ...]) -> Condition:
    """One condition that holds when all do."""
    return Condition(" AND ".join(c.sql for c in conditions), tuple(v for c in conditions for v in c.values))


def any_of(conditions: tuple[Condition, ...]) -> Condition:
    """One condition that holds when one does."""
    sql = " OR ".join(f"({c.sql})" for c in conditions)
    return Condition(f"({sql})", tuple(v for c in conditions for v in c.values))
