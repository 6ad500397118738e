"""Which batches stand before which in a device's chain, with forks: asked of the index directly."""

from __future__ import annotations

from pathlib import Path

from support.log_world import Device, founded, note, open_log
from walytis_vault.adapters.walytis.lineage import Lineage
from walytis_vault.adapters.walytis.memory_chain import MemoryNetwork
from walytis_vault.domain.batch import SignedBatch
from walytis_vault.domain.events import MemberAdmitted


def test_only_predecessors_stand_before_a_batch(tmp_path: Path) -> None:
    """Not what came after, not the other side of a fork, nothing of another device, nothing that is unknown."""
    chain = MemoryNetwork(1, manual=True).replica("a")
    ann, bob = Device("ann"), Device("bob")
    root = founded(chain, ann)
    log = open_log(tmp_path, chain, ann, root)
    log.reconciler.catch_up()
    vault = chain.chain_id

    def accept(batch: SignedBatch) -> bytes:
        assert not log.reconciler.accept([batch.envelope()])
        return batch.batch_id

    def says(number: int, previous: bytes, word: int) -> bytes:
        return accept(ann.batch(vault, [note(word)], number=number, previous=previous))

    admission = MemberAdmitted(member=bob.member, keys=bob.keys(vault), invitation=bytes(32))
    two = accept(ann.batch(vault, [admission], number=2, previous=root))
    left, right = says(3, two, 1), says(3, two, 2)
    left_after, right_after = says(4, left, 3), says(4, right, 4)
    right_last = says(5, right_after, 5)
    theirs = accept(bob.batch(vault, [note(6)], number=1, heads=[right_last]))
    before = {
        root: {root},
        two: {root, two},
        left: {root, two, left},
        left_after: {root, two, left, left_after},
        right: {root, two, right},
        right_after: {root, two, right, right_after},
        right_last: {root, two, right, right_after, right_last},
        theirs: {theirs},
    }
    with log.index.database.read() as connection:
        lineage = Lineage(log.index, connection)
        for later, wanted in before.items():
            assert {earlier for earlier in before if lineage.stands_before(earlier, later)} == wanted
            assert not lineage.stands_before(b"?" * 32, later)
            assert not lineage.stands_before(later, b"?" * 32)
    log.close()
