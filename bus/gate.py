"""Shuts the socket to new connections for a moment when too many come, so that those who have one lose nothing.

Each new connection costs the node a CURVE handshake before anybody can refuse it. So whoever connects again and again
would cost the others as much as if it were admitted. While the gate is shut the socket's file has another name beside
its own: nobody can connect, and what is connected goes on. Clients see that name, and wait. Used by the door's thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Final

_log = logging.getLogger(__name__)

SHUT_SUFFIX: Final = ".shut"
SHUT_S: Final = 0.5
"""Seconds for which it stays shut at first; twice as long each time that too many still come."""
SHUT_MOST_S: Final = 2.0
OPEN_S: Final = 0.01
"""Seconds for which it stays open at least, so that a client that waits has its chance: whoever comes then costs."""
_CALM_S: Final = 1.0
"""Seconds without being shut after which the next time is the first again."""
_BURST_S: Final = 4.0
"""The connections of so many seconds may come at once."""
_REFUSED: Final = 16
"""One that is refused counts as so many."""


class Gate:
    """Whether new connections are let in.

    Args:
        path: the socket's file; None when there is none (TCP), and then it never shuts.
        rate: new connections that may come in a second for long.
        now: monotonic seconds.
    """

    def __init__(self, path: Path | None, rate: float, now: float) -> None:
        self._path = path
        self._rate = rate
        self._left, self._at = _BURST_S * rate, now
        self._opened = now - _CALM_S
        self._length = SHUT_S
        self._until: float | None = None
        self.times = 0
        """How often it was shut (a count)."""

    @property
    def shut(self) -> bool:
        """Whether it is shut now."""
        return self._until is not None

    def came(self, now: float, *, refused: bool) -> None:
        """A new connection came (monotonic seconds); too many shut the gate."""
        self._left = min(_BURST_S * self._rate, self._left + self._rate * (now - self._at))
        self._left = max(-self._rate, self._left - (_REFUSED if refused else 1))
        self._at = now
        if self._left < 0 and self._path is not None and not self.shut and now - self._opened >= OPEN_S:
            with contextlib.suppress(OSError):
                os.rename(self._path, shut_name(self._path))
                calm = now - self._opened >= _CALM_S
                self._length = SHUT_S if calm else min(SHUT_MOST_S, 2 * self._length)
                self._until = now + self._length
                self.times += 1
                if self.times == 1:
                    _log.warning("bus: too many new connections; they wait now and then, those there are go on")

    def tick(self, now: float) -> None:
        """Time has passed."""
        if self._until is not None and now >= self._until:
            self._open(now)

    def close(self) -> None:
        """Give the socket its name back. Idempotent."""
        if self._until is not None:
            self._open(self._until)

    def _open(self, now: float) -> None:
        assert self._path is not None
        self._until, self._opened = None, now
        with contextlib.suppress(FileNotFoundError):  # whoever took the file away wants no more clients
            os.rename(shut_name(self._path), self._path)


def shut_name(path: Path) -> Path:
    """The name of a socket's file while its gate is shut."""
    return path.with_name(path.name + SHUT_SUFFIX)
