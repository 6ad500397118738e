"""A ciphertext coming from peers: segments are checked against the root on the log, in any order, and resume.

Large ones lie in `<id>.part` with their leaf hashes behind the ciphertext, so that a later process sees by
hashing what is there already; small ones wait in memory. Refuses every segment that does not verify.
"""

from __future__ import annotations

import hmac
import threading
from collections.abc import Callable, Sequence
from typing import Final

from walytis_vault.adapters.crypto.ciphertext_root import leaf_hash, root_of, segment_count
from walytis_vault.adapters.crypto.content_cipher import PADDING_FLOOR, ciphertext_length
from walytis_vault.adapters.storage.committer import Arrival, GroupCommitter
from walytis_vault.adapters.storage.content_writer import SMALL_BYTES
from walytis_vault.adapters.storage.failures import storage_errors, sync_errors
from walytis_vault.adapters.storage.part_file import PartFile
from walytis_vault.adapters.storage.read_along import ReadAlong
from walytis_vault.adapters.storage.replica import damaged
from walytis_vault.adapters.storage.state import StoreState
from walytis_vault.domain.errors import (
    DamagedContentError,
    ForgottenError,
    MisuseError,
    NotYetAvailableError,
    StorageError,
    UntrustedInputError,
    VaultError,
)
from walytis_vault.domain.faults import fault
from walytis_vault.domain.ids import ContentId, Root
from walytis_vault.domain.limits import LIMITS, SEGMENT_BYTES

