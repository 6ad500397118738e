"""Our index over a chain's index files: key -> place, height, whether it is a leaf. On disk, rebuilt at will.

For each block one SQLite row of about 45 bytes; in memory only SQLite's page cache and the last few thousand
blocks, however long the chain is. It follows the index files, which upstream writes: whatever is in them and not
yet here is found by reading their tails. Losing it costs a rebuild, never a block. See docs/adr/0002.
"""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any, Final, NamedTuple

import apsw

from walytis_vault.adapters.walytis import ancestry, index_files
from walytis_vault.adapters.walytis.block_ids import key_of_short, parents_of, short_of
from walytis_vault.adapters.walytis.files import DatabaseLock
from walytis_vault.domain.errors import StorageError, UntrustedInputError

SCHEMA_VERSION: Final = 1
HOT_BLOCKS: Final = 4096
"""Blocks that are kept in memory, about 1.5 kB each."""
COMMIT_EVERY: Final = 512
"""Rows. What a crash loses is read again from the index files' tails."""
_SCHEMA: Final = """
CREATE TABLE files (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, seen INTEGER NOT NULL);
CREATE TABLE blocks (
    key BLOB PRIMARY KEY, file INTEGER NOT NULL, place INTEGER NOT NULL, size INTEGER NOT NULL,
    height INTEGER, stored INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE leaves (key BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE orphaned (parent BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE INDEX not_stored ON blocks (stored) WHERE stored = 0;
"""


class _Hot(NamedTuple):
    long_id: bytes
    parents: tuple[bytes, ...]


