"""Exact answers about causes, from the log's own graph of batches: `domain.forgetting.History`.

Both answers follow from signed batches alone, so they are the same on every node. Refuses to guess: a batch that
is not in the index was seen by nobody and knows no members.
"""

from __future__ import annotations

import heapq
import threading
from collections import OrderedDict
from typing import Any, Final

import apsw

from walytis_vault.adapters.walytis.judge import Judge
from walytis_vault.adapters.walytis.lineage import Lineage
from walytis_vault.adapters.walytis.log_index import LogIndex
from walytis_vault.domain.batch import decode_batch
from walytis_vault.domain.events import ContentPublished, content_tag
from walytis_vault.domain.forgetting import Order
from walytis_vault.domain.ids import BatchId

ANSWERS_KEPT: Final = 4096
STEPS: Final = 512
"""Batches that are looked at before the whole past is written down."""
CLOCKS_KEPT: Final = 64
BRANCHES_KEPT: Final = 1024


class LogHistory:
    """One for each log. Any thread may ask."""

    def __init__(self, index: LogIndex, judge: Judge) -> None:
        """`judge` folds the members of a context."""
        self._index = index
        self._judge = judge
        self._lock = threading.Lock()
        self._answers: OrderedDict[tuple[bytes, bytes], bool] = OrderedDict()
        self._clocks: OrderedDict[bytes, dict[int, int]] = OrderedDict()

    def knew(self, order: Order, content_id: bytes) -> bool | None:
        """See `domain.forgetting.History.knew`."""
        sql = (
            "SELECT b.depth, b.batch_id, e.idx FROM tags t JOIN events e ON e.position = t.position"
            " JOIN batches b ON b.seq = e.batch WHERE t.tag = ? AND e.topic = ? ORDER BY b.depth, b.batch_id, e.idx"
        )
        with self._index.database.read() as connection:
            rows: list[Any] = connection.execute(sql, (content_tag(content_id), ContentPublished.TOPIC)).fetchall()
        return any(self.saw(order, (depth, bytes(batch_id), index)) for depth, batch_id, index in rows)

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
        place = self._index.branch_of(connection, earlier)
        start = self._index.batch(connection, later)
        if target is None or place is None or start is None:
            return False
        lineage = Lineage(self._index, connection)
        front = [(-start.depth, later)]
        seen = {later}
        while front:
            if len(seen) > STEPS:
                return self._clock(connection, later).get(place[0], 0) >= place[1]
            _, batch_id = heapq.heappop(front)
            found = self._index.batch(connection, batch_id)
            if found is None or found.depth <= target.depth:
                continue
            if found.device == target.device and lineage.stands_before(earlier, batch_id):
                return True  # a device's own chain leads down to it
            for parent in self._parents(connection, batch_id):
                if parent == earlier:
                    return True
                if parent not in seen:
                    seen.add(parent)
                    above = self._index.batch(connection, parent)
                    if above is not None and above.depth > target.depth:
                        heapq.heappush(front, (-above.depth, parent))
        return False

    def _clock(self, connection: apsw.Connection, batch_id: bytes) -> dict[int, int]:
        """How far the past of a batch, itself included, reaches on each branch: branch -> number.

        The first one walks down to the founding batch, later ones down to those that are kept: a device that fell
        silent long ago makes nobody walk through all that came since twice.
        """
        clock: dict[int, int] = {}
        below: dict[int, int] = {}
        """As `clock`, of what the kept ones reach: nothing of it needs to be walked through."""
        front, seen = [batch_id], {batch_id}
        while front:
            now = front.pop()
            place = self._index.branch_of(connection, now)
            if place is None or below.get(place[0], 0) >= place[1]:
                continue
            kept = self._clocks.get(now)
            for branch, number in (kept or {place[0]: place[1]}).items():
                clock[branch] = max(number, clock.get(branch, 0))
                if kept is not None:
                    below[branch] = max(number, below.get(branch, 0))
            if kept is None:
                more = [parent for parent in self._parents(connection, now) if parent not in seen]
                seen.update(more)
                front += more
        if len(clock) <= BRANCHES_KEPT:
            self._clocks[batch_id] = clock
            if len(self._clocks) > CLOCKS_KEPT:
                self._clocks.popitem(last=False)
        return clock

    def _parents(self, connection: apsw.Connection, batch_id: bytes) -> tuple[BatchId, ...]:
        row = connection.execute("SELECT envelope FROM batches WHERE batch_id = ?", (batch_id,)).fetchone()
        assert row is not None
        assert isinstance(row[0], bytes)
        return decode_batch(row[0]).body.parents()
