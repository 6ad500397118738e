"""The log of one vault, put together: index, judge, ledger, writer, reconciler, block keeper and recorder.

`found_vault` writes the founding batch, `VaultLog` runs the log of a vault whose founding batch is known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from walytis_vault.adapters.storage.database import Database
from walytis_vault.adapters.walytis.block_keeper import BlockKeeper, note_lost_blocks
from walytis_vault.adapters.walytis.history import LogHistory
from walytis_vault.adapters.walytis.judge import Judge
from walytis_vault.adapters.walytis.ledger import Ledger
from walytis_vault.adapters.walytis.log_index import LogIndex
from walytis_vault.adapters.walytis.reconciler import Reconciler
from walytis_vault.adapters.walytis.recorder import LogRecorder
from walytis_vault.adapters.walytis.writer import LogWriter
from walytis_vault.domain.batch import BATCH_VERSION, BatchBody, EventRecord, seal_batch
from walytis_vault.domain.errors import TimedOutError
from walytis_vault.domain.events import PRODUCT_EVENTS, Event, EventTable, KeyAnnounced, VaultFounded, to_dcb_all
from walytis_vault.domain.ids import BatchId
from walytis_vault.domain.limits import LIMITS, Limits
from walytis_vault.domain.membership import Membership
from walytis_vault.domain.ports import Chain, Clock, Signer, Verifier

BLOCK_WAIT_S: Final = 30.0
"""How long a repeated request waits for the block of what it did before: a crash may have come in between."""


def found_vault(chain: Chain, signer: Signer, founded: VaultFounded, announced: KeyAnnounced, clock: Clock) -> BatchId:
    """Write the founding batch, which the whole log is rooted in; return its id, to be kept and passed on.

    Raises:
        TransportError: the block could not be created.
    """
    events: Sequence[Event] = (founded, announced)
    body = BatchBody(
        version=BATCH_VERSION,
        vault_id=chain.chain_id,
        author=announced.keys.device,
        key_id=signer.key_id,
        number=1,
        previous=b"",
        heads=(),
        time_ms=clock.wall_ms(),
        events=tuple(EventRecord(e.type, e.data) for e in to_dcb_all(events)),
    )
    batch = seal_batch(body, signer)
    chain.append(batch.envelope())
    return batch.batch_id


def not_yet() -> TimedOutError:
    """What is told of an event that is recorded and has no block."""
    return TimedOutError("recorded and not on the chain yet: it will get there; retry with the same request id")


class VaultLog:
    """Runs the log of one vault in this process."""

    def __init__(
        self,
        database: Database,
        chain: Chain,
        signer: Signer,
        verifier: Verifier,
        *,
        device: str,
        root: BatchId,
        clock: Clock,
        table: EventTable = PRODUCT_EVENTS,
        limits: Limits = LIMITS,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Open the index; nothing runs before `start`."""
        self.index = LogIndex(database)
        self.judge = Judge(self.index, verifier, table, chain.chain_id, root)
        self.index.understand(self.judge.understands())
        self.ledger = Ledger(self.index, self.judge)
        self.reconciler = Reconciler(self.ledger, chain, progress=progress)
        self.writer = LogWriter(
            self.ledger,
            chain,
            signer,
            table,
            device=device,
            clock=clock,
            limits=limits,
            local_begin=self.reconciler.local_begin,
            local_block=self.reconciler.local_block,
        )
        self.recorder = LogRecorder(self.index, self.writer, LogHistory(self.index, self.judge))
        self.keeper = BlockKeeper(self.index, chain, self.reconciler.hint, clock)
        self.chain = chain
        self._device = device

    def start(self) -> None:
        """Catch up with the chain, send what a crash kept from it, then follow and serve."""
        note_lost_blocks(self.index, self.chain, self._device)
        self.reconciler.catch_up()
        self.reconciler.build_on_heads()
        self.writer.start()
        self.reconciler.start()
        self.keeper.start()

    def membership(self) -> Membership:
        """Members and keys, given everything that is known."""
        return self.ledger.current()

    def seen(self, position: int) -> int:
        """Wait until readers see an event of ours, that is until its block exists; how far they see then."""
        return self.index.wait_beyond(position - 1, BLOCK_WAIT_S)

    def wait_for(self, position: int) -> None:
        """The same. Raises TimedOutError when they do not."""
        if self.seen(position) < position:
            raise not_yet()

    def close(self) -> None:
        """Stop all threads and close the index. Bounded; nothing acknowledged is lost."""
        self.keeper.close()
        self.reconciler.close()
        self.writer.close()
        self.index.wake()
        self.index.database.close()
