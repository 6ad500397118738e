"""Whose turn it is: a client has only so many calls under way at its node, and the others wait in line here.

So a program may start as many calls at once as it likes, and none is refused for it. Used by the link's thread only.
"""

from __future__ import annotations

from typing import Protocol


class Turn(Protocol):
    """A call, as far as its turn goes."""

    id: bytes
    waits: bool
    """Whether it may have to wait for its turn."""


class Turns:
    """Calls under way and in line.

    Args:
        most: calls under way (a count).
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._under_way: set[bytes] = set()
        self._line: dict[bytes, Turn] = {}

    def may(self, call: Turn) -> bool:
        """Whether it may go to the node now; else it is in line."""
        if not call.waits or call.id in self._under_way:
            return True
        if len(self._under_way) < self._most:
            self._under_way.add(call.id)
            self._line.pop(call.id, None)
            return True
        self._line.setdefault(call.id, call)
        return False

    def leave(self, call: Turn) -> Turn | None:
        """It has ended, whether it had its turn or not; returns whose turn it is now."""
        if not call.waits:
            return None
        if call.id not in self._under_way:
            self._line.pop(call.id, None)
            return None
        self._under_way.discard(call.id)
        return next(iter(self._line.values()), None)
