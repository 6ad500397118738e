"""Ciphertext streaming into a temporary blob file, while a helper thread hashes and writes.

The file gets its final name only after its fsync. Refuses nothing of its own: errors of the disk come out of
the next call. Used by content_writer.py.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future

from walytis_vault.adapters.crypto.ciphertext_root import LeafHasher
from walytis_vault.adapters.crypto.content_cipher import HEADER_BYTES
from walytis_vault.adapters.storage.failures import storage_errors, sync_errors
from walytis_vault.adapters.storage.state import StoreState
from walytis_vault.domain.errors import StorageError, VaultError
from walytis_vault.domain.faults import fault
from walytis_vault.domain.ids import ContentId, Root


class BlobSink:
    """Ciphertext streaming into a temporary blob file. A helper thread hashes and writes one piece at a time."""

    def __init__(self, state: StoreState, content_id: ContentId) -> None:
        """Create the file. Raises StorageFullError, StorageError."""
        self._state = state
        self._temp = state.blobs.temp_path(content_id)
        self._final = state.blobs.blob_path(content_id)
        self._hasher = LeafHasher()
        self._header = b""
        self._pending: Future[None] | None = None
        self._lock = threading.Lock()
        with storage_errors("create a blob file"):
            self._fd: int | None = state.fs.open(self._temp, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        fault("publish.after_create")

    def put(self, ciphertext: bytes) -> None:
        """Add ciphertext; waits for the piece before it. Raises its StorageError."""
        if len(self._header) < HEADER_BYTES:
            self._header += ciphertext[: HEADER_BYTES - len(self._header)]
        self._settle()
        self._state.check_room(len(ciphertext))
        self._pending = self._state.helpers.submit(self._write, ciphertext)

    def finish(self) -> tuple[bytes, Root, int]:
        """Append the leaf hashes, fsync, rename. Returns header, root and ciphertext length."""
        self._settle()
        length = self._hasher.length
        leaves, root = self._hasher.finish()
        with self._lock:
            fd = self._open_fd()
            with storage_errors("write a blob file"):
                self._state.fs.pwrite(fd, b"".join(leaves), length)
            fault("publish.after_write")
            try:
                with sync_errors("store a content"):
                    self._state.fs.fsync(fd)
            except StorageError as e:
                self._state.note(e)
                raise
            fault("publish.after_fsync")
            with storage_errors("rename a blob file"):
                self._state.fs.rename(self._temp, self._final)
            self._temp = self._final
            fault("publish.after_rename")
            self._close()
        return self._header, root, length

    def abort(self) -> None:
        """Close and unlink. Idempotent; never raises."""
        pending = self._pending  # the thread that writes may settle it meanwhile
        if pending is not None:
            pending.exception()
        with self._lock:
            try:
                self._close()
                with storage_errors("remove an unfinished blob file"):
                    if self._state.fs.size(self._temp) is not None:
                        self._state.fs.unlink(self._temp)
            except VaultError as e:
                # The next start removes it: no row names it.
                self._state.note(e)

    def _settle(self) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def _write(self, ciphertext: bytes) -> None:
        with self._lock:
            fd = self._open_fd()
            with storage_errors("write a blob file"):
                self._state.fs.pwrite(fd, ciphertext, self._hasher.length)
            self._hasher.update(ciphertext)

    def _open_fd(self) -> int:
        if self._fd is None:
            raise StorageError("the blob file was closed")
        return self._fd

    def _close(self) -> None:
        if self._fd is not None:
            fd, self._fd = self._fd, None
            with storage_errors("close a blob file"):
                self._state.fs.close(fd)
