"""The view `timeline`: everything that happened, one row for each event, in the order that all nodes share.

It keeps no sealed bytes and folds nothing: an event is a row. Columns: docs/views.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Final

import msgspec

from walytis_vault.domain import events as ev
from walytis_vault.projections import names, paging
from walytis_vault.projections.base import BUCKETS, Local, Page, Request, View, ViewRecorder
from walytis_vault.projections.names import Dids
from walytis_vault.projections.store import Connection, Table, few, one
from walytis_vault.projections.table_query import Condition, page_by_order

DEPTH_BITS: Final = 6
TYPES: Final = tuple(sorted(ev.PRODUCT_EVENTS.topics))
ROWS: Final = Table(
    name="rows",
    columns={
        "position": "integer",
        "ord": "blob",
        "type": "text",
        "author": "integer",
        "device": "integer",
        "time_ms": "integer",
        "ids": "blob",
        "revises": "blob",
    },
    primary_key=("position",),
    # An event has one time; beside `ord` it spares loading rows where a time is looked for in order.
    unique=(("ord", "time_ms"),),
    indexes=(("author", "ord", "time_ms"), ("type", "ord", "time_ms"), ("time_ms",)),
)
ABOUT: Final = Table(
    name="about",
    columns={"id": "blob", "position": "integer"},
    primary_key=("id", "position"),
    clustered=True,
)


class TimelineRow(msgspec.Struct, frozen=True, kw_only=True):
    """One event. Ids are hex text."""

    event_id: str
    """Batch id and index: the same on every node."""
    type: str
    author: str
    """Member DID."""
    device: str
    time: str
    """By the author's clock, ISO 8601 (UTC)."""
    contents: tuple[str, ...]
    ballot_id: str | None
    member: str | None
    """The member that a membership event is about."""
    revises: str | None
    """For a publication: the content that its author says it revises."""
    depth: int
    """Causal depth: every cause of the event has a smaller one."""
    position: int


class _Ids(msgspec.Struct, array_like=True, frozen=True):
    contents: tuple[bytes, ...] = ()
    ballot_id: bytes | None = None
    member: str | None = None


_encode = msgspec.msgpack.Encoder().encode
_ids = msgspec.msgpack.Decoder(_Ids)


