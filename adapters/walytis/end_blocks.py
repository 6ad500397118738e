"""On which blocks a chain's next block stands: a few, whatever strangers put beside them.

Upstream names every leaf that it knows. Anyone with the chain's id can make leaves, so a few hundred of them make the
next block's id longer than anybody reads, and each of them costs a walk through all. Here the next block stands on
those that the log names (`build_on`: blocks of batches that were accepted), and without a log on our own last block
and the newest leaves. What is chosen is also what peers are told of. Pure bookkeeping: no I/O, no locks of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Final

from walytis_vault.adapters.walytis import ancestry

MOST: Final = 32
"""Blocks (a count); the id of a block that stands on so many has about 15 kB."""


class EndBlocks:
    """The end blocks of one chain, by key. Any thread may call."""

    def __init__(self, parents_of: ancestry.ParentsOf, height_of: ancestry.HeightOf, leaves: Iterable[bytes] = ()):
        """Begin with some leaves of the chain, oldest first; no more than `MOST` are kept."""
        self._parents_of = parents_of
        self._height_of = height_of
        self._lock = threading.Lock()
        self._leaves: dict[bytes, None] = dict.fromkeys(list(leaves)[-MOST:])
        self._named: dict[bytes, None] = {}
        self._own: bytes | None = None
        """Our own last block, or what has come to stand on it: it is never pushed out."""

    def build_on(self, keys: Iterable[bytes]) -> None:
        """Let the next block stand on these; nothing changes when there are none."""
        named = dict.fromkeys(list(keys)[:MOST])
        if named:
            with self._lock:
                self._named = named

    def add(self, key: bytes, parents: Iterable[bytes], *, own: bool, is_leaf: bool = True) -> None:
        """A block is known from now on.

        Args:
            key, parents: it, and what it stands on.
            own: it was made here.
            is_leaf: nothing that is known stands on it already.
        """
        with self._lock:
            by_name = bool(self._named)
            for parent in parents:
                self._leaves.pop(parent, None)
                if parent == self._own and is_leaf:
                    self._own = key
                if own:
                    self._named.pop(parent, None)
            if is_leaf:
                self._leaves[key] = None
            if own:
                self._own = key
                if by_name:
                    self._named[key] = None
            while len(self._leaves) > MOST:
                del self._leaves[next(leaf for leaf in self._leaves if leaf != self._own)]

    def chosen(self) -> list[bytes]:
        """Keys of the blocks that the next one stands on: known ones, none an ancestor of another."""
        with self._lock:
            keys = [key for key in self._named if self._parents_of(key) is not None] or list(self._leaves)
        if len(keys) > 1:
            kept = ancestry.indices_without_ancestors(keys, self._parents_of, self._height_of)
            keys = [keys[at] for at in kept]
        return keys
