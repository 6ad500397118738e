"""What was decided about each block of the chain, and which blocks wait for a batch that is not here yet.

One part of the log's index. A block whose batch names a cause that is missing waits by key (48 bytes); when the cause
comes the block is looked at again, also when the node dies in between: what waits no more is overdue.
"""

from __future__ import annotations

from typing import Any, Final

import apsw

from walytis_vault.adapters.storage.database import Database
from walytis_vault.adapters.walytis.overdue import Overdue

MAX_PARKED: Final = 250_000
"""Blocks that wait for a batch (a count): strangers can invent any number."""
EVICT: Final = 1000
"""How many go at once when the room is full."""
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS blocks(
  number INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, verdict TEXT NOT NULL, reason TEXT);
CREATE INDEX IF NOT EXISTS blocks_verdict ON blocks(verdict);
CREATE TABLE IF NOT EXISTS waiting(missing BLOB NOT NULL, key BLOB NOT NULL, PRIMARY KEY(missing, key)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS waiting_key ON waiting(key);
CREATE TABLE IF NOT EXISTS understood(only INTEGER PRIMARY KEY CHECK(only = 1), value BLOB NOT NULL);
"""


class BlockVerdicts:
    """Verdicts by block key. Methods that take a connection run inside its transaction."""

    def __init__(self, database: Database) -> None:
        """Share the index's database; make what is missing of its tables, and take up what an earlier process left."""
        self.database = database
        with database.transaction() as connection:
            connection.execute(_SCHEMA)
            # Released, and not judged before the node died: only versions before 0.1.0 leave such.
            stuck = "verdict = 'waiting' AND key NOT IN (SELECT key FROM waiting)"
            connection.execute(f"UPDATE blocks SET verdict = 'put off' WHERE {stuck}")
            (self._parked,) = next(iter(connection.execute("SELECT count(*) FROM waiting")))
        self.overdue = Overdue(database)
        self.reconsider("put off")

    def set_verdict(self, connection: apsw.Connection, block: bytes, verdict: str, reason: str | None) -> None:
        """Remember what was decided about a block."""
        connection.execute(
            "INSERT INTO blocks(key, verdict, reason) VALUES(?,?,?)"
            " ON CONFLICT(key) DO UPDATE SET verdict = excluded.verdict, reason = excluded.reason",
            (block, verdict, reason),
        )

    def verdict(self, connection: apsw.Connection, block: bytes) -> str | None:
        """What was decided about a block, None when it was never looked at."""
        row = connection.execute("SELECT verdict FROM blocks WHERE key = ?", (block,)).fetchone()
        return str(row[0]) if row else None

    def park(self, connection: apsw.Connection, block: bytes, missing: bytes) -> None:
        """A block waits for a batch. When too many wait, those that have waited longest go until the next start."""
        if self._parked >= MAX_PARKED:
            self._make_room(connection)
        self.set_verdict(connection, block, "waiting", f"waits for batch {missing.hex()}")
        connection.execute("INSERT OR IGNORE INTO waiting VALUES(?,?)", (missing, block))
        self._parked += 1

    def release(self, connection: apsw.Connection, arrived: bytes) -> list[bytes]:
        """Keys of the blocks that waited for this batch. They wait no more, and are overdue until they are judged."""
        rows: list[Any] = connection.execute("SELECT key FROM waiting WHERE missing = ?", (arrived,)).fetchall()
        if rows:
            connection.execute("DELETE FROM waiting WHERE missing = ?", (arrived,))
            connection.executemany("DELETE FROM blocks WHERE key = ? AND verdict = 'waiting'", rows)
            self._parked -= len(rows)
            self._look_again(connection, [row[0] for row in rows])
        return [row[0] for row in rows]

    def reconsider(self, *verdicts: str) -> None:
        """Blocks with such a verdict are to be judged again."""
        marks = ",".join("?" * len(verdicts))
        with self.database.transaction() as connection:
            rows: list[Any] = connection.execute(
                f"SELECT key FROM blocks WHERE verdict IN ({marks}) LIMIT {MAX_PARKED}", verdicts
            ).fetchall()
            connection.executemany("DELETE FROM blocks WHERE key = ?", rows)
            self._look_again(connection, [row[0] for row in rows])

    def understand(self, value: bytes) -> None:
        """Judge blocks again that were `unreadable` when something else than this value was given last."""
        with self.database.read() as connection:
            row: Any = connection.execute("SELECT value FROM understood").fetchone()
        if row is None or row[0] != value:
            self.reconsider("unreadable")
            with self.database.transaction() as connection:
                connection.execute("INSERT OR REPLACE INTO understood VALUES(1, ?)", (value,))

    def _look_again(self, connection: apsw.Connection, keys: list[bytes]) -> None:
        self.overdue.note(keys)
        self.overdue.flush(connection)

    def _make_room(self, connection: apsw.Connection) -> None:
        rows: list[Any] = connection.execute(
            "SELECT key FROM blocks WHERE verdict = 'waiting' ORDER BY number LIMIT ?", (EVICT,)
        ).fetchall()
        connection.executemany(
            "UPDATE blocks SET verdict = 'put off', reason = ? WHERE key = ?",
            [("too many blocks wait: looked at again at the next start", row[0]) for row in rows],
        )
        connection.executemany("DELETE FROM waiting WHERE key = ?", rows)
        (self._parked,) = next(iter(connection.execute("SELECT count(*) FROM waiting")))

    def verdict_counts(self) -> dict[str, int]:
        """How many blocks got which verdict."""
        with self.database.read() as connection:
            return {str(v): int(n) for v, n in connection.execute("SELECT verdict, count(*) FROM blocks GROUP BY 1")}

    def judged_blocks(self, after: int, limit: int, filters: dict[str, Any]) -> list[tuple[Any, ...]]:
        """Blocks with their verdict and batch, oldest first: (number, verdict, reason, block key, batch id, author,
        device, batch number, depth, time in ms, events, void). Filters: verdict, author, device."""
        where, params = ["k.number > ?"], [after]
        if (verdict := filters.get("verdict")) is not None:
            where.append("(CASE WHEN coalesce(b.void, 0) THEN 'void' ELSE k.verdict END) = ?")
            params.append(verdict)
        for field in ("author", "device"):
            if filters.get(field) is not None:
                where.append(f"b.{field} = ?")
                params.append(filters[field])
        sql = (
            "SELECT k.number, k.verdict, k.reason, k.key, b.batch_id, b.author, b.device, b.number, b.depth, b.time_ms,"
            " b.count, coalesce(b.void, 0) FROM blocks k LEFT JOIN batches b ON b.block = k.key"
            f" WHERE {' AND '.join(where)} ORDER BY k.number LIMIT ?"
        )
        with self.database.read() as connection:
            return list(connection.execute(sql, (*params, limit)))
