"""Takes blocks in that came from peers: downloads what is named, waits for parents, accepts parents first.

Upstream recurses over missing blocks and keeps them all in memory: 1,500 missed ones jam it with a lock held. Here
blocks that lack ancestors wait in a file, the search for ancestors is a queue, and all of it is bounded, so that
100,000 missed blocks come in, and strangers' inventions cannot fill disk or memory. A block is accepted by
upstream's own rules.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any, Final

import apsw

from walytis_vault.adapters.walytis import block_ids, unixfs, upstream
from walytis_vault.adapters.walytis.block_index import BlockIndex
from walytis_vault.adapters.walytis.fetch import Fetcher
from walytis_vault.adapters.walytis.files import DatabaseLock
from walytis_vault.domain.errors import UntrustedInputError, VaultError
from walytis_vault.domain.faults import fault

WORKERS: Final = 4
FETCH_TIMEOUT: Final = 30.0
"""Seconds for one block; it is asked for again with the next tick."""
MAX_WANTED: Final = 10_000
"""Named blocks that wait to be downloaded; the oldest are dropped, leaves are told again."""
MAX_WAITING: Final = 250_000
"""Blocks that wait for ancestors."""
MAX_WAITING_BYTES: Final = 1 << 30
EVICT: Final = 64
"""Blocks that have waited longest and go, when the waiting room is full, for each that comes."""
MAX_SHORT_ID: Final = 4096
"""Bytes; honest ones have about 450."""
RETRY: Final = 64
"""Missing ancestors that are asked for again with each tick (every 5 s)."""
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS waiting (
    key BLOB PRIMARY KEY, cid TEXT NOT NULL, file BLOB NOT NULL, missing INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS needs (parent BLOB NOT NULL, child BLOB NOT NULL, short BLOB NOT NULL,
    PRIMARY KEY (parent, child)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS needs_child ON needs (child);
"""


