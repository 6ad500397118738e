"""Answers queries on the view `catalogue`: SQL where an index helps, opened descriptors where fields are sealed.

Rows are built from the stored row, the descriptor (None when the key is gone) and what this node has. Filters,
sorts and columns: docs/views.md; queries are taken apart in catalogue_plan.py.
"""

from __future__ import annotations

import hashlib
import heapq
import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from walytis_vault.domain.errors import StorageFullError
from walytis_vault.projections import paging
from walytis_vault.projections.base import ERASED, HERE, Page, Request
from walytis_vault.projections.catalogue_plan import Condition, Plan, all_of, any_of, make_plan
from walytis_vault.projections.catalogue_rows import COLUMNS, Stored, stored_row
from walytis_vault.projections.search import Place, Search
from walytis_vault.projections.store import Connection, few, one, unindexed
from walytis_vault.projections.wanted import Opened

if TYPE_CHECKING:
    from walytis_vault.projections.catalogue import Catalogue

FOLLOWED: Final = ("available", "pending", "forgetting", "forgotten")
"""States that depend on what is here."""
State = Literal["available", "pending", "forgetting", "forgotten", "retracted"]
CHUNK: Final = 256
"""Rows read at once (a count)."""
AT_ONCE: Final = 5000
"""Contents looked up in the store at once (a count)."""


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


