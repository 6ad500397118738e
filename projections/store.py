"""The port to a view store: tables, transactions, reads. Kept in SQLite, or in PostgreSQL.

SQL given to it uses `?` placeholders and only what both understand (`ON CONFLICT`, `RETURNING`, partial
indexes; no `max` of blobs). Views keep only what can be rebuilt from the log, never an unsealed name.
Implemented by adapters/storage/view_store.py and postgres_views.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Literal, Protocol

import msgspec

from walytis_vault.domain.errors import MisuseError, StorageError, StorageUnavailableError

ColumnType = Literal["integer", "blob", "text"]
"""64-bit signed integer, bytes (ordered byte by byte), UTF-8 text."""
Value = int | bytes | str | None
_IDENTIFIER: Final = re.compile(r"[a-z][a-z0-9_]{0,62}\Z")


class StatementError(StorageError):
    """The store took a statement for wrong: that says something about the view, and nothing about the store."""


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

    Only StorageError and its subclasses escape from it: StatementError for what is wrong with a statement (SQL, a
    constraint, a transaction in a transaction), others for what is wrong with the store. A store on a server can lose
    it: from then on everything raises StorageUnavailableError until `recover` succeeds, and the last commits may be
    lost.
    """

    def transaction(self) -> AbstractContextManager[Connection]:
        """A write transaction: commits when the block ends, keeps nothing when it raises."""
        ...

    def read(self, *, large: bool = False) -> AbstractContextManager[Connection]:
        """A consistent look at what is committed. Keep the block short.

        Args:
            large: more rows will be read than should be in memory at once.
        """
        ...

    def create(self, connection: Connection, table: Table) -> None:
        """Create a table and its indexes if they do not exist."""
        ...

    def drop(self, connection: Connection, name: str) -> None:
        """Drop a table if it exists."""
        ...

    def on_loss(self, callback: Callable[[StorageUnavailableError], None]) -> None:
        """Call back, from any thread, when the server is lost. The callback returns at once and never raises."""
        ...

    def recover(self) -> None:
        """Find a lost server again; the caller then reads positions anew. Does nothing where none was lost.

        Raises:
            StorageUnavailableError: it still does not answer.
        """
        ...

    def close(self) -> None:
        """Release. Idempotent."""
        ...


def checked_name(identifier: str) -> str:
    """A name of a table or column, as it may stand in SQL. Raises MisuseError."""
    if not _IDENTIFIER.match(identifier):
        raise MisuseError(
            f"not a table or column name: {identifier[:60]!r} (lower case letters, digits, _; at most 63)"
        )
    return identifier


def one(rows: Iterable[Any]) -> Any:
    """The first row of a result, or None."""
    return next(iter(rows), None)


def unindexed(column: str) -> str:
    """An ORDER BY term that no index serves: rows that fit are fetched first and sorted after."""
    return f"coalesce({column}, {column})"


def few(connection: Connection, table: str, condition: str, params: Sequence[Value], most: int = 2000) -> bool:
    """Whether at most `most` rows meet a condition on indexed columns: then they are fetched first and sorted after."""
    sql = f"SELECT count(*) FROM (SELECT 1 FROM {table} WHERE {condition} LIMIT {most + 1}) AS found"
    return int(one(connection.execute(sql, params))[0]) <= most