MIN_CIPHERTEXT: Final = ciphertext_length(PADDING_FLOOR)
MAX_CIPHERTEXT: Final = ciphertext_length(LIMITS.content + LIMITS.content // 8)
SMALL_CIPHERTEXT: Final = ciphertext_length(SMALL_BYTES)


class CiphertextWriter:
    """One incoming ciphertext. Threads may share it: several holders deliver at once.

    Use: `set_leaves` (unless `has_leaves`), `write_segment` for each number in `missing()`, `finish`. `close` keeps
    what came for later; `abort` drops it.
    """

    def __init__(
        self, state: StoreState, committer: GroupCommitter, content_id: ContentId, root: Root, length: int
    ) -> None:
        """Begin or resume. Raises ForgottenError, MisuseError (impossible length), StorageError."""
        if not MIN_CIPHERTEXT <= length <= MAX_CIPHERTEXT:
            raise MisuseError(f"a ciphertext of {length} bytes cannot be")
        state.check_writable()
        state.check_not_gone(content_id)
        state.check_room()
        self._state = state
        self._committer = committer
        self._content_id = content_id
        self._root = root
        self._length = length
        self._lock = threading.Lock()
        self._leaves: list[bytes] | None = None
        self._missing = set(range(segment_count(length)))
        self._whole: bytes | None = None
        self._file: PartFile | None = None
        self._ended: VaultError | None = None
        self._syncing = False
        self._along = ReadAlong(self._lock)
        self._small = length <= SMALL_CIPHERTEXT
        if not self._small:
            self._open_part()
        state.register(content_id, self)
        try:
            state.check_not_gone(content_id)
        except VaultError:
            self.close()
            raise

    @property
    def has_leaves(self) -> bool:
        """Whether the leaf hashes are known; a ciphertext of one segment needs none."""
        return self._leaves is not None or segment_count(self._length) == 1

    def missing(self) -> list[int]:
        """Numbers of the segments that have not come, in order."""
        with self._lock:
            return sorted(self._missing)

    def set_leaves(self, leaves: Sequence[bytes]) -> None:
        """Give the leaf hashes that a peer sent.

        Raises:
            UntrustedInputError: they do not give the root. StorageError.
        """
        if len(leaves) != segment_count(self._length) or root_of(leaves, self._length) != self._root:
            raise UntrustedInputError("leaf hashes from a peer do not give the root on the log")
        with self._lock:
            self._check()
            if self._leaves is None and self._file is not None:
                with storage_errors("store an incoming content"):
                    self._file.write(b"".join(leaves), self._length)
                self._sync()
            self._leaves = list(leaves)

    def write_segment(self, number: int, data: bytes | memoryview) -> None:
        """Take one segment (1 MiB; the last is shorter), in any order; a repeated one is ignored.

        Raises:
            UntrustedInputError: it does not verify; nothing was written. ForgottenError, StorageError.
        """
        count = segment_count(self._length)
        if not 0 <= number < count or len(data) != min(SEGMENT_BYTES, self._length - number * SEGMENT_BYTES):
            raise UntrustedInputError("a segment from a peer has a wrong number or length")
        found = leaf_hash(data)
        if not self._small:
            # Before our lock: on a full disk this waits for the store's, and who holds that may be cutting us off.
            self._state.check_room(len(data))
        with self._lock:
            self._check()
            leaves = self._leaves if self._leaves is not None else [found] if count == 1 else None
            if leaves is None:
                raise MisuseError("give the leaf hashes first")
            if not hmac.compare_digest(leaves[number], found) or (
                count == 1 and root_of([found], self._length) != self._root
            ):
                raise UntrustedInputError("a segment from a peer does not match the root on the log")
            if number not in self._missing:
                return
            if self._file is None:
                self._whole = bytes(data)
            else:
                with storage_errors("store an incoming content"):
                    self._file.write(data, number * SEGMENT_BYTES)
                    if self._leaves is None:  # a single segment, whose leaf nobody gave: readers look for it behind
                        self._file.write(found, self._length)
                fault("receive.after_segment")
            self._leaves = list(leaves)
            self._missing.discard(number)
            self._along.put(number, data)

    def begin_reading(self) -> None:
        """Somebody will read segments as they come: the last few are kept in memory for them."""
        with self._lock:
            self._along.begin()

    def end_reading(self) -> None:
        """The opposite of `begin_reading`; whoever waits in `segment` looks again."""
        with self._lock:
            self._along.end()

    def segment(self, number: int, *, given_up: Callable[[], bool]) -> bytes:
        """Wait for a segment, and return it verified.

        Args:
            given_up: looked at when woken: whether nobody wants it any more.
        Raises:
            NotYetAvailableError: it will not come here: the writer has ended, the content may be complete.
            ForgottenError. DamagedContentError: the disk gave back something else. StorageError.
        """
        with self._lock:
            while True:
                if isinstance(self._ended, ForgottenError):
                    raise self._ended
                if self._ended is not None or given_up():
                    raise NotYetAvailableError("this segment does not come here any more")
                kept = self._along.get(number)
                if kept is not None:
                    return kept
                # Without a descriptor it is being published, and soon to be read from where it is then.
                if number not in self._missing and self._file is not None and self._leaves is not None:
                    break
                self._along.wait(number)
            size = min(SEGMENT_BYTES, self._length - number * SEGMENT_BYTES)
            with storage_errors("read an incoming content"):
                data = self._state.fs.pread(self._file.fd, size, number * SEGMENT_BYTES)
            leaf = self._leaves[number]
        if not hmac.compare_digest(leaf_hash(data), leaf):
            raise damaged(self._content_id)
        return data

    def finish(self) -> None:
        """Make the ciphertext durable and known; the key comes separately.

        Raises:
            NotYetAvailableError: segments are missing. ForgottenError, StorageError.
        """
        with self._lock:
            self._check()
            if self._missing:
                raise NotYetAvailableError(f"{len(self._missing)} segments have not come yet")
            arrival = Arrival(
                content_id=self._content_id,
                ciphertext=self._whole,
                in_blob=not self._small,
                ciphertext_length=self._length,
                root=self._root,
            )
            self._syncing = True
        try:
            self._sync()  # without the lock: who reads along need not wait for the disk
        finally:
            with self._lock:
                self._syncing = False
                if self._ended is not None:
                    self._close_file()
        fault("receive.after_fsync")
        with self._lock:
            self._check()
            if self._file is not None:
                self._publish_part()
        self._committer.commit(arrival)
        self.close()

    @property
    def ended(self) -> bool:
        """Whether nothing comes here any more."""
        return self._ended is not None

    def close(self) -> None:
        """Stop, and keep what came for `begin_ciphertext` later. Idempotent."""
        self._end(MisuseError("this incoming content was closed"))
        self._state.unregister(self._content_id, self)

    def abort(self) -> None:
        """Stop and drop what came. Idempotent."""
        self.close()
        if not self._small:
            with self._state.lock:
                self._state.index.end_partial(self._content_id)
                with storage_errors("remove an incoming content"):
                    path = self._state.blobs.part_path(self._content_id)
                    if self._state.fs.size(path) is not None:
                        self._state.fs.unlink(path)

    def cut_off(self, reason: VaultError) -> None:
        """Let go at once; later calls raise the reason. Any thread."""
        self._end(reason)

    def _check(self) -> None:
        if self._ended is not None:
            raise self._ended

    def _end(self, reason: VaultError) -> None:
        with self._lock:
            self._ended = self._ended or reason
            self._whole = None
            self._along.clear()
            if not self._syncing:
                self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            with storage_errors("close an incoming content"):
                file.close()

    def _open_part(self) -> None:
        state = self._state
        path = state.blobs.part_path(self._content_id)
        known = state.index.partial(self._content_id)
        with state.lock, storage_errors("open an incoming content"):
            if known != (self._root, self._length):
                if state.fs.size(path) is not None:
                    state.fs.unlink(path)
                state.index.begin_partial(self._content_id, self._root, self._length)
            self._file = file = PartFile(state.fs, path)
        try:
            self._leaves = state.blobs.read_leaves(file.fd, self._length, self._root)
        except DamagedContentError:
            return
        for number in range(len(self._leaves)):
            with storage_errors("read an incoming content"):
                data = state.fs.pread(file.fd, SEGMENT_BYTES, number * SEGMENT_BYTES)
            size = min(SEGMENT_BYTES, self._length - number * SEGMENT_BYTES)
            if leaf_hash(memoryview(data)[:size]) == self._leaves[number]:
                self._missing.discard(number)

    def _publish_part(self) -> None:
        with storage_errors("rename an incoming content"):
            self._state.fs.rename(
                self._state.blobs.part_path(self._content_id), self._state.blobs.blob_path(self._content_id)
            )
        fault("receive.after_rename")
        self._close_file()

    def _sync(self) -> None:
        if self._file is not None:
            try:
                with sync_errors("store an incoming content"):
                    self._state.fs.fsync(self._file.fd)
            except StorageError as e:
                self._state.note(e)
                raise
