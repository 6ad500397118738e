"""Sees to it that every batch gets its block: one that a member sent directly, and that never comes by the chain.

The chain is the record, and the way to those who were not sent the batch. A member that keeps a batch off it (one
side of a fork, told to one node only) would otherwise split the others: what builds on that batch could never be
judged by who lacks it. Anybody may put a signed batch into a block, so whoever has it does, after a while.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

from walytis_vault.adapters.walytis.log_index import BLOCK_TO_COME, LogIndex
from walytis_vault.domain.errors import VaultError
from walytis_vault.domain.ids import BatchId
from walytis_vault.domain.ports import BlockRef, Chain, Clock

LOOK_EVERY_S: Final = 5.0
PATIENCE_S: Final = 15.0
"""How long a block may take before somebody else makes one: this at least, twice this at most, by chance, so that
not all nodes do it at once."""
WHILE_COMING: Final = 8
"""While blocks do come in (a long catch-up), they may take so many times longer (a factor)."""
AT_ONCE: Final = 8
"""Blocks made in one look (a count)."""

RECENT: Final = 8192
"""Batches whose blocks are looked for at start, newest first, at most (a count)."""
ENOUGH: Final = 256
"""When so many in a row have theirs, older ones do too."""

_log = logging.getLogger(__name__)


def note_lost_blocks(index: LogIndex, chain: Chain, device: str) -> int:
    """Mark recent batches whose block this chain does not have any more; return how many.

    A power cut takes blocks of the last seconds, which nobody synced, and leaves what the index says of them. Our own
    batches are to be sent again; for others' the keeper makes a block if the old one does not come back from peers.
    """
    lost, found = [], 0
    with index.database.read() as connection:
        sql = "SELECT batch_id, block, device FROM batches WHERE block IS NOT NULL ORDER BY seq DESC LIMIT ?"
        rows: Iterator[Any] = connection.execute(sql, (RECENT,))
        for batch_id, block, author in rows:
            if chain.find(block) is None:
                lost.append((0 if author == device else BLOCK_TO_COME, batch_id, block))
                found = 0
            elif (found := found + 1) >= ENOUGH:
                break
    if lost:
        with index.database.transaction() as connection:
            connection.executemany(
                "UPDATE batches SET on_chain = ?, block = NULL WHERE batch_id = ?", [row[:2] for row in lost]
            )
            connection.executemany("DELETE FROM blocks WHERE key = ?", [row[2:] for row in lost])
        _log.warning("%d blocks are not on this node's chain any more, as after a power cut", len(lost))
    return len(lost)


class BlockKeeper:
    """One for each log. A thread of its own looks now and then; tests may call `look` themselves."""

    def __init__(
        self,
        index: LogIndex,
        chain: Chain,
        hint: Callable[[BlockRef], None],
        clock: Clock,
        *,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Prepare; `start` runs.

        Args:
            hint: told of each block that was made.
            chance: a number from 0 to below 1.
        """
        self._index, self._chain, self._hint, self._clock, self._chance = index, chain, hint, clock, chance
        self._due: dict[BatchId, float] = {}
        self._left = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="block-keeper", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def close(self, timeout: float = 2.0) -> None:
        """Stop. Bounded."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def look(self) -> int:
        """Make the blocks that are overdue; return how many were made. Raises StorageError, TransportError."""
        left, batches = self._index.without_block()
        coming, self._left = left < self._left, left
        now = self._clock.monotonic()
        self._due = {i: self._due.get(i) or now + self._patience() for i in batches}
        late = now - PATIENCE_S * WHILE_COMING if coming else now
        made = 0
        for batch_id in [i for i, due in self._due.items() if due <= late][:AT_ONCE]:
            self._due[batch_id] = now + self._patience()
            envelope = self._index.envelope(batch_id)
            if envelope is not None:
                self._hint(self._chain.append(envelope))
                made += 1
        return made

    def _patience(self) -> float:
        return PATIENCE_S * (1.0 + self._chance())

    def _run(self) -> None:
        while not self._stop.wait(LOOK_EVERY_S):
            try:
                if made := self.look():
                    _log.info("made blocks for %d batches that came without", made)
            except VaultError as e:
                _log.warning("blocks for batches that came without: %s", e)
