"""Which batches of a device stand before which in its own chain, also when the device signed two under one number.

A device's batches form a tree that is nearly always one line. The index cuts it into branches: a batch goes on with
its predecessor's branch unless another batch did so before. So an answer costs a look-up for each fork in between,
whatever the length. Branch numbers are local; the answers are the same on every node that has the later batch.
"""

from __future__ import annotations

import apsw

from walytis_vault.adapters.walytis.log_index import LogIndex
from walytis_vault.domain.events import LastBatch


class Lineage:
    """Answers inside one transaction."""

    def __init__(self, index: LogIndex, connection: apsw.Connection) -> None:
        self._index = index
        self._connection = connection

    def leads(self, batch_id: bytes, last: LastBatch) -> bool:
        """Whether a batch is `last`, or stands before it in its device's chain. See `domain.removals.Leads`."""
        return self.stands_before(batch_id, last.batch_id)

    def stands_before(self, earlier: bytes, later: bytes) -> bool:
        """Whether `earlier` is `later`, or one of its predecessors in the chain of its device."""
        if earlier == later:
            return True
        below, above = self._index.branch_of(self._connection, earlier), self._index.branch_of(self._connection, later)
        if below is None or above is None:
            return False
        branch, upto = above
        while branch != below[0]:
            left = self._index.branch_left(self._connection, branch)
            if left is None:
                return False
            branch, upto = left
        return below[1] <= upto
