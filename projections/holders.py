"""The view `holders`: for each content and device, whether it published the content and whether it has erased it.

Only what devices signed is kept: who holds a copy by fetching it is not on the log, and is asked of the connected
nodes while a query runs, for the rows of its page. Columns: docs/views.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, ClassVar, Final, Literal

import msgspec

from walytis_vault.domain import events as ev
from walytis_vault.projections import names, paging
from walytis_vault.projections.base import Local, Page, Request, View, ViewRecorder
from walytis_vault.projections.names import Dids
from walytis_vault.projections.store import Connection, Table, one

ROWS: Final = Table(
    name="rows",
    columns={
        "content_id": "blob",
        "device": "integer",
        "member": "integer",
        "published": "blob",
        "published_ms": "integer",
        "erased": "blob",
        "erased_ms": "integer",
        "position": "integer",
    },
    primary_key=("content_id", "device"),
    partial=((("device", "content_id"), "erased IS NOT NULL"), (("content_id", "device"), "erased IS NOT NULL")),
    clustered=True,
)
COLUMNS: Final = ", ".join(ROWS.columns)


class HolderRow(msgspec.Struct, frozen=True, kw_only=True):
    """One device's signed statements about one content."""

    content_id: str
    device: str
    member: str
    state: Literal["published", "erased"]
    time: str
    """When it published or erased, by its own clock, ISO 8601 (UTC)."""
    here: bool
    """Whether this node has the bytes now."""
    held_by: tuple[str, ...] | None = None
    """Other devices, connected now, that say they have all of the content; None: nobody was asked."""
    position: int


