"""The ciphertext root: a SHA-256 tree over segments of 1 MiB, so that bytes can be checked piece by piece.

Leaves, inner nodes and the root are hashed under different labels, and the root covers the length, so that
no segment can stand for another or be left out. Format: docs/wire-format-content.md, "Content".
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from walytis_vault.adapters.crypto.labels import LEAF, NODE, ROOT
from walytis_vault.domain.ids import Root
from walytis_vault.domain.limits import SEGMENT_BYTES

LEAF_BYTES: Final = 32


def segment_count(ciphertext_length: int) -> int:
    """How many segments a ciphertext of this many bytes has (at least one)."""
    return max(1, -(-ciphertext_length // SEGMENT_BYTES))


def leaf_hash(segment: bytes | memoryview) -> bytes:
    """Hash of one segment, 32 bytes."""
    digest = hashlib.sha256(LEAF)
    digest.update(segment)
    return digest.digest()


def root_of(leaves: Sequence[bytes], ciphertext_length: int) -> Root:
    """Root over the leaf hashes of a ciphertext of `ciphertext_length` bytes.

    Neighbours are paired level by level; an odd last node moves up unchanged.
    """
    level = list(leaves)
    while len(level) > 1:
        paired = [hashlib.sha256(NODE + a + b).digest() for a, b in zip(level[::2], level[1::2], strict=False)]
        level = paired + level[len(paired) * 2 :]
    return Root(hashlib.sha256(ROOT + ciphertext_length.to_bytes(8, "big") + level[0]).digest())


def split_leaves(joined: bytes) -> list[bytes]:
    """Cut joined leaf hashes apart."""
    return [joined[i : i + LEAF_BYTES] for i in range(0, len(joined), LEAF_BYTES)]


class LeafHasher:
    """Leaf hashes of a ciphertext that arrives in pieces of any size. Holds 32 bytes for each MiB."""

    def __init__(self) -> None:
        """Start before the first byte."""
        self._leaves: list[bytes] = []
        self._current = hashlib.sha256(LEAF)
        self._room = SEGMENT_BYTES
        self._length = 0

    @property
    def length(self) -> int:
        """Bytes so far."""
        return self._length

    def update(self, data: bytes | memoryview) -> None:
        """Add ciphertext."""
        view = memoryview(data)
        self._length += len(view)
        while len(view) >= self._room:
            self._current.update(view[: self._room])
            view = view[self._room :]
            self._leaves.append(self._current.digest())
            self._current, self._room = hashlib.sha256(LEAF), SEGMENT_BYTES
        if len(view):
            self._current.update(view)
            self._room -= len(view)

    def finish(self) -> tuple[list[bytes], Root]:
        """Return all leaf hashes and the root. Call once."""
        if self._room < SEGMENT_BYTES or not self._leaves:
            self._leaves.append(self._current.digest())
        return self._leaves, root_of(self._leaves, self._length)