class Intake:
    """The intake of one chain. Any thread may call."""

    def __init__(self, chain: Any, index: BlockIndex, fetcher: Fetcher, database: Path) -> None:
        """Open the waiting room; what waited before a restart waits on.

        Args:
            chain: one of upstream's chains.
            index: its index.
            fetcher: gets block files.
            database: the waiting room's file; it can be lost, for everything in it can be fetched again.
        """
        self._chain = chain
        self._index = index
        self._fetcher = fetcher
        self._block_class: Any = importlib.import_module("walytis_beta.block_networking").Block
        self._lock = DatabaseLock("keep blocks that wait for others")
        self._wanted: OrderedDict[bytes, bytes] = OrderedDict()
        self._in_work: set[bytes] = set()
        self._work = threading.Semaphore(0)
        self._workers = 0
        with self._lock:
            self._db = _open(database)
            row = self._db.execute("SELECT count(*), coalesce(sum(length(file)), 0) FROM waiting").fetchone()
        self._count, self._bytes = int(row[0]), int(row[1])

    def waiting(self) -> int:
        """How many blocks wait for ancestors."""
        return self._count

    def want(self, block_id: bytes) -> None:
        """Get a block, and the ancestors that are missing, from peers. Returns at once."""
        short = block_ids.short_of(block_id)
        key = block_ids.key_of_short(short)
        if len(short) > MAX_SHORT_ID:
            return
        with self._lock:
            if key in self._wanted or key in self._in_work or key in self._index or self._waits(key):
                return
            self._wanted[key] = short
            if len(self._wanted) > MAX_WANTED:
                self._wanted.popitem(last=False)
                return
            if self._workers < WORKERS:
                self._workers += 1
                threading.Thread(target=self._run, name="intake", daemon=True).start()
        self._work.release()

    def tick(self) -> None:
        """Ask again for ancestors that did not come, and accept what a kill kept from being accepted."""
        with self._lock:
            rows = self._db.execute(
                "SELECT DISTINCT parent, short FROM needs WHERE parent NOT IN (SELECT key FROM waiting) LIMIT ?",
                (RETRY,),
            ).fetchall()
            ready = self._db.execute("SELECT key FROM waiting WHERE missing <= 0 LIMIT ?", (RETRY,)).fetchall()
        for (key,) in ready:
            if self._accept_one(bytes(key)):
                self._accept_waiting(bytes(key))
        for parent, short in rows:
            if bytes(parent) in self._index:
                self._accept_waiting(bytes(parent))
            else:
                self.want(bytes(short))

    def take_in(self, cid: str, file_data: bytes) -> bool:
        """Take in a block file that came on another way than gossip.

        Args:
            cid: the content id that the block was announced with.
            file_data: the block file, from anybody.
        Returns:
            Whether the block is known from now on; False when it waits for ancestors.
        Raises:
            UntrustedInputError: it is no valid block of this chain.
        """
        block, long_id = self._parse(cid, file_data)
        key = block_ids.key_of(long_id)
        with self._lock:
            if key in self._index:
                return True
            missing = {
                block_ids.key_of_short(parent): parent
                for parent in block_ids.parents_of(long_id)
                if block_ids.key_of_short(parent) not in self._index
            }
            if missing:
                self._stage(key, cid, file_data, missing)
            else:
                self._accept(block)
        if not missing:
            self._accept_waiting(key)
            return True
        for parent in missing.values():
            self.want(parent)
        return False

    def _parse(self, cid: str, file_data: bytes) -> tuple[Any, bytes]:
        """The block in a file from anybody, by upstream's own checks and ours."""
        if unixfs.cid_of(file_data) != block_ids.checked_cid(cid):
            raise UntrustedInputError("the block's file does not have the content id that it was named with")
        block = self._read(cid, file_data)
        try:
            whole = block.check_integrity()
        except Exception as e:  # upstream's checks raise whatever Python raises
            raise UntrustedInputError(f"malformed block: {e}") from e
        long_id = bytes(block.long_id)
        if len(long_id) > block_ids.MAX_LONG_ID:
            raise UntrustedInputError(f"a block whose id has {len(long_id)} bytes: nobody could build on it")
        block_ids.content_of(file_data, long_id)
        if not whole or self._chain.blockchain_id not in block.topics or not block.parents:
            raise UntrustedInputError("not a valid block of this chain")
        return block, long_id

    def _read(self, cid: str, file_data: bytes) -> Any:
        """Upstream's object for a block file."""
        try:
            block = self._block_class.from_filedata(bytearray(file_data), cid)
            block.generate_id()
        except Exception as e:  # upstream's parser raises whatever Python raises
            raise UntrustedInputError(f"malformed block: {e}") from e
        return block

    def _accept(self, block: Any) -> None:
        """What upstream does with a block whose parents are all known. Hold the lock."""
        if self._chain.check_blocks_parents(block.parents) != "confirmed":
            raise UntrustedInputError("the block's parents are not those of a valid block")
        fault("intake.before_accept")
        self._chain.on_block_confirmed(block)

    def _accept_waiting(self, key: bytes) -> None:
        """Accept what waited for a block, and what waited for that, without recursion and lock by lock."""
        arrived = deque([key])
        while arrived:
            parent = arrived.popleft()
            with self._lock:
                rows = self._db.execute("SELECT child FROM needs WHERE parent = ?", (parent,)).fetchall()
                if not rows:
                    continue
                with self._db:
                    self._db.execute("DELETE FROM needs WHERE parent = ?", (parent,))
                    for row in rows:
                        self._db.execute("UPDATE waiting SET missing = missing - 1 WHERE key = ?", row)
            fault("intake.parent_settled")
            arrived.extend(child for (child,) in rows if self._accept_one(bytes(child)))

    def _accept_one(self, key: bytes) -> bool:
        """Accept a waiting block if nothing is missing any more. Whether it is known from now on."""
        with self._lock:
            ready = self._db.execute("SELECT cid, file FROM waiting WHERE key = ? AND missing <= 0", (key,))
            row = ready.fetchone()
            if row is None:
                return False
            try:
                self._accept(self._read(str(row[0]), bytes(row[1])))
                return True
            except UntrustedInputError as e:
                upstream.logger.debug("a waiting block was refused: %s", e)
                return False
            finally:
                self._forget(key, len(row[1]))

    def _stage(self, key: bytes, cid: str, file_data: bytes, missing: dict[bytes, bytes]) -> None:
        if self._waits(key):
            return
        if self._count >= MAX_WAITING or self._bytes + len(file_data) > MAX_WAITING_BYTES:
            self._evict()
        with self._db:
            self._db.execute("INSERT INTO waiting VALUES (?, ?, ?, ?)", (key, cid, file_data, len(missing)))
            for parent, short in missing.items():
                self._db.execute("INSERT OR IGNORE INTO needs VALUES (?, ?, ?)", (parent, key, short))
        self._count += 1
        self._bytes += len(file_data)

    def _forget(self, key: bytes, size: int) -> None:
        self._db.execute("DELETE FROM waiting WHERE key = ?", (key,))
        self._count -= 1
        self._bytes -= size

    def _evict(self) -> None:
        """Make room: what strangers invented never finds its ancestors, and goes first because it waits longest."""
        for key, size in self._db.execute(
            "SELECT key, length(file) FROM waiting ORDER BY rowid LIMIT ?", (EVICT,)
        ).fetchall():
            self._db.execute("DELETE FROM needs WHERE child = ?", (key,))
            self._forget(bytes(key), int(size))

    def _waits(self, key: bytes) -> bool:
        return self._db.execute("SELECT 1 FROM waiting WHERE key = ?", (key,)).fetchone() is not None

    def _run(self) -> None:
        """One worker: downloads, newest named first, because that leads to the ancestors of the leaf."""
        while True:
            self._work.acquire()
            with self._lock:
                if not self._wanted:
                    continue
                key, short = self._wanted.popitem()
                self._in_work.add(key)
            try:
                cid = block_ids.cid_of(short)
                file_data = self._fetcher.fetch(cid, FETCH_TIMEOUT, block_ids.maker_of(short))
                with self._lock:
                    self._in_work.discard(key)
                self.take_in(cid, file_data)
            except VaultError as e:
                upstream.logger.debug("a named block was not taken in: %s", e)
            except Exception as e:  # a worker must outlive whatever a stranger sends
                upstream.logger.warning("taking a block in failed: %s", e)
            finally:
                with self._lock:
                    self._in_work.discard(key)


def _open(database: Path) -> Any:
    """The waiting room; a damaged one is thrown away."""
    for attempt in (1, 2):
        connection: Any = apsw.Connection(str(database))
        try:
            for pragma in ("journal_mode=WAL", "synchronous=OFF", "temp_store=MEMORY", "auto_vacuum=INCREMENTAL"):
                connection.execute(f"PRAGMA {pragma}").fetchall()
            connection.execute(_SCHEMA)
            connection.execute("SELECT 1 FROM waiting, needs LIMIT 1").fetchall()
            return connection
        except apsw.Error:
            connection.close()
            if attempt == 2:
                raise
            for suffix in ("", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    Path(f"{database}{suffix}").unlink()
    raise AssertionError("unreachable")
