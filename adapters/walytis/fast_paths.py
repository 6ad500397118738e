"""Replacements for upstream's slow paths: same blocks, same answers, cost that does not grow with the chain.

Upstream walks every ancestor for each block, re-reads index files byte by byte, and lists all pins (facts.md). They
are replaced only on the versions on which the replacements were proven equal (tests/unit/test_fast_paths*.py);
otherwise upstream stays as it is and `install` says so. What is replaced and why: docs/adr/0002.
"""

from __future__ import annotations

import contextlib
import importlib
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from walytis_vault.adapters.walytis import ancestry, block_ids, gossip, index_files, recovery, unixfs, upstream
from walytis_vault.adapters.walytis.block_index import BlockIndex
from walytis_vault.adapters.walytis.block_store import BlockStore, write_whole
from walytis_vault.adapters.walytis.end_blocks import MOST, EndBlocks
from walytis_vault.adapters.walytis.fetch import Fetcher
from walytis_vault.adapters.walytis.greeting import Greeter
from walytis_vault.adapters.walytis.intake import Intake
from walytis_vault.domain.faults import fault

_INDEX: Final = "_walytis_vault_index"
_INTAKE: Final = "_walytis_vault_intake"
_ENDS: Final = "_walytis_vault_ends"
_ANNOUNCE: Final = "_walytis_vault_announce"


