"""The port to a view store: tables, transactions, reads. SQLite now, PostgreSQL possible.

SQL given to it uses `?` placeholders and only what both understand (`ON CONFLICT`, `RETURNING`, partial
indexes). It refuses nothing; views keep only what can be rebuilt from the log, never an unsealed name.
Implemented by adapters/storage/view_store.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

import msgspec

ColumnType = Literal["integer", "blob", "text"]
"""64-bit signed integer, bytes (ordered byte by byte), UTF-8 text."""
Value = int | bytes | str | None


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """One table of a view. Names are plain identifiers; the view's name and generation are put in front."""

    name: str
    columns: dict[str, ColumnType]
    primary_key: tuple[str, ...]
    unique: tuple[tuple[str, ...], ...] = ()
    indexes: tuple[tuple[str, ...], ...] = ()
    """Indexes that only queries need: a rebuild makes them at its end."""
    partial: tuple[tuple[tuple[str, ...], str], ...] = ()
    """Indexes over the rows that meet a condition: (columns, SQL condition)."""
    clustered: bool = False
    """Store rows in the order of the primary key (SQLite: WITHOUT ROWID): for narrow tables."""


class Connection(Protocol):
    """Runs statements inside the transaction or read that gave it. Owned by one thread."""

    def execute(self, sql: str, params: Sequence[Value] = ..., /) -> Iterable[Any]:
        """Run one statement; iterate the result for its rows as tuples."""
        ...

    def executemany(self, sql: str, rows: Iterable[Sequence[Value]], /) -> Iterable[Any]:
        """Run one statement for each row."""
        ...


class ViewStore(Protocol):
    """Where the views of one vault are kept. Threads may share it; one writer at a time.

    Only StorageError and StorageFullError escape from it.
    """

    def transaction(self) -> AbstractContextManager[Connection]:
        """A write transaction: commits when the block ends, keeps nothing when it raises."""
        ...

    def read(self) -> AbstractContextManager[Connection]:
        """A consistent look at what is committed. Keep the block short."""
        ...

    def create(self, connection: Connection, table: Table) -> None:
        """Create a table and its indexes if they do not exist."""
        ...

    def drop(self, connection: Connection, name: str) -> None:
        """Drop a table if it exists."""
        ...

    def close(self) -> None:
        """Release. Idempotent."""
        ...


def one(rows: Iterable[Any]) -> Any:
    """The first row of a result, or None."""
    return next(iter(rows), None)


def few(connection: Connection, table: str, condition: str, params: Sequence[Value], most: int = 2000) -> bool:
    """Whether at most `most` rows meet a condition on indexed columns: then they are fetched first and sorted after."""
    sql = f"SELECT count(*) FROM (SELECT 1 FROM {table} WHERE {condition} LIMIT {most + 1}) AS some"
    return int(one(connection.execute(sql, params))[0]) <= most