class Timeline(View):
    """See the module."""

    name = "timeline"
    version: ClassVar[int] = 3
    row: ClassVar[type[msgspec.Struct]] = TimelineRow
    tables: ClassVar[tuple[Table, ...]] = (ROWS, ABOUT, names.TABLE)
    filters: ClassVar[frozenset[str]] = frozenset(
        {"author", "type", "content_id", "ballot_id", "since", "until", "sort"}
    )

    def __init__(self, view: ViewRecorder, local: Local | None = None) -> None:
        super().__init__(view, local)
        self.dids = Dids(self.t("dids"))
        self.handlers = dict.fromkeys(_ABOUT, self._happened)
        rows = self.t("rows")
        columns = "position, ord, type, author, device, time_ms, ids, revises"
        self._insert = f"INSERT INTO {rows} ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
        self._about = f"INSERT INTO {self.t('about')} (id, position) VALUES (?, ?) ON CONFLICT DO NOTHING"
        self.rows_since = f"SELECT position, ord FROM {rows} WHERE position > ? ORDER BY position LIMIT ?"
        self._select = f"SELECT ord, position, type, author, device, time_ms, ids, revises FROM {rows}"
        self._rows: list[tuple[Any, ...]] = []
        self._links: list[tuple[bytes, int]] = []

    def _happened(self, connection: Connection, event: Any, origin: ev.Origin, position: int) -> None:
        ids = _ABOUT[type(event)](event)
        revises = event.revises if isinstance(event, ev.ContentPublished) else None
        order = paging.order_of(origin)
        author, device = self.dids.id(connection, origin.author), self.dids.id(connection, origin.device)
        self._rows.append((position, order, event.TOPIC, author, device, origin.time_ms, _encode(ids), revises))
        self._links += [(i, position) for i in ids.contents]
        if ids.ballot_id is not None:
            self._links.append((ids.ballot_id, position))
        if revises is not None:
            self._links.append((revises, position))
        self.touch_new(order, position)

    def flush(self, connection: Connection) -> None:
        """See `View.flush`. Sorted, so that neighbours are written together."""
        if self._rows:
            self._links.sort()
            connection.executemany(self._insert, self._rows)
            connection.executemany(self._about, self._links)
            self._rows, self._links = [], []
        super().flush(connection)

    def roll_back(self) -> None:
        """See `View.roll_back`."""
        super().roll_back()
        self.dids.roll_back()
        self._rows, self._links = [], []

    def page(self, request: Request) -> Page:
        """See `View.page`."""
        self.check_filters(request.filters)
        given = {k: v for k, v in request.filters.items() if v is not None}
        condition = Condition()
        if "author" in given:
            with self._view.store.read() as connection:
                number = self.dids.find(connection, paging.text("author", given["author"]))
            condition.add("author = ?", -1 if number is None else number)
        if "type" in given:
            condition.add("type = ?", paging.choice("type", given["type"], TYPES))
        for name in ("content_id", "ballot_id"):
            if name in given:
                about = self.t("about")
                wanted = paging.hex_id(name, given[name])
                condition.add(f"position IN (SELECT position FROM {about} WHERE id = ?)", wanted)
        times = Condition()
        if "since" in given:
            times.add("time_ms >= ?", paging.moment("since", given["since"]))
        if "until" in given:
            times.add("time_ms < ?", paging.moment("until", given["until"]))
        if times.parts:
            condition.table = self.t("rows")
            with self._view.store.read() as connection:
                condition.selective = few(connection, condition.table, " AND ".join(times.parts), times.params)
        # Walking in order, the index of times must not be taken: it gives another order.
        condition.parts += [p if condition.selective else p.replace("time_ms", "time_ms + 0") for p in times.parts]
        condition.params += times.params
        return page_by_order(self, request, select=self._select, condition=condition, build=self._row)

    def _row(self, connection: Connection, raw: Sequence[Any]) -> TimelineRow:
        order, position, kind, author, device, time_ms, raw_ids, revises = raw
        depth, batch_id, index = paging.order_from(order)
        ids = _ids.decode(raw_ids)
        return TimelineRow(
            event_id=f"{batch_id.hex()}:{index}",
            type=kind,
            author=self.dids.text(connection, author),
            device=self.dids.text(connection, device),
            time=paging.iso(time_ms),
            contents=tuple(c.hex() for c in ids.contents),
            ballot_id=None if ids.ballot_id is None else ids.ballot_id.hex(),
            member=ids.member,
            revises=None if revises is None else revises.hex(),
            depth=depth,
            position=position,
        )

    def rows_by_key(self, keys: Sequence[bytes]) -> dict[bytes, msgspec.Struct]:
        """See `View.rows_by_key`."""
        found: dict[bytes, msgspec.Struct] = {}
        with self._view.store.read() as connection:
            for key in keys:
                raw = one(connection.execute(self._select + " WHERE ord = ?", (key,)))
                if raw is not None:
                    found[key] = self._row(connection, raw)
        return found

    def key_text(self, key: bytes) -> str:
        """See `View.key_text`."""
        _, batch_id, index = paging.order_from(key)
        return f"{batch_id.hex()}:{index}"

    def bucket(self, key: bytes) -> int:
        """See `View.bucket`: 64 neighbouring depths share one, so that new events touch few."""
        return (int.from_bytes(key[:8], "big") >> DEPTH_BITS) % BUCKETS

    def ranges(self, connection: Connection, bucket: int) -> Iterable[tuple[bytes, bytes | None]]:
        """See `View.ranges`."""
        deepest = one(connection.execute(f"SELECT ord FROM {self.t('rows')} ORDER BY ord DESC LIMIT 1"))
        rounds = 0 if deepest is None else (int.from_bytes(bytes(deepest[0])[:8], "big") >> DEPTH_BITS) // BUCKETS + 1
        for number in range(rounds):
            first = (number * BUCKETS + bucket) << DEPTH_BITS
            yield first.to_bytes(8, "big"), (first + (1 << DEPTH_BITS)).to_bytes(8, "big")

    def digests(self, connection: Connection, low: bytes, high: bytes | None) -> Iterable[tuple[bytes, bytes]]:
        """See `View.digests`."""
        sql, params = self._select + " WHERE ord >= ?", [low]
        if high is not None:
            sql += " AND ord < ?"
            params.append(high)
        for raw in connection.execute(sql + " ORDER BY ord", params):
            order, _, kind, author, device, time_ms, ids, revises = raw
            dids = self.dids.text(connection, author), self.dids.text(connection, device)
            yield bytes(order), hashlib.sha256(_encode([order, kind, *dids, time_ms, ids, revises])).digest()


_ABOUT: Final[dict[type[ev.Event], Callable[[Any], _Ids]]] = {
    ev.VaultFounded: lambda e: _Ids(member=e.founder),
    ev.KeyAnnounced: lambda e: _Ids(member=e.keys.member),
    ev.MemberAdmitted: lambda e: _Ids(member=e.member),
    ev.MemberRemoved: lambda e: _Ids(member=e.member),
    ev.DeviceRemoved: lambda e: _Ids(member=e.member),
    ev.ContentPublished: lambda e: _Ids((e.content_id,)),
    ev.ContentRetracted: lambda e: _Ids((e.content_id,)),
    ev.ContentRestored: lambda e: _Ids((e.content_id,)),
    ev.ForgettingProposed: lambda e: _Ids(e.contents, e.ballot_id),
    ev.ForgettingConsented: lambda e: _Ids((), e.ballot_id),
    ev.ForgettingRefused: lambda e: _Ids((), e.ballot_id),
    ev.ForgettingWithdrawn: lambda e: _Ids((), e.ballot_id),
    ev.ContentErased: lambda e: _Ids(e.contents, e.ballot_id),
}
"""What each event is about."""
