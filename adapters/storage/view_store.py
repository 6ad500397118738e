"""The view store on SQLite: one database file for all views of a vault, or a temporary one in memory.

Its commits are not fsynced, because views can be rebuilt; consistency survives every crash.
The port is projections/store.py; it never keeps unsealed names, so it needs no vacuum to forget.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, cast

from walytis_vault.adapters.storage.database import Database
from walytis_vault.domain.errors import StorageUnavailableError
from walytis_vault.projections.store import Connection, Table, checked_name

CACHE_KIB: Final = 64 << 10
"""Page cache of the writing connection; the reading one has a quarter of it."""
TEMPORARY_CACHE_KIB: Final = 8 << 10
_TYPES: Final = {"integer": "INTEGER", "blob": "BLOB", "text": "TEXT"}


class SqliteViewStore:
    """Implements `ViewStore` over one `Database`."""

    def __init__(self, path: Path, *, cache_kib: int = CACHE_KIB) -> None:
        """Open or create `path`; its folder must exist. Raises StorageError."""
        self._database = Database(path, durable=False)
        with self._database.transaction() as connection:
            connection.execute(f"PRAGMA cache_size=-{cache_kib}")
            # What stands here is sealed under keys that are destroyed elsewhere, so dropping a table need not
            # write zeros over all of it.
            connection.execute("PRAGMA secure_delete=FAST").fetchall()
        with self._database.read() as connection:
            connection.execute(f"PRAGMA cache_size=-{cache_kib // 4}")

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """See `ViewStore.transaction`."""
        with self._database.transaction() as connection:
            yield cast(Connection, connection)

    @contextmanager
    def read(self, *, large: bool = False) -> Iterator[Connection]:  # noqa: ARG002 - rows are always read one by one
        """See `ViewStore.read`."""
        with self._database.read() as connection:
            if connection.in_transaction:  # nested in the same thread: the same look
                yield cast(Connection, connection)
                return
            connection.execute("BEGIN")
            try:
                yield cast(Connection, connection)
            finally:
                connection.execute("COMMIT")

    def create(self, connection: Connection, table: Table) -> None:
        """See `ViewStore.create`."""
        columns = [f"{checked_name(c)} {_TYPES[kind]}" for c, kind in table.columns.items()]
        columns.append(f"PRIMARY KEY ({_names(table.primary_key)})")
        columns += [f"UNIQUE ({_names(u)})" for u in table.unique]
        tail = " WITHOUT ROWID" if table.clustered else ""
        connection.execute(f"CREATE TABLE IF NOT EXISTS {checked_name(table.name)} ({', '.join(columns)}){tail}")
        every = [(columns_of, "") for columns_of in table.indexes]
        every += [(columns_of, f" WHERE {condition}") for columns_of, condition in table.partial]
        for columns_of, where in every:
            # Named by what it is, so that one made later does not shift the others.
            digest = hashlib.sha256(f"{columns_of}{where}".encode()).hexdigest()[:8]
            connection.execute(
                f"CREATE INDEX IF NOT EXISTS {table.name}_i{digest} ON {table.name} ({_names(columns_of)}){where}"
            )

    def drop(self, connection: Connection, name: str) -> None:
        """See `ViewStore.drop`."""
        connection.execute(f"DROP TABLE IF EXISTS {checked_name(name)}")

    def on_loss(self, callback: Callable[[StorageUnavailableError], None]) -> None:
        """See `ViewStore.on_loss`: a file is not lost."""

    def recover(self) -> None:
        """See `ViewStore.recover`."""

    def close(self) -> None:
        """See `ViewStore.close`."""
        self._database.close()


class TemporaryViewStore(SqliteViewStore):
    """A view store in a temporary folder that is gone when it is closed: for time travel. Several may be open."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="walytis-vault-replay-")
        super().__init__(Path(self._folder.name) / "views.db", cache_kib=TEMPORARY_CACHE_KIB)

    def close(self) -> None:
        """Release and delete."""
        super().close()
        self._folder.cleanup()


def _names(identifiers: tuple[str, ...]) -> str:
    return ", ".join(checked_name(i) for i in identifiers)
