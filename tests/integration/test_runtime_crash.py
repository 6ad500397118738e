"""The embedded Walytis node after kills, power cuts and damage: it comes back whole, with everything that was there."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.nodes import WAIT, Nodes, block_file, block_file_exists, heard_by, wait_for_block
from walytis_vault.domain.errors import (
    StorageError,
    TransportError,
)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    """Nodes that do not outlive the test."""
    made = Nodes(tmp_path)
    yield made
    made.kill_all()


def slow(*points: str) -> list[Any]:
    """Fault points of which the default run takes the first."""
    return [points[0], *(pytest.param(point, marks=pytest.mark.long) for point in points[1:])]


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
