"""The embedded Walytis node on real processes: start, quiet, restart, kill, two nodes that hear each other."""

from __future__ import annotations

import json
import queue
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from support.walytis_child import RemoteChain, WalytisChild
from walytis_vault.adapters.walytis import block_ids
from walytis_vault.domain.errors import (
    AlreadyRunningError,
    MisuseError,
    StorageError,
    TransportError,
    UnknownIdError,
    UntrustedInputError,
)
from walytis_vault.domain.ports import BlockRef

WAIT = 30.0


class Nodes:
    """Starts nodes, and kills those that still run when the test ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._children: list[WalytisChild] = []

    def start(
        self, name: str, *, mode: str = "loopback", peers: tuple[str, ...] = (), proven: bool = True
    ) -> WalytisChild:
        """Start a node with a home of this name, or start it again."""
        child = WalytisChild(self.folder / name, mode=mode, peers=peers, proven=proven)
        self._children.append(child)
        return child

    def kill_all(self) -> None:
        """End whatever still runs."""
        for child in self._children:
            child.kill()


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    """Nodes that do not outlive the test."""
    made = Nodes(tmp_path)
    yield made
    made.kill_all()


def heard_by(chain: RemoteChain) -> queue.Queue[BlockRef]:
    """The hints of a chain from now on."""
    heard: queue.Queue[BlockRef] = queue.Queue()
    chain.listen(heard.put)
    return heard


def wait_for_block(chain: RemoteChain, heard: queue.Queue[BlockRef], wanted: BlockRef) -> None:
    """Wait until a chain knows a block."""
    while chain.find(wanted.key) is None:
        heard.get(timeout=WAIT)


def block_file(child: WalytisChild, chain: RemoteChain, ref: BlockRef) -> bytes:
    """A block's file on a node."""
    plain = msgspec.to_builtins(ref, builtin_types=(bytes,))
    data: bytes = child.call("block_file", chain=chain.chain_id, ref=plain)
    return data


def test_a_node_leaves_the_callers_files_and_streams_alone(nodes: Nodes) -> None:
    """A node's libraries write nothing to stdout or stderr, and no file outside the vault's home."""
    child = nodes.start("a")
    chain = child.create_chain("quiet")
    chain.append(b"content")
    assert child.stop() == 0
    assert list(child.cwd.iterdir()) == []
    assert list((nodes.folder / "a" / "user").rglob("*")) == []
    assert child.errors.read_text() == ""


def test_loopback_stays_on_loopback(nodes: Nodes) -> None:
    """In loopback mode the node has addresses of 127.0.0.1 only, no bootstrap peers and no discovery."""
    child = nodes.start("a")
    config = json.loads((nodes.folder / "a" / "vault" / "ipfs" / "config").read_text())
    assert child.addresses
    assert all(a.startswith("/ip4/127.0.0.1/tcp/") and a.endswith(f"/p2p/{child.peer_id}") for a in child.addresses)
    assert config["Bootstrap"] == []
    assert config["Discovery"]["MDNS"]["Enabled"] is False
    assert not config["Addresses"]["API"]
    assert not config["Addresses"]["Gateway"]
    assert child.fast_paths


def test_private_things_are_private(nodes: Nodes) -> None:
    """The folders of a home can be entered by their owner only, and the node's key file is readable by no one else."""
    nodes.start("a")
    home = nodes.folder / "a" / "vault"
    for folder in home.iterdir():
        assert folder.stat().st_mode & 0o077 == 0
    assert (home / "ipfs" / "config").stat().st_mode & 0o077 == 0


def test_a_killed_node_comes_back_with_everything(nodes: Nodes) -> None:
    """After SIGKILL the same peer id, port and chain come back, with every appended block, and it goes on."""
    first = nodes.start("a")
    chain = first.create_chain("log")
    refs = [chain.append(b"block %d" % number) for number in range(20)]
    first.kill()
    second = nodes.start("a")
    assert (second.peer_id, second.addresses) == (first.peer_id, first.addresses)
    again = second.open_chain(chain.chain_id)
    assert [again.read(ref) for ref in refs] == [b"block %d" % number for number in range(20)]
    assert again.leaves() == [refs[-1]]
    assert again.append(b"more").parents[0] in {refs[-1].key, next(iter(again.blocks())).key}


def test_a_second_node_on_the_same_home_is_refused(nodes: Nodes) -> None:
    """Two nodes never share a repository: the second gets our error and the first goes on."""
    first = nodes.start("a")
    with pytest.raises(AlreadyRunningError):
        nodes.start("a")
    assert first.create_chain("log").append(b"x")


