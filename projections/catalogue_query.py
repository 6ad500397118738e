"""Answers queries on the view `catalogue`: SQL where an index helps, opened descriptors where fields are sealed.

Rows are built from the stored row, the descriptor (None when the key is gone) and what this node has. Filters,
sorts and columns: docs/views.md.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Sequence, Set
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from walytis_vault.projections import paging
from walytis_vault.projections.base import Page, Request
from walytis_vault.projections.catalogue_rows import COLUMNS, Stored, stored_row
from walytis_vault.projections.search import Opened, Search, Wanted
from walytis_vault.projections.store import Connection, Value, few, one

if TYPE_CHECKING:
    from walytis_vault.projections.catalogue import Catalogue

State = Literal["available", "pending", "forgetting", "forgotten", "retracted"]
STATES: Final = ("available", "pending", "forgetting", "forgotten", "retracted", "all")
SORTS: Final = ("-order", "order", "-time", "time", "-size", "size")
FILTERS: Final = (
    *("content_id", "author", "state", "since", "until", "min_size", "max_size", "revises", "current", "conflict"),
    *("name", "media_type", "label", "text", "sort"),
)
CHUNK: Final = 256
FEW: Final = 2000
"""Up to so many candidates (a count) are fetched one by one instead of scanning in order."""


class CatalogueRow(msgspec.Struct, frozen=True, kw_only=True):
    """One content as this node sees it. Ids are hex text, times ISO 8601 (UTC), sizes bytes."""

    content_id: str
    state: State
    author: str
    """Member DID."""
    time: str
    """By the author's clock."""
    size: int | None
    """True size; None when the descriptor cannot be opened here."""
    name: str | None
    media_type: str | None
    labels: tuple[str, ...] | None
    """None when the descriptor cannot be opened here, empty when there are none."""
    padded_size: int
    """Size as the log shows it to everybody."""
    revises: str | None
    """The original, when this is a revision of it."""
    revisions: int
    """How many revisions this original has."""
    current: bool
    """Whether this is a current version: not superseded, hidden or forgotten."""
    conflict: bool
    """Several current versions stand side by side."""
    expires: str | None
    contested: bool
    """The id was published more than once: one of the authors misbehaved."""
    device: str
    """DID of the device that published."""
    position: int


Loaded = tuple[Stored, bytes | None, int]
"""A stored row, its sealed descriptor, the number of its revisions."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A query taken apart."""

    where: list[str]
    params: list[Value]
    states: list[tuple[str, list[Value]]]
    """Alternatives that exclude each other, each with an index of its own; empty for no condition."""
    selective: bool
    """So few rows meet the ranges that they are fetched first and sorted after."""
    wanted: Wanted
    state: str | None
    min_size: int | None
    max_size: int | None
    sort: str


_ORDER: Final = {
    "order": ("ord", (bytes,)),
    "time": ("time_ms, position", (int, int)),
    "size": ("padded, position", (int, int)),
}


