"""The view store on PostgreSQL: one schema for the views of one node, one writing connection, a few reading ones.

Its commits are not waited for on the server's disk, because views can be rebuilt; consistency survives every crash.
A connection that breaks is not replaced behind the host's back: what was committed last may be lost, so the host
calls `recover` and reads its positions again. The port is projections/store.py; why: docs/adr/0015-postgresql.md.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from psycopg.pq import TransactionStatus

from walytis_vault.adapters.storage import postgres_sql as pg
from walytis_vault.adapters.storage.postgres_server import Link, connect, our_errors
from walytis_vault.domain.errors import StorageError, StorageUnavailableError
from walytis_vault.projections.store import ColumnType, Connection, StatementError, Table, Value, checked_name

READERS: Final = 4
"""Reading connections (a count)."""
ANALYZE_FROM: Final = 10_000
"""Rows written to a table (a count) before its statistics are taken; then at each doubling."""
FETCH: Final = 2000
"""Rows fetched at once where many are read (a count)."""


class PostgresViewStore:
    """Implements `ViewStore` over one schema of a PostgreSQL database."""

    def __init__(self, url: str, schema: str) -> None:
        """Connect, and make the schema if it is missing.

        Args:
            url: as libpq takes it; what it leaves out comes from the environment and `.pgpass`.
            schema: a plain identifier. One node at a time can use it.
        Raises:
            MisuseError: no URL, or it names what the server does not have.
            StorageUnavailableError: the server does not answer, or another node uses the schema.
            StorageError: the server cannot be used.
        """
        self._url, self._schema = url, checked_name(schema)
        self._write_lock = threading.RLock()
        self._state = threading.Lock()
        self._free: list[Link] = []
        self._slots = threading.BoundedSemaphore(READERS)
        self._looking = threading.local()
        self._lost: StorageUnavailableError | None = None
        self._closed = False
        self._told: Callable[[StorageUnavailableError], None] = lambda _error: None
        self._columns: dict[str, dict[str, ColumnType]] = {}
        self._written: dict[str, int] = {}
        """Table -> rows written (a count) since its statistics were taken."""
        self._due: dict[str, int] = {}
        """Table -> rows written (a count) at which to take them again."""
        self._writer = connect(url, self._schema, writing=True)

    # Losing the server, and finding it again

    def on_loss(self, callback: Callable[[StorageUnavailableError], None]) -> None:
        """See `ViewStore.on_loss`."""
        self._told = callback

    def _lose(self, error: StorageUnavailableError) -> None:
        with self._state:
            if self._lost is not None or self._closed:
                return
            self._lost = error
            free, self._free = self._free, []
        for link in free:
            link.close()
        self._told(error)

    def recover(self) -> None:
        """See `ViewStore.recover`."""
        with self._write_lock:
            if self._closed or self._lost is None:
                return
            self._writer.close()
            self._writer = connect(self._url, self._schema, writing=True)
            with self._state:
                self._lost = None

    def _check(self) -> None:
        if self._closed:
            raise StorageError("the store of the views is closed")
        if self._lost is not None:
            raise StorageUnavailableError(str(self._lost)) from self._lost

    # Writing

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """See `ViewStore.transaction`."""
        with self._write_lock:
            self._check()
            link = self._writer
            if link.status is not TransactionStatus.IDLE and not link.broken:
                raise StatementError("a transaction of the views is open in this thread")
            with our_errors("write the views", link, self._lose):
                running = _Running(link, self._columns)
                try:
                    yield running
                    if link.status is TransactionStatus.INERROR:
                        raise StatementError("a statement failed inside a transaction of the views that went on")
                    self._analyze(running)
                except BaseException:
                    link.roll_back()
                    raise
                link.commit()

    def _analyze(self, running: _Running) -> None:
        """Let the planner know of tables that grew; autovacuum would, but only after the first queries."""
        for table, rows in running.written.items():
            self._written[table] = self._written.get(table, 0) + rows
            if self._written[table] >= self._due.get(table, ANALYZE_FROM):
                self._due[table] = 2 * self._due.get(table, ANALYZE_FROM)
                self._written[table] = 0
                running.execute(f"ANALYZE {table}")

    def create(self, connection: Connection, table: Table) -> None:
        """See `ViewStore.create`."""
        columns = [f"{checked_name(c)} {pg.TYPES[kind]}" for c, kind in table.columns.items()]
        columns.append(f"PRIMARY KEY ({_names(table.primary_key)})")
        columns += [f"UNIQUE ({_names(u)})" for u in table.unique]
        connection.execute(f"CREATE TABLE IF NOT EXISTS {checked_name(table.name)} ({', '.join(columns)})")
        self._columns[table.name] = dict(table.columns)
        every = [(columns_of, "") for columns_of in table.indexes]
        every += [(columns_of, f" WHERE {condition}") for columns_of, condition in table.partial]
        for columns_of, where in every:
            name = pg.index_name(table.name, f"{columns_of}{where}")
            connection.execute(f"CREATE INDEX IF NOT EXISTS {name} ON {table.name} ({_names(columns_of)}){where}")

    def drop(self, connection: Connection, name: str) -> None:
        """See `ViewStore.drop`."""
        connection.execute(f"DROP TABLE IF EXISTS {checked_name(name)}")
        self._written.pop(name, None)
        self._due.pop(name, None)
        if isinstance(connection, _Running):
            connection.written.pop(name, None)

    # Reading

    @contextmanager
    def read(self, *, large: bool = False) -> Iterator[Connection]:
        """See `ViewStore.read`."""
        nested = getattr(self._looking, "link", None)
        if nested is not None:  # in the same thread: the same look
            with our_errors("read the views", nested, self._lose):
                yield _Large(nested) if large else _Running(nested)
            return
        with self._slots:
            self._check()
            with our_errors("read the views", None, self._lose):
                link = self._take()
            self._looking.link = link
            try:
                with our_errors("read the views", link, self._lose):
                    yield _Large(link) if large else _Running(link)
            finally:
                self._looking.link = None
                self._give_back(link)

    def _take(self) -> Link:
        with self._state:
            if self._free:
                return self._free.pop()
        link = connect(self._url, self._schema, writing=False)
        # A server that crashed may have lost commits that the writing connection took for done. What is read beside
        # a writing connection that is alive is not older than what was written.
        if not link.sees(self._writer):
            link.close()
            error = StorageUnavailableError("the views' PostgreSQL server was restarted: repeat")
            self._lose(error)
            raise error
        return link

    def _give_back(self, link: Link) -> None:
        link.roll_back()
        with self._state:
            if not self._closed and self._lost is None and link.status is TransactionStatus.IDLE:
                self._free.append(link)
                return
        link.close()

    def close(self) -> None:
        """See `ViewStore.close`."""
        with self._write_lock, self._state:
            self._closed = True
            for link in (*self._free, self._writer):
                link.close()
            self._free = []


class _Running:
    """`Connection` over a link, inside its transaction."""

    def __init__(self, link: Link, columns: dict[str, dict[str, ColumnType]] | None = None) -> None:
        self._link = link
        self._columns = columns or {}
        self.written: dict[str, int] = {}
        """Table -> rows written here (a count)."""

    def execute(self, sql: str, params: Sequence[Value] = (), /) -> Iterable[Any]:
        """See `Connection.execute`."""
        statement = pg.translate(sql)
        rows, count = self._link.run(statement.sql, params)
        self._count(statement.writes, count)
        return rows

    def executemany(self, sql: str, rows: Iterable[Sequence[Value]], /) -> Iterable[Any]:
        """See `Connection.executemany`. Plain INSERTs go as one array for each column."""
        statement = pg.translate(sql)
        insert = statement.insert
        columns = {} if insert is None else self._columns.get(insert.table, {})
        if insert is None or not set(insert.columns) <= set(columns):
            for row in rows:
                self.execute(sql, row)
            return ()
        kinds = [columns[name] for name in insert.columns]
        bulk = pg.in_bulk(insert, kinds)
        for part in pg.parts(rows, insert.key):
            arrays = [pg.packed(values, kind) for values, kind in zip(zip(*part, strict=True), kinds, strict=True)]
            _, count = self._link.run(bulk, arrays)
            self._count(insert.table, count)
        return ()

    def _count(self, table: str | None, rows: int) -> None:
        if table is not None:
            self.written[table] = self.written.get(table, 0) + max(0, rows)


class _Large(_Running):
    """The same where many rows are read: they stay on the server until they are wanted."""

    def execute(self, sql: str, params: Sequence[Value] = (), /) -> Iterable[Any]:
        """See `Connection.execute`."""
        return self._link.stream(pg.translate(sql).sql, params, FETCH)


def _names(identifiers: tuple[str, ...]) -> str:
    return ", ".join(checked_name(i) for i in identifiers)