def test_wrong_calls_get_our_errors(nodes: Nodes) -> None:
    """Unknown chains, names that are taken, dead peers and unknown modes raise our errors, nothing raw."""
    child = nodes.start("a")
    child.create_chain("log")
    with pytest.raises(UnknownIdError):
        child.open_chain("QmNothingOfTheKind")
    with pytest.raises(UnknownIdError):
        child.open_chain("../../etc")
    with pytest.raises(MisuseError):
        child.create_chain("log")
    with pytest.raises(MisuseError):
        child.create_chain("")
    with pytest.raises(TransportError):
        child.call("connect", address="/ip4/127.0.0.1/tcp/9/p2p/12D3KooWHHzSeKaY8xuZVzkLbKFfvNgPPeKhFBGrMbNzbm5akpqu")
    with pytest.raises(MisuseError):
        child.call("start", home=str(nodes.folder / "b"), mode="loopback", peers=[])
    with pytest.raises(MisuseError):
        nodes.start("c", mode="everywhere")


@pytest.mark.long
def test_a_torn_config_is_restored_from_its_good_copy(nodes: Nodes) -> None:
    """A node whose kubo config was cut off in the middle starts with the same identity from the good copy."""
    first = nodes.start("a")
    first.kill()
    config = nodes.folder / "a" / "vault" / "ipfs" / "config"
    config.write_bytes(config.read_bytes()[:700])
    assert nodes.start("a").peer_id == first.peer_id


@pytest.mark.long
def test_a_config_without_good_copy_is_an_error_not_a_new_identity(nodes: Nodes) -> None:
    """When config and copy are both damaged the node says what to do and does not quietly become another peer."""
    nodes.start("a").kill()
    for name in ("config", "config.good"):
        (nodes.folder / "a" / "vault" / "ipfs" / name).write_bytes(b"{")
    with pytest.raises(StorageError, match="backup"):
        nodes.start("a")


def test_torn_chain_files_are_repaired(nodes: Nodes) -> None:
    """A chain whose files were torn by a crash opens with all whole blocks, and damaged block files come back."""
    first = nodes.start("a")
    chain = first.create_chain("log")
    refs = [chain.append(b"block %d" % number) for number in range(5)]
    first.kill()
    folder = nodes.folder / "a" / "vault" / "walytis" / chain.chain_id
    index = sorted((folder / "KnownBlocksIndex").iterdir())[-1]
    index.write_bytes(index.read_bytes() + b"\x05\x10\x00half a record")
    for name in ("Config.json", "Invitations.json"):
        (folder / name).write_bytes(b'{"na')
    block_file = next(
        p for p in (folder / "ReceivedBlocks").rglob("Qm*") if p.is_file() and b"block 3" in p.read_bytes()
    )
    block_file.write_bytes(block_file.read_bytes()[:100])
    again = nodes.start("a").open_chain(chain.chain_id)
    assert [again.read(ref) for ref in refs] == [b"block %d" % number for number in range(5)]
    assert again.leaves() == [refs[-1]]
    assert again.read(again.append(b"more")) == b"more"
    assert block_file.stat().st_size > 100


def test_a_lost_index_is_made_anew(nodes: Nodes) -> None:
    """Our index holds nothing that cannot be read again: after its loss or damage the chain is as before."""
    first = nodes.start("a")
    chain = first.create_chain("log")
    refs = [chain.append(b"block %d" % number) for number in range(5)]
    first.kill()
    indexes = nodes.folder / "a" / "vault" / "walytis-index"
    for path in indexes.glob(f"{chain.chain_id}.db*"):
        path.write_bytes(b"no database")
    again = nodes.start("a")
    assert again.open_chain(chain.chain_id).leaves() == [refs[-1]]
    again.kill()
    shutil.rmtree(indexes)
    assert nodes.start("a").open_chain(chain.chain_id).leaves() == [refs[-1]]


def _joined(
    nodes: Nodes, blocks: int, *, proven: bool = True
) -> tuple[RemoteChain, RemoteChain, WalytisChild, WalytisChild]:
    """Two connected nodes that share a chain, the second by copy of the first's chain folder."""
    a = nodes.start("a")
    chain = a.create_chain("log")
    home = nodes.folder
    target = home / "b" / "vault" / "walytis" / chain.chain_id
    shutil.copytree(home / "a" / "vault" / "walytis" / chain.chain_id, target)
    for number in range(blocks):
        chain.append(b"missed %d" % number)
    b = nodes.start("b", peers=tuple(a.addresses[:1]), proven=proven)
    return chain, b.open_chain(chain.chain_id), a, b


