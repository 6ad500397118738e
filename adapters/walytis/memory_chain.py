"""The log chain in memory: several replicas, and a network between them that a test controls.

A full implementation of `domain.ports.Chain` that passes the same contract tests as the real one: blocks have
Walytis's ids and file format, a replica takes a block in only when it has all parents, and leaves are gossiped.
On top a test may drop, repeat, reorder, delay, partition and inject. With `manual=True` nothing moves until the
test calls `deliver` or `gossip`, everything happens in the calling thread, and one seed gives one history.
"""

from __future__ import annotations

import hashlib
import queue
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Set
from datetime import UTC, datetime, timedelta
from typing import Final

from walytis_vault.adapters.walytis import ancestry, block_ids, unixfs
from walytis_vault.adapters.walytis.end_blocks import EndBlocks
from walytis_vault.domain.errors import MisuseError, NotYetAvailableError, TransportError, UntrustedInputError
from walytis_vault.domain.ports import BlockRef

GENESIS_BLOCKS: Final = 5
_EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)
"""Simulated blocks are a millisecond apart, from here on."""
_VERSION: Final = b"\4\1\6\1\x19\1"


class Block:
    """A block as it travels: its long id and its file."""

    __slots__ = ("file_data", "ref")

    def __init__(self, ref: BlockRef, file_data: bytes) -> None:
        self.ref = ref
        self.file_data = file_data


