"""Counts what is in flight against limits: per connection and for all together. Used by the door's thread only."""

from __future__ import annotations

from walytis_vault.bus.door import Peer


class Budget:
    """Bytes that may be outstanding.

    Args:
        name: key under which each peer's share is counted.
        per_peer: bytes for one connection.
        total: bytes for all.
    """

    def __init__(self, name: str, *, per_peer: int, total: int) -> None:
        self._name = name
        self._per_peer = per_peer
        self._total = total
        self.used = 0

    def room(self, peer: Peer) -> int:
        """Bytes that could be taken now."""
        return max(0, min(self._per_peer - peer.inflight.get(self._name, 0), self._total - self.used))

    def take(self, peer: Peer, size: int) -> int:
        """Take up to `size` bytes; returns how many."""
        granted = min(size, self.room(peer))
        if granted > 0:
            peer.inflight[self._name] = peer.inflight.get(self._name, 0) + granted
            self.used += granted
        return granted

    def give(self, peer: Peer, size: int) -> None:
        """Return bytes."""
        peer.inflight[self._name] = peer.inflight.get(self._name, 0) - size
        self.used -= size
