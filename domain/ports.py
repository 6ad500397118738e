"""The ports: what the rules and the adapters need from the world, as small interfaces.

The composition root passes real objects; tests pass full in-memory ones that satisfy the same contract
tests. Unless said otherwise a method may be called from any thread, and only `VaultError` escapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Set
from typing import Protocol

import msgspec

from walytis_vault.domain.ids import ContentId, ContentKey, KeyId, Root


class Clock(Protocol):
    """Time, as an object."""

    def wall_ms(self) -> int:
        """Milliseconds since 1970 (UTC). For display and expiry; no rule of safety reads it."""
        ...

    def monotonic(self) -> float:
        """Seconds that only grow; for timeouts and rates."""
        ...


class Randomness(Protocol):
    """Randomness, as an object."""

    def token(self, size: int) -> bytes:
        """Return `size` bytes fit for keys."""
        ...


class FileSystem(Protocol):
    """The calls on files that durability depends on. Raises OSError; adapters convert it to StorageError.

    Offsets and sizes are bytes. Paths are absolute texts. File descriptors are plain ints.
    """

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        """os.open, always with O_CLOEXEC."""
        ...

    def close(self, fd: int) -> None:
        """os.close."""
        ...

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        """Read up to `size` bytes at `offset`; shorter only at the end of the file."""
        ...

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        """Write all of `data` at `offset`."""
        ...

    def fsync(self, fd: int) -> None:
        """Make data and metadata durable. If this fails the process must stop (never retry an fsync)."""
        ...

    def fdatasync(self, fd: int) -> None:
        """Make data durable."""
        ...

    def fsync_folder(self, path: str) -> None:
        """Make creations, renames and removals in a folder durable."""
        ...

    def rename(self, source: str, target: str) -> None:
        """Atomic replace."""
        ...

    def unlink(self, path: str) -> None:
        """Remove a file."""
        ...

    def truncate(self, fd: int, size: int) -> None:
        """Cut or extend a file."""
        ...

    def makedirs(self, path: str) -> None:
        """Create a folder (mode 0700) and its parents, if missing."""
        ...

    def listdir(self, path: str) -> list[str]:
        """Names in a folder, sorted."""
        ...

    def size(self, path: str) -> int | None:
        """Size of a file, None when there is none."""
        ...

    def free_bytes(self, path: str) -> int:
        """What may still be written to the disk that a path is on."""
        ...


class BlockRef(msgspec.Struct, frozen=True, kw_only=True):
    """One block of the log chain, without its content."""

    block_id: bytes
    """Walytis long id (~940 bytes): names the block and its parents."""
    key: bytes
    """16 bytes that stand for the block: SHA-256 of its short id, cut. What indexes store."""
    parents: tuple[bytes, ...]
    """Keys of the parent blocks; empty for a genesis block."""


class Chain(Protocol):
    """The log chain: an untrusted, append-only gossip log of blocks. Implemented on Walytis, and in memory.

    Anyone may append to it; creator and time of a block prove nothing; delivery may repeat, stall, or come
    out of order. Whoever reads must verify.
    """

    @property
    def chain_id(self) -> str:
        """The id of the chain."""
        ...

    def append(self, content: bytes) -> BlockRef:
        """Create one block and return when it exists locally; peers hear of it soon. Not empty, <= 1 MiB + 8 KiB.

        Raises:
            TransportError: the block could not be created; nothing exists.
        """
        ...

    def build_on(self, keys: Iterable[bytes]) -> None:
        """Let the blocks that are appended from now on stand on these, and peers hear of these.

        Strangers can put any number of blocks beside them. Unknown keys are left out; before the first call, and
        when none is given, some of the leaves are chosen.
        """
        ...

    def read(self, ref: BlockRef, *, timeout: float = 10.0) -> bytes:
        """Return the content of a block, from disk when known, else from peers, within `timeout` seconds.

        Raises:
            NotYetAvailableError: no peer delivered it in time.
            UntrustedInputError: the block's bytes do not match its id.
        """
        ...

    def leaves(self, but: Set[bytes] = frozenset()) -> list[BlockRef]:
        """The blocks that no known block has as parent, but those with these keys. Start here to find what was missed.

        Leaving out costs next to nothing for each, whatever their number.
        """
        ...

    def blocks(self) -> Iterator[BlockRef]:
        """Every block that is known locally, oldest index file first; a lazy walk with bounded memory."""
        ...

    def find(self, key: bytes) -> BlockRef | None:
        """Look up a locally known block by its 16-byte key."""
        ...

    def listen(self, callback: Callable[[BlockRef], None]) -> Callable[[], None]:
        """Call back, from another thread, for each new block. A hint only: may repeat, miss or reorder.

        Returns:
            A function that stops the calls.
        """
        ...


class Signer(Protocol):
    """This device's log-signing key (Ed25519 and ML-DSA-65 together)."""

    @property
    def key_id(self) -> KeyId:
        """Id of the public keys."""
        ...

    @property
    def ed25519_public(self) -> bytes:
        """32 bytes."""
        ...

    @property
    def ml_dsa_65_public(self) -> bytes:
        """1952 bytes."""
        ...

    def sign(self, message: bytes) -> bytes:
        """Return the Ed25519 signature (64 bytes) followed by the ML-DSA-65 signature (3309 bytes).

        The message must begin with byte 0xFF (security: nothing that we sign may be text a stranger chose).
        """
        ...