class MemoryNetwork:
    """Replicas of one chain and the messages between them."""

    def __init__(self, seed: int = 0, *, manual: bool = False) -> None:
        """Make an empty network.

        Args:
            seed: decides ids, losses, repeats and orders.
            manual: deliver only on request, in the caller's thread.
        """
        self.random = random.Random(seed)  # noqa: S311 - a simulation, nothing secret
        self.manual = manual
        self.drop = 0.0
        """Chance that a message is lost."""
        self.repeat = 0.0
        """Chance that a message arrives twice."""
        self.reorder = False
        """Whether `deliver` picks messages at random instead of oldest first."""
        self.lock = threading.RLock()
        self._replicas: dict[str, MemoryChain] = {}
        self._groups: dict[str, int] = {}
        self._messages: list[tuple[str, str, Block]] = []
        self._clock = 0
        self._genesis = self._make_genesis()
        self._hints: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        if not manual:
            threading.Thread(target=self._dispatch, name="memory-network", daemon=True).start()

    @property
    def chain_id(self) -> str:
        """The id of the chain that all replicas hold."""
        return block_ids.cid_of(self._genesis[0].ref.block_id)

    def replica(self, name: str) -> MemoryChain:
        """The replica of this name; made, with nothing but the genesis blocks, at the first call."""
        with self.lock:
            if name not in self._replicas:
                self._replicas[name] = MemoryChain(self, name, self._genesis)
            return self._replicas[name]

    def partition(self, *groups: Iterable[str]) -> None:
        """Cut the network: replicas of different groups (and those in none) hear nothing of each other."""
        with self.lock:
            self._groups = {name: number for number, group in enumerate(groups, start=1) for name in group}

    def heal(self) -> None:
        """Undo `partition`. What was missed comes with the next `gossip`."""
        with self.lock:
            self._groups = {}

    def connected(self, a: str, b: str) -> bool:
        """Whether messages pass between two replicas."""
        return self._groups.get(a, 0) == self._groups.get(b, 0)

    def pending(self) -> int:
        """Messages that are on their way."""
        return len(self._messages)

    def deliver(self, count: int | None = None) -> int:
        """Let up to `count` messages (None: all) arrive, or get lost.

        Returns:
            How many were taken off the wire.
        """
        taken = 0
        while count is None or taken < count:
            with self.lock:
                if not self._messages:
                    break
                index = self.random.randrange(len(self._messages)) if self.reorder else 0
                sender, receiver, block = self._messages.pop(index)
                taken += 1
                if self.random.random() < self.drop or not self.connected(sender, receiver):
                    continue
                if self.random.random() < self.repeat:
                    self._messages.append((sender, receiver, block))
                accepted = self._replicas[receiver].take_in(block)
            self._notify(self._replicas[receiver], accepted)
        return taken

    def gossip(self) -> None:
        """Every replica tells its leaves; those who can hear it fetch all ancestors that they lack."""
        for receiver in list(self._replicas.values()):
            with self.lock:
                accepted: list[Block] = []
                for sender in self._replicas.values():
                    if sender is not receiver and self.connected(sender.name, receiver.name):
                        for block in sender.all_blocks():
                            accepted += receiver.take_in(block)
            self._notify(receiver, accepted)

    def inject(self, content: bytes, *, to: Iterable[str] | None = None, parents: Iterable[BlockRef] = ()) -> BlockRef:
        """A stranger who knows the chain id appends a block; it shows up at once on the named replicas (None: all)."""
        with self.lock:
            names = list(self._replicas) if to is None else list(to)
            chosen = list(parents) or self._replicas[names[0]].leaves()
            block = self.make_block(content, [block_ids.short_of(p.block_id) for p in chosen], b"stranger")
            taken = [(self._replicas[name], self._replicas[name].take_in(block)) for name in names]
        for replica, accepted in taken:
            self._notify(replica, accepted)
        return block.ref

    def spread(self, sender: MemoryChain, block: Block) -> None:
        """Send a new block to all others, and tell the sender's own listeners."""
        with self.lock:
            self._messages += [(sender.name, name, block) for name in self._replicas if name != sender.name]
        self._notify(sender, [block])
        if not self.manual:
            self._hints.put(lambda: (self.deliver(), None)[1])

    def make_block(self, content: bytes, parents: list[bytes], creator: bytes) -> Block:
        """Build a block in Walytis's format; parents are short ids."""
        with self.lock:
            self._clock += 1
            clock, salt = self._clock, self.random.randbytes(34)
        parents = sorted(parents)
        hashes = b"".join(block_ids.hash_bytes(parent.split(b"\0\0")[10]) for parent in parents) or salt
        rest = [
            creator,
            block_ids.timestamp_field(_EPOCH + timedelta(milliseconds=clock)),
            b"memory",
            block_ids.to_base255(len(content)),
            b"sha512",
            block_ids.hash_field(hashlib.sha512(content).digest()),
            block_ids.to_base255(len(parents)),
            b"sha512",
            block_ids.hash_field(hashlib.sha512(hashes).digest()),
        ]
        listed = b"\0\0\0".join(parents)
        header = b"\0\0".join([_VERSION, *rest]) + (b"\0\0\0\0" + listed if listed else b"")
        file_data = header + b"\0\0\0\0\0" + content
        cid = unixfs.cid_of(file_data).encode()
        long_id = b"\0\0".join([_VERSION, cid, *rest]) + b"\0\0\0\0" + listed
        return Block(block_ids.ref_of(long_id), file_data)

    def _make_genesis(self) -> list[Block]:
        blocks: list[Block] = []
        for _ in range(GENESIS_BLOCKS):
            shorts = (
                [block_ids.short_of(b.ref.block_id) for b in {0: blocks[0], 1: blocks[-1]}.values()] if blocks else []
            )
            blocks.append(self.make_block(b"genesis" + self.random.randbytes(20), shorts, b"founder"))
        return blocks

    def _notify(self, replica: MemoryChain, blocks: list[Block]) -> None:
        for block in blocks:
            if self.manual:
                replica.call_listeners(block.ref)
            else:
                self._hints.put(lambda ref=block.ref: replica.call_listeners(ref))  # type: ignore[misc]

    def _dispatch(self) -> None:
        while True:
            self._hints.get()()


