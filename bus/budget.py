"""Counts what is in flight against limits: per connection, per client key, and for all together.

No key takes what the others need: each has a share, and each may always have a little, whatever the others took.
Used by the door's thread only.
"""

from __future__ import annotations

from walytis_vault.bus.peer import Peer
from walytis_vault.bus.protocol import BusLimits


class Budget:
    """Bytes that may be outstanding, in one direction.

    Args:
        name: key under which each peer's part is counted.
        limits: `peer_bytes`, `client_bytes`, `client_least` and `total_bytes`.
    """

    def __init__(self, name: str, limits: BusLimits) -> None:
        self._name = name
        self._limits = limits
        self._clients: dict[str, int] = {}
        self.used = 0

    @property
    def full(self) -> bool:
        """Whether all of it is taken."""
        return self.used >= self._limits.total_bytes

    def room(self, peer: Peer) -> int:
        """Bytes that could be taken now."""
        limits, own = self._limits, self._clients.get(peer.entry.public_key, 0)
        shared = min(limits.client_bytes - own, limits.total_bytes - self.used)
        for_client = max(shared, limits.client_least - own)
        return max(0, min(limits.peer_bytes - peer.inflight.get(self._name, 0), for_client))

    def take(self, peer: Peer, size: int) -> int:
        """Take up to `size` bytes; returns how many."""
        granted = min(size, self.room(peer))
        if granted > 0:
            self._add(peer, granted)
        return granted

    def give(self, peer: Peer, size: int) -> None:
        """Return bytes."""
        self._add(peer, -size)

    def _add(self, peer: Peer, size: int) -> None:
        key = peer.entry.public_key
        peer.inflight[self._name] = peer.inflight.get(self._name, 0) + size
        self.used += size
        own = self._clients.get(key, 0) + size
        if own:
            self._clients[key] = own
        else:
            self._clients.pop(key, None)
