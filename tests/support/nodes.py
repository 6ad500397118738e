"""Several real Walytis nodes in child processes for one test, and what tests wait for on them."""

from __future__ import annotations

import contextlib
import queue
import shutil
import time
from pathlib import Path

import msgspec

from support.walytis_child import RemoteChain, WalytisChild
from walytis_vault.adapters.walytis import block_ids
from walytis_vault.domain.ports import BlockRef

WAIT = 30.0
"""Seconds for anything that a test waits for."""


class Nodes:
    """Starts nodes, and kills those that still run when the test ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._children: list[WalytisChild] = []

    def start(
        self,
        name: str,
        *,
        mode: str = "loopback",
        peers: tuple[str, ...] = (),
        proven: bool = True,
        repeats: bool = True,
    ) -> WalytisChild:
        """Start a node with a home of this name, or start it again."""
        child = WalytisChild(self.folder / name, mode=mode, peers=peers, proven=proven, repeats=repeats)
        self._children.append(child)
        return child

    def kill_all(self) -> None:
        """End whatever still runs."""
        for child in self._children:
            child.kill()


def heard_by(chain: RemoteChain) -> queue.Queue[BlockRef]:
    """The hints of a chain from now on."""
    heard: queue.Queue[BlockRef] = queue.Queue()
    chain.listen(heard.put)
    return heard


def wait_for_block(chain: RemoteChain, heard: queue.Queue[BlockRef], wanted: BlockRef) -> None:
    """Wait until a chain knows a block; it looks now and then too, since upstream's own code does not tell of each."""
    deadline = time.monotonic() + WAIT
    while chain.find(wanted.key) is None:
        with contextlib.suppress(queue.Empty):
            heard.get(timeout=0.5)
        assert time.monotonic() < deadline, "the block did not come"


def block_file(child: WalytisChild, chain: RemoteChain, ref: BlockRef) -> bytes:
    """A block's file on a node."""
    plain = msgspec.to_builtins(ref, builtin_types=(bytes,))
    data: bytes = child.call("block_file", chain=chain.chain_id, ref=plain)
    return data


def block_file_exists(home: Path, chain_id: str, ref: BlockRef) -> bool:
    """Whether upstream would take the block for known."""
    cid = block_ids.cid_of(ref.block_id)
    return (home / "vault" / "walytis" / chain_id / "ReceivedBlocks" / cid[:4] / cid).exists()


def joined(
    nodes: Nodes, blocks: int, *, proven: bool = True, maker_proven: bool = True, repeats: bool = True
) -> tuple[RemoteChain, RemoteChain, WalytisChild, WalytisChild]:
    """Two connected nodes that share a chain, the second by copy of the first's chain folder.

    Args:
        proven: whether the second uses our fast paths; else upstream's own code.
        maker_proven: the same for the first, which makes the blocks.
        repeats: whether upstream tells the last blocks again after quiet seconds.
    """
    a = nodes.start("a", proven=maker_proven, repeats=repeats)
    chain = a.create_chain("log")
    home = nodes.folder
    target = home / "b" / "vault" / "walytis" / chain.chain_id
    shutil.copytree(home / "a" / "vault" / "walytis" / chain.chain_id, target)
    for number in range(blocks):
        chain.append(b"missed %d" % number)
    b = nodes.start("b", peers=tuple(a.addresses[:1]), proven=proven, repeats=repeats)
    return chain, b.open_chain(chain.chain_id), a, b
