"""The chain in memory: what its network can be told to do, and that one seed gives one history."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from walytis_vault.adapters.walytis.memory_chain import MemoryChain, MemoryNetwork
from walytis_vault.domain.errors import NotYetAvailableError, TransportError, UntrustedInputError
from walytis_vault.domain.ports import BlockRef


def trio(seed: int = 1) -> tuple[MemoryNetwork, MemoryChain, MemoryChain, MemoryChain]:
    """A network that only moves when told to, with three replicas."""
    network = MemoryNetwork(seed, manual=True)
    return network, network.replica("a"), network.replica("b"), network.replica("c")


def keys(chain: MemoryChain) -> set[bytes]:
    """The blocks that a replica knows."""
    return {ref.key for ref in chain.blocks()}


def test_nothing_moves_before_it_is_delivered() -> None:
    """A block is on its own replica at once, on the others only after delivery, and then readable there."""
    network, a, b, _ = trio()
    ref = a.append(b"content")
    assert b.find(ref.key) is None
    with pytest.raises(NotYetAvailableError):
        b.read(ref)
    assert network.pending() == 2
    assert network.deliver() == 2
    assert b.read(ref) == b"content"


def test_replicas_share_the_chain() -> None:
    """All replicas have the same id and genesis blocks, and another seed gives another chain."""
    _, a, b, _ = trio()
    assert a.chain_id == b.chain_id
    assert list(a.blocks()) == list(b.blocks())
    assert MemoryNetwork(2, manual=True).chain_id != a.chain_id


def test_a_block_waits_for_its_parents() -> None:
    """A block that arrives before its parent becomes known only with it, parents first."""
    network, a, b, _ = trio()
    first, second = a.append(b"first"), a.append(b"second")
    heard: list[BlockRef] = []
    b.listen(heard.append)
    messages = network._messages
    messages.sort(key=lambda message: message[2].ref.key != second.key)
    network.deliver(2)
    assert b.find(second.key) is None
    network.deliver()
    assert heard == [first, second]


def test_a_partition_lets_nothing_through_until_gossip_after_healing() -> None:
    """Replicas of different groups hear nothing; after healing gossip brings everything, to all alike."""
    network, a, b, c = trio()
    network.partition(["a", "b"], ["c"])
    a.append(b"one side")
    c.append(b"other side")
    network.deliver()
    network.gossip()
    assert keys(a) == keys(b) != keys(c)
    network.heal()
    network.gossip()
    assert keys(a) == keys(b) == keys(c)
    assert len(a.leaves()) == 2
    assert set(a.append(b"merge").parents) >= {leaf.key for leaf in b.leaves()}


def test_lost_messages_come_with_gossip() -> None:
    """With every message lost, gossip alone still brings all blocks."""
    network, a, b, _ = trio()
    network.drop = 1.0
    refs = [a.append(b"%d" % number) for number in range(20)]
    network.deliver()
    assert b.find(refs[0].key) is None
    network.gossip()
    assert keys(b) >= {ref.key for ref in refs}


def test_strangers_can_inject_blocks() -> None:
    """Injected junk shows up as any other block on the replicas named, and is readable: whoever reads must verify."""
    network, a, b, c = trio()
    junk = network.inject(b"junk", to=["a", "b"])
    assert a.read(junk) == b.read(junk) == b"junk"
    assert c.find(junk.key) is None
    sibling = network.inject(b"fork", parents=[next(iter(a.blocks()))])
    assert sibling in a.leaves()


def test_a_damaged_copy_is_noticed() -> None:
    """Reading a corrupted copy is an error of ours, while other replicas read it."""
    network, a, b, _ = trio()
    ref = a.append(b"content")
    network.deliver()
    b.corrupt(ref)
    assert a.read(ref) == b"content"
    with pytest.raises(UntrustedInputError):
        b.read(ref)


def test_a_broken_node_appends_nothing() -> None:
    """When told to fail, an append raises the port's error and leaves no block."""
    _, a, _, _ = trio()
    before = keys(a)
    a.fail_appends = True
    with pytest.raises(TransportError):
        a.append(b"content")
    assert keys(a) == before


Step = tuple[str, int]


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 1000),
    steps=st.lists(
        st.tuples(st.sampled_from(["append", "deliver", "gossip", "partition", "heal", "inject"]), st.integers(0, 5)),
        max_size=40,
    ),
)
def test_any_history_converges_and_repeats(seed: int, steps: list[Step]) -> None:
    """Whatever is lost, repeated, reordered and cut: after healing all replicas are equal; a seed repeats itself."""

    def play() -> list[list[bytes]]:
        network, *chains = trio(seed)
        network.drop, network.repeat, network.reorder = 0.2, 0.2, True
        for action, number in steps:
            if action == "append":
                chains[number % 3].append(b"content %d" % number)
            elif action == "deliver":
                network.deliver(number)
            elif action == "partition":
                network.partition(["a"] if number % 2 else ["a", "b"], ["c"])
            elif action == "inject":
                network.inject(b"junk", to=["abc"[number % 3]])
            else:
                getattr(network, action)()
            for chain in chains:
                known: set[bytes] = set()
                for ref in chain.blocks():
                    assert set(ref.parents) <= known
                    known.add(ref.key)
        network.heal()
        network.gossip()
        assert keys(chains[0]) == keys(chains[1]) == keys(chains[2])
        assert {r.key for r in chains[0].leaves()} == {r.key for r in chains[1].leaves()}
        return [[ref.block_id for ref in chain.blocks()] for chain in chains]

    assert play() == play()
