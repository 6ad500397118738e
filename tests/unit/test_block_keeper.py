"""Batches that never come by the chain get their block from somebody who has them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.log_world import Device, founded, note, open_log
from walytis_vault.adapters.crypto.signing import HybridVerifier
from walytis_vault.adapters.walytis.block_keeper import AT_ONCE, PATIENCE_S, WHILE_COMING, BlockKeeper, note_lost_blocks
from walytis_vault.adapters.walytis.log_audit import audit_log
from walytis_vault.adapters.walytis.memory_chain import MemoryChain, MemoryNetwork
from walytis_vault.adapters.walytis.second_log import SecondLog
from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.domain.batch import SignedBatch
from walytis_vault.domain.events import to_dcb


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wall_ms(self) -> int:
        return 0


class World:
    """A log on a chain in memory, with a keeper that the test calls."""

    def __init__(self, folder: Path) -> None:
        self.network = MemoryNetwork(1, manual=True)
        self.chain: MemoryChain = self.network.replica("here")
        self.device = Device("a")
        root = founded(self.chain, self.device)
        self.log: VaultLog = open_log(folder, self.chain, self.device, root)
        self.log.reconciler.catch_up()
        self.clock = Clock()
        self.keeper = BlockKeeper(
            self.log.index, self.chain, self.log.reconciler.hint, self.clock, chance=lambda: 0.0
        )  # fmt: skip
        self._number, self._last = 1, bytes(root)

    def batches(self, count: int) -> list[SignedBatch]:
        """Batches that a member sends directly."""
        made = []
        for _ in range(count):
            self._number += 1
            batch = self.device.batch(
                self.chain.chain_id, [note(self._number)], number=self._number, previous=self._last
            )
            self._last = batch.batch_id
            made.append(batch)
        assert not self.log.reconciler.accept(b.envelope() for b in made)
        return made

    def on_chain(self) -> list[bytes]:
        """The contents of all blocks."""
        return [self.chain.read(ref) for ref in self.chain.blocks()]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.log.close()


def test_a_batch_without_block_gets_one_when_patience_ends(world: World) -> None:
    """Nothing is made before, one block afterwards, and none again once it stands."""
    (batch,) = world.batches(1)
    assert world.keeper.look() == 0
    world.clock.now += PATIENCE_S - 1
    assert world.keeper.look() == 0
    world.clock.now += 2
    assert world.keeper.look() == 1
    assert batch.envelope() in world.on_chain()
    world.log.reconciler.catch_up()
    assert world.log.index.without_block() == (0, [])
    world.clock.now += 10 * PATIENCE_S
    assert world.keeper.look() == 0
    assert world.on_chain().count(batch.envelope()) == 1


def test_while_blocks_come_in_none_are_made(world: World) -> None:
    """A long catch-up makes no blocks that are on their way, unless one is long overdue."""
    batches = world.batches(2 * AT_ONCE)
    assert world.keeper.look() == 0
    world.clock.now += 2 * PATIENCE_S
    world.network.inject(batches[0].envelope(), to=["here"])
    world.log.reconciler.catch_up()
    assert world.keeper.look() == 0
    world.clock.now += WHILE_COMING * PATIENCE_S
    world.network.inject(batches[1].envelope(), to=["here"])
    world.log.reconciler.catch_up()
    assert world.keeper.look() == AT_ONCE
    world.log.reconciler.catch_up()
    assert world.log.index.without_block()[0] == AT_ONCE - 2


def test_an_audit_in_between_finds_no_fault(world: World) -> None:
    """While a batch has no block and others stand on it, in blocks and without, the audit judges all of them."""
    first, second, third = world.batches(3)
    world.network.inject(second.envelope(), to=["here"])
    world.log.reconciler.catch_up()
    assert world.log.index.without_block() == (2, [first.batch_id, third.batch_id])
    with SecondLog(vault_id=world.chain.chain_id, root=world.log.judge.root, verifier=HybridVerifier()) as again:
        report = audit_log(world.log, again)
    assert report.findings == ()
    assert report.batches == 4


def test_an_acknowledged_batch_whose_block_a_power_cut_took_is_sent_again(tmp_path: Path) -> None:
    """The index was synced and the chain was not: the own batches get blocks again, and stay visible meanwhile."""
    network = MemoryNetwork(1, manual=True)
    chain, device = network.replica("here"), Device("a")
    root = founded(chain, device)
    log = open_log(tmp_path / "a", chain, device, root)
    log.start()
    position = max(log.recorder.append([to_dcb(note(number))]) for number in range(5))
    log.close()
    for _ in range(2):
        chain.lose(chain.leaves()[0])
    log = open_log(tmp_path / "a", chain, device, root)
    log.start()
    assert log.index.horizon == position
    assert max(log.recorder.append([to_dcb(note(5))]), position + 1) == position + 1
    contents = [chain.read(ref) for ref in chain.blocks()]
    for envelope in log.index.envelopes_beyond({}, [device.device], 100):
        assert contents.count(envelope) == 1
    log.close()
    late = open_log(tmp_path / "late", chain, Device("b"), root)
    late.reconciler.catch_up()
    assert late.index.horizon == position + 1
    late.close()


def test_a_lost_block_of_somebody_else_is_awaited_and_then_made(world: World) -> None:
    """Others' batches are handed out again; if the old block comes back in time, none is made."""
    other = Device("b")
    (first, second) = world.batches(2)
    refs = [world.chain.append(batch.envelope()) for batch in (first, second)]
    world.log.reconciler.catch_up()
    assert world.log.index.without_block() == (0, [])
    block = world.chain._blocks[refs[1].key]
    world.chain.lose(refs[1])
    assert note_lost_blocks(world.log.index, world.chain, other.device) == 1
    assert world.log.index.without_block() == (1, [second.batch_id])
    with world.network.lock:
        world.chain.take_in(block)
    world.log.reconciler.catch_up()
    assert world.log.index.without_block() == (0, [])
    world.chain.lose(refs[1])
    assert note_lost_blocks(world.log.index, world.chain, other.device) == 1
    world.keeper.look()
    world.clock.now += 2 * PATIENCE_S
    assert world.keeper.look() == 1
    assert world.on_chain().count(second.envelope()) == 1
