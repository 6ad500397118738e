"""The content store in memory: real encryption, no disk. For the simulation, and for tests of what stands on it.

It keeps the same promises as the one on disk but durability, and passes the same contract tests
(tests/contract/test_content_store.py). Whole contents are in memory: not for large ones.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import msgspec

from walytis_vault.adapters.crypto.ciphertext_root import LeafHasher, leaf_hash, root_of, segment_count
from walytis_vault.adapters.crypto.content_cipher import (
    CONTENT_KEY_BYTES,
    HEADER_BYTES,
    ContentDecryptor,
    ContentEncryptor,
    ciphertext_length,
    content_context,
    padded_length,
)
from walytis_vault.adapters.storage.ciphertext_writer import MAX_CIPHERTEXT, MIN_CIPHERTEXT
from walytis_vault.adapters.storage.replica import SealedTexts, check_content_id, damaged, forgotten, missing
from walytis_vault.domain.errors import ConflictError, MisuseError, NotYetAvailableError, UntrustedInputError
from walytis_vault.domain.ids import ContentId, ContentKey, Root
from walytis_vault.domain.limits import LIMITS, SEGMENT_BYTES
from walytis_vault.domain.ports import Randomness, StoredContent


class _Entry(msgspec.Struct):
    key: ContentKey | None = None
    ciphertext: bytes | None = None


class MemoryContentStore(SealedTexts):
    """Implements `domain.ports.ContentStore` and `adapters.storage.replica.ReplicaStore`."""

    def __init__(self, *, vault_id: str, randomness: Randomness) -> None:
        """Begin empty."""
        self.vault_id = vault_id
        self.randomness = randomness
        self.entries: dict[ContentId, _Entry] = {}
        self.parts: dict[ContentId, tuple[Root, int, dict[int, bytes]]] = {}
        self.tombstones: set[ContentId] = set()
        self.let_go: set[ContentId] = set()
        self.lock = threading.RLock()

    def writer(self, content_id: ContentId, *, author: str) -> MemoryContentWriter:
        """Begin a content with a fresh random key. Raises ForgottenError, ConflictError."""
        check_content_id(content_id)
        self.check_not_gone(content_id)
        if self.has_bytes(content_id):
            raise ConflictError(f"content {content_id.hex()} is stored already")
        return MemoryContentWriter(self, content_id, author)

    def reader(
        self, content_id: ContentId, *, author: str, root: Root, length: int, padded_length: int
    ) -> MemoryContentReader:
        """Begin to read. Raises ForgottenError, NotYetAvailableError, DamagedContentError."""
        data = self._need_bytes(content_id)
        key = self.need_key(content_id)
        if len(data) != ciphertext_length(padded_length) or not 0 <= length <= padded_length:
            raise damaged(content_id)
        if not self.verify(content_id, root):
            raise damaged(content_id)
        cipher = ContentDecryptor(key, content_context(self.vault_id, author, content_id))
        return MemoryContentReader(self, content_id, cipher, data, length)

    def content_key(self, content_id: ContentId) -> ContentKey | None:
        """The content's key, or None when it is not here."""
        with self.lock:
            entry = self.entries.get(content_id)
            return entry.key if entry else None

    def has_bytes(self, content_id: ContentId) -> bool:
        """Whether the whole ciphertext is here."""
        with self.lock:
            entry = self.entries.get(content_id)
            return entry is not None and entry.ciphertext is not None

    def is_available(self, content_id: ContentId) -> bool:
        """Whether ciphertext and key are here."""
        return self.has_bytes(content_id) and self.content_key(content_id) is not None

    def verify(self, content_id: ContentId, root: Root) -> bool:
        """Compare the ciphertext with the root. False when missing, damaged or forgotten."""
        with self.lock:
            entry = self.entries.get(content_id)
        if entry is None or entry.ciphertext is None:
            return False
        hasher = LeafHasher()
        hasher.update(entry.ciphertext)
        return hasher.finish()[1] == root

    def erase(self, content_ids: tuple[ContentId, ...]) -> None:
        """Drop keys and bytes for ever."""
        with self.lock:
            for content_id in content_ids:
                check_content_id(content_id)
                self.tombstones.add(content_id)
                self.entries.pop(content_id, None)
                self.parts.pop(content_id, None)
                self.let_go.discard(content_id)

    def make_room(self) -> None:
        """Nothing: there is no disk that could be full."""

    def erased(self, content_id: ContentId) -> bool:
        """Whether this store destroyed the content."""
        with self.lock:
            return content_id in self.tombstones

    def check_not_gone(self, content_id: ContentId) -> None:
        """Raise ForgottenError when this content was forgotten."""
        if self.erased(content_id):
            raise forgotten(content_id)

    def read_ciphertext(self, content_id: ContentId, offset: int, size: int) -> bytes:
        """See `ReplicaStore.read_ciphertext`."""
        if offset < 0 or not 0 <= size <= SEGMENT_BYTES:
            raise MisuseError(f"read at most {SEGMENT_BYTES} bytes of ciphertext at once")
        return self._need_bytes(content_id)[offset : offset + size]

    def leaf_hashes(self, content_id: ContentId) -> list[bytes]:
        """Leaf hashes of the stored ciphertext."""
        hasher = LeafHasher()
        hasher.update(self._need_bytes(content_id))
        return hasher.finish()[0]

    def begin_ciphertext(self, content_id: ContentId, root: Root, ciphertext_length: int) -> MemoryCiphertextReceiver:
        """See `ReplicaStore.begin_ciphertext`."""
        check_content_id(content_id)
        if not MIN_CIPHERTEXT <= ciphertext_length <= MAX_CIPHERTEXT:
            raise MisuseError(f"a ciphertext of {ciphertext_length} bytes cannot be")
        self.check_not_gone(content_id)
        if self.has_bytes(content_id):
            raise ConflictError(f"the bytes of content {content_id.hex()} are here already")
        return MemoryCiphertextReceiver(self, content_id, root, ciphertext_length)

    def put_key(self, content_id: ContentId, key: ContentKey) -> None:
        """Store a content key. Raises ForgottenError, ConflictError (another key is here)."""
        check_content_id(content_id)
        with self.lock:
            self.check_not_gone(content_id)
            entry = self.entries.setdefault(content_id, _Entry())
            if entry.key is not None and entry.key != key:
                raise ConflictError(f"content {content_id.hex()} has another key already")
            entry.key = key

    def drop_bytes(self, content_id: ContentId) -> int:
        """Free the bytes of a content; its key stays. Returns how many there were."""
        with self.lock:
            self.check_not_gone(content_id)
            entry = self.entries.get(content_id)
            freed = len(entry.ciphertext or b"") if entry is not None else 0
            if freed or content_id in self.parts:
                self.let_go.add(content_id)
            if entry is not None:
                entry.ciphertext = None
            self.parts.pop(content_id, None)
            return freed

    def dropped(self, content_id: ContentId) -> bool:
        """Whether the bytes were dropped and have not come back."""
        with self.lock:
            return content_id in self.let_go

    def store(self, content_id: ContentId, key: ContentKey | None, ciphertext: bytes) -> None:
        """Take a complete content. Raises ForgottenError, ConflictError."""
        with self.lock:
            self.check_not_gone(content_id)
            entry = self.entries.setdefault(content_id, _Entry())
            if entry.ciphertext is not None:
                raise ConflictError(f"content {content_id.hex()} is stored already")
            entry.key, entry.ciphertext = key or entry.key, ciphertext
            self.let_go.discard(content_id)

    def close(self) -> None:
        """Nothing to release."""

    def _need_bytes(self, content_id: ContentId) -> bytes:
        with self.lock:
            self.check_not_gone(content_id)
            entry = self.entries.get(content_id)
            if entry is None or entry.ciphertext is None:
                raise missing(content_id)
            return entry.ciphertext