class Holders(View):
    """See the module."""

    name = "holders"
    version: ClassVar[int] = 2
    row: ClassVar[type[msgspec.Struct]] = HolderRow
    tables: ClassVar[tuple[Table, ...]] = (ROWS, names.TABLE)
    filters: ClassVar[frozenset[str]] = frozenset({"content_id", "device", "state"})

    def __init__(self, view: ViewRecorder, local: Local | None = None) -> None:
        super().__init__(view, local)
        self.dids = Dids(self.t("dids"))
        self._new: list[tuple[Any, ...]] = []
        self.handlers = {ev.ContentPublished: self._published, ev.ContentErased: self._erased}
        rows = self.t("rows")
        self._select = f"SELECT {COLUMNS} FROM {rows}"
        head = f"INSERT INTO {rows} ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (content_id, device)"
        self._upsert = {
            "published": f"{head} DO UPDATE SET published = excluded.published, published_ms = excluded.published_ms"
            f" WHERE {rows}.published IS NULL OR {rows}.published > excluded.published",
            "erased": f"{head} DO UPDATE SET erased = excluded.erased, erased_ms = excluded.erased_ms"
            f" WHERE {rows}.erased IS NULL OR {rows}.erased > excluded.erased",
        }

    def flush(self, connection: Connection) -> None:
        """See `View.flush`. Sorted, so that neighbours are written together."""
        if self._new:
            self._new.sort(key=lambda row: bytes(row[0]))
            connection.executemany(self._upsert["published"], self._new)
            self._new = []
        super().flush(connection)

    def roll_back(self) -> None:
        """See `View.roll_back`."""
        super().roll_back()
        self._new = []
        self.dids.roll_back()

    def _published(self, connection: Connection, event: ev.ContentPublished, origin: ev.Origin, position: int) -> None:
        order = paging.order_of(origin)
        device, member = self.dids.id(connection, origin.device), self.dids.id(connection, origin.author)
        self._new.append((event.content_id, device, member, order, origin.time_ms, None, None, position))
        self.touch(event.content_id + origin.device.encode(), position)

    def _erased(self, connection: Connection, event: ev.ContentErased, origin: ev.Origin, position: int) -> None:
        order = paging.order_of(origin)
        device, member = self.dids.id(connection, origin.device), self.dids.id(connection, origin.author)
        for content_id in event.contents:
            row = (content_id, device, member, None, None, order, origin.time_ms, position)
            connection.execute(self._upsert["erased"], row)
            self.touch(content_id + origin.device.encode(), position)

    def page(self, request: Request) -> Page:
        """See `View.page`. Sorted by content id."""
        self.check_filters(request.filters)
        limit = paging.check_limit(request.limit)
        given = {k: v for k, v in request.filters.items() if v is not None}
        where, params = ["1 = 1"], list[Any]()
        if "content_id" in given:
            where.append("content_id = ?")
            params.append(paging.hex_id("content_id", given["content_id"]))
        if "device" in given:
            with self._view.store.read() as connection:
                number = self.dids.find(connection, paging.text("device", given["device"]))
            where.append("device = ?")
            params.append(-1 if number is None else number)
        state = paging.choice("state", given.get("state", "all"), ("published", "erased", "all"))
        if state != "all":
            where.append(f"erased IS {'NOT ' if state == 'erased' else ''}NULL")
        if request.cursor is not None:
            where.append("(content_id, device) > (?, ?)")
            params += paging.read_cursor(request.cursor, self.name, "content_id", (bytes, int))
        sql = f"{self._select} WHERE {' AND '.join(where)} ORDER BY content_id, device"
        if limit is not None:
            sql += f" LIMIT {limit + 1}"
        with self._view.store.read() as connection:
            found = [(raw[0], raw[1], self._row(connection, raw)) for raw in connection.execute(sql, params)]
        cursor = None
        if limit is not None and len(found) > limit:
            found = found[:limit]
            cursor = paging.cursor_text(self.name, "content_id", [bytes(found[-1][0]), int(found[-1][1])])
        return Page(rows=self._held([self._here(row) for _, _, row in found]), cursor=cursor)

    def _row(self, connection: Connection, raw: Sequence[Any]) -> HolderRow:
        content_id, device, member, _, published_ms, erased, erased_ms, position = raw
        return HolderRow(
            content_id=bytes(content_id).hex(),
            device=self.dids.text(connection, device),
            member=self.dids.text(connection, member),
            state="published" if erased is None else "erased",
            time=paging.iso(published_ms if erased is None else erased_ms),
            here=False,
            position=position,
        )

    def _here(self, row: HolderRow) -> HolderRow:
        here = self.local.has_bytes(bytes.fromhex(row.content_id))
        return msgspec.structs.replace(row, here=True) if here else row

    def _held(self, rows: Sequence[HolderRow]) -> tuple[HolderRow, ...]:
        """Ask once for all rows; about the past nobody can be asked, nor about what is erased here."""
        ids = dict.fromkeys(bytes.fromhex(row.content_id) for row in rows)
        asked = [] if self.local.past else [i for i in ids if not self.local.erased(i)]
        held = {i.hex(): who for i, who in self.local.held_by(asked).items()} if asked else {}
        return tuple(msgspec.structs.replace(row, held_by=held.get(row.content_id)) for row in rows)

    def rows_by_key(self, keys: Sequence[bytes]) -> dict[bytes, msgspec.Struct]:
        """See `View.rows_by_key`."""
        loaded: dict[bytes, HolderRow] = {}
        with self._view.store.read() as connection:
            for key in keys:
                device = self.dids.find(connection, key[16:].decode())
                sql = self._select + " WHERE content_id = ? AND device = ?"
                raw = None if device is None else one(connection.execute(sql, (key[:16], device)))
                if raw is not None:
                    loaded[key] = self._row(connection, raw)
        return {key: self._here(row) for key, row in loaded.items()}

    def key_text(self, key: bytes) -> str:
        """See `View.key_text`: the content's id."""
        return key[:16].hex()

    def digests(self, connection: Connection, low: bytes, high: bytes | None) -> Iterable[tuple[bytes, bytes]]:
        """See `View.digests`."""
        sql, params = self._select + " WHERE content_id >= ?", [low[:16]]
        if high is not None:
            sql += " AND content_id < ?"
            params.append(high[:16])
        rows = connection.execute(sql + " ORDER BY content_id", params)
        for content_id, same in groupby(rows, key=lambda raw: bytes(raw[0])):
            found = [[self.dids.text(connection, r[1]), self.dids.text(connection, r[2]), *r[3:7]] for r in same]
            for fields in sorted(found, key=lambda f: str(f[0]).encode()):
                digest = hashlib.sha256(msgspec.msgpack.encode([content_id, *fields])).digest()
                yield content_id + str(fields[0]).encode(), digest
