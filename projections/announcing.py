"""Waiting for views: how far they are, who is told when they move, and what those hear who wait while they cannot.

The half of the host that threads block on. A store that refuses is waited for a little, then said to be away, or full.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final, TypeVar

from walytis_vault.domain.errors import StorageError, StorageUnavailableError, TimedOutError

PATIENCE_S: Final = 3.0
"""How long a question waits for a server that is away: long enough for one that restarts."""
Answer = TypeVar("Answer")


class Announcing:
    """Base of the host."""

    def __init__(self) -> None:
        self._moved = threading.Condition()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._position = 0
        self._closing = False
        self._failure: StorageError | None = None
        """Why nothing is folded any more."""
        self._outage: StorageError | None = None
        """Why nothing can be folded now."""

    def _announce(self, position: int) -> None:
        with self._moved:
            self._position = position
            self._moved.notify_all()
            callbacks = list(self._callbacks.values())
        for callback in callbacks:
            callback(position)

    def _fail(self, error: StorageError) -> None:
        with self._moved:
            self._failure = error
            self._moved.notify_all()

    def _set_outage(self, error: StorageError | None) -> None:
        with self._moved:
            self._outage = error
            self._moved.notify_all()

    @property
    def position(self) -> int:
        """Every view that runs and is not catching up includes the log up to here."""
        return self._position

    def wait(self, position: int, *, timeout: float) -> int:
        """Block until the views include `position`; return theirs.

        Args:
            timeout: seconds.
        Raises:
            TimedOutError: not in time, or the host was closed.
            StorageError: the store is away, full, or refuses; or the views have stopped.
        """

        def settled() -> bool:
            return self._position >= position or self._closing or self._failure is not None

        with self._moved:
            self._moved.wait_for(lambda: settled() or self._outage, timeout)
            if self._outage is not None:
                self._moved.wait_for(settled, min(timeout, PATIENCE_S))
            if self._position >= position:
                return self._position
            if self._failure is not None:
                raise StorageError(f"the views have stopped, restart the node: {self._failure}") from self._failure
            if self._outage is not None:
                raise type(self._outage)(str(self._outage)) from self._outage
        raise TimedOutError(f"the views are at {self._position} and did not reach {position} within {timeout:g} s")

    def _patiently(self, ask: Callable[[], Answer]) -> Answer:
        """Ask the store, and once more when its server came back meanwhile. Raises what `ask` raises."""
        try:
            return ask()
        except StorageUnavailableError:
            with self._moved:
                back = self._moved.wait_for(lambda: self._outage is None or self._closing, PATIENCE_S)
            if not back:
                raise
        return ask()

    def trouble(self) -> str | None:
        """Why no view is folded, for good or for now; None when they are."""
        if self._failure is not None:
            return f"the views have stopped, restart the node: {self._failure}"
        return None if self._outage is None else str(self._outage)

    def on_advance(self, callback: Callable[[int], None]) -> Callable[[], None]:
        """Call back with the position after each commit, from the folding thread: return quickly, never raise.

        Returns:
            A function that stops the calls.
        """
        token = object()
        with self._moved:
            self._callbacks[id(token)] = callback

        def stop() -> None:
            nonlocal token
            with self._moved:
                self._callbacks.pop(id(token), None)

        return stop
