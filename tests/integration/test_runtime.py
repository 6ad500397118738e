"""The embedded Walytis node on real processes: start, quiet, restart, kill, two nodes that hear each other."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.nodes import WAIT, Nodes, block_file, heard_by, joined, wait_for_block
from walytis_vault.domain.errors import (
    AlreadyRunningError,
    MisuseError,
    TransportError,
    UnknownIdError,
    UntrustedInputError,
)
from walytis_vault.domain.ports import BlockRef


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    """Nodes that do not outlive the test."""
    made = Nodes(tmp_path)
    yield made
    made.kill_all()


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


def test_two_nodes_hear_each_other(nodes: Nodes) -> None:
    """A block appended on one node is heard and read on the other, both ways, and the chains converge."""
    on_a, on_b, a, b = joined(nodes, 0)
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
    on_a, on_b, a, b = joined(nodes, 0, proven=False)
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


def test_who_comes_is_told_what_there_is(nodes: Nodes) -> None:
    """What two nodes made while apart is theirs when they meet, though nobody makes another block or repeats one."""
    on_a, on_b, a, b = joined(nodes, 3, repeats=False)
    b.kill()
    apart = on_a.append(b"while b was away")
    b = nodes.start("b", repeats=False)
    on_b = b.open_chain(on_a.chain_id)
    own = on_b.append(b"while a was not there")
    heard_a, heard_b = heard_by(on_a), heard_by(on_b)
    b.call("connect", address=a.addresses[0])
    wait_for_block(on_b, heard_b, apart)
    wait_for_block(on_a, heard_a, own)
    assert {ref.key for ref in on_a.leaves()} == {ref.key for ref in on_b.leaves()} == {apart.key, own.key}


def test_missed_blocks_come_in_with_the_next(nodes: Nodes) -> None:
    """A node that missed hundreds of blocks gets them all, ancestors first, when it hears of one new block."""
    on_a, on_b, a, b = joined(nodes, 150)
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