class MemoryContentWriter:
    """See `domain.ports.ContentWriter`."""

    def __init__(self, store: MemoryContentStore, content_id: ContentId, author: str) -> None:
        """Begin with a fresh key."""
        self._store = store
        self._content_id = content_id
        self._author = author
        self._data: bytearray | None = bytearray()

    def write(self, data: bytes | memoryview) -> None:
        """Add plaintext. Raises MisuseError over the size limit, ForgottenError."""
        self._store.check_not_gone(self._content_id)
        if len(self._open()) + len(data) > LIMITS.content:
            self.abort()
            raise MisuseError(f"a content has at most {LIMITS.content} bytes")
        self._open().extend(data)

    def finish(self) -> StoredContent:
        """Pad, encrypt and keep. Raises ForgottenError, ConflictError."""
        data = self._open()
        length, padded = len(data), padded_length(len(data))
        key = ContentKey(self._store.randomness.token(CONTENT_KEY_BYTES))
        cipher = ContentEncryptor(key, content_context(self._store.vault_id, self._author, self._content_id))
        ciphertext = cipher.update(data.ljust(padded, b"\x00")) + cipher.finish()
        hasher = LeafHasher()
        hasher.update(ciphertext)
        self._data = None
        self._store.store(self._content_id, key, ciphertext)
        return StoredContent(
            content_id=self._content_id,
            root=hasher.finish()[1],
            header=ciphertext[:HEADER_BYTES],
            padded_length=padded,
            length=length,
            ciphertext_length=len(ciphertext),
        )

    def abort(self) -> None:
        """Drop everything. Idempotent."""
        self._data = None

    def _open(self) -> bytearray:
        if self._data is None:
            raise MisuseError("this content is finished or was aborted")
        return self._data