def test_two_nodes_hear_each_other(nodes: Nodes) -> None:
    """A block appended on one node is heard and read on the other, both ways, and the chains converge."""
    on_a, on_b, a, b = _joined(nodes, 0)
    heard_a, heard_b = heard_by(on_a), heard_by(on_b)
    b.call("connect", address=a.addresses[0])
    assert b.call("peers") == [a.peer_id]
    first = on_a.append(b"from a")
    wait_for_block(on_b, heard_b, first)
    assert on_b.read(first) == b"from a"
    second = on_b.append(b"from b")
    wait_for_block(on_a, heard_a, second)
    assert on_a.read(second) == b"from b"
    assert on_a.leaves() == on_b.leaves() == [second]


def test_unknown_versions_run_upstreams_own_code_and_agree_with_ours(nodes: Nodes) -> None:
    """On unproven versions the replacements stay off, and such a node and ours take each other's blocks."""
    on_a, on_b, a, b = _joined(nodes, 0, proven=False)
    assert a.fast_paths
    assert not b.fast_paths
    heard_a, heard_b = heard_by(on_a), heard_by(on_b)
    b.call("connect", address=a.addresses[0])
    for number in range(3):
        ours = on_a.append(b"ours %d" % number)
        wait_for_block(on_b, heard_b, ours)
        assert on_b.read(ours) == b"ours %d" % number
        theirs = on_b.append(b"theirs %d" % number)
        wait_for_block(on_a, heard_a, theirs)
        assert on_a.read(theirs) == b"theirs %d" % number
    assert on_a.leaves() == on_b.leaves() == [theirs]
    assert {ref.block_id for ref in on_a.blocks()} == {ref.block_id for ref in on_b.blocks()}


def test_blocks_that_a_power_cut_tore_are_stored_again(nodes: Nodes) -> None:
    """After a reboot, stored blocks that are not what their names say are dropped, made again, and served to peers."""
    a = nodes.start("a")
    chain = a.create_chain("log")
    refs = [chain.append(b"block %d" % number) for number in range(5)]
    a.kill()
    home = nodes.folder / "a" / "vault"
    state = json.loads((home / "walytis-index" / "state.json").read_text())
    (home / "walytis-index" / "state.json").write_text(json.dumps({**state, "boot": "another"}))
    torn = [p for p in (home / "ipfs" / "blocks").rglob("*.data") if b"block 2" in p.read_bytes()]
    whole = torn[0].read_bytes()
    torn[0].write_bytes(b"")
    again = nodes.start("a")
    on_a = again.open_chain(chain.chain_id)
    assert [on_a.read(ref) for ref in refs] == [b"block %d" % number for number in range(5)]
    deadline = time.monotonic() + WAIT
    while not (torn[0].exists() and torn[0].read_bytes() == whole):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_missed_blocks_come_in_with_the_next(nodes: Nodes) -> None:
    """A node that missed hundreds of blocks gets them all, ancestors first, when it hears of one new block."""
    on_a, on_b, a, b = _joined(nodes, 150)
    heard = heard_by(on_b)
    b.call("connect", address=a.addresses[0])
    seen: list[BlockRef] = []
    last = on_a.append(b"the next")
    while on_b.find(last.key) is None:
        seen.append(heard.get(timeout=WAIT))
    assert on_b.leaves() == [last]
    assert {ref.key for ref in on_a.blocks()} == {ref.key for ref in on_b.blocks()}
    known: set[bytes] = set()
    for ref in on_b.blocks():
        assert set(ref.parents) <= known
        known.add(ref.key)


@pytest.mark.long
def test_a_child_that_ends_answers_nothing_more(nodes: Nodes) -> None:
    """Stopping is bounded: a node under load ends within seconds, and calls on it fail with our error."""
    child = nodes.start("a")
    chain = child.create_chain("log")
    done = threading.Event()

    def keep_busy() -> None:
        try:
            for number in range(10_000):
                chain.append(b"%d" % number)
        except TransportError:
            done.set()

    threading.Thread(target=keep_busy, daemon=True).start()
    assert child.stop() == 0
    assert done.wait(WAIT)


