"""A vault of two on a chain in memory, into which a stranger can put any block, for tests of the judge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from support.log_world import Device, founded, note, open_log
from walytis_vault.adapters.walytis.memory_chain import MemoryChain, MemoryNetwork
from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.domain.batch import SignedBatch
from walytis_vault.domain.events import (
    ANY_MEMBER,
    MemberAdmitted,
)
from walytis_vault.domain.ids import BatchId
from walytis_vault.domain.ports import BlockRef


class World:
    """A vault of one on a chain in memory, a second member, and a stranger who can append blocks."""

    def __init__(self, folder: Path, policy: str = ANY_MEMBER) -> None:
        self.network = MemoryNetwork(1, manual=True)
        self.chain: MemoryChain = self.network.replica("a")
        self.founder = Device("founder")
        self.root = founded(self.chain, self.founder, policy)
        self.log: VaultLog = open_log(folder, self.chain, self.founder, self.root)
        self.log.reconciler.catch_up()
        self.second = Device("second")
        self.tip = self.accept(
            self.founder.batch(
                self.vault,
                [MemberAdmitted(member=self.second.member, keys=self.second.keys(self.vault), invitation=b"i" * 32)],
                number=2,
                previous=self.root,
            )
        )

    @property
    def vault(self) -> str:
        """The vault's id."""
        return self.chain.chain_id

    def give(self, content: bytes, parents: Sequence[BlockRef] = ()) -> tuple[str | None, str | None]:
        """A stranger appends a block; returns the verdict on it and the reason."""
        ref = self.network.inject(content, parents=parents)
        self.log.reconciler.catch_up()
        with self.log.index.database.read() as connection:
            row = connection.execute("SELECT verdict, reason FROM blocks WHERE key = ?", (ref.key,)).fetchone()
        return (str(row[0]), None if row[1] is None else str(row[1])) if row else (None, None)

    def accept(self, batch: SignedBatch) -> BatchId:
        """Give a batch that must be accepted; returns its id."""
        assert self.give(batch.envelope()) == ("accepted", None)
        return batch.batch_id

    def next(self, *, number: int = 1, previous: bytes = b"", heads: tuple[bytes, ...] | None = None) -> SignedBatch:
        """An honest batch of the second member."""
        chosen = (self.tip,) if heads is None else heads
        return self.second.batch(self.vault, [note(number)], number=number, previous=previous, heads=chosen)
