"""Causal contexts: which membership batches lie in a batch's past. Most batches share one, so they are numbered.

A context is written down as what it has more than another one: each membership batch makes a new context of all
before it, and whole sets would take the square of their number. Sets are remembered for the few that are in use.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Collection, Iterable
from typing import Any, Final

import apsw

ID_BYTES: Final = 32
CACHED: Final = 8
"""Sets (a count); they share their ids."""
SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS contexts(
  context INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, base INTEGER, added BLOB NOT NULL);
"""


class Contexts:
    """Methods run inside the transaction that the connection belongs to."""

    def __init__(self) -> None:
        """Nothing is remembered yet."""
        self._sets: OrderedDict[int, frozenset[bytes]] = OrderedDict()

    def number(self, connection: apsw.Connection, batch_ids: Iterable[bytes], bases: Collection[int] = ()) -> int:
        """The number of a set, which is given at its first use.

        Args:
            batch_ids: the membership batches.
            bases: contexts that are parts of it; it is written down as what it has more than the largest.
        """
        wanted = frozenset(batch_ids)
        digest = hashlib.sha256(b"".join(sorted(wanted))).digest()
        row: Any = connection.execute("SELECT context FROM contexts WHERE digest = ?", (digest,)).fetchone()
        if row is not None:
            return int(row[0])
        base = max(bases, key=lambda number: len(self.members(connection, number)), default=None)
        known = frozenset[bytes]() if base is None else self.members(connection, base)
        added = b"".join(sorted(wanted - known))
        connection.execute("INSERT INTO contexts(digest, base, added) VALUES(?,?,?)", (digest, base, added))
        number = connection.last_insert_rowid()
        self._keep(number, known | wanted)
        return number

    def members(self, connection: apsw.Connection, context: int) -> frozenset[bytes]:
        """The membership batches of a context."""
        path: list[tuple[int, bytes]] = []
        number: int | None = context
        while number is not None and number not in self._sets:
            row: Any = connection.execute("SELECT base, added FROM contexts WHERE context = ?", (number,)).fetchone()
            if row is None:
                break
            path.append((number, bytes(row[1])))
            number = row[0]
        found = set(self._sets.get(number, ()) if number is not None else ())
        for _, added in path:
            found.update(added[at : at + ID_BYTES] for at in range(0, len(added), ID_BYTES))
        return self._keep(context, frozenset(found)) if path else self._sets.get(context, frozenset())

    def forget(self) -> None:
        """A transaction was rolled back: the numbers that it gave are given again, to other sets."""
        self._sets.clear()

    def _keep(self, number: int, batch_ids: frozenset[bytes]) -> frozenset[bytes]:
        self._sets[number] = batch_ids
        if len(self._sets) > CACHED:
            self._sets.popitem(last=False)
        return batch_ids
