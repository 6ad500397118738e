"""Stores for tests, the contents in them, and what tests read out of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from walytis_vault.adapters.storage.content_store import DiskContentStore
from walytis_vault.adapters.storage.memory_store import MemoryContentStore
from walytis_vault.adapters.storage.replica import ReplicaStore
from walytis_vault.adapters.storage.vault_keys import VaultKeys
from walytis_vault.adapters.system import OsFileSystem, SystemClock, SystemRandomness
from walytis_vault.domain.ids import ContentId, Root
from walytis_vault.domain.ports import FileSystem, Randomness, StoredContent

VAULT_ID = "vault-of-the-tests"
AUTHOR = "did:walytis:author"


class Kept(NamedTuple):
    """A stored content and its plaintext."""

    stored: StoredContent
    data: bytes

    @property
    def content_id(self) -> ContentId:
        """Its id."""
        return self.stored.content_id

    @property
    def root(self) -> Root:
        """Its root."""
        return self.stored.root


class FixedRandomness:
    """Hands out the given tokens first, then real randomness: so a test knows a content key."""

    def __init__(self, *tokens: bytes) -> None:
        self._tokens = list(tokens)

    def token(self, size: int) -> bytes:
        """See `domain.ports.Randomness`."""
        if self._tokens and len(self._tokens[0]) == size:
            return self._tokens.pop(0)
        return os.urandom(size)


def new_id() -> ContentId:
    """A fresh content id."""
    return ContentId(os.urandom(16))


def open_store(
    home: Path,
    *,
    fs: FileSystem | None = None,
    randomness: Randomness | None = None,
    passphrase: str | None = None,
    vault_id: str = VAULT_ID,
) -> DiskContentStore:
    """Open (or create) keys and store in a home folder."""
    real = OsFileSystem()
    folder = home / "keys"
    make = VaultKeys.open if (folder / "master.sealed").exists() else VaultKeys.create
    keys = make(folder, real, passphrase)
    return DiskContentStore.open(
        home / "content",
        vault_id=vault_id,
        keys=keys,
        fs=fs or real,
        clock=SystemClock(),
        randomness=randomness or SystemRandomness(),
    )


def memory_store() -> MemoryContentStore:
    """A store in memory."""
    return MemoryContentStore(vault_id=VAULT_ID, randomness=SystemRandomness())


def put(store: ReplicaStore, data: bytes, *, content_id: ContentId | None = None, author: str = AUTHOR) -> Kept:
    """Store one content, given to the writer in uneven pieces."""
    writer = store.writer(content_id or new_id(), author=author)
    view = memoryview(data)
    for start in range(0, len(data), 300_007):
        writer.write(view[start : start + 300_007])
    return Kept(writer.finish(), data)


def get(store: ReplicaStore, kept: Kept, *, author: str = AUTHOR) -> bytes:
    """Read one content back whole."""
    stored = kept.stored
    reader = store.reader(
        stored.content_id,
        author=author,
        root=stored.root,
        length=stored.length,
        padded_length=stored.padded_length,
    )
    pieces = []
    while piece := reader.read():
        pieces.append(piece)
    reader.close()
    return b"".join(pieces)


def ciphertext(store: ReplicaStore, kept: Kept) -> bytes:
    """The whole ciphertext, as a peer would get it."""
    length = kept.stored.ciphertext_length
    return b"".join(store.read_ciphertext(kept.content_id, at, 1 << 20) for at in range(0, length, 1 << 20))
