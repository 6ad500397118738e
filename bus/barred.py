"""Who makes work for nothing on and on: its connection is cut, and its key may connect again only after a while.

Otherwise a program that is cut and connects again at once costs the others as much as if it had stayed. It counts for
the key too, so that many connections gain nothing. Connections that a key has already, of programs that do nothing
wrong, go on. Used by the door's thread only.
"""

from __future__ import annotations

from typing import Final

from walytis_vault.bus.peer import Peer
from walytis_vault.bus.protocol import BusLimits
from walytis_vault.domain.errors import BusyError, UntrustedInputError, VaultError

FIRST_S: Final = 1.0
"""Seconds for which a key waits at first; twice as long each further time."""
MOST_S: Final = 16.0
FORGIVEN_S: Final = 60.0
"""Seconds of good behaviour after which the next time is the first again."""
_AT_ONCE_S: Final = 10.0
"""The new connections of so many seconds may come at once."""
_OF_A_KEY: Final = 2
"""How many times what one connection may all connections of a key may together."""


class Barred:
    """Until when a key (Z85) may not connect. Times are monotonic seconds."""

    def __init__(self, limits: BusLimits | None = None) -> None:
        self._limits = limits or BusLimits()
        self._came: dict[str, tuple[float, float]] = {}
        """Of each key: how many connections it may make at once still, and when that was so."""
        self._until: dict[str, tuple[float, float]] = {}
        """The time, and how long it was."""
        self._refusals: dict[str, tuple[float, int]] = {}
        """Of each key: when the second began, and how many since."""

    def may_come(self, key: str, now: float) -> bool:
        """Whether a key may make one more connection; whoever makes too many is barred."""
        if self.holds(key, now):
            return False
        most = _AT_ONCE_S * self._limits.client_connects
        left, at = self._came.get(key, (most, now))
        left = min(most, left + self._limits.client_connects * (now - at)) - 1
        self._came[key] = (max(0.0, left), now)
        if left < 0:
            self.add(key, now)
        return left >= 0

    def told(self, peer: Peer, error: VaultError, now: float) -> str | None:
        """A connection was sent an error; returns why it is to be cut, or None."""
        if isinstance(error, UntrustedInputError):
            peer.strikes += 1
            if peer.strikes >= self._limits.malformed:
                return "it keeps sending malformed messages"
        elif not isinstance(error, BusyError):
            return None
        return self.refused(peer, now)

    def refused(self, peer: Peer, now: float) -> str | None:
        """A connection sent what is not taken, or made work for nothing; returns why it is to be cut, or None."""
        if now - peer.refused_since > 1.0:
            peer.refusals, peer.refused_since = 0, now
        peer.refusals += 1
        key = peer.entry.public_key
        since, count = self._refusals.get(key, (now, 0))
        if now - since > 1.0:
            since, count = now, 0
        self._refusals[key] = (since, count + 1)
        if peer.refusals > self._limits.refusals or count >= _OF_A_KEY * self._limits.refusals:
            return "it keeps sending what leads to nothing"
        return None

    def add(self, key: str, now: float) -> float:
        """Bar a key; returns for how many seconds. One that is barred already waits no longer for it."""
        until, length = self._until.get(key, (now - FORGIVEN_S - 1.0, 0.0))
        if now < until:
            return until - now
        length = FIRST_S if now - until > FORGIVEN_S else min(MOST_S, 2 * length)
        self._until[key] = (now + length, length)
        return length

    def holds(self, key: str, now: float) -> bool:
        """Whether a key may not connect now."""
        return key in self._until and now < self._until[key][0]

    def refresh(self, now: float) -> None:
        """Forget those who have behaved for long."""
        self._refusals = {key: entry for key, entry in self._refusals.items() if now - entry[0] <= 1.0}
        self._came = {key: entry for key, entry in self._came.items() if now - entry[1] <= FORGIVEN_S}
        self._until = {key: entry for key, entry in self._until.items() if now - entry[0] <= FORGIVEN_S}
