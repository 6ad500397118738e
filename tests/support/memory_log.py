"""A log in memory with origins, and a small world of members that write into it: for tests of views and folds.

`MemoryLog` is eventsourcing's own in-memory recorder; events that are appended without an origin get one.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence

from eventsourcing.dcb.api import (
    DCBAppendCondition,
    DCBEvent,
    DCBQuery,
    DCBReadResponse,
    DCBSequencedEvent,
)
from eventsourcing.dcb.popo import InMemoryDCBRecorder, SimpleDCBReadResponse

from walytis_vault.domain.events import Event, LoggedEvent, Origin, Recorded, to_dcb


class MemoryLog(InMemoryDCBRecorder):
    """The recorder's three methods, and the horizon, in memory. Positions given to `void` are left out of reads."""

    def __init__(self) -> None:
        super().__init__()
        self.advanced = threading.Condition()
        self.void: set[int] = set()
        self.unreadable = 0
        """Events (a count) that have positions beyond the horizon."""

    @property
    def horizon(self) -> int:
        """The last position."""
        return len(self.events)

    @property
    def last(self) -> int:
        """See `Horizon.last`."""
        return self.horizon + self.unreadable

    def wait_beyond(self, position: int, timeout: float | None, stopped: Callable[[], bool]) -> int:
        """See `Horizon.wait_beyond`."""
        with self.advanced:
            self.advanced.wait_for(lambda: len(self.events) > position or stopped(), timeout)
            return len(self.events)

    def wake(self) -> None:
        """See `Horizon.wake`."""
        with self.advanced:
            self.advanced.notify_all()

    def read(
        self, query: DCBQuery | None = None, *, after: int | None = None, limit: int | None = None
    ) -> DCBReadResponse:
        """As the base, without copying everything: positions are 1, 2, 3 …"""
        if query is not None and query.items:
            return super().read(query, after=after, limit=limit)
        with self._database_lock:
            found = (
                self.events[after or 0 :]
                if limit is None or self.void
                else self.events[after or 0 : (after or 0) + limit]
            )
            found = [e for e in found if e.position not in self.void][:limit]
            head = found[-1].position if found else (self.events[-1].position if self.events else None)
            return SimpleDCBReadResponse(iter(found), head)

    def append(self, events: Sequence[DCBEvent], condition: DCBAppendCondition | None = None) -> int:
        """As the base; origins are kept."""
        stamped = [e if isinstance(e, LoggedEvent) else _stamp(e, len(self.events) + i) for i, e in enumerate(events)]
        if condition is not None:
            return super().append(stamped, condition)
        with self._database_lock:
            for event in stamped:
                self.events.append(DCBSequencedEvent(position=next(self.position_sequence), event=event))
            self._notify_listeners()
            position = self.events[-1].position
        self.wake()
        return position

    def add(self, recorded: Iterable[Recorded]) -> int:
        """Append events with their origins."""
        return self.append([logged(r) for r in recorded])


def logged(recorded: Recorded) -> LoggedEvent:
    """A recorded event as the log returns it."""
    plain = to_dcb(recorded.event)
    return LoggedEvent(type=plain.type, data=plain.data, tags=plain.tags, origin=recorded.origin)


def _stamp(event: DCBEvent, number: int) -> LoggedEvent:
    origin = origin_of("did:a", number + 1)
    return LoggedEvent(type=event.type, data=event.data, tags=event.tags, origin=origin)


def origin_of(author: str, depth: int, *, device: str | None = None, number: int = 0, index: int = 0) -> Origin:
    """An origin whose batch id follows from its other fields."""
    device = device or f"{author}/1"
    batch_id = hashlib.sha256(f"{device}|{depth}|{number}".encode()).digest()
    return Origin(
        batch_id=batch_id,
        index=index,
        depth=depth,
        author=author,
        device=device,
        number=number or depth,
        time_ms=1_700_000_000_000 + depth * 1000,
    )


def recorded(event: Event, author: str, depth: int, *, device: str | None = None, index: int = 0) -> Recorded:
    """An event with an origin."""
    return Recorded(event.tags(), event, origin_of(author, depth, device=device, index=index))
