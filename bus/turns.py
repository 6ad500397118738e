"""Whose turn it is: a client has only so much of each kind under way at its node, and the rest waits in line here.

So a program may start as many calls and transfers at once as it likes, and none is refused for it. Used by the link's
thread only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

Kind = Literal["", "call", "download", "upload"]
"""What waits for the same turns; empty: for none."""


class Turn(Protocol):
    """A call or transfer, as far as its turn goes."""

    id: bytes
    lane: Kind


class Turns:
    """What is under way and what is in line.

    Args:
        most: how many of each kind are under way (counts).
    """

    def __init__(self, most: Mapping[Kind, int]) -> None:
        self._most = most
        self._under_way: dict[Kind, set[bytes]] = {kind: set() for kind in most}
        self._line: dict[Kind, dict[bytes, Turn]] = {kind: {} for kind in most}

    def may(self, turn: Turn) -> bool:
        """Whether it may go to the node now; else it is in line."""
        if not turn.lane or turn.id in self._under_way[turn.lane]:
            return True
        line = self._line[turn.lane]
        if len(self._under_way[turn.lane]) < self._most[turn.lane]:
            self._under_way[turn.lane].add(turn.id)
            line.pop(turn.id, None)
            return True
        line.setdefault(turn.id, turn)
        return False

    def in_line(self, turn: Turn) -> bool:
        """Whether it waits for its turn."""
        return bool(turn.lane) and turn.id in self._line[turn.lane]

    def rename(self, turn: Turn, new_id: bytes) -> None:
        """It goes on under another id, which it does not have yet, and keeps its turn or its place in line."""
        if not turn.lane:
            return
        if turn.id in self._under_way[turn.lane]:
            self._under_way[turn.lane].remove(turn.id)
            self._under_way[turn.lane].add(new_id)
        elif self._line[turn.lane].pop(turn.id, None) is not None:
            self._line[turn.lane][new_id] = turn  # at the end: it hardly ever happens there

    def leave(self, turn: Turn) -> Turn | None:
        """It has ended, whether it had its turn or not; returns whose turn it is now."""
        if not turn.lane:
            return None
        if turn.id not in self._under_way[turn.lane]:
            self._line[turn.lane].pop(turn.id, None)
            return None
        self._under_way[turn.lane].discard(turn.id)
        return next(iter(self._line[turn.lane].values()), None)
