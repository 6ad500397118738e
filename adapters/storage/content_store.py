"""The content store on disk: ciphertext in blob and pack files, keys in slots, an index in SQLite.

Acknowledged means durable; forgotten means destroyed; everything between is finished or undone at the next
start. It never serves a byte that did not verify, and never says that it stored what it did not.
Formats: docs/wire-format-content.md; reasons: docs/adr/0003-content-at-rest.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from walytis_vault.adapters.crypto.ciphertext_root import leaf_hash
from walytis_vault.adapters.crypto.content_cipher import ciphertext_length
from walytis_vault.adapters.storage.ballast import Ballast
from walytis_vault.adapters.storage.blobs import BlobFiles
from walytis_vault.adapters.storage.checking import Checks
from walytis_vault.adapters.storage.ciphertext_writer import CiphertextWriter
from walytis_vault.adapters.storage.committer import Arrival, GroupCommitter
from walytis_vault.adapters.storage.compaction import compact
from walytis_vault.adapters.storage.content_reader import DiskContentReader, SegmentSource
from walytis_vault.adapters.storage.content_writer import DiskContentWriter, finish_together
from walytis_vault.adapters.storage.dropping import drop
from walytis_vault.adapters.storage.failures import SyncFailedError, storage_errors, sync_errors
from walytis_vault.adapters.storage.forgetting import Forgetting
from walytis_vault.adapters.storage.incoming import Incoming, IncomingSegments
from walytis_vault.adapters.storage.index import IN_BLOB, NOWHERE, Row, StoreIndex
from walytis_vault.adapters.storage.mending import reopen_blob
from walytis_vault.adapters.storage.packs import PackFiles
from walytis_vault.adapters.storage.recovery import recover
from walytis_vault.adapters.storage.replica import SealedTexts, check_content_id, damaged, missing
from walytis_vault.adapters.storage.slots import SlotFile
from walytis_vault.adapters.storage.snapshot import Pictures
from walytis_vault.adapters.storage.state import StoreState
from walytis_vault.adapters.storage.usage import Usage
from walytis_vault.adapters.storage.vault_keys import VaultKeys
from walytis_vault.domain.errors import (
    ConflictError,
    LockedError,
    MisuseError,
    StorageError,
    VaultError,
)
from walytis_vault.domain.ids import ContentId, ContentKey, Root
from walytis_vault.domain.limits import SEGMENT_BYTES
from walytis_vault.domain.ports import Clock, FileSystem, Randomness, StoredContent

INDEX_FILE: Final = "index.db"
SLOT_FILE: Final = "keys.slots"
BALLAST_FILE: Final = "ballast"
BLOB_FOLDER: Final = "blobs"
PACK_FOLDER: Final = "packs"


class DiskContentStore(SealedTexts, Pictures, Checks):
    """Implements `domain.ports.ContentStore` and `adapters.storage.replica.ReplicaStore`.

    Beyond the port: `seal_descriptor`, `open_descriptor`, `seal_reason`, `open_reason`; for peers
    `read_ciphertext`, `leaf_hashes`, `begin_ciphertext`, `put_key`; and `drop_bytes`, `compact`, `usage`.
    Threads may share it; each reader and writer belongs to one thread at a time.
    """

    def __init__(self, state: StoreState, ballast: Ballast) -> None:
        """Use `open`."""
        self._state = state
        self._ballast = ballast
        self._forgetting = Forgetting(state, ballast)
        self._committer = GroupCommitter(state, self._forgetting.forget)
        self.presence = state.index.presence

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        vault_id: str,
        keys: VaultKeys,
        fs: FileSystem,
        clock: Clock,  # noqa: ARG003 - part of the seam; nothing here needs time yet
        randomness: Randomness,
    ) -> DiskContentStore:
        """Open or create the store in `folder`, finish what a crash interrupted, remove what nobody owns.

        Raises:
            StorageError: unreadable, damaged, or the index is missing while contents are there.
            ConflictError: the store belongs to another vault.
        """
        with storage_errors("create the content store"):
            for path in (folder, folder / BLOB_FOLDER, folder / PACK_FOLDER):
                fs.makedirs(str(path))
            has_index, has_slots = (fs.size(str(folder / name)) is not None for name in (INDEX_FILE, SLOT_FILE))
        if has_slots and not has_index:
            raise StorageError(f"{folder / INDEX_FILE} is missing: restore it from a backup before starting")
        ballast = Ballast(folder / BALLAST_FILE, fs)
        ballast.make_room()
        index = StoreIndex(folder / INDEX_FILE, vault_id)
        try:
            if not has_slots:
                with sync_errors("create the content store"):
                    fs.fsync_folder(str(folder))
                    fs.fsync_folder(str(folder.parent))
            if not has_slots and index.slots():
                raise StorageError(f"{folder / SLOT_FILE} is missing: restore it from a backup before starting")
            state = StoreState(
                vault_id=vault_id,
                fs=fs,
                keys=keys,
                randomness=randomness,
                index=index,
                slots=SlotFile(folder / SLOT_FILE, fs, keys, vault_id),
                packs=PackFiles(folder / PACK_FOLDER, fs),
                blobs=BlobFiles(folder / BLOB_FOLDER, fs),
                ballast=ballast,
            )
            recover(state, ballast)
            return cls(state, ballast)
        except BaseException:
            index.database.close()
            raise

    def on_failure(self, callback: Callable[[SyncFailedError], None]) -> None:
        """Call back, once and at once, when an fsync failed: this process may write nothing more."""
        self._state.on_failure = callback

    def writer(self, content_id: ContentId, *, author: str) -> DiskContentWriter:
        """Begin a content with a fresh random key.

        Raises:
            LockedError, StorageError. That the id is taken or forgotten may show only when writing or finishing
            (ConflictError, ForgottenError): fresh random ids need no look-up.
        """
        check_content_id(content_id)
        self._state.keys.check_unlocked()
        return DiskContentWriter(self._state, self._committer, content_id, author)

    def finish_together(self, writers: Sequence[DiskContentWriter]) -> list[StoredContent | VaultError]:
        """Finish many contents with one wait for the disk: for each, in order, what its `finish` returns or raises."""
        return finish_together(self._committer, writers)

    def reader(
        self,
        content_id: ContentId,
        *,
        author: str,
        root: Root,
        length: int,
        padded_length: int,
        key: ContentKey | None = None,
    ) -> DiskContentReader:
        """Begin to read.

        Args:
            key: from `content_key(…, with_bytes=True)` just now, which spares looking again.

        Raises:
            ForgottenError, NotYetAvailableError (no bytes or no key here), DamagedContentError, LockedError.
        """
        if key is None:
            self._need_bytes(content_id)
            key = self.need_key(content_id)
        source = SegmentSource(self._state, content_id, root)
        return DiskContentReader(
            self._state, content_id, source, author=author, length=length, padded=padded_length, key=key
        )

    def incoming_reader(
        self, content_id: ContentId, incoming: Incoming, *, author: str, root: Root, length: int, padded_length: int
    ) -> DiskContentReader:
        """Begin to read a content while it comes from peers; each segment is handed out as soon as it verified.

        Raises:
            ForgottenError, NotYetAvailableError (no key here), DamagedContentError, LockedError.
        """
        self._state.check_not_gone(content_id)
        source = IncomingSegments(self._state, content_id, root, ciphertext_length(padded_length), incoming)
        return DiskContentReader(
            self._state,
            content_id,
            source,
            author=author,
            length=length,
            padded=padded_length,
            key=self.need_key(content_id),
        )

    def content_key(self, content_id: ContentId, *, with_bytes: bool = False) -> ContentKey | None:
        """The content's key, or None when it (`with_bytes`: or the ciphertext) is not here.

        Raises LockedError, StorageError.
        """
        self._state.keys.check_unlocked()
        ((row, gone),) = self._state.index.look_up([content_id])
        if row is None or row.slot is None or gone or (with_bytes and row.place == NOWHERE):
            return None
        if content_id in self._state.index.keyless:
            return None
        found = self._state.slots.read(row.slot)
        # A slot that holds another content's key was forgotten and taken again between the two look-ups.
        return found[1] if found is not None and found[0] == content_id else None

    def erase(self, content_ids: tuple[ContentId, ...]) -> None:
        """Destroy keys and bytes for ever, durably. Repeatable after a crash; works on a full disk.

        Raises:
            StorageError: not finished yet; repeat, or restart, to finish. The contents are already unreadable.
        """
        for content_id in content_ids:
            check_content_id(content_id)
        self._forgetting.forget(content_ids)
        self._reclaim()

    def make_room(self) -> None:
        """On a disk that is all but full, free the reserved space: something is about to be forgotten."""
        with self._state.lock:
            self._ballast.make_room()

    def _reclaim(self) -> None:
        try:
            compact(self._state)
        except StorageError:
            # Space is reclaimed later; what had to be destroyed is destroyed.
            self._state.check_writable()

    def check_not_gone(self, content_id: ContentId) -> None:
        """Raise ForgottenError when forgetting this content has begun or is done."""
        self._state.check_not_gone(content_id)

    def erased(self, content_id: ContentId) -> bool:
        """Whether this node destroyed the content (its tombstone is durable)."""
        return self._state.index.is_forgotten(content_id)

    def read_ciphertext(self, content_id: ContentId, offset: int, size: int) -> bytes:
        """Bytes of the ciphertext for a peer, who verifies them; shorter only at the end.

        Args:
            offset, size: in bytes; `size` is at most 1 MiB.
        Raises:
            NotYetAvailableError, ForgottenError, DamagedContentError (cut short), StorageError.
        """
        if offset < 0 or not 0 <= size <= SEGMENT_BYTES:
            raise MisuseError(f"read at most {SEGMENT_BYTES} bytes of ciphertext at once")
        row = self._need_bytes(content_id)
        wanted = max(0, min(size, (row.ciphertext_length or 0) - offset))
        data = self._read_raw(row, offset, wanted)
        if len(data) != wanted:
            self._state.check_not_gone(content_id)
            raise damaged(content_id)
        return data

    def leaf_hashes(self, content_id: ContentId) -> list[bytes]:
        """Leaf hashes of the stored ciphertext, for a peer. Raises as `read_ciphertext`."""
        row = self._need_bytes(content_id)
        if row.root is None:
            raise damaged(content_id)
        if row.place != IN_BLOB:
            return [leaf_hash(self.read_ciphertext(content_id, 0, SEGMENT_BYTES))]
        source = SegmentSource(self._state, content_id, row.root)
        source.close()
        return source.leaves

    def begin_ciphertext(self, content_id: ContentId, root: Root, ciphertext_length: int) -> CiphertextWriter:
        """Begin, or go on, to receive a ciphertext whose root is on the log. See `CiphertextWriter`.

        Raises:
            ForgottenError, ConflictError (it is here already), MisuseError (impossible length), StorageError.
        """
        check_content_id(content_id)
        if self._state.index.has_bytes(content_id):
            raise ConflictError(f"the bytes of content {content_id.hex()} are here already")
        return CiphertextWriter(self._state, self._committer, content_id, root, ciphertext_length)

    def put_key(self, content_id: ContentId, key: ContentKey) -> None:
        """Store a content key that a member sent, durably. The caller checked it against the commitment.

        Raises:
            ForgottenError, ConflictError (another key is here), LockedError, StorageError.
        """
        check_content_id(content_id)
        if (known := self.content_key(content_id)) == key:
            return
        if known is not None:
            raise ConflictError(f"content {content_id.hex()} has another key already")
        self._committer.commit(Arrival(content_id=content_id, key=key))

    def drop_bytes(self, content_id: ContentId) -> int:
        """Free the space of a content; its key stays and it can be fetched again. Not forgetting.

        Returns:
            Bytes of ciphertext that were here.
        Raises:
            ForgottenError. StorageError: repeat it; the next start finishes it.
        """
        check_content_id(content_id)
        freed = drop(self._state, self._ballast, content_id)
        self._reclaim()
        return freed

    def mend(self, content_id: ContentId, root: Root) -> None:
        """Let damaged bytes count as still coming: what of them verifies stays. Raises ForgottenError, StorageError."""
        if not reopen_blob(self._state, content_id, root):
            with self._state.lock:  # nothing may come back in between
                self.drop_bytes(content_id)
                self._state.index.lose_bytes([content_id], noted=True)

    def dropped(self, content_id: ContentId) -> bool:
        """Whether the bytes were dropped here and have not come back."""
        return self._state.index.is_dropped(content_id)

    @property
    def locked(self) -> bool:
        """Whether the keys are out of reach."""
        return self._state.keys.locked

    def lock(self) -> None:
        """Drop the keys, and cut off whoever reads or writes; forgetting and dropping still work. Idempotent."""
        self._state.keys.lock()
        self._state.cut_off_all(LockedError("the vault was locked meanwhile: unlock it, then repeat"))

    def unlock(self, passphrase: str | None) -> None:
        """Take the keys again. Raises WrongPassphraseError, LockedError (none was given), StorageError."""
        self._state.keys.unlock(passphrase)

    def compact(self, *, everything: bool = False) -> int:
        """Reclaim the space of forgotten small contents; returns how many pack files went away."""
        return compact(self._state, everything=everything)

    def content_ids(self) -> list[ContentId]:
        """Every content whose key or bytes are here; tombstones are not listed."""
        return self._state.index.content_ids()

    def usage(self) -> Usage:
        """What the store takes on disk."""
        contents, blob_bytes, keys, tombstones = self._state.index.counts()
        pack_bytes, live = self._state.packs.usage()
        return Usage(
            contents=contents,
            keys=keys,
            forgotten=tombstones,
            blob_bytes=blob_bytes,
            pack_bytes=pack_bytes,
            pack_live_bytes=live,
            slots=self._state.slots.capacity,
        )

    def close(self) -> None:
        """Finish what waits, cut off open readers and writers, release all files. Idempotent."""
        state = self._state
        if state.closed:
            return
        self._committer.close()
        with state.lock:
            state.closed = True
            state.cut_off_all(StorageError("the content store is closed"))
            state.helpers.shutdown()
            state.packs.close()
            state.slots.close()
            state.index.database.close()

    def _need_bytes(self, content_id: ContentId) -> Row:
        self._state.check_not_gone(content_id)
        row = self._state.index.get(content_id)
        if row is None or row.place == NOWHERE:
            raise missing(content_id)
        return row

    def _read_raw(self, row: Row, offset: int, size: int) -> bytes:
        state = self._state
        if row.range is not None:
            try:
                return state.packs.read(row.range, offset, size)
            except FileNotFoundError:
                moved = self._need_bytes(row.content_id)
                if moved.range is None or moved.range == row.range:
                    raise damaged(row.content_id) from None
                return self._read_raw(moved, offset, size)
        fd = state.blobs.open_blob(row.content_id)
        if fd is None:
            return b""
        with storage_errors("read a blob file"):
            try:
                return state.fs.pread(fd, size, offset)
            finally:
                state.fs.close(fd)