class Verifier(Protocol):
    """Checks batch signatures. Stateless."""

    def verify(self, *, ed25519: bytes, ml_dsa_65: bytes, signature: bytes, message: bytes) -> bool:
        """True only if both signatures are valid. Never raises on hostile input."""
        ...


class StoredContent(msgspec.Struct, frozen=True, kw_only=True):
    """What the store knows of one content after its bytes are durable."""

    content_id: ContentId
    root: Root
    header: bytes
    """First 56 bytes of the ciphertext (salt and key commitment)."""
    padded_length: int
    """Plaintext bytes after padding."""
    length: int
    """Plaintext bytes that the user gave."""
    ciphertext_length: int


class ContentWriter(Protocol):
    """One content on its way into the store. Owned by one thread. Holds at most a few MiB."""

    def write(self, data: bytes | memoryview) -> None:
        """Add plaintext. Raises StorageError, StorageFullError, MisuseError (over the size limit)."""
        ...

    def finish(self) -> StoredContent:
        """Pad, encrypt the rest, make bytes and key durable. After this the content is there; the event is next."""
        ...

    def abort(self) -> None:
        """Drop everything that was written, key included. Idempotent."""
        ...


class ContentReader(Protocol):
    """One content being read: only verified plaintext comes out, in order. Owned by one thread."""

    @property
    def length(self) -> int:
        """True plaintext length in bytes."""
        ...

    @property
    def here(self) -> bool:
        """Whether all of it is on this machine: `read` waits for no peer."""
        ...

    def read(self) -> bytes:
        """Return the next piece (<= 1 MiB of plaintext) after its segment verified; b"" at the end.

        Raises:
            DamagedContentError: stored bytes do not match the root; nothing of that segment was returned.
            ForgottenError: the content was forgotten meanwhile.
        """
        ...

    def close(self) -> None:
        """Release the file. Idempotent. From any thread when it is not `here`: it ends a `read` that waits."""
        ...


class ContentStore(Protocol):
    """Ciphertext and content keys at rest, on this machine."""

    def writer(self, content_id: ContentId, *, author: str) -> ContentWriter:
        """Begin a content with a fresh random key, bound to this vault, author and content id."""
        ...

    def reader(
        self, content_id: ContentId, *, author: str, root: Root, length: int, padded_length: int
    ) -> ContentReader:
        """Begin to read. Raises ForgottenError, NotYetAvailableError (no bytes or no key here), DamagedContentError."""
        ...

    def content_key(self, content_id: ContentId) -> ContentKey | None:
        """The content's key, or None when it is not here (never was, or destroyed). Raises LockedError."""
        ...

    def has_bytes(self, content_id: ContentId) -> bool:
        """Whether the whole ciphertext is here (by the index; `verify` reads it)."""
        ...

    def verify(self, content_id: ContentId, root: Root) -> bool:
        """Read all ciphertext and compare with the root. False when missing or damaged."""
        ...

    def erase(self, content_ids: tuple[ContentId, ...]) -> None:
        """Destroy keys and bytes for ever, durably: key first, then bytes, then rows. Repeatable after a crash."""
        ...

    def erased(self, content_id: ContentId) -> bool:
        """Whether this node destroyed the content (its tombstone is durable)."""
        ...

    def close(self) -> None:
        """Flush and release. Bounded."""
        ...
