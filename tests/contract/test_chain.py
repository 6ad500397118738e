"""The contract of `domain.ports.Chain`, held against the chain in memory and against a real Walytis node."""

from __future__ import annotations

import queue
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from support.walytis_child import RemoteChain, WalytisChild
from walytis_vault.adapters.walytis.memory_chain import MemoryNetwork
from walytis_vault.domain.errors import MisuseError, UntrustedInputError, VaultError
from walytis_vault.domain.ports import BlockRef, Chain

NewChain = Callable[[], Chain]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WalytisChild]:
    """One real node for all tests of this module; each test makes a chain of its own on it."""
    child = WalytisChild(Path(tmp_path_factory.mktemp("node")))
    yield child
    child.kill()


@pytest.fixture(params=["memory", "walytis"])
def new_chain(request: pytest.FixtureRequest) -> NewChain:
    """Makes empty chains of one kind."""
    if request.param == "memory":
        return lambda: MemoryNetwork(7).replica("a")
    child: WalytisChild = request.getfixturevalue("node")
    return lambda: child.create_chain(uuid.uuid4().hex)


def test_a_new_chain_has_genesis_blocks_and_a_leaf(new_chain: NewChain) -> None:
    """A chain is never empty: its first block has no parents, and something is a leaf."""
    chain = new_chain()
    blocks = list(chain.blocks())
    assert blocks[0].parents == ()
    assert len(chain.leaves()) == 1
    assert chain.chain_id


def test_an_appended_block_is_there_when_append_returns(new_chain: NewChain) -> None:
    """What was appended can be read, found and listed at once, and is the only leaf."""
    chain = new_chain()
    before = chain.leaves()
    content = bytes(range(256)) * 8
    ref = chain.append(content)
    assert chain.read(ref) == content
    assert chain.find(ref.key) == ref
    assert chain.leaves() == [ref]
    assert chain.leaves({ref.key}) == []
    assert ref in list(chain.blocks())
    assert {leaf.key for leaf in before} <= set(ref.parents)


def test_keys_are_sixteen_bytes_and_parents_can_be_found(new_chain: NewChain) -> None:
    """Every block's key and its parents' keys have 16 bytes, and each parent is a known block."""
    chain = new_chain()
    for number in range(3):
        chain.append(b"content %d" % number)
    for ref in chain.blocks():
        assert len(ref.key) == 16
        assert all(chain.find(parent) is not None for parent in ref.parents)


@pytest.mark.parametrize("content", [b"\0", b"\0\0\0\0\0\0\0\0", b"\0a\0\0", b"x" * ((1 << 20) + (8 << 10))])
def test_any_content_comes_back_as_it_was(new_chain: NewChain, content: bytes) -> None:
    """Zero bytes, which separate fields inside block files, and the largest size do not confuse the chain."""
    chain = new_chain()
    assert chain.read(chain.append(content)) == content


@pytest.mark.parametrize("content", [b"", b"x" * ((1 << 20) + (8 << 10) + 1)])
def test_content_of_a_wrong_size_is_refused(new_chain: NewChain, content: bytes) -> None:
    """Empty and too large contents are refused and leave nothing behind."""
    chain = new_chain()
    before = list(chain.blocks())
    with pytest.raises(MisuseError):
        chain.append(content)
    assert list(chain.blocks()) == before


def test_blocks_come_in_order_of_arrival(new_chain: NewChain) -> None:
    """The walk over all blocks is complete, has no repeats, and here goes oldest first."""
    chain = new_chain()
    genesis = list(chain.blocks())
    made = [chain.append(b"%d" % number) for number in range(5)]
    assert list(chain.blocks()) == genesis + made


def test_an_unknown_key_is_not_found(new_chain: NewChain) -> None:
    """Looking up a key that no block has gives nothing, not an error."""
    assert new_chain().find(bytes(16)) is None


def test_an_id_that_was_tampered_with_does_not_read(new_chain: NewChain) -> None:
    """A reference whose id differs from the stored block in any byte raises our error and gives no content."""
    chain = new_chain()
    ref = chain.append(b"honest")
    fields = ref.block_id.split(b"\0\0", 2)
    after_cid = len(fields[0]) + len(fields[1]) + 4
    for position in [0, *range(after_cid, len(ref.block_id), 41)]:
        forged = bytearray(ref.block_id)
        forged[position] ^= 1
        with pytest.raises(VaultError):
            chain.read(msgspec.structs.replace(ref, block_id=bytes(forged)))


