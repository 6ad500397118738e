"""The log chain on Walytis: `domain.ports.Chain` over walytis_beta_api's functions.

The chain is an untrusted gossip log (design.md 3.2): what comes out of `read` belongs to its block id, nothing
more is promised. Batches on top are verified by whoever reads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

from walytis_vault.adapters.walytis import block_ids, upstream
from walytis_vault.domain.errors import MisuseError, NotYetAvailableError, TransportError
from walytis_vault.domain.ports import BlockRef

TOPICS: Final = ("wv1",)
"""What our blocks are labelled with, for everyone to see; it says nothing about the content."""


class WalytisChain:
    """One chain of this process's node. Any thread may call."""

    def __init__(self, chain_id: str) -> None:
        """For `WalytisRuntime` only."""
        self._id = chain_id
        self._listeners: list[Any] = []
        self._append_lock = threading.Lock()

    @property
    def chain_id(self) -> str:
        """The id of the chain: the IPFS content id of its first block."""
        return self._id

    def append(self, content: bytes) -> BlockRef:
        """Create one block. See the port."""
        if not content or len(content) > block_ids.MAX_CONTENT:
            raise MisuseError(f"a block holds 1 to {block_ids.MAX_CONTENT} bytes, not {len(content)}")
        try:
            with self._append_lock:
                block = upstream.api().create_block(self._id, bytes(content), list(TOPICS))
        except Exception as e:
            raise TransportError(f"the block could not be created: {e}") from e
        return block_ids.ref_of(bytes(block.long_id))

    def read(self, ref: BlockRef) -> bytes:
        """Return the content of a block. See the port."""
        block_ids.cid_of(ref.block_id)
        try:
            block = upstream.api().get_block(self._id, bytearray(block_ids.short_of(ref.block_id)))
        except Exception as e:
            raise NotYetAvailableError(f"no peer delivered the block: {e}") from e
        return block_ids.content_of(bytes(block.file_data), ref.block_id)

    def leaves(self) -> list[BlockRef]:
        """The blocks that no known block has as parent."""
        refs = list(self.blocks())
        parents = {parent for ref in refs for parent in ref.parents}
        return [ref for ref in refs if ref.key not in parents]

    def blocks(self) -> Iterator[BlockRef]:
        """Every known block, oldest index file first."""
        for long_id in upstream.api().get_latest_blocks(self._id, None, long_ids=True):
            yield block_ids.ref_of(bytes(long_id))

    def find(self, key: bytes) -> BlockRef | None:
        """Look up a known block by its key."""
        return next((ref for ref in self.blocks() if ref.key == key), None)

    def listen(self, callback: Callable[[BlockRef], None]) -> Callable[[], None]:
        """Call back, from another thread, for each new block."""
        listener = upstream.api().BlocksListener(
            self._id, lambda block: callback(block_ids.ref_of(bytes(block.long_id)))
        )
        self._listeners.append(listener)
        return listener.terminate

    def close(self) -> None:
        """Flush."""