class BlockIndex:
    """The index of one chain. One process owns it; any thread may call."""

    def __init__(self, database: Path, folder: Path) -> None:
        """Open or make the index, and read what the index files have that it has not.

        Args:
            database: the SQLite file; remade when damaged.
            folder: upstream's folder of index files.
        """
        self._path = database
        self._folder = folder
        self._lock = DatabaseLock("read or write the index of blocks")
        self._hot: OrderedDict[bytes, _Hot] = OrderedDict()
        self._heights: OrderedDict[bytes, int] = OrderedDict()
        self._unsaved = 0
        self._unsaved_files: set[str] = set()
        try:
            self._open()
            self.sync()
        except (apsw.Error, StorageError, UntrustedInputError):
            with self._lock:
                self._remake()
                self.sync()

    def __len__(self) -> int:
        with self._lock:
            row = self._db.execute("SELECT count(*) FROM blocks").fetchone()
            return int(row[0]) if row else 0

    def __contains__(self, key: bytes) -> bool:
        with self._lock:
            return key in self._hot or self._row(key) is not None

    def add(self, long_id: bytes, file_name: str, offset: int, *, stored: bool) -> None:
        """Note a record that was just appended to an index file.

        Args:
            long_id: the block.
            file_name: the index file.
            offset: where the record (not the id) starts in it.
            stored: whether IPFS has the block; `not_stored` lists the others.
        """
        with self._lock:
            number, seen = self._file(file_name)
            if offset != seen:
                self.sync(file_name)  # others wrote in between
                if self._file(file_name)[1] > offset:
                    self._set_stored(key_of_short(short_of(long_id)), stored)
                    return
            prefix = len(index_files.encode(long_id)) - len(long_id) - len(index_files.END)
            self._insert(long_id, number, offset + prefix, stored)
            self._saw(number, offset + prefix + len(long_id) + len(index_files.END))
            self._save_sometimes()

    def sync(self, file_name: str | None = None) -> list[bytes]:
        """Read the tails of the index files (or of one).

        Returns:
            Keys of the blocks that were new.
        """
        found: list[bytes] = []
        with self._lock:
            for name in [file_name] if file_name else index_files.names(self._folder):
                number, seen = self._file(name)
                size = self._size(name)
                if size < seen:
                    raise StorageError(f"{name} became shorter: the index must be made anew")
                if size == seen:
                    continue
                for record in index_files.records(self._folder / name, seen):
                    if self._insert(record.long_id, number, record.offset, stored=False):
                        found.append(key_of_short(short_of(record.long_id)))
                    self._saw(number, record.end)
                    self._save_sometimes()
            self._commit()
        return found

    def long_id(self, key: bytes) -> bytes | None:
        """The long id of a known block."""
        hot = self._entry(key)
        return hot.long_id if hot else None

    def parents(self, key: bytes) -> tuple[bytes, ...] | None:
        """Keys of a known block's parents."""
        hot = self._entry(key)
        return hot.parents if hot else None

    def height(self, key: bytes) -> int | None:
        """Height of a block; None when it, or any of its ancestors, is unknown."""
        with self._lock:
            return ancestry.height_of_block(key, self.parents, self._known_height, self._remember_height)

    def leaves(self, but: Set[bytes] = frozenset()) -> list[bytes]:
        """Long ids of the blocks that no known block has as parent, but those with these keys."""
        with self._lock:
            keys = [row[0] for row in self._db.execute("SELECT key FROM leaves").fetchall()]
            return [entry.long_id for key in keys if key not in but and (entry := self._entry(key))]

    def leaf_keys(self, most: int) -> list[bytes]:
        """Keys of up to `most` of them."""
        with self._lock:
            return [bytes(row[0]) for row in self._db.execute("SELECT key FROM leaves LIMIT ?", (most,)).fetchall()]

    def is_leaf(self, key: bytes) -> bool:
        """Whether a block is one of them."""
        with self._lock:
            return self._db.execute("SELECT 1 FROM leaves WHERE key = ?", (key,)).fetchone() is not None

    def walk(self) -> Iterator[bytes]:
        """Long ids of all blocks, oldest index file first. Blocks that come meanwhile may be left out."""
        for name in index_files.names(self._folder):
            with self._lock:
                seen = self._file(name)[1]
            for record in index_files.records(self._folder / name):
                if record.end > seen:
                    break
                yield record.long_id

    def not_stored(self, limit: int) -> list[bytes]:
        """Long ids of up to `limit` blocks that IPFS may not have."""
        with self._lock:
            found = self._db.execute("SELECT key FROM blocks WHERE stored = 0 LIMIT ?", (limit,)).fetchall()
            return [entry.long_id for (key,) in found if (entry := self._entry(bytes(key)))]

    def set_stored(self, key: bytes) -> None:
        """Note that IPFS has a block."""
        with self._lock:
            self._set_stored(key, stored=True)
            self._save_sometimes()

    def flush(self) -> None:
        """Write out what is pending."""
        with self._lock:
            self._commit()

    def close(self) -> None:
        """Write out and close. Idempotent."""
        with self._lock, contextlib.suppress(apsw.Error):
            self._commit()
            self._db.close()

    def _open(self) -> None:
        self._db: Any = _connection(self._path)
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "temp_store=MEMORY", "cache_size=-8192"):
            self._db.execute(f"PRAGMA {pragma}").fetchall()
        version = self._db.execute("PRAGMA user_version").fetchone()
        if version and version[0] == 0:
            self._db.execute(f"BEGIN; {_SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT")
        elif not version or version[0] != SCHEMA_VERSION:
            raise StorageError("the block index has another version")
        self._numbers: dict[str, tuple[int, int]] = {
            str(name): (int(number), int(seen))
            for number, name, seen in self._db.execute("SELECT number, name, seen FROM files").fetchall()
        }
        self._paths = {number: self._folder / name for name, (number, _) in self._numbers.items()}

    def _remake(self) -> None:
        with contextlib.suppress(apsw.Error):
            self._db.close()
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self._path}{suffix}").unlink(missing_ok=True)
        self._hot.clear()
        self._heights.clear()
        self._unsaved = 0
        self._unsaved_files.clear()
        self._open()

    def _insert(self, long_id: bytes, number: int, place: int, stored: bool) -> bool:
        short = short_of(long_id)
        key = key_of_short(short)
        parents = tuple(dict.fromkeys(key_of_short(parent) for parent in parents_of(long_id)))
        heights = [self._known_height(parent) for parent in parents]
        height = None if None in heights else max((h + 1 for h in heights if h is not None), default=0)
        self._begin()
        self._db.execute(
            "INSERT OR IGNORE INTO blocks VALUES (?, ?, ?, ?, ?, ?)",
            (key, number, place, len(long_id), height, stored),
        )
        if self._db.changes() == 0:
            return False
        if height is not None:
            self._keep_height(key, height)
        self._keep(key, _Hot(long_id, parents))
        for parent in parents:
            if parent in self:
                self._db.execute("DELETE FROM leaves WHERE key = ?", (parent,))
            else:
                self._db.execute("INSERT OR IGNORE INTO orphaned VALUES (?)", (parent,))
        self._db.execute("DELETE FROM orphaned WHERE parent = ?", (key,))
        if self._db.changes() == 0:
            self._db.execute("INSERT OR IGNORE INTO leaves VALUES (?)", (key,))
        return True

    def _set_stored(self, key: bytes, stored: bool) -> None:
        self._begin()
        self._db.execute("UPDATE blocks SET stored = ? WHERE key = ?", (stored, key))

    def _entry(self, key: bytes) -> _Hot | None:
        with self._lock:
            hot = self._hot.get(key)
            if hot is not None:
                self._hot.move_to_end(key)
                return hot
            row = self._row(key)
            if row is None:
                return None
            number, place, size, _ = row
            long_id = index_files.read_at(self._paths[number], place, size)
            parents = tuple(dict.fromkeys(key_of_short(parent) for parent in parents_of(long_id)))
            return self._keep(key, _Hot(long_id, parents))

    def _keep(self, key: bytes, hot: _Hot) -> _Hot:
        self._hot[key] = hot
        if len(self._hot) > HOT_BLOCKS:
            self._hot.popitem(last=False)
        return hot

    def _row(self, key: bytes) -> tuple[int, int, int, int | None] | None:
        row = self._db.execute("SELECT file, place, size, height FROM blocks WHERE key = ?", (key,)).fetchone()
        return None if row is None else (int(row[0]), int(row[1]), int(row[2]), row[3])

    def _known_height(self, key: bytes) -> int | None:
        height = self._heights.get(key)
        if height is None and (row := self._row(key)) is not None and row[3] is not None:
            height = row[3]
            self._keep_height(key, height)
        return height

    def _remember_height(self, key: bytes, height: int) -> None:
        self._begin()
        self._db.execute("UPDATE blocks SET height = ? WHERE key = ?", (height, key))
        self._keep_height(key, height)

    def _keep_height(self, key: bytes, height: int) -> None:
        self._heights[key] = height
        if len(self._heights) > HOT_BLOCKS:
            self._heights.popitem(last=False)

    def _file(self, name: str) -> tuple[int, int]:
        if name not in self._numbers:
            number = len(self._numbers) + 1
            self._begin()
            self._db.execute("INSERT INTO files VALUES (?, ?, 0)", (number, name))
            self._numbers[name] = (number, 0)
            self._paths[number] = self._folder / name
        return self._numbers[name]

    def _saw(self, number: int, end: int) -> None:
        name = self._paths[number].name
        self._numbers[name] = (number, end)
        self._unsaved_files.add(name)

    def _size(self, name: str) -> int:
        try:
            return os.stat(self._folder / name).st_size
        except OSError:
            return 0

    def _begin(self) -> None:
        if not self._db.in_transaction:
            self._db.execute("BEGIN")

    def _save_sometimes(self) -> None:
        self._unsaved += 1
        if self._unsaved >= COMMIT_EVERY:
            self._commit()

    def _commit(self) -> None:
        self._unsaved = 0
        if self._db.in_transaction:
            for name in self._unsaved_files:
                number, seen = self._numbers[name]
                self._db.execute("UPDATE files SET seen = ? WHERE number = ?", (seen, number))
            self._db.execute("COMMIT")
        self._unsaved_files.clear()


def _connection(path: Path) -> Any:
    """A connection whose rows are trusted to be what our own statements wrote."""
    return apsw.Connection(str(path))
