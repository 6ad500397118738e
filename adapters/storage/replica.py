"""What peers and views need from a content store beyond `domain.ports.ContentStore`, and what all stores share.

`ReplicaStore` is implemented on disk (content_store.py) and in memory (memory_store.py); both pass
tests/contract/test_content_store.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

from walytis_vault.adapters.crypto.descriptor import (
    Descriptor,
    open_descriptor,
    open_reason,
    seal_descriptor,
    seal_reason,
)
from walytis_vault.domain.errors import (
    ConflictError,
    DamagedContentError,
    ForgottenError,
    MisuseError,
    NotYetAvailableError,
)
from walytis_vault.domain.ids import ID_BYTES, ContentId, ContentKey, Root
from walytis_vault.domain.ports import ContentStore


class CiphertextReceiver(Protocol):
    """One ciphertext coming from peers. Threads may share it: several holders deliver at once.

    Use: `set_leaves` (unless `has_leaves`), `write_segment` for each number in `missing()`, `finish`. `close`
    keeps what came for a later receiver; `abort` drops it.
    """

    @property
    def has_leaves(self) -> bool:
        """Whether the leaf hashes are known; a ciphertext of one segment needs none."""
        ...

    def missing(self) -> list[int]:
        """Numbers of the segments that have not come, in order."""
        ...

    def set_leaves(self, leaves: Sequence[bytes]) -> None:
        """Give the leaf hashes that a peer sent. Raises UntrustedInputError when they do not give the root."""
        ...

    def write_segment(self, number: int, data: bytes | memoryview) -> None:
        """Take one segment (1 MiB; the last is shorter), in any order; a repeated one is ignored.

        Raises:
            UntrustedInputError: it does not verify; nothing was written. MisuseError: leaf hashes are missing.
            ForgottenError, StorageError.
        """
        ...

    def finish(self) -> None:
        """Make the ciphertext durable and known. Raises NotYetAvailableError while segments are missing."""
        ...

    def close(self) -> None:
        """Stop, and keep what came. Idempotent."""
        ...

    def abort(self) -> None:
        """Stop, and drop what came. Idempotent."""
        ...


class ReplicaStore(ContentStore, Protocol):
    """A content store that peers can be served from and filled by."""

    def seal_descriptor(self, content_id: ContentId, descriptor: Descriptor) -> bytes:
        """Seal under the content's key. Raises NotYetAvailableError without it, MisuseError over the limits."""
        ...

    def open_descriptor(self, content_id: ContentId, sealed: bytes) -> Descriptor | None:
        """Open a sealed descriptor; None when the key is not here. Raises UntrustedInputError."""
        ...

    def seal_reason(self, content_id: ContentId, reason: str) -> bytes:
        """Seal the reason of a ballot under its first content's key."""
        ...

    def open_reason(self, content_id: ContentId, sealed: bytes) -> str | None:
        """Open a sealed reason; None when the key is not here. Raises UntrustedInputError."""
        ...

    def read_ciphertext(self, content_id: ContentId, offset: int, size: int) -> bytes:
        """At most 1 MiB of ciphertext from `offset`; shorter only at the end. Unverified: the peer verifies."""
        ...

    def leaf_hashes(self, content_id: ContentId) -> list[bytes]:
        """Leaf hashes of the stored ciphertext."""
        ...

    def begin_ciphertext(self, content_id: ContentId, root: Root, ciphertext_length: int) -> CiphertextReceiver:
        """Begin, or go on, to receive a ciphertext whose root is on the log."""
        ...

    def put_key(self, content_id: ContentId, key: ContentKey) -> None:
        """Store a content key that a member sent, durably. The caller checked it against the commitment."""
        ...

    def drop_bytes(self, content_id: ContentId) -> int:
        """Free the space of a content; its key stays and it can be fetched again. Returns the bytes freed."""
        ...

    def dropped(self, content_id: ContentId) -> bool:
        """Whether the bytes were dropped here and have not come back."""
        ...


class SealedTexts(ABC):
    """Descriptors and reasons, sealed under content keys, for every store that knows the keys."""

    @abstractmethod
    def content_key(self, content_id: ContentId) -> ContentKey | None:
        """See `ContentStore.content_key`."""

    @abstractmethod
    def check_not_gone(self, content_id: ContentId) -> None:
        """Raise ForgottenError when forgetting this content has begun or is done."""

    def seal_descriptor(self, content_id: ContentId, descriptor: Descriptor) -> bytes:
        """Seal under the content's key. Raises NotYetAvailableError without it, MisuseError over the limits."""
        return seal_descriptor(self.need_key(content_id), content_id, descriptor)

    def open_descriptor(self, content_id: ContentId, sealed: bytes) -> Descriptor | None:
        """Open a sealed descriptor; None when the key is not here. Raises UntrustedInputError."""
        key = self.content_key(content_id)
        return None if key is None else open_descriptor(key, content_id, sealed)

    def seal_reason(self, content_id: ContentId, reason: str) -> bytes:
        """Seal the reason of a ballot under its first content's key; b"" for no reason."""
        return seal_reason(self.need_key(content_id), content_id, reason) if reason else b""

    def open_reason(self, content_id: ContentId, sealed: bytes) -> str | None:
        """Open a sealed reason; None when the key is not here. Raises UntrustedInputError."""
        key = self.content_key(content_id)
        return None if key is None else open_reason(key, content_id, sealed)

    def need_key(self, content_id: ContentId) -> ContentKey:
        """The content's key. Raises NotYetAvailableError, ForgottenError."""
        key = self.content_key(content_id)
        if key is None:
            self.check_not_gone(content_id)
            raise NotYetAvailableError(f"the key of content {content_id.hex()} is not on this node yet")
        return key


def check_content_id(content_id: ContentId) -> None:
    """Raise MisuseError for an id that is not 16 bytes."""
    if len(content_id) != ID_BYTES:
        raise MisuseError(f"a content id is {ID_BYTES} bytes, not {len(content_id)}")


def forgotten(content_id: ContentId) -> ForgottenError:
    """The error for a content that was forgotten."""
    return ForgottenError(f"content {content_id.hex()} was forgotten: its key and bytes are destroyed")


def dropped_meanwhile(content_id: ContentId) -> ConflictError:
    """The error for bytes that were dropped before all of them were stored."""
    return ConflictError(f"content {content_id.hex()} was dropped while it came in")


def missing(content_id: ContentId) -> NotYetAvailableError:
    """The error for bytes that are not here."""
    return NotYetAvailableError(f"the bytes of content {content_id.hex()} are not on this node yet")


def damaged(content_id: ContentId) -> DamagedContentError:
    """The error for bytes that do not match their record."""
    return DamagedContentError(
        f"the stored bytes of content {content_id.hex()} do not match its record: fetch it again from a peer"
    )
