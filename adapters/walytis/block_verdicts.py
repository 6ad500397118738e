"""What was decided about each block of the chain, and which blocks wait for a batch that is not here yet.

One part of the log's index. A block whose batch names a cause that is missing waits by key (48 bytes); when the cause
comes the block is looked at again, also when the node dies in between: what waits no more is overdue.
"""

from __future__ import annotations

from typing import Any

import apsw

from walytis_vault.adapters.storage.database import Database
from walytis_vault.adapters.walytis.overdue import Overdue


class BlockVerdicts:
    """Verdicts by block key. Methods that take a connection run inside its transaction."""

    def __init__(self, database: Database) -> None:
        """Share the index's database; the index makes the tables."""
        self.database = database
        self.overdue = Overdue(database)

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
        """A block waits for a batch."""
        self.set_verdict(connection, block, "waiting", f"waits for batch {missing.hex()}")
        connection.execute("INSERT OR IGNORE INTO waiting VALUES(?,?)", (missing, block))

    def release(self, connection: apsw.Connection, arrived: bytes) -> list[bytes]:
        """Keys of the blocks that waited for this batch; they wait no more."""
        rows: list[Any] = connection.execute("SELECT key FROM waiting WHERE missing = ?", (arrived,)).fetchall()
        connection.execute("DELETE FROM waiting WHERE missing = ?", (arrived,))
        return [row[0] for row in rows]

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
