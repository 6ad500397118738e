"""Counts what goes through the bus, and how much a second of late. Numbers only, nothing of what went through.

Counted by the door's thread; read from any.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import msgspec

SPAN_S: Final = 60
"""Seconds over which a rate is taken."""


class Counts(msgspec.Struct):
    """Totals since the start."""

    messages_in: int = 0
    messages_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    requests: int = 0
    errors: int = 0
    """Errors sent to clients."""
    malformed: int = 0
    """Messages that were refused before they were understood."""
    cut: int = 0
    """Connections that the node ended."""
    shut: int = 0
    """Times that nobody new was let in for a moment, since too many came."""


class Meter:
    """Totals and rates."""

    def __init__(self) -> None:
        self.counts = Counts()
        self._past: deque[tuple[float, dict[str, int]]] = deque(maxlen=SPAN_S + 1)

    def on_tick(self, now: float) -> None:
        """Remember the totals, once a second (`now`: monotonic seconds)."""
        if not self._past or now - self._past[-1][0] >= 1.0:
            self._past.append((now, msgspec.structs.asdict(self.counts)))

    def totals(self) -> dict[str, int]:
        """Each count since the start."""
        return msgspec.structs.asdict(self.counts)

    def rates(self) -> dict[str, float]:
        """Each count a second, over the last minute; 0 in the first second."""
        past = list(self._past)
        if len(past) < 2:
            return dict.fromkeys(self.totals(), 0.0)
        (began, first), (ended, last) = past[0], past[-1]
        return {name: round((last[name] - first[name]) / (ended - began), 1) for name in last}