class CatalogueQuery:
    """The read side of one generation of the catalogue. Threads may share it."""

    def __init__(self, view: Catalogue) -> None:
        self._view = view
        self._local = view.local
        self._rows, self._sealed = view.t("rows"), view.t("sealed")
        self.search = Search(view.local.unseal, changed=view.local.changed)
        self._following = threading.Lock()
        self._mark = -1
        """Up to which change of this node's contents the rows were brought."""
        self._select = (
            f"SELECT {', '.join('r.' + c for c in COLUMNS.split(', '))}, s.sealed,"
            f" CASE WHEN r.parent IS NULL THEN (SELECT count(*) FROM {self._rows} v"
            " WHERE v.original = r.content_id AND v.parent IS NOT NULL) ELSE 0 END"
            f" FROM {self._rows} r LEFT JOIN {self._sealed} s ON s.position = r.position"
        )

    def page(self, request: Request) -> Page:
        """One page. Raises MisuseError."""
        limit = paging.check_limit(request.limit)
        self._view.check_filters(request.filters)
        plan = make_plan(request.filters, request.cursor, author=self._author, now_ms=self._local.now_ms())
        rows: list[CatalogueRow] = []
        last: list[int | bytes] | None = None
        for stored, row in self._found(plan, CHUNK if limit is None else min(CHUNK, limit + 8)):
            if limit is not None and len(rows) == limit:
                break
            rows.append(row)
            last = _at(plan.sort, stored)
        else:
            last = None
        cursor = None if last is None else paging.cursor_text("catalogue", plan.sort, last)
        return Page(rows=tuple(rows), cursor=cursor)

    def _author(self, did: str) -> int:
        with self._view.view.store.read() as connection:
            number = self._view.dids.find(connection, did)
        return -1 if number is None else number

    def _few(self, conditions: Iterable[Condition]) -> Condition | None:
        """A condition that so few rows meet that they are better fetched first and sorted after."""
        with self._view.view.store.read() as connection:
            found = (c for c in conditions if few(connection, f"{self._rows} r", c.sql, c.values))
            return next(found, None)

    def _found(self, plan: Plan, chunk: int) -> Iterator[tuple[Stored, CatalogueRow]]:
        """Rows that fit, in order, after the cursor."""
        if plan.state in FOLLOWED:
            try:
                self._follow()
            except StorageFullError:
                plan = plan.without_states()  # slow, but a full disk keeps nobody from reading
        few = self._few(plan.indexed)
        found: Iterator[bytes] | None = None
        if plan.wanted:
            self.search.catch_up(self._more, self._sealed_of)
            if few is None or self.search.is_rare(plan.wanted):
                found = self.search.find(plan.wanted, plan.sort, plan.at)
        source = self._scan(plan, chunk, few) if found is None else self._chosen(plan, found, chunk)
        while some := list(islice(source, chunk)):
            kept = self._local.kept([stored.content_id for stored, _, _ in some])
            for (stored, sealed, revisions), here in zip(some, kept, strict=True):
                state = self._state(stored, here)
                if not (state == plan.state or plan.state == "all" or (plan.state is None and state != "retracted")):
                    continue
                opened = self.search.open(stored.content_id, sealed, _place(stored))
                if not plan.wanted.matches(opened):
                    continue
                row = self._row(stored, state, opened, revisions)
                if _fits(plan, row):
                    yield stored, row
            chunk = min(CHUNK, 2 * chunk)

    def _follow(self) -> None:
        """Note in the rows what came, went and was erased here since: what the indexes of states go by."""
        with self._following:
            mark, changed = self._local.changed(self._mark)
            if changed is None or changed:
                with self._view.view.store.transaction() as connection:
                    for known in self._all(connection) if changed is None else (dict.fromkeys(changed, -1),):
                        now = zip(self._local.kept(list(known)), known, strict=True)
                        differ = [(kept, content_id) for kept, content_id in now if known[content_id] != kept]
                        connection.executemany(f"UPDATE {self._rows} SET kept = ? WHERE content_id = ?", differ)
            self._mark = mark

    def _all(self, connection: Connection) -> Iterator[dict[bytes, int]]:
        """All contents and what is noted of them, some at a time."""
        at, sql = 0, f"SELECT position, content_id, kept FROM {self._rows} WHERE position > ? ORDER BY position LIMIT ?"
        while found := list(connection.execute(sql, (at, AT_ONCE))):
            yield {bytes(content_id): int(kept) for _, content_id, kept in found}
            at = int(found[-1][0])

    def _scan(self, plan: Plan, chunk: int, few: Condition | None) -> Iterator[Loaded]:
        """Walk in order; the alternatives of the state are walked side by side."""
        walks = []
        for state in plan.states or (None,):
            tight = few if few is not None or state is None else self._few([state])
            walks.append(self._walk(plan, state, chunk, tight))
        if len(walks) == 1:
            return walks[0]
        return heapq.merge(*walks, key=lambda f: _at(plan.sort, f[0]), reverse=plan.down)

    def _walk(self, plan: Plan, state: Condition | None, chunk: int, few: Condition | None) -> Iterator[Loaded]:
        names, down = plan.columns, " DESC" if plan.down else ""
        order = ", ".join(f"r.{n}{down}" for n in names)
        left, marks = ", ".join(f"r.{n}" for n in names), ", ".join("?" * len(names))
        after, at = f"({left}) {'<' if plan.down else '>'} ({marks})", plan.at
        # Of few rows, the positions alone are sorted, and the rows of those that are wanted are loaded.
        keys = order if few is None else ", ".join(f"{unindexed(f'r.{n}')}{down}" for n in names)
        tight = few if few is not None or state is not None else plan.walked()
        while True:
            conditions = [*plan.loosened(tight), *([] if state is None else [state])]
            if at is not None:
                conditions.append(Condition(after, at))
            found = all_of(conditions)
            where = f" WHERE {found.sql}" if conditions else ""
            some = f"SELECT r.position FROM {self._rows} r{where} ORDER BY {keys} LIMIT ?"
            sql = f"{self._select} WHERE r.position IN ({some}) ORDER BY {order}"
            with self._view.view.store.read() as connection:
                batch = [self._load(connection, raw) for raw in connection.execute(sql, (*found.values, chunk))]
            yield from batch
            if len(batch) < chunk:
                return
            at, chunk = tuple(_at(plan.sort, batch[-1][0])), min(CHUNK, 2 * chunk)

    def _chosen(self, plan: Plan, found: Iterator[bytes], chunk: int) -> Iterator[Loaded]:
        """Load the rows that the search found, in its order, and leave out those that SQL rules out."""
        conditions = [*plan.loosened(None), *([any_of(plan.states)] if plan.states else [])]
        other = all_of(conditions)
        tail = f" AND {other.sql}" if conditions else ""
        while some := list(islice(found, chunk)):
            sql = f"{self._select} WHERE r.content_id IN ({', '.join('?' * len(some))}){tail}"
            with self._view.view.store.read() as connection:
                loaded = [self._load(connection, raw) for raw in connection.execute(sql, (*some, *other.values))]
            yield from sorted(loaded, key=lambda f: _at(plan.sort, f[0]), reverse=plan.down)
            chunk = CHUNK

    def _load(self, connection: Connection, raw: Sequence[Any]) -> Loaded:
        return stored_row(raw[:-2], self._view.dids, connection), raw[-2], raw[-1]

    def _more(self, after: int) -> list[tuple[Place, bytes, bytes]]:
        sql = (
            f"SELECT r.ord, r.time_ms, r.padded, s.position, r.content_id, s.sealed FROM {self._sealed} s"
            f" JOIN {self._rows} r ON r.position = s.position WHERE s.position > ? ORDER BY s.position LIMIT 1000"
        )
        with self._view.view.store.read() as connection:
            found = connection.execute(sql, (after,))
            return [(Place(bytes(o), int(t), int(p), int(at)), bytes(c), bytes(s)) for o, t, p, at, c, s in found]

    def _sealed_of(self, position: int) -> bytes | None:
        with self._view.view.store.read() as connection:
            sql = f"SELECT sealed FROM {self._sealed} WHERE position = ?"
            row = one(connection.execute(sql, (position,)))
        return None if row is None else bytes(row[0])

    def _state(self, stored: Stored, kept: int) -> State:
        """How a content stands on this node, now."""
        gone = kept == ERASED
        if stored.forgetting or (stored.expires_ms is not None and stored.expires_ms <= self._local.now_ms()):
            return "forgotten" if gone else "forgetting"
        if stored.retracted:
            return "retracted"
        return "forgotten" if gone else "available" if kept == HERE else "pending"

    def _row(self, stored: Stored, state: State, opened: Opened | None, revisions: int) -> CatalogueRow:
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
        rows: dict[bytes, msgspec.Struct] = {}
        kept = self._local.kept([stored.content_id for stored, _, _ in found])
        for (stored, sealed, revisions), here in zip(found, kept, strict=True):
            opened = self.search.open(stored.content_id, sealed, _place(stored))
            rows[stored.content_id] = self._row(stored, self._state(stored, here), opened, revisions)
        return rows

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


def _fits(plan: Plan, row: CatalogueRow) -> bool:
    """Whether the size fits: exactly, where it is known."""
    size = row.padded_size if row.size is None else row.size
    return (plan.min_size is None or size >= plan.min_size) and (plan.max_size is None or size <= plan.max_size)


def _at(sort: str, stored: Stored) -> list[Any]:
    """Where a row stands in an order: what a cursor holds."""
    kind = sort.lstrip("-")
    if kind == "order":
        return [stored.ord]
    return [stored.time_ms if kind == "time" else stored.padded, stored.position]


def _place(stored: Stored) -> Place:
    return Place(stored.ord, stored.time_ms, stored.padded, stored.position)
