"""Blocks without a verdict that a walk from the leaves would not reach, because a block above them has one.

A walk stops at what is known, since what is judged was judged parents first. Two things break that: a block of our own
is made on top of blocks that have arrived and are not judged yet, and a block that could not be read has children that
could. Such keys are written down, in the transaction that makes the block above known, until they have a verdict.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

import apsw

from walytis_vault.adapters.storage.database import Database

_SCHEMA = "CREATE TABLE IF NOT EXISTS overdue(key BLOB PRIMARY KEY) WITHOUT ROWID"


class Overdue:
    """A small set of block keys, in memory and in the index's database. Any thread may call."""

    def __init__(self, database: Database) -> None:
        """Read what an earlier process left."""
        self._lock = threading.Lock()
        with database.transaction() as connection:
            connection.execute(_SCHEMA)
            self._keys = {bytes(row[0]) for row in connection.execute("SELECT key FROM overdue")}
        self._written = set(self._keys)

    def note(self, keys: Iterable[bytes]) -> None:
        """These must be looked at again; call `flush` in the transaction that hides them."""
        with self._lock:
            self._keys.update(keys)

    def flush(self, connection: apsw.Connection) -> None:
        """Write changes down, inside a transaction. What is rolled back is written again by the next one."""
        with self._lock:
            keys, written = set(self._keys), set(self._written)
            self._written = keys
        connection.executemany("INSERT OR IGNORE INTO overdue VALUES(?)", [(k,) for k in keys - written])
        connection.executemany("DELETE FROM overdue WHERE key = ?", [(k,) for k in written - keys])

    def rolled_back(self) -> None:
        """A transaction that called `flush` did not come to its end."""
        with self._lock:
            # Whether rows were removed or not: too many of them cost a look, too few would cost a block.
            self._written = set()

    def left(self, known: Callable[[bytes], bool]) -> list[bytes]:
        """Those that still have no verdict; the others are dropped."""
        with self._lock:
            keys = list(self._keys)
        done = {key for key in keys if known(key)}
        with self._lock:
            self._keys -= done
        return [key for key in keys if key not in done]