def test_an_id_that_names_a_path_is_refused(new_chain: NewChain) -> None:
    """An id whose content id would climb out of the block folder is refused before any file is touched."""
    chain = new_chain()
    ref = chain.append(b"honest")
    fields = ref.block_id.split(b"\0\0")
    fields[1] = b"../../../../etc/passwd"
    with pytest.raises(VaultError):
        chain.read(msgspec.structs.replace(ref, block_id=b"\0\0".join(fields)))


def test_another_blocks_content_is_not_accepted(new_chain: NewChain) -> None:
    """An id that keeps one block's cid and takes the other fields from another block does not read."""
    chain = new_chain()
    one, two = chain.append(b"one"), chain.append(b"two")
    fields, other = one.block_id.split(b"\0\0"), two.block_id.split(b"\0\0")
    other[1] = fields[1]
    with pytest.raises(UntrustedInputError):
        chain.read(msgspec.structs.replace(two, block_id=b"\0\0".join(other)))


def test_listeners_hear_new_blocks_until_they_stop(new_chain: NewChain) -> None:
    """A listener is called for new blocks, and not after it stopped."""
    chain = new_chain()
    heard: queue.Queue[BlockRef] = queue.Queue()
    stop = chain.listen(heard.put)
    first = chain.append(b"first")
    while heard.get(timeout=20) != first:
        pass
    stop()
    other: queue.Queue[BlockRef] = queue.Queue()
    chain.listen(other.put)
    second = chain.append(b"second")
    while other.get(timeout=20) != second:
        pass
    assert second not in list(heard.queue)


def test_threads_may_append_at_once(new_chain: NewChain) -> None:
    """Blocks appended from several threads all exist and are all reachable from the leaves."""
    from concurrent.futures import ThreadPoolExecutor

    chain = new_chain()
    contents = [b"content %d" % number for number in range(24)]
    if isinstance(chain, RemoteChain):
        refs = chain.append_many(contents, threads=6)
    else:
        with ThreadPoolExecutor(6) as pool:
            refs = list(pool.map(chain.append, contents))
    assert sorted(chain.read(ref) for ref in refs) == sorted(contents)
    reached, front = set(), [leaf.key for leaf in chain.leaves()]
    while front:
        key = front.pop()
        if key not in reached:
            reached.add(key)
            found = chain.find(key)
            assert found is not None
            front += found.parents
    assert {ref.key for ref in refs} <= reached


def test_kubo_names_files_as_we_do(node: WalytisChild) -> None:
    """The real node gives files of all sizes, also around its chunk size, the content ids that we compute."""
    sizes = [0, 1, 10, 127, 128, 255, 256, 5000, 262143, 262144, 262145, 524288, 524289, 1 << 20, (1 << 20) + 9000]
    named = node.call("run", module="support.kubo_actions", function="name_files", arguments={"sizes": sizes})
    assert len(named) == len(sizes)
    assert all(theirs == ours for theirs, ours in named)


def test_invented_blocks_wait_in_bounded_room(node: WalytisChild) -> None:
    """Blocks whose ancestors nobody has fill a bounded room, oldest out first, and the chain goes on."""
    chain = node.create_chain(uuid.uuid4().hex)
    arguments = {"chain_id": chain.chain_id, "count": 300}
    waiting = node.call("run", module="support.kubo_actions", function="invent_blocks", arguments=arguments)
    assert 0 < waiting <= 100
    honest = chain.append(b"honest")
    assert chain.leaves() == [honest]


def test_a_flood_of_siblings_costs_the_chain_nothing(node: WalytisChild) -> None:
    """After a stranger's siblings blocks are made as before, by upstream's rules too, and everything is found."""
    chain = node.create_chain(uuid.uuid4().hex)
    tip = chain.append(b"honest")
    arguments = {"chain_id": chain.chain_id, "count": 300}
    came = node.call("run", module="support.kubo_actions", function="flood", arguments=arguments)
    assert came["judged"] == ["confirmed"] * 3
    assert came["sizes"][0] < 20_000
    assert max(came["sizes"][1:]) < len(tip.block_id) + 100
    assert came["told"]
    assert came["found"]
    assert came["leaves"] == 300 - 32 + 1
    assert came["blocks"] == 5 + 1 + 300 + 3


def test_a_block_that_stands_on_too_many_is_refused(node: WalytisChild) -> None:
    """An id that is longer than anybody reads does not get into the chain."""
    chain = node.create_chain(uuid.uuid4().hex)
    chain.append(b"honest")
    arguments = {"chain_id": chain.chain_id, "count": 240}
    code = node.call("run", module="support.kubo_actions", function="overlong", arguments=arguments)
    assert code == "untrusted-input"
    assert len(chain.leaves()) == 240
