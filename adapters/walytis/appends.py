"""One append on its way through the writer, and when an event meets a query."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from eventsourcing.dcb.api import DCBAppendCondition, DCBQuery

from walytis_vault.adapters.walytis.log_rows import EventRow
from walytis_vault.adapters.walytis.receipts import Appended, Receipt
from walytis_vault.domain.batch import EventRecord
from walytis_vault.domain.errors import TimedOutError


class PendingAppend:
    """One append on its way. Its answer comes through a bare lock: a Future costs as much as all the rest."""

    __slots__ = ("_answer", "_latch", "condition", "receipt", "records", "rows", "size")

    def __init__(
        self,
        records: list[EventRecord],
        rows: list[EventRow],
        condition: DCBAppendCondition | None,
        receipt: Receipt | None,
        size: int,
    ) -> None:
        self.records, self.rows, self.size = records, rows, size
        self.condition, self.receipt = condition, receipt
        self._answer: Appended | Exception | None = None
        self._latch = threading.Lock()
        self._latch.acquire()

    def answer(self, answer: Appended | Exception) -> None:
        """Give the answer; only the first one counts."""
        if self._answer is None:
            self._answer = answer
            self._latch.release()

    def wait(self, timeout: float) -> Appended:
        """The answer, within `timeout` seconds."""
        if not self._latch.acquire(timeout=timeout) or self._answer is None:
            raise TimedOutError(
                f"not on the chain after {timeout:.0f} s: it may still get there; retry with the same request id"
            )
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


def event_matches(query: DCBQuery, row: EventRow) -> bool:
    """DCB's rule: any item whose types (if any) include the type and whose tags the event all has."""
    if not query.items:
        return True
    tags = set(row.tags)
    return any((not i.types or row.topic in i.types) and tags.issuperset(i.tags) for i in query.items)


def fail_all(group: Iterable[PendingAppend], error: Exception) -> None:
    for append in group:
        append.answer(error)
