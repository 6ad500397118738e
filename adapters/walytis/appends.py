"""One append on its way through the writer, and when an event meets a query."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable

from eventsourcing.dcb.api import DCBAppendCondition, DCBQuery

from walytis_vault.adapters.walytis.log_rows import EventRow
from walytis_vault.adapters.walytis.receipts import Appended, Receipt
from walytis_vault.domain.batch import EventRecord
from walytis_vault.domain.errors import TimedOutError, TransportError, VaultError


class PendingAppend:
    """One append on its way. Its answer comes through a bare lock: a Future costs as much as all the rest.

    Waking a thread costs the waker more than its share of a batch. So the writer wakes one of those that it
    answered, and each wakes the next: the writer is at its next batch meanwhile.
    """

    __slots__ = ("_answer", "_latch", "_left", "_to_wake", "condition", "receipt", "records", "rows", "size")

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
        self._left = False
        self._to_wake: deque[PendingAppend] = deque()

    def settle(self, answer: Appended | Exception, to_wake: deque[PendingAppend]) -> None:
        """Give the answer, without waking the one who waits; only the first one counts.

        Args:
            to_wake: all that were answered together; whoever wakes takes the next from it and wakes that.
        """
        if self._answer is None:
            self._to_wake = to_wake
            self._answer = answer
            to_wake.append(self)

    def wait(self, timeout: float) -> Appended:
        """The answer, within `timeout` seconds."""
        answer = self.outcome(timeout)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def outcome(self, timeout: float) -> Appended | Exception:
        """The same, with errors returned."""
        if not self._latch.acquire(timeout=timeout):
            # From here on nobody waits for us to wake the next; whoever came too early for that, it is our turn.
            self._left = True
        wake_next(self._to_wake)
        if self._answer is None:
            return TimedOutError(
                f"not on the chain after {timeout:.0f} s: it may still get there; retry with the same request id"
            )
        return self._answer

    def wake(self) -> bool:
        """Wake the one who waits; False when it has left."""
        self._latch.release()
        return not self._left


Answers = list[tuple[PendingAppend, Appended | Exception]]
"""What each of a group is told."""


def wake_next(waiting: deque[PendingAppend]) -> None:
    """Wake the next one that still waits; it wakes the one after it."""
    while True:
        try:
            append = waiting.popleft()
        except IndexError:
            return
        if append.wake():
            return


def answer_all(answers: Iterable[tuple[PendingAppend, Appended | Exception]]) -> None:
    """Answer these, first come first served."""
    to_wake: deque[PendingAppend] = deque()
    for append, answer in answers:
        append.settle(answer, to_wake)
    wake_next(to_wake)


def fail_all(group: Iterable[PendingAppend], error: Exception) -> None:
    """Give all of them the same answer."""
    answer_all((append, error) for append in group)


def event_matches(query: DCBQuery, row: EventRow) -> bool:
    """DCB's rule: any item whose types (if any) include the type and whose tags the event all has."""
    if not query.items:
        return True
    tags = set(row.tags)
    return any((not i.types or row.topic in i.types) and tags.issuperset(i.tags) for i in query.items)


def recorded(error: VaultError) -> TransportError:
    """What those are told whose events are in the index while the block cannot be made."""
    return TransportError(f"recorded here, and sent to the others as soon as that is possible again: {error}")


def take_group(queue: deque[PendingAppend], room: int, most: int) -> list[PendingAppend]:
    """Take from the front what fits together into `room` bytes and `most` events; the first one always."""
    group: list[PendingAppend] = []
    size = count = 0
    while queue:
        append = queue[0]
        if group and (size + append.size > room or count + len(append.records) > most):
            break
        group.append(queue.popleft())
        size += append.size
        count += len(append.records)
    return group
