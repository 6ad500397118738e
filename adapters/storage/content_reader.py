"""A content being read: each segment is verified against the root's leaves before it is decrypted.

A helper thread reads and verifies one segment ahead. Hands out nothing unverified, and nothing once
forgetting has begun. Holds at most about 3 MiB. Implements `domain.ports.ContentReader`.
"""

from __future__ import annotations

import hmac
import threading
from concurrent.futures import Future
from typing import Final, Protocol

from walytis_vault.adapters.crypto.ciphertext_root import leaf_hash, root_of
from walytis_vault.adapters.crypto.content_cipher import ContentDecryptor, ciphertext_length, content_context
from walytis_vault.adapters.storage.failures import storage_errors
from walytis_vault.adapters.storage.index import IN_BLOB, NOWHERE
from walytis_vault.adapters.storage.replica import damaged, missing
from walytis_vault.adapters.storage.state import StoreState
from walytis_vault.domain.errors import MisuseError, VaultError
from walytis_vault.domain.ids import ContentId, Root
from walytis_vault.domain.limits import SEGMENT_BYTES

LOOK_UPS: Final = 3
"""A compaction may move a small content between look-up and reading; then it is looked up again."""


class SegmentSource:
    """Verified ciphertext of one stored content, segment by segment."""

    ahead = True

    def __init__(self, state: StoreState, content_id: ContentId, root: Root) -> None:
        """Open it.

        Raises:
            NotYetAvailableError: its bytes are not here. ForgottenError. DamagedContentError, StorageError.
        """
        self._state = state
        self._content_id = content_id
        self._lock = threading.Lock()
        self._fd: int | None = None
        self._whole = b""
        self.length = 0
        for _ in range(LOOK_UPS):
            if self._open(root):
                return
        raise missing(content_id)

    @property
    def leaves(self) -> list[bytes]:
        """The verified leaf hashes."""
        return self._leaves

    @property
    def count(self) -> int:
        """How many segments there are."""
        return len(self._leaves)

    def segment(self, number: int) -> bytes:
        """Return one verified segment.

        Raises:
            DamagedContentError: it does not match the root. ForgottenError, StorageError.
        """
        start = number * SEGMENT_BYTES
        size = min(SEGMENT_BYTES, self.length - start)
        if self._whole:
            data = self._whole
        else:
            with self._lock:
                if self._fd is None:
                    raise MisuseError("this content was closed")
                with storage_errors("read a blob file"):
                    data = self._state.fs.pread(self._fd, size, start)
        if len(data) != size or not hmac.compare_digest(leaf_hash(data), self._leaves[number]):
            self._state.check_not_gone(self._content_id)
            raise damaged(self._content_id)
        return data

    def close(self) -> None:
        """Release the file. Idempotent; any thread; waits for a read of one segment at most."""
        with self._lock:
            self._whole = b""
            if self._fd is not None:
                fd, self._fd = self._fd, None
                with storage_errors("close a blob file"):
                    self._state.fs.close(fd)

    def _open(self, root: Root) -> bool:
        state = self._state
        row = state.index.get(self._content_id)
        if row is None or row.place == NOWHERE or row.ciphertext_length is None:
            state.check_not_gone(self._content_id)
            raise missing(self._content_id)
        self.length = row.ciphertext_length
        if row.place == IN_BLOB:
            self._fd = state.blobs.open_blob(self._content_id)
            if self._fd is None:
                state.check_not_gone(self._content_id)
                raise damaged(self._content_id)
            try:
                self._leaves = state.blobs.read_leaves(self._fd, self.length, root)
            except VaultError:
                self.close()
                state.check_not_gone(self._content_id)
                raise
            return True
        if row.range is None:
            raise missing(self._content_id)
        try:
            self._whole = state.packs.read(row.range)
        except FileNotFoundError:
            return False
        self._leaves = [leaf_hash(self._whole)]
        if len(self._whole) == self.length and root_of(self._leaves, self.length) == root:
            return True
        state.check_not_gone(self._content_id)
        if state.index.get(self._content_id) != row:
            return False
        raise damaged(self._content_id)


class Segments(Protocol):
    """Where a reader takes verified ciphertext from."""

    length: int
    """Bytes of the whole ciphertext."""
    ahead: bool
    """Whether a segment is there at once, so that a helper may read it ahead."""

    @property
    def count(self) -> int:
        """How many segments there are."""
        ...

    def segment(self, number: int) -> bytes:
        """One verified segment. Raises VaultError."""
        ...

    def close(self) -> None:
        """Let go. Idempotent; any thread."""
        ...


class DiskContentReader:
    """See `domain.ports.ContentReader`."""

    def __init__(
        self,
        state: StoreState,
        content_id: ContentId,
        source: Segments,
        *,
        author: str,
        length: int,
        padded: int,
        key: bytes,
    ) -> None:
        """Read from a source, which is owned from now on. Raises DamagedContentError for sizes that do not fit."""
        self._state = state
        self._content_id = content_id
        self._length = length
        self._left = length
        self._next = 0
        self._ahead: Future[bytes] | None = None
        self._ended: VaultError | None = None
        self._finished = False
        context = content_context(state.vault_id, author, content_id)
        self._cipher: ContentDecryptor | None = ContentDecryptor(key, context)
        self._source = source
        if self._source.length != ciphertext_length(padded) or not 0 <= length <= padded:
            self._source.close()
            raise damaged(content_id)
        state.register(content_id, self)
        try:
            state.check_not_gone(content_id)
            state.keys.check_unlocked()
        except VaultError:
            self.close()
            raise

    @property
    def length(self) -> int:
        """True plaintext length in bytes."""
        return self._length

    @property
    def here(self) -> bool:
        """Whether no segment has to come from a peer."""
        return self._source.ahead

    def read(self) -> bytes:
        """Return the next piece (at most 1 MiB) after its segment verified; b"" at the end.

        Raises:
            DamagedContentError: nothing of that segment was returned. ForgottenError, StorageError.
        """
        if self._ended is not None:
            raise self._ended
        try:
            while not self._finished:
                data = self._decrypt_next()[: self._left]
                self._left -= len(data)
                if data:
                    return data
        except VaultError as e:
            self._fail(e)
            raise self._ended or e from e.__cause__
        return b""

    def close(self) -> None:
        """Release the file. Idempotent."""
        self.cut_off(MisuseError("this content was closed"))

    def cut_off(self, reason: VaultError) -> None:
        """Release file and key; later reads raise the reason. Any thread."""
        self._ended = self._ended or reason
        self._cipher = None
        self._state.unregister(self._content_id, self)
        self._source.close()

    def _fail(self, error: VaultError) -> None:
        self._ended = self._ended or error
        self.close()

    def _decrypt_next(self) -> bytes:
        cipher = self._cipher
        if cipher is None:
            raise self._ended or MisuseError("this content was closed")
        if self._next == self._source.count:
            self._finished = True
            tail = cipher.finish()
            if self._left > len(tail):
                raise damaged(self._content_id)
            return tail
        segment = self._ahead.result() if self._ahead is not None else self._source.segment(self._next)
        self._next += 1
        more = self._next < self._source.count
        ahead = more and self._source.ahead
        self._ahead = self._state.helpers.submit(self._source.segment, self._next) if ahead else None
        return cipher.update(segment)