def test_blocks_may_come_in_by_hand_in_any_order(nodes: Nodes) -> None:
    """Block files of one node, given to an unconnected one last first, are all known once the first came."""
    a, b = nodes.start("a"), nodes.start("b")
    chain = a.create_chain("log")
    b.kill()
    target = nodes.folder / "b" / "vault" / "walytis" / chain.chain_id
    shutil.copytree(nodes.folder / "a" / "vault" / "walytis" / chain.chain_id, target)
    refs = [chain.append(b"block %d" % number) for number in range(30)]
    b = nodes.start("b")
    other = b.open_chain(chain.chain_id)
    files = [block_file(a, chain, ref) for ref in refs]
    for ref, data in list(zip(refs, files, strict=True))[:0:-1]:
        assert b.call("take_in", chain=chain.chain_id, block_id=ref.block_id, file_data=data) is False
        assert other.find(ref.key) is None
    forged = files[0][:-1] + bytes([files[0][-1] ^ 1])
    with pytest.raises(UntrustedInputError):
        b.call("take_in", chain=chain.chain_id, block_id=refs[0].block_id, file_data=forged)
    with pytest.raises(UntrustedInputError):
        b.call("take_in", chain=chain.chain_id, block_id=b"junk", file_data=files[0])
    assert b.call("take_in", chain=chain.chain_id, block_id=refs[0].block_id, file_data=files[0]) is True
    assert other.leaves() == [refs[-1]]
    assert [other.read(ref) for ref in refs] == [b"block %d" % number for number in range(30)]
    assert b.call("waiting", chain=chain.chain_id) == 0


def slow(*points: str) -> list[Any]:
    """Fault points of which the default run takes the first."""
    return [points[0], *(pytest.param(point, marks=pytest.mark.long) for point in points[1:])]


@pytest.mark.parametrize("point", slow("intake.parent_settled", "intake.before_accept", "chain.recorded"))
def test_a_kill_while_blocks_come_in_loses_none(nodes: Nodes, point: str) -> None:
    """Killed at any step of accepting, a node has all blocks after the restart, some of them from the waiting room."""
    a, b = nodes.start("a"), nodes.start("b")
    chain = a.create_chain("log")
    b.kill()
    target = nodes.folder / "b" / "vault" / "walytis" / chain.chain_id
    shutil.copytree(nodes.folder / "a" / "vault" / "walytis" / chain.chain_id, target)
    refs = [chain.append(b"block %d" % number) for number in range(10)]
    files = [block_file(a, chain, ref) for ref in refs]
    b = nodes.start("b")
    b.open_chain(chain.chain_id)
    b.call("die_at", point=point, after=3)
    arguments = [{"block_id": r.block_id, "file_data": f} for r, f in zip(refs, files, strict=True)]
    for one in arguments[:0:-1]:
        b.call("take_in", chain=chain.chain_id, **one)
    with pytest.raises(TransportError):
        b.call("take_in", chain=chain.chain_id, **arguments[0])
    again = nodes.start("b")
    other = again.open_chain(chain.chain_id)
    heard = heard_by(other)
    again.call("take_in", chain=chain.chain_id, block_id=refs[0].block_id, file_data=files[0])
    wait_for_block(other, heard, refs[-1])
    assert [other.read(ref) for ref in refs] == [b"block %d" % number for number in range(10)]
    assert other.leaves() == [refs[-1]]


@pytest.mark.parametrize("point", slow("chain.recorded", "chain.stored", "chain.appended", "blocks.before_rename"))
def test_a_kill_inside_an_append_leaves_a_sound_chain(nodes: Nodes, point: str) -> None:
    """Killed at any step of an append, the block is there in full or not at all, and the leaf can be built on."""
    a = nodes.start("a")
    chain = a.create_chain("log")
    first = chain.append(b"first")
    a.call("die_at", point=point, after=1)
    with pytest.raises(TransportError):
        chain.append(b"second")
    again = nodes.start("a").open_chain(chain.chain_id)
    leaf = again.leaves()
    assert len(leaf) == 1
    assert again.read(leaf[0]) in (b"first", b"second")
    assert again.read(first) == b"first"
    third = again.append(b"third")
    assert leaf[0].key in third.parents
    for ref in again.blocks():
        assert block_file_exists(nodes.folder / "a", chain.chain_id, ref)


@pytest.mark.long
def test_a_record_without_a_block_anywhere_is_dropped(nodes: Nodes) -> None:
    """A block that is in the list but in no store, as after a power cut, is dropped, so that nobody builds on it."""
    a = nodes.start("a")
    chain = a.create_chain("log")
    first = chain.append(b"first")
    a.call("die_at", point="chain.recorded", after=1)
    with pytest.raises(TransportError):
        chain.append(b"second")
    for path in (nodes.folder / "a" / "vault" / "ipfs" / "blocks").rglob("*.data"):
        if b"second" in path.read_bytes():
            path.unlink()
    again = nodes.start("a").open_chain(chain.chain_id)
    assert again.leaves() == [first]
    assert first.key in again.append(b"third").parents


def block_file_exists(home: Path, chain_id: str, ref: BlockRef) -> bool:
    """Whether upstream would take the block for known."""
    cid = block_ids.cid_of(ref.block_id)
    return (home / "vault" / "walytis" / chain_id / "ReceivedBlocks" / cid[:4] / cid).exists()
