"""The log chain on Walytis: `domain.ports.Chain` over walytis_beta_api's functions.

The chain is an untrusted gossip log (design.md 3.2): what comes out of `read` belongs to its block id, nothing
more is promised. Batches on top are verified by whoever reads. Look-ups go through our own index, so that they
cost the same on a chain of any length.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Set
from pathlib import Path
from typing import Any, Final

from walytis_vault.adapters.walytis import block_ids, unixfs, upstream
from walytis_vault.adapters.walytis.block_index import BlockIndex
from walytis_vault.adapters.walytis.block_store import write_whole
from walytis_vault.adapters.walytis.end_blocks import MOST
from walytis_vault.adapters.walytis.fast_paths import ends_of, index_of, intake_of
from walytis_vault.adapters.walytis.fetch import Fetcher
from walytis_vault.adapters.walytis.files import storage_error
from walytis_vault.domain.errors import (
    MisuseError,
    NotYetAvailableError,
    StorageError,
    TransportError,
    UntrustedInputError,
    VaultError,
)
from walytis_vault.domain.faults import fault
from walytis_vault.domain.ports import BlockRef

TOPICS: Final = ("wv1",)
"""What our blocks are labelled with, for everyone to see; it says nothing about the content."""
FETCH_TIMEOUT: Final = 10.0
"""Seconds that `read` waits for peers."""
MAX_HINTS: Final = 10_000
"""Hints that wait for slow listeners; more are dropped, as the port allows."""


class WalytisChain:
    """One chain of this process's node. Any thread may call."""

    def __init__(self, chain_id: str, *, index_folder: Path, fetcher: Fetcher) -> None:
        """For `WalytisRuntime` only: the chain must be loaded."""
        self._id = chain_id
        self._chain: Any = upstream.core().get_blockchain(chain_id)
        self._fetcher = fetcher
        attached = index_of(self._chain)
        self._follows = attached is None
        """Without the fast paths nobody tells the index of new blocks, so it looks before each answer."""
        self._index = attached or BlockIndex(index_folder / f"{chain_id}.db", Path(self._chain.index_dir))
        self._append_lock = threading.Lock()
        self._listen_lock = threading.Lock()
        self._callbacks: list[Callable[[BlockRef], None]] = []
        self._hints: queue.Queue[bytes | None] = queue.Queue(MAX_HINTS)
        self._dispatcher: threading.Thread | None = None

    @property
    def chain_id(self) -> str:
        """The id of the chain: the IPFS content id of its first block."""
        return self._id

    @property
    def folder(self) -> Path:
        """Where upstream keeps the chain."""
        return Path(self._chain.appdata_dir)

    def append(self, content: bytes) -> BlockRef:
        """Create one block. See the port.

        Raises:
            MisuseError: empty or too large.
            StorageError, TransportError: the block could not be created; nothing exists.
        """
        if not content or len(content) > block_ids.MAX_CONTENT:
            raise MisuseError(f"a block holds 1 to {block_ids.MAX_CONTENT} bytes, not {len(content)}")
        fault("chain.before_append")
        with self._append_lock:
            try:
                if self._follows:  # upstream as it is: it would name every leaf that anybody made
                    with self._chain.endblocks_lock:
                        del self._chain.current_endblocks[:-MOST]
                block = upstream.api().create_block(self._id, bytes(content), list(TOPICS))
            except BaseException as e:
                self._unlock_upstream()
                if isinstance(e, VaultError) or not isinstance(e, Exception):
                    raise
                if isinstance(e, OSError):
                    raise storage_error(e, "create a block") from e
                raise TransportError(f"the block could not be created: {e}") from e
        fault("chain.appended")
        return block_ids.ref_of(bytes(block.long_id))

    def build_on(self, keys: Iterable[bytes]) -> None:
        """Let the next blocks stand on these. See the port."""
        ends = ends_of(self._chain)
        if ends is not None:
            ends.build_on(keys)

    def _unlock_upstream(self) -> None:
        """Upstream leaves its lock held when creating a block fails, and would never create another."""
        lock = self._chain.create_block_lock
        if lock.locked():
            lock.release()

    def read(self, ref: BlockRef, *, timeout: float = FETCH_TIMEOUT) -> bytes:
        """Return the content of a block. See the port.

        Args:
            ref: the block.
            timeout: seconds to wait for peers when the block is not on disk.
        """
        cid = block_ids.cid_of(ref.block_id)
        path = self._block_path(cid)
        try:
            return block_ids.content_of(self._read_file(path, cid), ref.block_id)
        except (FileNotFoundError, StorageError):
            if timeout <= 0:
                raise NotYetAvailableError("the block is not on this node's disk: ask with more patience") from None
        file_data = self._fetcher.fetch(cid, timeout, block_ids.maker_of(ref.block_id))
        content = block_ids.content_of(file_data, ref.block_id)
        if self._known(ref.key):
            try:
                path.parent.mkdir(exist_ok=True)
                write_whole(path, file_data)
            except OSError as e:
                raise storage_error(e, "put a block back in its place") from e
        return content

    def _read_file(self, path: Path, cid: str) -> bytes:
        """A block file that is what its name says. Raises FileNotFoundError, StorageError (damaged)."""
        try:
            if path.stat().st_size > unixfs.MAX_FILE_BYTES:
                raise UntrustedInputError("the block's file is larger than any block may be")
            data = path.read_bytes()
        except FileNotFoundError:
            raise
        except OSError as e:
            raise storage_error(e, f"read {path}") from e
        if unixfs.cid_of(data) != cid:
            raise StorageError(f"{path} is damaged")
        return data

    def _block_path(self, cid: str) -> Path:
        return Path(self._chain.received_blocks_dir) / cid[:4] / cid

    def block_file(self, ref: BlockRef) -> bytes:
        """The whole file of a known block, to hand to a peer that takes it in. See `read` for errors."""
        self.read(ref)
        return self._read_file(self._block_path(block_ids.cid_of(ref.block_id)), block_ids.cid_of(ref.block_id))

    def file_of(self, cid: str) -> bytes | None:
        """The whole file of a known block of this chain by its content id; None when it is not here, or damaged.

        Raises:
            UntrustedInputError: not a content id.
        """
        path = self._block_path(block_ids.checked_cid(cid))
        try:
            return self._read_file(path, cid)
        except (FileNotFoundError, VaultError):
            return None

    def take_in(self, block_id: bytes, file_data: bytes) -> bool:
        """Take in a block that a peer sent on another way than gossip, which is far quicker for many.

        Args:
            block_id: its long or short id.
            file_data: the peer's `block_file`.
        Returns:
            Whether the block is known from now on; False when it waits for ancestors, which are asked for.
        Raises:
            UntrustedInputError: no valid block of this chain.
        """
        intake = intake_of(self._chain)
        if intake is None:
            raise MisuseError("with these versions of Walytis blocks come by gossip only")
        cid = block_ids.cid_of(block_id)
        known = intake.take_in(cid, file_data)
        self._fetcher.keep(file_data)
        return known

    def settle(self) -> None:
        """After a start: accept what a kill kept from being accepted, in the background."""
        intake = intake_of(self._chain)
        if intake is not None and intake.waiting():
            threading.Thread(target=intake.tick, name="settle-chain", daemon=True).start()

    def waiting(self) -> int:
        """How many blocks wait for ancestors that are on their way."""
        intake = intake_of(self._chain)
        return 0 if intake is None else intake.waiting()

    def leaves(self, but: Set[bytes] = frozenset()) -> list[BlockRef]:
        """The blocks that no known block has as parent. See the port."""
        self._look()
        return [ref for long_id in self._index.leaves(but) if (ref := block_ids.readable_ref(long_id))]

    def blocks(self) -> Iterator[BlockRef]:
        """Every known block, oldest index file first."""
        self._look()
        return (ref for long_id in self._index.walk() if (ref := block_ids.readable_ref(long_id)))

    def find(self, key: bytes) -> BlockRef | None:
        """Look up a known block by its key."""
        self._look()
        long_id = self._index.long_id(key)
        return None if long_id is None else block_ids.readable_ref(long_id)

    def _known(self, key: bytes) -> bool:
        self._look()
        return key in self._index

    def _look(self) -> None:
        if self._follows:
            self._index.sync()

    def count(self) -> int:
        """How many blocks are known."""
        self._look()
        return len(self._index)

    def listen(self, callback: Callable[[BlockRef], None]) -> Callable[[], None]:
        """Call back, from one other thread, for each new block. See the port."""
        with self._listen_lock:
            self._callbacks.append(callback)
            if self._dispatcher is None:
                self._dispatcher = threading.Thread(target=self._dispatch, name="chain-hints", daemon=True)
                self._dispatcher.start()
                upstream.events().add_eventhandler(self._on_event)

        def stop() -> None:
            with self._listen_lock:
                if callback in self._callbacks:
                    self._callbacks.remove(callback)

        return stop

    def _on_event(self, message: dict[str, Any], topics: list[str]) -> None:
        """Upstream's announcement inside the process, in the thread that has the new block."""
        if f"{self._id}-NewBlocks" in topics:
            try:
                short = upstream.decode_bytes(message["block_id"])
                self._hints.put_nowait(block_ids.key_of_short(short))
            except (queue.Full, ValueError, KeyError):
                pass

    def _dispatch(self) -> None:
        while (key := self._hints.get()) is not None:
            with self._listen_lock:
                callbacks = list(self._callbacks)
            try:
                ref = self.find(key)
                for callback in callbacks if ref is not None else ():
                    assert ref is not None
                    callback(ref)
            except Exception as e:  # a hint is not worth a thread
                upstream.logger.debug("a listener failed: %s", e)

    def close(self) -> None:
        """Stop the listeners and flush. Idempotent."""
        with self._listen_lock:
            self._callbacks.clear()
            if self._dispatcher is not None:
                upstream.events().remove_eventhandler(self._on_event)
                self._dispatcher = None
                with contextlib.suppress(queue.Full):
                    self._hints.put_nowait(None)
        self._index.flush()
