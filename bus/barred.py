"""Keys whose connections were cut for what they sent: they may connect again, but only after a while.

Otherwise a program that is cut and connects again at once costs the others as much as if it had stayed. Connections
that a key has already, of programs that do nothing wrong, go on. Used by the door's thread only.
"""

from __future__ import annotations

from typing import Final

FIRST_S: Final = 1.0
"""Seconds for which a key waits at first; twice as long each further time."""
MOST_S: Final = 16.0
FORGIVEN_S: Final = 60.0
"""Seconds of good behaviour after which the next time is the first again."""


class Barred:
    """Until when a key (Z85) may not connect. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._until: dict[str, tuple[float, float]] = {}
        """The time, and how long it was."""

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
        self._until = {key: entry for key, entry in self._until.items() if now - entry[0] <= FORGIVEN_S}
