"""Shares the missing segments of one content out between its holders.

Each holder's thread claims what nobody brings yet. What a holder does not bring goes back; when all is on the
way, who is idle also claims what another has been bringing for too long. So a slow or dead holder holds up
nothing that somebody else has. No I/O.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Hashable, Iterable
from typing import Final

SLOW_S: Final = 2.0
"""A claim so old is taken over by a holder that has nothing else to do."""


class Delivery:
    """Any thread may call; each `who` stands for one holder."""

    def __init__(self, numbers: Iterable[int], *, slow_s: float = SLOW_S) -> None:
        self._left = deque(numbers)
        self._open = set(self._left)
        self._claims: dict[int, dict[Hashable, float]] = {}
        self._bringing: set[Hashable] = set()
        self._slow_s = slow_s
        self._stopped = False
        self._changed = threading.Condition()

    def begin(self, who: Hashable) -> None:
        """A holder is about to bring segments."""
        with self._changed:
            self._bringing.add(who)

    def claim(self, who: Hashable, *, wait: bool) -> int | None:
        """The next segment to bring; None when there is none now.

        Args:
            wait: wait until there is one, or until all are there.
        """
        with self._changed:
            while self._open and not self._stopped:
                now = time.monotonic()
                number = self._left.popleft() if self._left else self._slow(who, now)
                if number is not None:
                    if number in self._open:
                        self._claims.setdefault(number, {})[who] = now
                        return number
                    continue
                if not wait:
                    return None
                self._changed.wait(self._slow_s / 4)
            return None

    def brought(self, number: int) -> None:
        """A segment is here, verified."""
        with self._changed:
            self._open.discard(number)
            self._claims.pop(number, None)
            if not self._open:
                self._changed.notify_all()

    def gave_up(self, who: Hashable) -> None:
        """A holder brings no more: what it claimed alone is for the others."""
        with self._changed:
            self._bringing.discard(who)
            for number in list(self._claims):
                claims = self._claims[number]
                claims.pop(who, None)
                if not claims:
                    del self._claims[number]
                    self._left.append(number)
            self._changed.notify_all()

    def stop(self) -> None:
        """Nobody gets a claim any more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def wait(self) -> bool:
        """Wait until all segments are here, or nobody brings any; whether they are."""
        with self._changed:
            while self._open and self._bringing and not self._stopped:
                self._changed.wait(1.0)
            return not self._open

    def _slow(self, who: Hashable, now: float) -> int | None:
        """The oldest claim of others that is overdue and that `who` does not bring too."""
        overdue = [
            (min(claims.values()), number)
            for number, claims in self._claims.items()
            if who not in claims and len(claims) == 1 and now - min(claims.values()) >= self._slow_s
        ]
        return min(overdue)[1] if overdue else None
