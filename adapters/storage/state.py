"""What the parts of the disk store share: files, index, lock, and whether writing had to stop.

Lock order: `lock` (changes to slots, packs and index rows), then that of a reader or writer, then the database's own.
Readers take none for long. `handles` are the open readers and writers, which forgetting must be able to cut off.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol

from walytis_vault.adapters.storage.ballast import Ballast
from walytis_vault.adapters.storage.blobs import BlobFiles
from walytis_vault.adapters.storage.failures import SyncFailedError
from walytis_vault.adapters.storage.index import StoreIndex
from walytis_vault.adapters.storage.packs import PackFiles
from walytis_vault.adapters.storage.replica import forgotten
from walytis_vault.adapters.storage.slots import SlotFile
from walytis_vault.adapters.storage.vault_keys import VaultKeys
from walytis_vault.domain.errors import StorageError, VaultError
from walytis_vault.domain.ids import ContentId
from walytis_vault.domain.ports import FileSystem, Randomness

HELPERS: Final = 4
"""Threads that hash and write for large contents; each content uses at most one at a time."""


class Handle(Protocol):
    """An open reader or writer."""

    def cut_off(self, reason: VaultError) -> None:
        """Let go of the file at once; every later call raises the reason. Any thread; bounded."""
        ...


class StoreState:
    """Shared by all parts of one `DiskContentStore`."""

    def __init__(
        self,
        *,
        vault_id: str,
        fs: FileSystem,
        keys: VaultKeys,
        randomness: Randomness,
        index: StoreIndex,
        slots: SlotFile,
        packs: PackFiles,
        blobs: BlobFiles,
        ballast: Ballast,
    ) -> None:
        """Bind the parts together."""
        self.vault_id = vault_id
        self.fs = fs
        self.keys = keys
        self.randomness = randomness
        self.index = index
        self.slots = slots
        self.packs = packs
        self.blobs = blobs
        self.ballast = ballast
        self.lock = threading.RLock()
        self.helpers = ThreadPoolExecutor(HELPERS, thread_name_prefix="content-store")
        self.closed = False
        self.on_failure: Callable[[SyncFailedError], None] = lambda _: None
        """Told once when all writing stopped, by the thread that met the failure."""
        self._failure: str | None = None
        self._handles: dict[ContentId, set[Handle]] = {}
        self._handles_lock = threading.Lock()
        index.database.on_unknown = self.note

    def check_writable(self) -> None:
        """Raise StorageError when the store is closed or an fsync failed."""
        if self.closed:
            raise StorageError("the content store is closed")
        if self._failure is not None:
            raise StorageError(f"the content store stopped writing ({self._failure}): restart the node")

    def check_room(self, size: int = 0) -> None:
        """Raise StorageFullError when `size` more bytes would leave too little for the log, or for forgetting.

        May wait for `lock`: whoever can be cut off asks before it takes a lock of its own.
        """
        if self.ballast.held:
            self.ballast.require(size)
        else:
            with self.lock:
                self.ballast.require(size)

    def note(self, error: BaseException) -> None:
        """Stop all writing for good when the error is a failed fsync."""
        if isinstance(error, SyncFailedError) and self._failure is None:
            self._failure = str(error)
            self.on_failure(error)

    @property
    def failed(self) -> bool:
        """Whether all writing stopped: what the disk holds is found out at the next start, and nothing is undone."""
        return self._failure is not None

    def check_not_gone(self, content_id: ContentId) -> None:
        """Raise ForgottenError when forgetting this content has begun or is done."""
        if self.index.is_gone(content_id):
            raise forgotten(content_id)

    def register(self, content_id: ContentId, handle: Handle) -> None:
        """Remember an open handle; after this, look whether the content is gone."""
        with self._handles_lock:
            self._handles.setdefault(content_id, set()).add(handle)

    def unregister(self, content_id: ContentId, handle: Handle) -> None:
        """Forget a handle. Idempotent."""
        with self._handles_lock:
            found = self._handles.get(content_id)
            if found is not None:
                found.discard(handle)
                if not found:
                    del self._handles[content_id]

    def cut_off(self, content_id: ContentId, reason: VaultError | None = None) -> None:
        """Cut off every open handle of a content; without a reason because it is being forgotten."""
        with self._handles_lock:
            found = list(self._handles.get(content_id, ()))
        for handle in found:
            handle.cut_off(reason or forgotten(content_id))

    def cut_off_all(self, reason: VaultError) -> None:
        """Cut off every open handle: the store is being closed or locked."""
        with self._handles_lock:
            found = [handle for handles in self._handles.values() for handle in handles]
        for handle in found:
            handle.cut_off(reason)
