"""Exact answers about causes, from the log's own graph of batches: `domain.forgetting.History`.

Both answers follow from signed batches alone, so they are the same on every node. Refuses to guess: a batch that
is not in the index was seen by nobody and knows no members.
"""

from __future__ import annotations

import heapq
import threading
from collections import OrderedDict
from typing import Final

import apsw

from walytis_vault.adapters.walytis.judge import Judge
from walytis_vault.adapters.walytis.log_index import LogIndex
from walytis_vault.adapters.walytis.log_rows import BatchRow
from walytis_vault.domain.batch import decode_batch
from walytis_vault.domain.forgetting import Order

ANSWERS_KEPT: Final = 4096


class LogHistory:
    """One for each log. Any thread may ask."""

    def __init__(self, index: LogIndex, judge: Judge) -> None:
        """`judge` folds the members of a context."""
        self._index = index
        self._judge = judge
        self._lock = threading.Lock()
        self._answers: OrderedDict[tuple[bytes, bytes], bool] = OrderedDict()

    def saw(self, later: Order, earlier: Order) -> bool:
        """Whether the author of `later` had seen `earlier` when signing: it stands in the batch's causal past."""
        if later[1] == earlier[1]:
            return later[2] > earlier[2]
        if later[0] <= earlier[0]:
            return False
        key = (later[1], earlier[1])
        with self._lock:
            known = self._answers.get(key)
        if known is None:
            with self._index.database.read() as connection:
                known = self._reaches(connection, later[1], earlier[1])
            # The past of a batch never changes, so an answer is for ever.
            with self._lock:
                self._answers[key] = known
                if len(self._answers) > ANSWERS_KEPT:
                    self._answers.popitem(last=False)
        return known

    def members_at(self, order: Order) -> frozenset[str] | None:
        """The members in the causal past of an event."""
        with self._index.database.read() as connection:
            row = self._index.batch(connection, order[1])
            if row is None:
                return None
            return frozenset(self._judge.membership(connection, row.context).active())

    def _reaches(self, connection: apsw.Connection, later: bytes, earlier: bytes) -> bool:
        """Walk down from `later`, deepest first, as long as `earlier` can still lie below."""
        target = self._index.batch(connection, earlier)
        start = self._index.batch(connection, later)
        if target is None or start is None:
            return False
        front = [(-start.depth, later)]
        seen = {later}
        while front:
            _, batch_id = heapq.heappop(front)
            found = self._index.batch(connection, batch_id)
            if found is None or found.depth <= target.depth:
                continue
            if found.device == target.device and found.number > target.number and not self._forked(connection, target):
                return True  # a device's own chain leads down to it
            row = connection.execute("SELECT envelope FROM batches WHERE batch_id = ?", (batch_id,)).fetchone()
            assert row is not None
            assert isinstance(row[0], bytes)
            for parent in decode_batch(row[0]).body.parents():
                if parent == earlier:
                    return True
                if parent not in seen:
                    seen.add(parent)
                    above = self._index.batch(connection, parent)
                    if above is not None and above.depth > target.depth:
                        heapq.heappush(front, (-above.depth, parent))
        return False

    def _forked(self, connection: apsw.Connection, target: BatchRow) -> bool:
        """Whether the target's device made two batches with one number: then its chain proves nothing.

        Nodes that have not received the fork yet answer by the chain; the walk gives the same answer for them.
        """
        sql = "SELECT 1 FROM batches WHERE device = ? GROUP BY number HAVING count(*) > 1 LIMIT 1"
        return connection.execute(sql, (target.device,)).fetchone() is not None
