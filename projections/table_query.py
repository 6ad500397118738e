"""Keyset paging over one table with an order column: what the smaller views share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from walytis_vault.projections import paging
from walytis_vault.projections.base import Page, Request, View
from walytis_vault.projections.store import Connection, Value, unindexed

CHUNK: Final = 256
SORTS: Final = ("-order", "order")


class Condition:
    """WHERE, put together piece by piece."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.params: list[Value] = []
        self.selective = False
        """Fetch what fits and sort it, rather than walk in order and look for what fits."""
        self.table: str | None = None
        """Find the positions in this table first, and load the rows of those that are wanted alone."""

    def add(self, sql: str, *values: Value) -> None:
        """Add one condition and the values for its `?`."""
        self.parts.append(sql)
        self.params.extend(values)


def page_by_order(
    view: View,
    request: Request,
    *,
    select: str,
    condition: Condition,
    build: Callable[[Connection, Sequence[Any]], Any],
    keep: Callable[[Any], bool] = lambda _row: True,
    finish: Callable[[Any], Any] = lambda row: row,
) -> Page:
    """One page in the order of the column `ord`, which the selected columns begin with.

    Args:
        select: `SELECT ord, … FROM …` without WHERE; `ord` is unique.
        build: makes a row inside the read; must be quick.
        keep: filters what SQL could not.
        finish: what is done outside the read (unsealing, for one).
    Raises:
        MisuseError: bad limit, sort or cursor.
    """
    limit = paging.check_limit(request.limit)
    sort = paging.choice("sort", request.filters.get("sort") or "-order", SORTS)
    down = sort == "-order"
    at: Any = None
    if request.cursor is not None:
        at = paging.read_cursor(request.cursor, view.name, sort, (bytes,))[0]
    rows: list[Any] = []
    last: bytes | None = None
    chunk = CHUNK if limit is None else min(CHUNK, limit + 1)
    for order, row in _rows(view, select, condition, at, down=down, build=build, chunk=chunk):
        done = finish(row)
        if not keep(done):
            continue
        if limit is not None and len(rows) == limit:
            return Page(rows=tuple(rows), cursor=paging.cursor_text(view.name, sort, [last or b""]))
        rows.append(done)
        last = order
    return Page(rows=tuple(rows))


def _rows(
    view: View,
    select: str,
    condition: Condition,
    at: bytes | None,
    *,
    down: bool,
    build: Callable[[Connection, Sequence[Any]], Any],
    chunk: int,
) -> Iterator[tuple[bytes, Any]]:
    while True:
        parts, params = list(condition.parts), list(condition.params)
        if at is not None:
            parts.append(f"ord {'<' if down else '>'} ?")
            params.append(at)
        where = f" WHERE {' AND '.join(parts)}" if parts else ""
        key, way = unindexed("ord") if condition.selective else "ord", " DESC" if down else ""
        sql = f"{select}{where} ORDER BY {key}{way} LIMIT {chunk}"
        if condition.table is not None:
            some = f"SELECT position FROM {condition.table}{where} ORDER BY {key}{way} LIMIT {chunk}"
            sql = f"{select} WHERE position IN ({some}) ORDER BY ord{way}"
        with view.view.store.read() as connection:
            batch = [(bytes(raw[0]), build(connection, raw)) for raw in connection.execute(sql, params)]
        yield from batch
        if len(batch) < chunk:
            return
        at, chunk = batch[-1][0], CHUNK
