"""Which appends of a group take effect: new request ids, and conditions that hold one after the other.

It runs inside the transaction that will record them, so that nothing comes in between. Spec: design.md 3.7.
"""

from __future__ import annotations

from collections.abc import Sequence

import apsw
from eventsourcing.dcb.api import DCBAppendCondition
from eventsourcing.persistence import IntegrityError
from msgspec import Struct

from walytis_vault.adapters.walytis.appends import Answers, PendingAppend, event_matches
from walytis_vault.adapters.walytis.log_index import LogIndex
from walytis_vault.adapters.walytis.receipts import find_reply
from walytis_vault.domain.errors import VaultError


class Staged(Struct):
    """What becomes of a group."""

    effective: list[PendingAppend]
    """Those that take effect, in their order."""
    answers: Answers
    """What the others are told."""
    twins: list[PendingAppend]
    """Those whose request id is among the effective ones: the next batch finds their reply."""


def stage(index: LogIndex, connection: apsw.Connection, group: Sequence[PendingAppend], now_ms: int) -> Staged:
    """Decide about each append of the group, as if they came one after the other."""
    staged = Staged([], [], [])
    (position,) = next(connection.execute("SELECT coalesce(max(position), 0) FROM events"))
    ids: set[tuple[str, bytes]] = set()
    for append in group:
        receipt, condition = append.receipt, append.condition
        if receipt is not None:
            if (receipt.client, receipt.request_id) in ids:
                staged.twins.append(append)
                continue
            try:
                kept = find_reply(connection, receipt.client, receipt.request_id, receipt.is_same, now_ms)
            except VaultError as e:
                staged.answers.append((append, e))
                continue
            if kept is not None:
                staged.answers.append((append, kept))
                continue
        if condition is not None and _violated(index, connection, condition, staged.effective, position):
            staged.answers.append((append, IntegrityError(condition)))
            continue
        if receipt is not None:
            ids.add((receipt.client, receipt.request_id))
        staged.effective.append(append)
    return staged


def _violated(
    index: LogIndex,
    connection: apsw.Connection,
    condition: DCBAppendCondition,
    before: Sequence[PendingAppend],
    position: int,
) -> bool:
    """Whether an event that is recorded, or comes before this one in the same batch, fails the condition."""
    after = condition.after or 0
    if index.matches(connection, condition.fail_if_events_match, after):
        return True
    for append in before:
        for row in append.rows:
            position += 1
            if position > after and event_matches(condition.fail_if_events_match, row):
                return True
    return False
