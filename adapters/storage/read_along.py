"""The last segments of an incoming content, in memory for those who read it while it comes.

A segment that is here no more must be read from the disk and hashed once again; so who brings the next one waits a
moment for a reader who is behind. Who stays behind is waited for no longer. Used by ciphertext_writer.py.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final

KEPT: Final = 8
"""Segments that are kept (a count, 1 MiB each)."""
HOLD_S: Final = 0.25
"""How long a reader is waited for."""
WAIT_S: Final = 1.0


class ReadAlong:
    """Every call needs the lock that it was made with."""

    def __init__(self, lock: threading.Lock) -> None:
        """Nobody reads yet."""
        self._arrived = threading.Condition(lock)
        self._taken = threading.Condition(lock)
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._unread: set[int] = set()
        self._waiting: set[int] = set()
        """Segments that have not come, and that a reader waits for."""
        self._readers = 0
        self._behind = False
        """Whether readers were waited for in vain, and have not caught up since."""

    def begin(self) -> None:
        """Somebody will read."""
        self._readers += 1

    def end(self) -> None:
        """Somebody reads no more."""
        self._readers -= 1
        if not self._readers:
            self._forget()
        self._taken.notify_all()
        self._arrived.notify_all()

    def clear(self) -> None:
        """Keep nothing any more; whoever waits looks again."""
        self._forget()
        self._taken.notify_all()
        self._arrived.notify_all()

    def put(self, number: int, data: bytes | memoryview) -> None:
        """A segment is here: keep a copy of it if anybody reads. Waits, without the lock, at most `HOLD_S`."""
        if not self._readers:
            return
        self._kept[number] = bytes(data)
        self._unread.add(number)
        self._waiting.discard(number)
        self._arrived.notify_all()
        if len(self._kept) <= KEPT:
            return
        oldest = next(iter(self._kept))
        if not self._behind:
            # Who waits for a segment that has not come is not behind: what it needs is not among these.
            self._behind = not self._taken.wait_for(lambda: oldest not in self._unread or self._waiting, HOLD_S)
        self._kept.pop(oldest, None)
        self._unread.discard(oldest)

    def get(self, number: int) -> bytes | None:
        """A segment, if it is among those that are kept."""
        data = self._kept.get(number)
        if data is not None:
            self._unread.discard(number)
            self._behind = False
            self._taken.notify_all()
        return data

    def wait(self, number: int) -> None:
        """Wait for a segment, without the lock; returns when one came, whichever, and now and then."""
        self._waiting.add(number)
        self._taken.notify_all()
        self._arrived.wait(WAIT_S)
        self._waiting.discard(number)

    def _forget(self) -> None:
        self._kept.clear()
        self._unread.clear()