class MemoryContentReader:
    """See `domain.ports.ContentReader`."""

    def __init__(
        self, store: MemoryContentStore, content_id: ContentId, cipher: ContentDecryptor, data: bytes, length: int
    ) -> None:
        """Begin at the first byte."""
        self._store = store
        self._content_id = content_id
        self._cipher = cipher
        self._rest: memoryview | None = memoryview(data)
        self._length = length
        self._left = length
        self._closed = False

    @property
    def length(self) -> int:
        """True plaintext length in bytes."""
        return self._length

    @property
    def here(self) -> bool:
        """Always."""
        return True

    def read(self) -> bytes:
        """Return the next piece; b"" at the end. Raises DamagedContentError, ForgottenError."""
        if self._closed:
            raise MisuseError("this content was closed")
        while self._rest is not None:
            self._store.check_not_gone(self._content_id)
            if len(self._rest):
                data = self._cipher.update(self._rest[:SEGMENT_BYTES])
                self._rest = self._rest[SEGMENT_BYTES:]
            else:
                data, self._rest = self._cipher.finish(), None
            data = data[: self._left]
            self._left -= len(data)
            if data:
                return data
        return b""

    def close(self) -> None:
        """Nothing more comes. Idempotent."""
        self._closed = True


class MemoryCiphertextReceiver:
    """See `adapters.storage.replica.CiphertextReceiver`."""

    def __init__(self, store: MemoryContentStore, content_id: ContentId, root: Root, length: int) -> None:
        """Begin or resume."""
        self._store = store
        self._content_id = content_id
        self._root = root
        self._length = length
        self._leaves: list[bytes] | None = None
        self._closed = False
        with store.lock:
            known = store.parts.get(content_id)
            if known is None or known[:2] != (root, length):
                known = store.parts[content_id] = (root, length, {})
            self._segments = known[2]

    @property
    def has_leaves(self) -> bool:
        """Whether the leaf hashes are known."""
        return self._leaves is not None or segment_count(self._length) == 1

    def missing(self) -> list[int]:
        """Numbers of the segments that have not come."""
        with self._store.lock:
            return [n for n in range(segment_count(self._length)) if n not in self._segments]

    def set_leaves(self, leaves: Sequence[bytes]) -> None:
        """Give the leaf hashes. Raises UntrustedInputError when they do not give the root."""
        if len(leaves) != segment_count(self._length) or root_of(leaves, self._length) != self._root:
            raise UntrustedInputError("leaf hashes from a peer do not give the root on the log")
        self._leaves = list(leaves)

    def write_segment(self, number: int, data: bytes | memoryview) -> None:
        """Take one segment. Raises UntrustedInputError, MisuseError, ForgottenError."""
        self._check()
        count = segment_count(self._length)
        if not 0 <= number < count or len(data) != min(SEGMENT_BYTES, self._length - number * SEGMENT_BYTES):
            raise UntrustedInputError("a segment from a peer has a wrong number or length")
        leaf = leaf_hash(data)
        if count == 1 and self._leaves is None and root_of([leaf], self._length) == self._root:
            self._leaves = [leaf]
        if self._leaves is None and count > 1:
            raise MisuseError("give the leaf hashes first")
        if self._leaves is None or self._leaves[number] != leaf:
            raise UntrustedInputError("a segment from a peer does not match the root on the log")
        with self._store.lock:
            self._segments.setdefault(number, bytes(data))

    def finish(self) -> None:
        """Keep the ciphertext. Raises NotYetAvailableError, ForgottenError, ConflictError."""
        self._check()
        if left := self.missing():
            raise NotYetAvailableError(f"{len(left)} segments have not come yet")
        with self._store.lock:
            joined = b"".join(self._segments[n] for n in sorted(self._segments))
            self._store.store(self._content_id, None, joined)
            self._store.parts.pop(self._content_id, None)
        self._closed = True

    def close(self) -> None:
        """Stop, and keep what came. Idempotent."""
        self._closed = True

    def abort(self) -> None:
        """Stop, and drop what came. Idempotent."""
        self._closed = True
        with self._store.lock:
            self._store.parts.pop(self._content_id, None)

    def _check(self) -> None:
        self._store.check_not_gone(self._content_id)
        if self._closed:
            raise MisuseError("this incoming content was closed")