class CatalogueQuery:
    """The read side of one generation of the catalogue. Threads may share it."""

    def __init__(self, view: Catalogue) -> None:
        self._view = view
        self._local = view.local
        self._rows, self._sealed = view.t("rows"), view.t("sealed")
        self.search = Search(view.local.unseal)
        self._select = (
            f"SELECT {', '.join('r.' + c for c in COLUMNS.split(', '))}, s.sealed FROM {self._rows} r"
            f" LEFT JOIN {self._sealed} s ON s.position = r.position"
        )
        self._count = f"SELECT count(*) FROM {self._rows} WHERE original = ? AND parent IS NOT NULL"

    def page(self, request: Request) -> Page:
        """One page. Raises MisuseError."""
        limit = paging.check_limit(request.limit)
        plan = self._plan(request.filters)
        rows: list[CatalogueRow] = []
        last: list[int | bytes] | None = None
        found = self._found(plan, request.cursor, CHUNK if limit is None else min(CHUNK, limit + 8))
        for stored, row in found:
            if limit is not None and len(rows) == limit:
                break
            rows.append(row)
            last = self._at(plan.sort, stored)
        else:
            last = None
        cursor = None if last is None else paging.cursor_text("catalogue", plan.sort, last)
        return Page(rows=tuple(rows), cursor=cursor)

    def _plan(self, filters: dict[str, Any]) -> Plan:
        self._view.check_filters(filters)
        given = {k: v for k, v in filters.items() if v is not None}
        where: list[str] = []
        params: list[Value] = []

        def add(condition: str, *values: Value) -> None:
            where.append(condition)
            params.extend(values)

        if "content_id" in given:
            add("r.content_id = ?", paging.hex_id("content_id", given["content_id"]))
        if "author" in given:
            with self._view.view.store.read() as connection:
                number = self._view.dids.find(connection, paging.text("author", given["author"]))
            add("r.author = ?", -1 if number is None else number)
        if "revises" in given:
            add("r.original = ? AND r.parent IS NOT NULL", paging.hex_id("revises", given["revises"]))
        for name, column in (("current", "head"), ("conflict", "conflict")):
            if name in given:
                add(f"r.{column} = ?", int(paging.flag(name, given[name])))
        smallest = paging.count("min_size", given["min_size"]) if "min_size" in given else None
        largest = paging.count("max_size", given["max_size"]) if "max_size" in given else None
        ranges = self._ranges(given, smallest, largest)
        selective = False
        for condition, values in ranges:
            add("r." + condition.replace(" AND ", " AND r."), *values)
            if not selective:
                with self._view.view.store.read() as connection:
                    selective = few(connection, self._rows, condition, values)
        state = paging.choice("state", given["state"], STATES) if "state" in given else None
        return Plan(
            where=where,
            params=params,
            states=self._states(state),
            selective=selective,
            wanted=Wanted(
                **{n: paging.text(n, given[n]) for n in ("name", "media_type", "label", "text") if n in given}
            ),
            state=state,
            min_size=smallest,
            max_size=largest,
            sort=paging.choice("sort", given.get("sort", "-order"), SORTS),
        )

    def _ranges(
        self, given: dict[str, Any], smallest: int | None, largest: int | None
    ) -> list[tuple[str, list[Value]]]:
        """Conditions on indexed ranges. Padmé adds up to 12 % and removes nothing; exact sizes are checked later."""
        times: list[tuple[str, Value]] = []
        if "since" in given:
            times.append(("time_ms >= ?", paging.moment("since", given["since"])))
        if "until" in given:
            times.append(("time_ms < ?", paging.moment("until", given["until"])))
        sizes: list[tuple[str, Value]] = []
        if smallest is not None:
            sizes.append(("padded >= ?", smallest))
        if largest is not None:
            sizes.append(("padded <= ?", largest + largest // 8 + 4096))
        return [(" AND ".join(c for c, _ in part), [v for _, v in part]) for part in (times, sizes) if part]

    def _states(self, state: str | None) -> list[tuple[str, list[Value]]]:
        """Narrow down by what the log says; what only this node knows is checked row by row."""
        now = self._local.now_ms()
        # The first halves repeat the conditions of the partial indexes, word by word.
        carried = ("r.forgetting > 0 AND r.forgetting = 2", list[Value]())
        opened = ("r.forgetting > 0 AND r.forgetting = 1", list[Value]())
        expired = ("r.expires_ms IS NOT NULL AND r.expires_ms <= ? AND r.forgetting = 0", list[Value]([now]))
        if state in ("available", "pending"):
            alive = "r.forgetting = 0 AND r.retracted = 0 AND (r.expires_ms IS NULL OR r.expires_ms > ?)"
            return [(alive, [now])]
        if state == "retracted":
            return [("r.retracted = 1", [])]
        if state == "forgetting":
            return [carried, opened, expired]
        if state == "forgotten":
            return [carried, opened, expired]
        return []

    def _found(self, plan: Plan, cursor: str | None, chunk: int) -> Iterator[tuple[Stored, CatalogueRow]]:
        """Rows that fit, in order, after the cursor."""
        candidates: Set[bytes] | None = None
        if plan.wanted:
            self.search.catch_up(self._more, self._sealed_of)
            candidates = self.search.candidates(plan.wanted)
        if candidates is not None and len(candidates) <= FEW:
            source = self._chosen(plan, cursor, candidates)
        else:
            source = self._scan(plan, cursor, chunk)
        for stored, sealed, revisions in source:
            if candidates is not None and stored.content_id not in candidates:
                continue
            opened = self.search.open(stored.content_id, sealed)
            if candidates is None and not plan.wanted.matches(opened):
                continue
            row = self._row(stored, opened, revisions)
            if self._fits(plan, row):
                yield stored, row

    def _fits(self, plan: Plan, row: CatalogueRow) -> bool:
        if plan.state is None:
            if row.state == "retracted":
                return False
        elif plan.state not in ("all", row.state):
            return False
        size = row.padded_size if row.size is None else row.size
        if plan.min_size is not None and size < plan.min_size:
            return False
        return plan.max_size is None or size <= plan.max_size

    def _scan(self, plan: Plan, cursor: str | None, chunk: int) -> Iterator[Loaded]:
        """Walk in order; the alternatives of the state are walked side by side."""
        at: Sequence[int | bytes] | None = None
        if cursor is not None:
            at = paging.read_cursor(cursor, "catalogue", plan.sort, _ORDER[plan.sort.lstrip("-")][1])
        walks = [self._walk(plan, state, at, chunk) for state in plan.states or [("", [])]]
        if len(walks) == 1:
            return walks[0]
        return heapq.merge(*walks, key=lambda f: self._at(plan.sort, f[0]), reverse=plan.sort.startswith("-"))

    def _walk(
        self, plan: Plan, state: tuple[str, list[Value]], at: Sequence[int | bytes] | None, chunk: int
    ) -> Iterator[Loaded]:
        names = _ORDER[plan.sort.lstrip("-")][0].split(", ")
        down = plan.sort.startswith("-")
        plus = "+" if plan.selective else ""  # keeps SQLite from walking the index of the order
        order = ", ".join(f"{plus}r.{n}{' DESC' if down else ''}" for n in names)
        while True:
            where, params = [*plan.where], [*plan.params]
            if state[0]:
                where.append(state[0])
                params += state[1]
            if at is not None:
                left, marks = ", ".join(f"r.{n}" for n in names), ", ".join("?" * len(names))
                where.append(f"({left}) {'<' if down else '>'} ({marks})")
                params.extend(at)
            condition = f" WHERE {' AND '.join(where)}" if where else ""
            sql = f"{self._select}{condition} ORDER BY {order} LIMIT ?"
            with self._view.view.store.read() as connection:
                batch = [self._load(connection, raw) for raw in connection.execute(sql, (*params, chunk))]
            yield from batch
            if len(batch) < chunk:
                return
            at, chunk = self._at(plan.sort, batch[-1][0]), CHUNK

    def _chosen(self, plan: Plan, cursor: str | None, candidates: Iterable[bytes]) -> Iterator[Loaded]:
        """Look up a few candidates, sort them, and load them one by one as they are wanted."""
        columns, kinds = _ORDER[plan.sort.lstrip("-")]
        down = plan.sort.startswith("-")
        condition = " AND ".join(["r.content_id IN ({})", *plan.where])
        any_state = " OR ".join(f"({sql})" for sql, _ in plan.states)
        params = [*plan.params, *(v for _, values in plan.states for v in values)]
        if any_state:
            condition += f" AND ({any_state})"
        keys = ", ".join(f"r.{name}" for name in columns.split(", "))
        sql = f"SELECT {keys}, r.content_id FROM {self._rows} r WHERE {condition}"
        found: list[tuple[list[Any], bytes]] = []
        ids = list(candidates)
        with self._view.view.store.read() as connection:
            for start in range(0, len(ids), CHUNK):
                some = ids[start : start + CHUNK]
                rows = connection.execute(sql.format(", ".join("?" * len(some))), (*some, *params))
                found += [(list(row[:-1]), bytes(row[-1])) for row in rows]
        found.sort(reverse=down)
        if cursor is not None:
            at: Any = paging.read_cursor(cursor, "catalogue", plan.sort, kinds)
            found = [f for f in found if (f[0] < at if down else f[0] > at)]
        for _, content_id in found:
            with self._view.view.store.read() as connection:
                raw = one(connection.execute(f"{self._select} WHERE r.content_id = ?", (content_id,)))
                loaded = None if raw is None else self._load(connection, raw)
            if loaded is not None:
                yield loaded

    def _at(self, sort: str, stored: Stored) -> list[Any]:
        kind = sort.lstrip("-")
        if kind == "order":
            return [stored.ord]
        return [stored.time_ms if kind == "time" else stored.padded, stored.position]

    def _load(self, connection: Connection, raw: Sequence[Any]) -> Loaded:
        stored = stored_row(raw[:-1], self._view.dids, connection)
        revisions = 0
        if stored.parent is None:
            revisions = int(one(connection.execute(self._count, (stored.content_id,)))[0])
        return stored, raw[-1], revisions

    def _more(self, after: int) -> list[tuple[int, bytes, bytes]]:
        sql = (
            f"SELECT s.position, r.content_id, s.sealed FROM {self._sealed} s JOIN {self._rows} r"
            " ON r.position = s.position WHERE s.position > ? ORDER BY s.position LIMIT 1000"
        )
        with self._view.view.store.read() as connection:
            return [(int(p), bytes(c), bytes(s)) for p, c, s in connection.execute(sql, (after,))]

    def _sealed_of(self, position: int) -> bytes | None:
        with self._view.view.store.read() as connection:
            sql = f"SELECT sealed FROM {self._sealed} WHERE position = ?"
            row = one(connection.execute(sql, (position,)))
        return None if row is None else bytes(row[0])

    def state_of(self, stored: Stored) -> State:
        """How a content stands on this node, now."""
        local, content_id = self._local, stored.content_id
        expired = stored.expires_ms is not None and stored.expires_ms <= local.now_ms()
        if stored.forgetting == 2 or expired:
            return "forgotten" if local.erased(content_id) else "forgetting"
        if stored.forgetting == 1:
            return "forgetting"
        if stored.retracted:
            return "retracted"
        if local.has_bytes(content_id):
            return "available"
        return "forgotten" if local.erased(content_id) else "pending"

    def _row(self, stored: Stored, opened: Opened | None, revisions: int) -> CatalogueRow:
        state = self.state_of(stored)
        if state == "forgotten" and opened is not None:
            opened = None  # a key that is gone opens nothing, whatever memory still held
            self.search.forget([stored.content_id])
        return CatalogueRow(
            content_id=stored.content_id.hex(),
            state=state,
            author=stored.author,
            time=paging.iso(stored.time_ms),
            size=None if opened is None else opened.length,
            name=None if opened is None else opened.name,
            media_type=None if opened is None else opened.media_type,
            labels=None if opened is None else opened.labels,
            padded_size=stored.padded,
            revises=None if stored.parent is None else stored.original.hex(),
            revisions=revisions,
            current=stored.head,
            conflict=stored.conflict,
            expires=None if stored.expires_ms is None else paging.iso(stored.expires_ms),
            contested=stored.contested,
            device=stored.device,
            position=stored.position,
        )

    def rows_by_key(self, keys: Sequence[bytes]) -> dict[bytes, msgspec.Struct]:
        """See `View.rows_by_key`."""
        found = []
        with self._view.view.store.read() as connection:
            for key in dict.fromkeys(keys):
                raw = one(connection.execute(f"{self._select} WHERE r.content_id = ?", (key,)))
                if raw is not None:
                    found.append(self._load(connection, raw))
        return {
            stored.content_id: self._row(stored, self.search.open(stored.content_id, sealed), revisions)
            for stored, sealed, revisions in found
        }

    def digests(self, connection: Connection, low: bytes, high: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """See `View.digests`: everything stored except positions."""
        sql, params = f"SELECT {COLUMNS} FROM {self._rows} WHERE content_id >= ?", [low]
        if high is not None:
            sql += " AND content_id < ?"
            params.append(high)
        for raw in connection.execute(sql + " ORDER BY content_id", params):
            stored = stored_row(raw, self._view.dids, connection)
            fields = list(msgspec.structs.astuple(stored)[1:])
            yield stored.content_id, hashlib.sha256(msgspec.msgpack.encode(fields)).digest()
