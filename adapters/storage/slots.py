"""Content keys at rest: a file of fixed-size sealed slots that are overwritten in place to forget.

Not in SQLite, which leaves copies behind. A slot (128 bytes) never straddles a disk sector; a free slot holds
random bytes, as a used one seems to. Which slot belongs to which content is the index's business, and is
checked by the content id inside the slot. Format: docs/wire-format-content.md, "Key slots".
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from walytis_vault.adapters.crypto.content_cipher import CONTENT_KEY_BYTES
from walytis_vault.adapters.crypto.labels import SLOTS, join_parts
from walytis_vault.adapters.crypto.sealing import SEAL_OVERHEAD
from walytis_vault.adapters.storage.failures import storage_errors, sync_errors
from walytis_vault.adapters.storage.vault_keys import VaultKeys
from walytis_vault.domain.errors import StorageError, UntrustedInputError
from walytis_vault.domain.ids import ID_BYTES, ContentId, ContentKey
from walytis_vault.domain.ports import FileSystem

SLOT_BYTES: Final = 128
HEADER_BYTES: Final = 4096
MAGIC: Final = b"walytis-vault key slots v1\n"
SLOT_VERSION: Final = 1
FIRST_SLOTS: Final = 1024
MAX_GROWTH: Final = 1 << 16
_PLAIN_BYTES: Final = SLOT_BYTES - SEAL_OVERHEAD


class SlotFile:
    """The slot file of one store. Writing methods need the store's lock; `read` needs none."""

    def __init__(self, path: Path, fs: FileSystem, keys: VaultKeys, vault_id: str) -> None:
        """Open or create the file; `use` must follow.

        Raises:
            StorageError: not a slot file, or not readable.
        """
        self._path = path
        self._fs = fs
        self._keys = keys
        self._vault_id = vault_id.encode()
        self._free: list[int] = []
        with storage_errors("open the key slots"):
            size = fs.size(str(path)) or 0
            self._fd = fs.open(str(path), os.O_RDWR | os.O_CREAT)
            if size < HEADER_BYTES:
                fs.pwrite(self._fd, MAGIC.ljust(HEADER_BYTES, b"\x00"), 0)
                size = HEADER_BYTES
                with sync_errors("create the key slots"):
                    fs.fsync(self._fd)
                    fs.fsync_folder(str(path.parent))
            elif fs.pread(self._fd, HEADER_BYTES, 0) != MAGIC.ljust(HEADER_BYTES, b"\x00"):
                raise StorageError(f"{path.name} is not a slot file of version 1: restore it from a backup")
        self._capacity = (size - HEADER_BYTES) // SLOT_BYTES

    @property
    def capacity(self) -> int:
        """Slots in the file, used or not."""
        return self._capacity

    @property
    def free_count(self) -> int:
        """Slots that may be taken without growing."""
        return len(self._free)

    def use(self, used: Iterable[int]) -> int:
        """Take over the index's list of used slots; overwrite all others (a crash may have left keys in them).

        Returns:
            How many of the used slots lie outside the file.
        """
        taken = bytearray(self._capacity)
        outside = 0
        for slot in used:
            if slot < self._capacity:
                taken[slot] = 1
            else:
                outside += 1
        # Highest first, so that pop() hands out the lowest and neighbours share a write.
        self._free = [slot for slot in range(self._capacity - 1, -1, -1) if not taken[slot]]
        if self._free:
            self._scramble(self._free)
            self.sync()
        return outside

    def take(self, count: int) -> list[int]:
        """Reserve `count` slots, growing the file if need be. Give them back with `release`."""
        if len(self._free) < count:
            self._grow(count - len(self._free))
        return [self._free.pop() for _ in range(count)]

    def release(self, slots: Sequence[int]) -> None:
        """Return slots whose content was wiped."""
        self._free.extend(sorted(slots, reverse=True))

    def write(self, entries: Sequence[tuple[int, ContentId, ContentKey]]) -> None:
        """Seal keys into slots. Not durable before `sync`. Raises LockedError, StorageError."""
        sealer = self._keys.sealer(SLOTS)
        pieces: list[tuple[int, bytes]] = []
        for slot, content_id, key in sorted(entries):
            plain = bytes([SLOT_VERSION]) + content_id + key
            pieces.append((slot, sealer.seal(plain.ljust(_PLAIN_BYTES, b"\x00"), self._context(slot))))
        self._write_runs(pieces)

    def sync(self) -> None:
        """Make all writes durable. Raises SyncFailedError."""
        with sync_errors("store content keys"):
            self._fs.fdatasync(self._fd)

    def read(self, slot: int) -> tuple[ContentId, ContentKey] | None:
        """Open one slot: whose key it holds, and the key; None when it holds none. Raises LockedError."""
        sealer = self._keys.sealer(SLOTS)
        with storage_errors("read a content key"):
            sealed = self._fs.pread(self._fd, SLOT_BYTES, HEADER_BYTES + slot * SLOT_BYTES)
        try:
            plain = sealer.open(sealed, self._context(slot))
        except UntrustedInputError:
            return None
        end = 1 + ID_BYTES
        if plain[0] != SLOT_VERSION or any(plain[end + CONTENT_KEY_BYTES :]):
            return None  # not of this format
        return ContentId(plain[1:end]), ContentKey(plain[end : end + CONTENT_KEY_BYTES])

    def wipe(self, slots: Sequence[int]) -> None:
        """Overwrite slots with random bytes, durably, and read them back.

        Raises:
            StorageError: the old bytes may still be there; repeat after the cause is gone.
        """
        written = self._scramble(slots)
        self.sync()
        for slot, data in written:
            with storage_errors("read back an overwritten key"):
                found = self._fs.pread(self._fd, SLOT_BYTES, HEADER_BYTES + slot * SLOT_BYTES)
            if not hmac.compare_digest(found, data):
                raise StorageError("an overwritten content key did not read back: check the disk, then repeat")

    def whole(self) -> bytes:
        """The file as it is, every slot sealed. Needs the store's lock. Raises StorageError."""
        with storage_errors("copy the key slots"):
            return self._fs.pread(self._fd, HEADER_BYTES + self._capacity * SLOT_BYTES, 0)

    def close(self) -> None:
        """Release the file."""
        with storage_errors("close the key slots"):
            self._fs.close(self._fd)

    def _context(self, slot: int) -> bytes:
        return join_parts(self._vault_id, slot.to_bytes(8, "big"))

    def _grow(self, missing: int) -> None:
        count = max(missing, min(max(FIRST_SLOTS, self._capacity // 4), MAX_GROWTH))
        with storage_errors("grow the key slots"):
            start = HEADER_BYTES + self._capacity * SLOT_BYTES
            self._fs.pwrite(self._fd, os.urandom(count * SLOT_BYTES), start)
        with sync_errors("grow the key slots"):
            self._fs.fsync(self._fd)
        self._free[:0] = range(self._capacity + count - 1, self._capacity - 1, -1)
        self._capacity += count

    def _scramble(self, slots: Sequence[int]) -> list[tuple[int, bytes]]:
        random = os.urandom(len(slots) * SLOT_BYTES)
        pieces = [
            (slot, random[i * SLOT_BYTES : (i + 1) * SLOT_BYTES])
            for i, slot in enumerate(sorted(s for s in slots if s < self._capacity))
        ]
        self._write_runs(pieces)
        return pieces

    def _write_runs(self, pieces: Sequence[tuple[int, bytes]]) -> None:
        """Write slots, neighbours together. `pieces` are sorted by slot."""
        with storage_errors("write content keys"):
            i = 0
            while i < len(pieces):
                j = i + 1
                while j < len(pieces) and pieces[j][0] == pieces[j - 1][0] + 1:
                    j += 1
                data = b"".join(piece for _, piece in pieces[i:j])
                self._fs.pwrite(self._fd, data, HEADER_BYTES + pieces[i][0] * SLOT_BYTES)
                i = j
