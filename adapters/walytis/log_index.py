"""The index of the log: batches, events, tags, contexts and verdicts about blocks, in one SQLite database.

It stores and finds; it judges nothing (`judge.py`) and talks to no chain. All writing happens inside
`Database.transaction()`, so that whoever holds it owns the next position. A reader sees positions up to
`horizon`: a local batch becomes visible when its block exists. Schema: docs/adr/0007-log-index.md.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import apsw
from eventsourcing.dcb.api import DCBQuery

from walytis_vault.adapters.storage.database import Database
from walytis_vault.adapters.walytis.block_verdicts import BlockVerdicts
from walytis_vault.adapters.walytis.contexts import SCHEMA as CONTEXTS
from walytis_vault.adapters.walytis.contexts import Contexts
from walytis_vault.adapters.walytis.log_rows import (
    BATCH_COLUMNS,
    SCHEMA,
    TAGS_ENCODER,
    BatchRow,
    EventRow,
    batch_row,
    logged_event,
    where_clause,
)
from walytis_vault.adapters.walytis.log_upgrades import retag_revisions
from walytis_vault.adapters.walytis.receipts import Same, find_reply, scrub_plain_digests
from walytis_vault.domain.batch import SignedBatch
from walytis_vault.domain.errors import VaultError
from walytis_vault.domain.events import LoggedEvent
from walytis_vault.domain.ids import BatchId

BLOCK_TO_COME: Final = 2
"""State `on_chain` of a batch that came from a member directly: the block is still the record, and on its way."""


class LogIndex(BlockVerdicts):
    """Storage of the log. Thread-safe as `Database` is; `horizon` is guarded by its own condition."""

    def __init__(self, database: Database) -> None:
        """Open the index and create its tables if they are missing."""
        super().__init__(database)
        self.contexts = Contexts()
        with database.transaction() as connection:
            connection.execute(SCHEMA + CONTEXTS)
        scrub_plain_digests(database)
        retag_revisions(database)
        self._advanced = threading.Condition()
        self._listeners: set[threading.Event] = set()
        self._horizon = 0
        self._last = 0
        """The last position that is committed."""
        self._unmarked: dict[bytes, bytes] = {}
        with database.read() as connection:
            rows: list[Any] = connection.execute("SELECT batch_id, first FROM batches WHERE on_chain = 0").fetchall()
        self._off_chain: dict[bytes, int] = dict(rows)
        """Local batches that have no block yet, with their first position: readers stop before them."""
        self.publish_horizon()

    # -- visibility ---------------------------------------------------------------------------------------------

    @property
    def horizon(self) -> int:
        """The last position that readers may see; 0 when there is none."""
        return self._horizon

    @property
    def last(self) -> int:
        """The last position that was given to an event, whether readers may see it or not."""
        return self._last

    def publish_horizon(self, last: int | None = None) -> int:
        """Let readers see everything up to the first event that is not on the chain yet; wake the waiting.

        Args:
            last: a position that is committed, when the caller knows; else the index looks for the last one.
        """
        if last is None:
            with self.database.read() as connection:
                (last,) = next(connection.execute("SELECT coalesce(max(position), 0) FROM events"))
        with self._advanced:
            self._last = max(self._last, last)
            self._horizon = max(self._horizon, min(self._off_chain.values(), default=self._last + 1) - 1)
            self._advanced.notify_all()
            listeners = tuple(self._listeners)
        for listener in listeners:
            listener.set()
        return self._horizon

    def on_chain(self, batch_id: bytes, block: bytes) -> None:
        """The block of a local batch exists. Written down with the next transaction: after a crash the
        reconciler finds the block again."""
        with self._advanced:
            self._off_chain.pop(batch_id, None)
            self._unmarked[batch_id] = block

    def is_own_block(self, block: bytes) -> bool:
        """Whether the block holds a local batch whose mark is not written yet."""
        with self._advanced:
            return block in self._unmarked.values()

    def flush_marks(self, connection: apsw.Connection) -> list[bytes]:
        """Write the marks down, inside a transaction; give the result to `forget_marks` when it is committed."""
        with self._advanced:
            marks = dict(self._unmarked)
        for batch_id, block in marks.items():
            self.mark_on_chain(connection, batch_id, block)
        self.overdue.flush(connection)
        return list(marks)

    def forget_marks(self, batch_ids: Iterable[bytes]) -> None:
        """These marks are durable."""
        with self._advanced:
            for batch_id in batch_ids:
                self._unmarked.pop(batch_id, None)

    @property
    def has_marks(self) -> bool:
        """Whether marks wait to be written."""
        return bool(self._unmarked)

    def listen(self, event: threading.Event) -> None:
        """Set `event` whenever the horizon may have advanced."""
        with self._advanced:
            self._listeners.add(event)

    def unlisten(self, event: threading.Event) -> None:
        """Stop that."""
        with self._advanced:
            self._listeners.discard(event)

    def wait_beyond(self, position: int, timeout: float | None, stopped: Callable[[], bool] = lambda: False) -> int:
        """Block until the horizon is beyond `position`, `stopped` says so after a `wake`, or `timeout` (s) is over."""
        with self._advanced:
            self._advanced.wait_for(lambda: self._horizon > position or stopped(), timeout)
            return self._horizon

    def wake(self) -> None:
        """Wake everyone who waits for the horizon, so that they look at their stop flags."""
        with self._advanced:
            self._advanced.notify_all()

    # -- reading ------------------------------------------------------------------------------------------------

    def read(self, query: DCBQuery | None, after: int, limit: int, upto: int) -> list[tuple[int, LoggedEvent]]:
        """Return up to `limit` events with after < position <= upto that match the query, in order."""
        where, params = where_clause(query)
        sql = (
            "SELECT e.position, e.topic, e.data, e.tags, e.idx, b.batch_id, b.depth, b.author, b.device, b.number,"
            f" b.time_ms FROM events e JOIN batches b ON b.seq = e.batch WHERE b.void = 0 AND {where}"
            " AND e.position > ? AND e.position <= ? ORDER BY e.position LIMIT ?"
        )
        with self.database.read() as connection:
            rows = connection.execute(sql, (*params, after, upto, limit)).fetchall()
        return [(row[0], logged_event(row)) for row in rows]  # type: ignore[misc]

    def matches(self, connection: apsw.Connection, query: DCBQuery, after: int) -> bool:
        """Whether any event beyond `after` matches, pending ones included. Call inside a transaction."""
        where, params = where_clause(query)
        sql = (
            f"SELECT 1 FROM events e JOIN batches b ON b.seq = e.batch WHERE b.void = 0 AND {where}"
            " AND e.position > ? LIMIT 1"
        )
        return connection.execute(sql, (*params, after)).fetchone() is not None

    def batch(self, connection: apsw.Connection, batch_id: bytes) -> BatchRow | None:
        """Look a batch up by its id."""
        row = connection.execute(
            f"SELECT {BATCH_COLUMNS} FROM batches WHERE batch_id = ?",
            (batch_id,),
        ).fetchone()
        return batch_row(row) if row else None

    def last_batch_of(self, connection: apsw.Connection, device: str) -> BatchRow | None:
        """The batch of a device with the highest number."""
        row = connection.execute(
            f"SELECT {BATCH_COLUMNS} FROM batches WHERE device = ? ORDER BY number DESC, batch_id LIMIT 1",
            (device,),
        ).fetchone()
        return batch_row(row) if row else None

    def pending(self) -> list[tuple[BatchId, bytes]]:
        """(batch id, envelope) of local batches that are not on the chain, oldest first."""
        with self.database.read() as connection:
            rows = connection.execute("SELECT batch_id, envelope FROM batches WHERE on_chain = 0 ORDER BY seq")
            return [(BatchId(bytes(r[0])), bytes(r[1])) for r in rows]

    def without_block(self, most: int = 256) -> tuple[int, list[BatchId]]:
        """How many batches came from members directly and have no block yet, and the ids of the first of them."""
        where = "FROM batches WHERE on_chain = 2"
        with self.database.read() as connection:
            (count,) = next(connection.execute(f"SELECT count(*) {where}"))
            rows = connection.execute(f"SELECT batch_id {where} ORDER BY seq LIMIT ?", (most,)) if count else ()
            return int(count), [BatchId(bytes(row[0])) for row in rows]

    def holds(self, connection: apsw.Connection, batch: SignedBatch) -> bool:
        """Whether exactly these bytes are here, signatures included."""
        sql = "SELECT envelope = ? FROM batches WHERE batch_id = ?"
        row = connection.execute(sql, (batch.envelope(), batch.batch_id)).fetchone()
        return bool(row and row[0])

    def envelope(self, batch_id: bytes) -> bytes | None:
        """A batch as it was received."""
        with self.database.read() as connection:
            row = connection.execute("SELECT envelope FROM batches WHERE batch_id = ?", (batch_id,)).fetchone()
            return bytes(row[0]) if row else None

    def heads(self, connection: apsw.Connection, most: int) -> list[BatchId]:
        """Batches without a known child, deepest first."""
        rows = connection.execute("SELECT batch_id FROM heads ORDER BY depth DESC, batch_id LIMIT ?", (most,))
        return [BatchId(bytes(r[0])) for r in rows]

    def head_blocks(self, connection: apsw.Connection, most: int) -> list[bytes]:
        """Keys of the blocks that hold the heads, deepest first; of the deepest batch with a block if none does."""
        # No join: SQLite would walk all batches and look each up among the few heads.
        block = "(SELECT block FROM batches b WHERE b.batch_id = h.batch_id)"
        sql = f"SELECT h.batch_id, {block} FROM heads h ORDER BY h.depth DESC LIMIT ?"
        rows: list[Any] = connection.execute(sql, (most,)).fetchall()
        if found := [key for batch, block in rows if (key := block or self._unmarked.get(batch))]:
            return found
        sql = "SELECT block FROM batches WHERE block IS NOT NULL ORDER BY depth DESC LIMIT 1"
        return [bytes(row[0]) for row in connection.execute(sql)]

    def kept_reply(self, client: str, request_id: bytes, is_same: Same, now_ms: int) -> bytes | None:
        """The reply that an earlier request with this id got. Raises as `find_reply`."""
        with self.database.read() as connection:
            found = find_reply(connection, client, request_id, is_same, now_ms)
            return found.reply if found else None

    def kept_replies(self, wanted: Sequence[tuple[str, bytes, Same]], now_ms: int) -> list[bytes | VaultError | None]:
        """`kept_reply` for many (client, request id, is same) at once, with errors returned."""
        replies: list[bytes | VaultError | None] = []
        with self.database.read() as connection:
            for client, request_id, is_same in wanted:
                try:
                    found = find_reply(connection, client, request_id, is_same, now_ms)
                    replies.append(found.reply if found else None)
                except VaultError as e:
                    replies.append(e)
        return replies

    def without_event(self, tags: Sequence[str]) -> list[str]:
        """Those of the tags that no event carries, pending ones included."""
        sql = "SELECT value FROM json_each(?) WHERE NOT EXISTS (SELECT 1 FROM tags WHERE tag = value)"
        with self.database.read() as connection:
            return [str(row[0]) for row in connection.execute(sql, (json.dumps(tags),))]

    def payloads(self, topic: str, after: int, upto: int, limit: int) -> list[tuple[int, bytes]]:
        """(position, payload) of up to `limit` events of one type with after < position <= upto, void ones included."""
        sql = "SELECT position, data FROM events WHERE topic = ? AND position > ? AND position <= ? ORDER BY position"
        with self.database.read() as connection:
            return [(int(p), bytes(d)) for p, d in connection.execute(f"{sql} LIMIT ?", (topic, after, upto, limit))]

    def forks(self) -> list[tuple[str, int]]:
        """(device, number) for which more than one batch exists: proofs of a fork."""
        with self.database.read() as connection:
            rows = connection.execute(
                "SELECT device, number FROM batches GROUP BY device, number HAVING count(*) > 1 ORDER BY device, number"
            )
            return [(str(r[0]), int(r[1])) for r in rows]

    # -- writing ------------------------------------------------------------------------------------------------

    def insert_batch(
        self,
        connection: apsw.Connection,
        batch: SignedBatch,
        events: Sequence[EventRow],
        *,
        author: str,
        context: int,
        depth: int,
        membership: bool,
        block: bytes | None,
        direct: bool = False,
    ) -> int:
        """Give the events the next positions; return the first. `block` is None while it is not on the chain.

        Args:
            direct: it came from a member, and its block will come from the chain: readers need not wait for that.
        """
        first: int = 1 + next(connection.execute("SELECT coalesce(max(position), 0) FROM events"))[0]
        body = batch.body
        connection.execute(
            "INSERT INTO batches(batch_id, device, author, key_id, number, depth, context, time_ms, on_chain,"
            " first, count, membership, block, envelope, branch) VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (
                batch.batch_id, body.author, author, body.key_id, body.number, depth, context, body.time_ms,
                BLOCK_TO_COME if direct else int(block is not None), first, len(events), membership, block,
                batch.envelope(), self._branch_for(connection, body.previous, body.number),
            ),
        )  # fmt: skip
        seq = connection.last_insert_rowid()
        connection.executemany(
            "INSERT INTO events VALUES(?,?,?,?,?,?)",
            [(first + i, seq, i, e.topic, e.data, TAGS_ENCODER.encode(e.tags)) for i, e in enumerate(events)],
        )
        connection.executemany(
            "INSERT OR IGNORE INTO tags VALUES(?,?)",
            [(tag, first + i) for i, e in enumerate(events) for tag in e.tags],
        )
        connection.executemany("DELETE FROM heads WHERE batch_id = ?", [(p,) for p in body.parents()])
        connection.execute("INSERT INTO heads VALUES(?,?)", (batch.batch_id, depth))
        if block is None and not direct:
            with self._advanced:
                self._off_chain[batch.batch_id] = first
        return first

    def _branch_for(self, connection: apsw.Connection, previous: bytes, number: int) -> int:
        """The branch that a new batch goes on with, or a new one. See `lineage`."""
        before = self.branch_of(connection, previous) if previous else None
        if before is not None:
            sql = "SELECT 1 FROM batches WHERE branch = ? AND number = ?"
            if connection.execute(sql, (before[0], number)).fetchone() is None:
                return before[0]
        connection.execute("INSERT INTO branches(parent, left) VALUES(?,?)", before or (None, None))
        return connection.last_insert_rowid()

    def branch_of(self, connection: apsw.Connection, batch_id: bytes) -> tuple[int, int] | None:
        """(branch, number) of a batch."""
        row = connection.execute("SELECT branch, number FROM batches WHERE batch_id = ?", (batch_id,)).fetchone()
        return (int(row[0]), int(row[1])) if row else None

    def branch_left(self, connection: apsw.Connection, branch: int) -> tuple[int, int] | None:
        """(branch, number) of the batch behind which a branch begins; None when it begins with a first batch."""
        row = connection.execute("SELECT parent, left FROM branches WHERE branch = ?", (branch,)).fetchone()
        return None if row is None or row[0] is None else (int(row[0]), int(row[1]))

    def take_back(self, batch_id: bytes) -> None:
        """A local batch was rolled back before it was committed."""
        with self._advanced:
            self._off_chain.pop(batch_id, None)

    def mark_on_chain(self, connection: apsw.Connection, batch_id: bytes, block: bytes) -> None:
        """A local batch has its block; the block needs no further verdict."""
        with self._advanced:
            self._off_chain.pop(batch_id, None)
        connection.execute("UPDATE batches SET on_chain = 1, block = ? WHERE batch_id = ?", (block, batch_id))
        self.set_verdict(connection, block, "accepted", None)

    def found_block(self, connection: apsw.Connection, batch_id: bytes, block: bytes) -> None:
        """The block of a batch that came from a member directly has come too."""
        sql = "UPDATE batches SET on_chain = 1, block = ? WHERE batch_id = ? AND on_chain = ?"
        connection.execute(sql, (block, batch_id, BLOCK_TO_COME))
        if connection.changes():
            self.set_verdict(connection, block, "accepted", None)

    def last_numbers(self, devices: Iterable[str]) -> dict[str, int]:
        """Device -> number of its last batch here, for those that have any."""
        sql = "SELECT max(number) FROM batches WHERE device = ?"
        with self.database.read() as connection:
            found = {device: next(connection.execute(sql, (device,)))[0] for device in devices}
        return {device: int(number) for device, number in found.items() if number is not None}

    def envelopes_beyond(self, have: Mapping[str, int], devices: Iterable[str], most: int) -> list[bytes]:
        """Batches with a number beyond `have` (by device; 0 for others), causes first, that readers may see."""
        rows: list[Any] = []
        sql = "SELECT seq, envelope FROM batches WHERE device = ? AND number > ? AND first <= ? ORDER BY number LIMIT ?"
        with self.database.read() as connection:
            for device in devices:
                rows += connection.execute(sql, (device, have.get(device, 0), self._horizon, most)).fetchall()
        return [bytes(envelope) for _, envelope in sorted(rows)[:most]]

    def epoch(self) -> int:
        """Grows whenever events that readers may have seen became void, or count again. Begins at random, so that a
        log that was made anew is told from the old one."""
        with self.database.read() as connection:
            (value,) = next(connection.execute("SELECT value FROM epoch"))
            return int(value)

    def next_epoch(self, connection: apsw.Connection) -> None:
        """See `epoch`."""
        connection.execute("UPDATE epoch SET value = value + 1")
