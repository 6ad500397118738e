"""Puts judged batches into the index, and keeps the verdict "void" true when membership changes.

Both ways into the log end here: the writer's own batches and the reconciler's received ones.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import apsw

from walytis_vault.adapters.walytis.judge import Accepted, Judge, Waiting
from walytis_vault.adapters.walytis.lineage import Lineage
from walytis_vault.adapters.walytis.log_index import LogIndex
from walytis_vault.domain.batch import SignedBatch
from walytis_vault.domain.errors import UntrustedInputError
from walytis_vault.domain.ids import BatchId, KeyId
from walytis_vault.domain.membership import Membership, fold_membership


class Ledger:
    """One for each vault. Methods that take a connection run inside its transaction."""

    def __init__(self, index: LogIndex, judge: Judge) -> None:
        """`judge` decides; this class records."""
        self.index = index
        self.judge = judge
        self._lock = threading.Lock()
        self._current: Membership | None = None
        self._on_voided: list[Callable[[], None]] = []

    def on_voided(self, callback: Callable[[], None]) -> None:
        """Call back (inside the write transaction: only set a flag) when recorded events became void."""
        self._on_voided.append(callback)

    def current(self) -> Membership:
        """Members and keys, given everything that is known."""
        with self._lock:
            if self._current is None:
                with self.index.database.read() as connection:
                    self._current = self._fold(connection)
            return self._current

    def _fold(self, connection: apsw.Connection) -> Membership:
        leads = Lineage(self.index, connection).leads
        return fold_membership(self.judge.facts(connection), self.judge.root, leads)

    def record(
        self,
        connection: apsw.Connection,
        batch: SignedBatch,
        verdict: Accepted,
        *,
        block: bytes | None,
        direct: bool = False,
    ) -> tuple[int, int]:
        """Insert a batch; return its (first, last) position."""
        body = batch.body
        membership = self._membership(connection)
        first = self.index.insert_batch(
            connection, batch, verdict.events, author=verdict.author, context=verdict.place.context,
            depth=verdict.place.depth, membership=verdict.membership, block=block, direct=direct,
        )  # fmt: skip
        leads = Lineage(self.index, connection).leads
        if verdict.membership:
            self._settle(connection, membership, batch.batch_id)
        elif membership.is_void(KeyId(body.key_id), body.author, batch.batch_id, leads):
            connection.execute("UPDATE batches SET void = 1 WHERE batch_id = ?", (batch.batch_id,))
        return first, first + len(verdict.events) - 1

    def receive(
        self, connection: apsw.Connection, batch: SignedBatch, block: bytes | None
    ) -> Accepted | Waiting | None:
        """Judge and record a batch from the chain, or (without a block) from a member. None when it was here already.

        Raises:
            UntrustedInputError: it is refused; the message says why.
        """
        known = self.index.batch(connection, batch.batch_id)
        if known is not None:
            if not self.index.holds(connection, batch):
                # The id covers the body: with other signatures anybody could pass a copy off as the batch's block.
                raise UntrustedInputError("repeats a batch with another signature")
            if block is not None and not known.on_chain:
                self.index.mark_on_chain(connection, batch.batch_id, block)
            elif block is not None:
                self.index.found_block(connection, batch.batch_id, block)
            return None
        verdict = self.judge.judge(connection, batch)
        if isinstance(verdict, Accepted):
            self.record(connection, batch, verdict, block=block, direct=block is None)
        return verdict

    def _membership(self, connection: apsw.Connection) -> Membership:
        with self._lock:
            if self._current is None:
                self._current = self._fold(connection)
            return self._current

    def _settle(self, connection: apsw.Connection, before: Membership, added: BatchId) -> None:
        """Fold membership again, and correct the void flags of the batches on which it now judges differently."""
        membership = self._fold(connection)
        with self._lock:
            self._current = membership
        leads = Lineage(self.index, connection).leads
        select, rows = "SELECT seq, key_id, device, batch_id, void FROM batches", list[Any]()
        for device in _judged_anew(before, membership):
            rows += connection.execute(f"{select} WHERE device = ?", (device,)).fetchall()
        for batch_id in {added, *(before.spared ^ membership.spared)}:
            rows += connection.execute(f"{select} WHERE batch_id = ?", (batch_id,)).fetchall()
        changed = False
        for seq, key_id, device, batch_id, void in rows:
            now = membership.is_void(KeyId(key_id), device, BatchId(batch_id), leads)
            if now != bool(void):
                connection.execute("UPDATE batches SET void = ? WHERE seq = ?", (now, seq))
                changed = True
        if changed:
            self.index.next_epoch(connection)
            for callback in self._on_voided:
                callback()

    def forget_current(self) -> None:
        """Fold again at the next question: a transaction was rolled back that may have changed membership."""
        self.index.overdue.rolled_back()
        self.judge.forget()
        with self._lock:
            self._current = None


def _judged_anew(before: Membership, now: Membership) -> set[str]:
    """Devices whose keys or cuts differ: all that `Membership.is_void` looks at besides single spared batches."""
    keys = {(before.keys.get(i) or now.keys[i]).device for i in before.keys.keys() ^ now.keys.keys()}
    cuts = {d for d in before.cuts.keys() | now.cuts.keys() if before.cuts.get(d) != now.cuts.get(d)}
    return keys | cuts
