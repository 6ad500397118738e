"""A log in memory with origins, and a small world of members that write into it: for tests of views and folds.

`MemoryLog` is eventsourcing's own in-memory recorder; events that are appended without an origin get one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

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
    """The recorder's three methods, `listen` and `unlisten`, in memory."""

    def read(
        self, query: DCBQuery | None = None, *, after: int | None = None, limit: int | None = None
    ) -> DCBReadResponse:
        """As the base, without copying everything: positions are 1, 2, 3 …"""
        if query is not None and query.items:
            return super().read(query, after=after, limit=limit)
        with self._database_lock:
            start = after or 0
            found = self.events[start : None if limit is None else start + limit]
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
            return self.events[-1].position

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
