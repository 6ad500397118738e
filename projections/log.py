"""The ports to the log, as the views need it: read in pages, know how far it goes, wait for more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from eventsourcing.dcb.api import DCBQuery, DCBReadResponse


class EventLog(Protocol):
    """Reading the log: eventsourcing's recorder."""

    def read(
        self, query: DCBQuery | None = None, *, after: int | None = None, limit: int | None = None
    ) -> DCBReadResponse:
        """Events after a position, oldest first. Positions may have gaps (events that became void)."""
        ...


class Horizon(Protocol):
    """How far the log may be read, and a way to wait for more. The log's index is one."""

    @property
    def horizon(self) -> int:
        """The last position that may be read; only grows."""
        ...

    @property
    def last(self) -> int:
        """The last position that was given to an event, readable or not yet."""
        ...

    def wait_beyond(self, position: int, timeout: float | None, stopped: Callable[[], bool]) -> int:
        """Block until the horizon is beyond `position`, `stopped` says so after a `wake`, or `timeout` (s) is over."""
        ...

    def wake(self) -> None:
        """Wake those who wait, so that they look at `stopped`."""
        ...