class FastPaths:
    """The replacements, with what they need. One for each process."""

    def __init__(self, index_folder: Path, store: BlockStore | None, fetcher: Fetcher) -> None:
        """Prepare.

        Args:
            index_folder: where the chains' indexes lie.
            store: the short cut into kubo's blockstore; None to go through `AddFile`.
            fetcher: gets blocks from peers.
        """
        self._index_folder = index_folder
        self._store = store
        self._announcements: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
        self._records: Any = importlib.import_module("walytis_beta.block_records")
        self._networking: Any = importlib.import_module("walytis_beta.block_networking")
        self._indexes: dict[str, BlockIndex] = {}
        self._fetcher = fetcher
        self.on_write: Callable[[], None] = lambda: None
        """Called after a block was written."""

    def install(self) -> None:
        """Put the replacements in place, before any chain is loaded."""
        chain: Any = upstream.core().Blockchain
        block: Any = self._networking.Block
        originals = {
            "find_block": chain.find_block,
            "get_cached_block": chain.get_cached_block,
            "cache_block": chain.cache_block,
            "remove_ancestors": chain.remove_ancestors,
            "check_new_block": chain.check_new_block,
            "update_endblocks": chain.update_endblocks,
            "load_block_records": chain.load_block_records,
        }
        fast = self

        def load_block_records(self: Any, ensure_ipfs_pinned: bool = True) -> None:
            self.load_block_records_index()
            fast.attach(self)
            self.block_record_initialised.set()
            if ensure_ipfs_pinned:
                threading.Thread(target=fast.store_missing, args=(self,), name="store-missing", daemon=True).start()

        def find_block(self: Any, short_id: Any) -> Any:
            index = index_of(self)
            if index is None:
                return originals["find_block"](self, short_id)
            short = block_ids.short_of(short_id)
            if not short:
                raise self_module.InvalidBlockIdError()
            long_id = index.long_id(block_ids.key_of_short(short))
            if long_id is None and index.sync():
                long_id = index.long_id(block_ids.key_of_short(short))
            if long_id is None:
                # What upstream's own look-up raises for a block that it does not have.
                raise TypeError("BUG: index_file_reader didn't return a bytearray, but <class 'NoneType'>")
            return bytearray(long_id)

        def get_cached_block(self: Any, short_id: Any) -> Any:
            index = index_of(self)
            if index is None:
                return originals["get_cached_block"](self, short_id)
            long_id = index.long_id(block_ids.key_of(short_id))
            return None if long_id is None else bytearray(long_id)

        def cache_block(self: Any, long_id: Any) -> None:
            if index_of(self) is None:
                originals["cache_block"](self, long_id)

        def remove_ancestors(self: Any, blocks: Any, short_ids: bool = True) -> Any:
            index = index_of(self)
            if index is None:
                return originals["remove_ancestors"](self, blocks, short_ids)
            long_ids = [given.long_id if isinstance(given, block_base) else find_block(self, given) for given in blocks]
            keys = [block_ids.key_of(long_id) for long_id in long_ids]
            kept = ancestry.indices_without_ancestors(keys, _parents_in(index, keys, long_ids), index.height)
            if short_ids:
                return [bytearray(block_ids.short_of(long_ids[at])) for at in kept]
            return [bytearray(long_ids[at]) for at in kept]

        def current_endblocks(self: Any) -> list[bytearray]:
            ends, index = ends_of(self), index_of(self)
            if ends is None or index is None:
                plain: list[bytearray] = self.__dict__.setdefault("current_endblocks", [])
                return plain
            return [bytearray(long_id) for key in ends.chosen() if (long_id := index.long_id(key))]

        def set_current_endblocks(self: Any, long_ids: list[bytearray]) -> None:
            self.__dict__["current_endblocks"] = long_ids

        def update_endblocks(self: Any, long_id: Any) -> None:
            if ends_of(self) is None:  # else `record` has told them
                originals["update_endblocks"](self, long_id)

        def check_new_block(self: Any, new: Any) -> bool:
            self.check_alive()
            self.block_record_initialised.wait()
            if index_of(self) is None:
                return bool(originals["check_new_block"](self, new))
            return fast.record(self, new)

        def publish_and_generate_id(self: Any, blockchain_id: str, skip_pubsub: bool = False) -> None:
            if skip_pubsub or fast._store is None or not self.creator_id or not self._content_hash:
                original_publish(self, blockchain_id, skip_pubsub)
                return
            running = upstream.core().get_blockchain(blockchain_id)
            file_data = bytes(self.file_data)
            if running is None or len(file_data) > unixfs.MAX_FILE_BYTES:
                original_publish(self, blockchain_id, skip_pubsub)
                return
            nodes = unixfs.nodes_of(file_data)
            if running.is_block_cid_known(unixfs.text_of(nodes[-1].multihash)):
                raise fast._networking.IpfsCidExistsError()
            self._ipfs_cid = fast._store.put_nodes(nodes)
            fault("chain.stored")
            self.generate_id()
            setattr(self, _ANNOUNCE, blockchain_id)

        def blocks_finder_tick(self: Any) -> bool:
            intake = intake_of(self)
            if intake is not None and not self._terminate:
                intake.tick()
            return bool(self._terminate)

        def datafile_path(self: Any, ipfs_cid: str) -> str:
            return str(original_path(self, block_ids.checked_cid(ipfs_cid)))

        def save_invitations(self: Any) -> None:
            with self.config_lock:
                recovery.save_json(Path(self.invitations_path), self.invitations, fast._index_folder)

        def save_config(self: Any, already_locked: bool = False) -> None:
            with contextlib.nullcontext() if already_locked else self.config_lock:
                recovery.save_json(Path(self.config_path), {"name": self.name}, fast._index_folder)

        chain.save_invitations = save_invitations
        chain.save_config = save_config
        self_module = self._records
        original_path = chain.get_block_datafile_path_from_cid
        chain.get_block_datafile_path_from_cid = datafile_path
        chain._blocks_finder_tick = blocks_finder_tick
        gossip.install(want)
        block_base = importlib.import_module("walytis_beta_tools.block_model").Block
        original_publish = block.publish_and_generate_id
        chain.load_block_records = load_block_records
        chain.find_block = find_block
        chain.get_cached_block = get_cached_block
        chain.cache_block = cache_block
        chain.remove_ancestors = remove_ancestors
        chain.check_new_block = check_new_block
        chain.current_endblocks = property(current_endblocks, set_current_endblocks)
        chain.update_endblocks = update_endblocks
        block.publish_and_generate_id = publish_and_generate_id
        threading.Thread(target=self._announce, name="announce-blocks", daemon=True).start()
        Greeter(gossip.waited_for, upstream.node().pubsub.list_peers, self._tell_leaves).start()

    def attach(self, chain: Any) -> BlockIndex:
        """Give a chain of upstream its index."""
        index = BlockIndex(self._index_folder / f"{chain.blockchain_id}.db", Path(chain.index_dir))
        chain.__dict__[_INDEX] = index
        chain.__dict__[_ENDS] = EndBlocks(index.parents, index.height, index.leaf_keys(MOST))
        self._indexes[chain.blockchain_id] = index
        waiting_room = self._index_folder / f"{chain.blockchain_id}.waiting.db"
        chain.__dict__[_INTAKE] = Intake(chain, index, self._fetcher, waiting_room)
        return index

    def record(self, chain: Any, block: Any) -> bool:
        """Upstream's `check_new_block`: note a new block in index and block folder. Whether it was known."""
        long_id = bytes(block.long_id)
        path = Path(chain.get_block_datafile_path(long_id))
        if path.exists():
            return True
        index = index_of(chain)
        assert index is not None
        name = chain.which_file(bytearray(block_ids.short_of(long_id)))
        with chain.index_lock:
            offset = index_files.append(Path(chain.index_dir) / name, long_id)
            fault("chain.recorded")
            index.add(long_id, name, offset, stored=True)
            if chain.number_of_known_ids is not None:
                chain.number_of_known_ids += 1
            chain.current_file_length += 1
            if chain.current_file_length >= chain.max_num_blocks_per_file:
                chain.create_new_index_file()
        path.parent.mkdir(exist_ok=True)
        # As upstream has it, the block counts as known only from here on.
        write_whole(path, bytes(block.file_data))
        self.on_write()
        announce = getattr(block, _ANNOUNCE, None)
        key = block_ids.key_of(long_id)
        ends = ends_of(chain)
        assert ends is not None
        ends.add(key, index.parents(key) or (), own=announce is not None, is_leaf=index.is_leaf(key))
        if announce is not None:
            self._announcements.put((announce, long_id))
        return False

    def store_missing(self, chain: Any) -> None:
        """Give IPFS the blocks that came with a zip or before a crash. Slow and low in memory."""
        index = index_of(chain)
        while index is not None and self._store is not None and (long_ids := index.not_stored(200)):
            for long_id in long_ids:
                path = Path(chain.get_block_datafile_path(long_id))
                try:
                    file_data = path.read_bytes()
                    block_ids.content_of(file_data, long_id)
                    if not self._store.has(file_data):
                        self._store.put(file_data)
                except Exception as e:  # a damaged file is found, and fetched again, when somebody reads the block
                    upstream.logger.debug("block not stored: %s", e)
                index.set_stored(block_ids.key_of(long_id))

    def flush(self) -> None:
        """Write the indexes out."""
        for index in list(self._indexes.values()):
            index.flush()

    def _announce(self) -> None:
        """Tell peers of new blocks, in order."""
        while True:
            topic, long_id = self._announcements.get()
            text = upstream.encode_bytes(long_id)
            try:
                self._tell(topic, {"message": "New block!", "block_id": text}, [text])
            except Exception as e:  # peers hear of it with the next leaves
                upstream.logger.debug("block not announced: %s", e)

    def _tell_leaves(self, topic: str) -> None:
        """Tell peers of the last blocks."""
        running = upstream.core().get_blockchain(topic)
        texts, room = [], gossip.MAX_MESSAGE // 2
        for long_id in [] if running is None else reversed(running.current_endblocks):
            text = upstream.encode_bytes(bytes(long_id))
            room -= len(text)
            if room >= 0:
                texts.append(text)
        if texts:
            self._tell(topic, {"message": "Leaf blocks:", "leaf_blocks": texts}, texts)

    def _tell(self, topic: str, message: dict[str, Any], told: list[str]) -> None:
        running = upstream.core().get_blockchain(topic)
        if running is not None:
            running.update_shared_leaf_blocks(told)
        upstream.node().pubsub.publish(topic, msgspec.json.encode(message))


def index_of(chain: Any) -> BlockIndex | None:
    """Our index of one of upstream's chains; None before it has any."""
    index: BlockIndex | None = chain.__dict__.get(_INDEX)
    return index


def ends_of(chain: Any) -> EndBlocks | None:
    """The end blocks of one of upstream's chains; None before it has an index."""
    ends: EndBlocks | None = chain.__dict__.get(_ENDS)
    return ends


def intake_of(chain: Any) -> Intake | None:
    """Our intake of one of upstream's chains; None before it has any."""
    intake: Intake | None = chain.__dict__.get(_INTAKE)
    return intake


def want(chain: Any, block_id: bytes) -> None:
    """Get a block that a peer named."""
    intake = intake_of(chain)
    if intake is not None:
        intake.want(block_id)


def _parents_in(index: BlockIndex, keys: list[bytes], long_ids: list[Any]) -> ancestry.ParentsOf:
    """Look parents up, also those of given blocks that are not recorded yet."""
    given = dict(zip(keys, long_ids, strict=True))

    def parents_of(key: bytes) -> tuple[bytes, ...] | None:
        known = index.parents(key)
        if known is None and key in given:
            return block_ids.ref_of(bytes(given[key])).parents
        return known

    return parents_of