class MemoryChain:
    """One replica. Any thread may call."""

    def __init__(self, network: MemoryNetwork, name: str, genesis: list[Block]) -> None:
        """For `MemoryNetwork.replica` only."""
        self.name = name
        self._network = network
        self._blocks: dict[bytes, Block] = {block.ref.key: block for block in genesis}
        self._files = {block_ids.cid_of(block.ref.block_id): block for block in genesis}
        self._leaves: dict[bytes, None] = {genesis[-1].ref.key: None}
        self._ends = EndBlocks(self._parents, self._height, self._leaves)
        self._heights: dict[bytes, int] = {}
        self._waiting: dict[bytes, Block] = {}
        self._callbacks: list[Callable[[BlockRef], None]] = []
        self.fail_appends = False
        """Set to make every `append` fail, as on a broken node."""

    @property
    def chain_id(self) -> str:
        """The id of the chain."""
        return self._network.chain_id

    def append(self, content: bytes) -> BlockRef:
        """Create one block on this replica's leaves. See the port."""
        if not content or len(content) > block_ids.MAX_CONTENT:
            raise MisuseError(f"a block holds 1 to {block_ids.MAX_CONTENT} bytes, not {len(content)}")
        with self._network.lock:
            if self.fail_appends:
                raise TransportError("the block could not be created: the node was told to fail")
            chosen = self._ends.chosen()
            parents = dict.fromkeys([*chosen, next(iter(self._blocks))] if len(chosen) < 2 else chosen)
            shorts = [block_ids.short_of(self._blocks[key].ref.block_id) for key in parents]
            block = self._network.make_block(bytes(content), shorts, self.name.encode())
            self._accept(block, own=True)
        self._network.spread(self, block)
        return block.ref

    def build_on(self, keys: Iterable[bytes]) -> None:
        """Let the next blocks stand on these. See the port."""
        self._ends.build_on(keys)

    def read(self, ref: BlockRef, *, timeout: float = 0.0) -> bytes:  # noqa: ARG002
        """Return the content of a block. See the port."""
        with self._network.lock:
            block = self._files.get(block_ids.cid_of(ref.block_id))
        if block is None:
            raise NotYetAvailableError("no peer delivered the block: it is not on this replica")
        return block_ids.content_of(block.file_data, ref.block_id)

    def leaves(self, but: Set[bytes] = frozenset()) -> list[BlockRef]:
        """The blocks that no known block has as parent. See the port."""
        with self._network.lock:
            return [self._blocks[key].ref for key in self._leaves if key not in but]

    def blocks(self) -> Iterator[BlockRef]:
        """Every known block, in order of arrival."""
        with self._network.lock:
            known = list(self._blocks.values())
        return (block.ref for block in known)

    def find(self, key: bytes) -> BlockRef | None:
        """Look up a known block by its key."""
        with self._network.lock:
            block = self._blocks.get(key)
        return block.ref if block else None

    def listen(self, callback: Callable[[BlockRef], None]) -> Callable[[], None]:
        """Call back for each new block."""
        with self._network.lock:
            self._callbacks.append(callback)

        def stop() -> None:
            with self._network.lock:
                if callback in self._callbacks:
                    self._callbacks.remove(callback)

        return stop

    def corrupt(self, ref: BlockRef) -> None:
        """Flip a bit in this replica's copy of a block, as a failing disk would."""
        with self._network.lock:
            block = self._blocks[ref.key]
            self._files[block_ids.cid_of(ref.block_id)] = Block(
                ref, block.file_data[:-1] + bytes([block.file_data[-1] ^ 1])
            )

    def lose(self, ref: BlockRef) -> None:
        """Lose a block that nothing stands on, as a power cut would."""
        with self._network.lock:
            block = self._blocks.pop(ref.key)
            del self._files[block_ids.cid_of(ref.block_id)]
            covered = {parent for other in self._blocks.values() for parent in other.ref.parents}
            self._leaves = {key: None for key in self._blocks if key not in covered}
            self._ends = EndBlocks(self._parents, self._height, self._leaves)
            assert block.ref.key not in covered

    def all_blocks(self) -> list[Block]:
        """What a peer can fetch from here. Hold the network's lock."""
        return list(self._blocks.values())

    def take_in(self, block: Block) -> list[Block]:
        """Take a block in, and what waited for it; those without all parents wait. Hold the network's lock.

        Returns:
            The blocks that are known from now on.
        """
        if block.ref.key in self._blocks:
            return []
        try:
            block_ids.content_of(block.file_data, block.ref.block_id)
        except UntrustedInputError:
            return []
        self._waiting[block.ref.key] = block
        accepted: list[Block] = []
        progress = True
        while progress:
            ready = [b for b in self._waiting.values() if all(p in self._blocks for p in b.ref.parents)]
            for waiting in ready:
                del self._waiting[waiting.ref.key]
                self._accept(waiting)
            accepted += ready
            progress = bool(ready)
        return accepted

    def call_listeners(self, ref: BlockRef) -> None:
        """Hint at a new block."""
        with self._network.lock:
            callbacks = list(self._callbacks)
        for callback in callbacks:
            callback(ref)

    def _accept(self, block: Block, *, own: bool = False) -> None:
        for parent in block.ref.parents:
            self._leaves.pop(parent, None)
        self._blocks[block.ref.key] = block
        self._files[block_ids.cid_of(block.ref.block_id)] = block
        self._leaves[block.ref.key] = None
        self._ends.add(block.ref.key, block.ref.parents, own=own)

    def _parents(self, key: bytes) -> tuple[bytes, ...] | None:
        block = self._blocks.get(key)
        return block.ref.parents if block else None

    def _height(self, key: bytes) -> int | None:
        return ancestry.height_of_block(key, self._parents, self._heights.get, self._heights.__setitem__)
