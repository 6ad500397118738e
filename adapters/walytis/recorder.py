"""`DCBRecorder` of eventsourcing on a Walytis chain: the library's applications and projections run on it.

Reads come from the index, pages at a time; appends go through the group commit; a subscription waits on the
index's horizon, without a thread and without polling. Events that a removal made void are not returned.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any, Final

from eventsourcing.dcb.api import (
    DCBAppendCondition,
    DCBEvent,
    DCBQuery,
    DCBReadResponse,
    DCBRecorder,
    DCBSequencedEvent,
    DCBSubscription,
)

from walytis_vault.adapters.walytis.log_index import LogIndex
from walytis_vault.adapters.walytis.receipts import Appended, Receipt
from walytis_vault.adapters.walytis.writer import LogWriter
from walytis_vault.domain.forgetting import BY_DEPTH, History

PAGE: Final = 500
"""Events read from the index at once."""


class LogReadResponse(DCBReadResponse):
    """Events of one read, fetched lazily. The log as it was when the read began: later events do not appear."""

    def __init__(self, index: LogIndex, query: DCBQuery | None, after: int, limit: int | None) -> None:
        self._limited = limit is not None
        self._upto = index.horizon
        self._last: int | None = None
        self._events = self._pages(index, query, after, limit)

    def _pages(self, index: LogIndex, query: DCBQuery | None, after: int, limit: int | None) -> Iterator[Any]:
        left = limit
        while left is None or left > 0:
            size = PAGE if left is None else min(PAGE, left)
            page = index.read(query, after, size, self._upto)
            for position, event in page:
                self._last = after = position
                yield DCBSequencedEvent(event=event, position=position)
            if len(page) < size:
                return
            left = None if left is None else left - len(page)

    @property
    def head(self) -> int | None:
        """With a limit: position of the last event returned so far. Without: the last position of the log."""
        return self._last if self._limited else self._upto or None

    def __next__(self) -> DCBSequencedEvent:
        event: DCBSequencedEvent = next(self._events)
        return event


class LogRecorder(DCBRecorder):
    """The log, as eventsourcing sees it. Safe for many threads."""

    def __init__(self, index: LogIndex, writer: LogWriter, history: History = BY_DEPTH) -> None:
        """`history` tells causes exactly, for those who decide on what this log holds."""
        self.index = index
        self.history = history
        self._writer = writer

    def read(
        self, query: DCBQuery | None = None, *, after: int | None = None, limit: int | None = None
    ) -> DCBReadResponse:
        """Return events with position > `after` that match, in order; at most `limit`."""
        response = LogReadResponse(self.index, query, after or 0, limit)
        if limit is not None:
            # The interface promises `head` before iteration, and a limited read fits into memory.
            events = list(response)
            response._events = iter(events)
        return response

    def append(self, events: Sequence[DCBEvent], condition: DCBAppendCondition | None = None) -> int:
        """Append as one unit; return the position of the last event, when its block exists and is durable.

        Raises:
            IntegrityError: the condition failed.
            VaultError: see `LogWriter.append`.
        """
        return self._writer.append(events, condition).last

    def append_once(
        self, events: Sequence[DCBEvent], condition: DCBAppendCondition | None = None, *, receipt: Receipt | None
    ) -> Appended:
        """Append, once for each request id, keeping the reply with the events."""
        return self._writer.append(events, condition, receipt=receipt)

    def append_all(self, appends: Sequence[tuple[Sequence[DCBEvent], Receipt | None]]) -> list[Appended | Exception]:
        """Append many units with one wait: for each, what `append_once` returns or raises."""
        return self._writer.append_all(appends)

    def listen(self, event: threading.Event) -> None:
        """Set `event` whenever the log may have grown."""
        self.index.listen(event)

    def unlisten(self, event: threading.Event) -> None:
        """Stop that."""
        self.index.unlisten(event)

    def subscribe(self, query: DCBQuery | None = None, *, after: int | None = None) -> LogSubscription:
        """Iterate over events after a position: what is recorded, then what comes, with no gap and no repeat."""
        return LogSubscription(self, query, after)


class LogSubscription(DCBSubscription[LogRecorder]):
    """Replays and then follows. One consumer thread; `stop` may be called from any other.

    Each waits for a wake-up of its own, so that stopping one of thousands wakes no other.
    """

    def __init__(self, recorder: LogRecorder, query: DCBQuery | None = None, after: int | None = None) -> None:
        super().__init__(recorder, query, after)
        self._page: list[tuple[int, DCBEvent]] = []
        self._looked_at = after or 0
        self._woken = threading.Event()

    def stop(self) -> None:
        """End the iteration, also one that waits right now."""
        super().stop()
        self._woken.set()

    def __next__(self) -> DCBSequencedEvent:
        index = self._recorder.index
        while not self._page:
            upto = self._wait(index)
            if self._has_been_stopped:
                raise StopIteration
            found = index.read(self._query, self._looked_at, PAGE, upto)
            self._page = list(reversed(found))
            self._looked_at = found[-1][0] if len(found) == PAGE else upto
        if self._has_been_stopped:
            raise StopIteration
        position, event = self._page.pop()
        self._last_position = position
        return DCBSequencedEvent(event=event, position=position)

    def _wait(self, index: LogIndex) -> int:
        """The log's horizon, once it is beyond what was looked at, or the subscription is stopped."""
        if index.horizon > self._looked_at:
            return index.horizon
        index.listen(self._woken)
        try:
            while index.horizon <= self._looked_at and not self._has_been_stopped:
                self._woken.wait()
                self._woken.clear()
        finally:
            index.unlisten(self._woken)
        return index.horizon
