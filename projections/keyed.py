"""The easy base for a view of one's own: one row for each key, changed by handlers with `get` and `put`.

Filters by equality on every field, paging, changes and hash come with it. Rows are stored as they are: put
nothing in them that `local.unseal` returned. A page about it: docs/how-to-write-a-projection.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Final

import msgspec

from walytis_vault.projections import paging
from walytis_vault.projections.base import Local, Page, Request, View, ViewRecorder
from walytis_vault.projections.store import Connection, Table, one

CHUNK: Final = 256
SORTS: Final = ("key", "-key")


class KeyedView(View):
    """A subclass sets `name`, `row` (a frozen msgspec struct) and fills in `handlers`."""

    tables: ClassVar[tuple[Table, ...]] = (
        Table(name="rows", columns={"key": "blob", "data": "blob"}, primary_key=("key",), clustered=True),
    )

    def __init_subclass__(cls) -> None:
        """Every field of the row is a filter."""
        super().__init_subclass__()
        if isinstance(getattr(cls, "row", None), type) and issubclass(cls.row, msgspec.Struct):
            cls.filters = frozenset({*(f.name for f in msgspec.structs.fields(cls.row)), "sort"})

    def __init__(self, view: ViewRecorder, local: Local | None = None) -> None:
        super().__init__(view, local)
        self._decode = msgspec.msgpack.Decoder(self.row).decode
        rows = self.t("rows")
        self._select = f"SELECT key, data FROM {rows}"
        self._get = f"SELECT data FROM {rows} WHERE key = ?"
        self._put = f"INSERT INTO {rows} (key, data) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET data = excluded.data"
        self._drop = f"DELETE FROM {rows} WHERE key = ?"

    def get(self, connection: Connection, key: str) -> Any:
        """The row of a key as it stands inside this transaction, None when there is none."""
        found = one(connection.execute(self._get, (key.encode(),)))
        return None if found is None else self._decode(found[0])

    def put(self, connection: Connection, key: str, row: msgspec.Struct, position: int) -> None:
        """Set the row of a key, and tell subscribers."""
        connection.execute(self._put, (key.encode(), msgspec.msgpack.encode(row)))
        self.touch(key.encode(), position)

    def remove(self, connection: Connection, key: str, position: int) -> None:
        """Remove the row of a key, and tell subscribers."""
        connection.execute(self._drop, (key.encode(),))
        self.touch(key.encode(), position)

    def page(self, request: Request) -> Page:
        """See `View.page`. Sorted by key."""
        self.check_filters(request.filters)
        limit = paging.check_limit(request.limit)
        given = {k: v for k, v in request.filters.items() if v is not None}
        sort = paging.choice("sort", given.pop("sort", "key"), SORTS)
        at: bytes | None = None
        if request.cursor is not None:
            at = bytes(paging.read_cursor(request.cursor, self.name, sort, (bytes,))[0])
        rows: list[msgspec.Struct] = []
        last = b""
        while True:
            batch = self._batch(at, sort)
            for key, data in batch:
                row = self._decode(data)
                if not all(_same(getattr(row, name), value) for name, value in given.items()):
                    continue
                if limit is not None and len(rows) == limit:
                    return Page(rows=tuple(rows), cursor=paging.cursor_text(self.name, sort, [last]))
                rows.append(row)
                last = bytes(key)
            if len(batch) < CHUNK:
                return Page(rows=tuple(rows))
            at = bytes(batch[-1][0])

    def _batch(self, at: bytes | None, sort: str) -> list[Any]:
        sign, order = ("<", " DESC") if sort.startswith("-") else (">", "")
        where, params = ("", ()) if at is None else (f" WHERE key {sign} ?", (at,))
        sql = f"{self._select}{where} ORDER BY key{order} LIMIT {CHUNK}"
        with self.view.store.read() as connection:
            return list(connection.execute(sql, params))

    def rows_by_key(self, keys: Sequence[bytes]) -> dict[bytes, msgspec.Struct]:
        """See `View.rows_by_key`."""
        found: dict[bytes, msgspec.Struct] = {}
        with self.view.store.read() as connection:
            for key in dict.fromkeys(keys):
                raw = one(connection.execute(self._get, (key,)))
                if raw is not None:
                    found[key] = self._decode(raw[0])
        return found

    def key_text(self, key: bytes) -> str:
        """See `View.key_text`."""
        return key.decode()

    def digests(self, connection: Connection, low: bytes, high: bytes | None) -> Iterable[tuple[bytes, bytes]]:
        """See `View.digests`: the whole row."""
        sql, params = f"{self._select} WHERE key >= ?", [low]
        if high is not None:
            sql += " AND key < ?"
            params.append(high)
        for key, data in connection.execute(sql + " ORDER BY key", params):
            yield bytes(key), hashlib.sha256(bytes(data)).digest()


def _same(value: object, wanted: object) -> bool:
    """Equal, also when the wanted value came as text from a command line."""
    return value == wanted or (isinstance(wanted, str) and not isinstance(value, str) and str(value).lower() == wanted)
