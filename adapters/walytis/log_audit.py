"""Holds the log's index against a second log that was judged from the raw blocks.

Nothing is taken from the index: every block of the chain is read, its bytes held against its id, and every batch
judged again (place, both signatures, keys and members in its causal past). What the index says about each batch
and each of its events must then be the same. Blocks that were refused are listed with their reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import apsw
import msgspec

from walytis_vault.adapters.walytis.log_index import LogIndex
from walytis_vault.adapters.walytis.second_log import PAGE, SecondLog
from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.domain.batch import decode_batch
from walytis_vault.domain.errors import UntrustedInputError, VaultError

REFUSED_LISTED: Final = 1000
FINDINGS_LISTED: Final = 1000
ATTEMPTS: Final = 3
"""How often it is compared again when the log grew meanwhile and something did not fit."""
_FIELDS: Final = ("device", "author", "key_id", "number", "depth", "time_ms", "void", "count", "membership", "envelope")
_SAID: Final = {
    "device": "a device",
    "author": "an author",
    "key_id": "a signing key",
    "number": "a number",
    "depth": "a depth",
    "time_ms": "a time",
    "void": "a verdict on whether it counts",
    "count": "a number of events",
    "membership": "a kind",
    "envelope": "bytes",
}


class BatchFinding(msgspec.Struct, frozen=True, kw_only=True):
    """One batch that does not hold what it should."""

    batch_id: str
    reason: str


class LogReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the audit of the log found."""

    batches: int
    events: int
    findings: tuple[BatchFinding, ...]
    """At most 1,000."""
    refused: tuple[dict[str, str], ...]
    """Blocks that never entered the log, with their reason; at most 1,000."""
    blocks: dict[str, int]
    forks: tuple[dict[str, Any], ...]
    void_batches: int
    not_on_chain: int
    """Batches whose block does not exist yet, or has not come yet."""


def audit_log(log: VaultLog, again: SecondLog, progress: Callable[[int], None] = lambda _: None) -> LogReport:
    """Judge everything again into `again` (which is empty), and compare. The log may grow meanwhile."""
    findings: list[BatchFinding] = []
    for _ in range(ATTEMPTS):
        epoch, upto = log.index.epoch(), _last(log.index)
        # First: a block that comes in between is then in what was read, or its batch in what waits, or in both.
        waiting = _without_block(log.index, upto)
        again.read_chain(log.chain, progress)
        again.settle(log.chain, waiting)
        refusals = {
            judged.batch.batch_id: judged.refusal
            for judged in again.take(waiting)
            if judged.batch is not None and judged.refusal is not None
        }
        findings = list(_compare(log, again, upto, refusals))
        if not findings or (log.index.epoch() == epoch and _last(log.index) == upto):
            break
    batches, events, voids = again.counts()
    with again.index.database.read() as connection:
        sql = f"SELECT key, reason FROM blocks WHERE verdict = 'refused' ORDER BY key LIMIT {REFUSED_LISTED}"
        refused: list[Any] = connection.execute(sql).fetchall()
        (not_on_chain,) = next(iter(connection.execute("SELECT count(*) FROM batches WHERE block IS NULL")))
    return LogReport(
        batches=batches,
        events=events,
        findings=tuple(findings[:FINDINGS_LISTED]),
        refused=tuple({"block": key.hex(), "reason": reason or ""} for key, reason in refused),
        blocks=again.index.verdict_counts(),
        forks=tuple({"device": device, "number": number} for device, number in again.index.forks()),
        void_batches=voids,
        not_on_chain=int(not_on_chain),
    )


def _last(index: LogIndex) -> int:
    with index.database.read() as connection:
        return int(next(iter(connection.execute("SELECT coalesce(max(seq), 0) FROM batches")))[0])


def _without_block(index: LogIndex, upto: int) -> list[bytes]:
    """Envelopes of batches that are not on the chain as far as the index knows, causes first."""
    with index.database.read() as connection:
        sql = "SELECT envelope FROM batches WHERE block IS NULL AND seq <= ? ORDER BY seq"
        rows: list[Any] = connection.execute(sql, (upto,)).fetchall()
    return [bytes(row[0]) for row in rows]


def _compare(log: VaultLog, again: SecondLog, upto: int, refusals: dict[Any, Any]) -> Iterator[BatchFinding]:
    """Both sides in the order of batch ids, page by page."""
    last = b""
    while True:
        ours, more = _page(log.index, last, upto)
        end = max(ours) if more else None
        theirs = _until(again.index, last, end)
        for batch_id, row in ours.items():
            if reason := _differs(log, again, batch_id, row, theirs.get(batch_id), refusals):
                yield BatchFinding(batch_id=batch_id.hex(), reason=reason)
        for batch_id in theirs.keys() - ours.keys():
            if not _known(log.index, batch_id):
                reason = "it stands on the chain and is valid, but the index does not have it"
                yield BatchFinding(batch_id=batch_id.hex(), reason=reason)
        if end is None:
            break
        last = end
    with log.index.database.read() as connection:
        sql = "SELECT count(*), coalesce(max(position), 0) FROM events"
        count, highest = next(iter(connection.execute(sql)))
    if count != highest:
        yield BatchFinding(batch_id="", reason=f"the index has {count} events, and positions up to {highest}")


_SELECT: Final = f"SELECT batch_id, block, {', '.join(_FIELDS)} FROM batches"


def _page(index: LogIndex, after: bytes, upto: int) -> tuple[dict[bytes, dict[str, Any]], bool]:
    sql = f"{_SELECT} WHERE batch_id > ? AND seq <= ? ORDER BY batch_id LIMIT ?"
    with index.database.read() as connection:
        rows = _rows(connection, sql, (after, upto, PAGE))
        if rows:
            _add_events(connection, rows, after, max(rows))
    return rows, len(rows) == PAGE


def _until(index: LogIndex, after: bytes, end: bytes | None) -> dict[bytes, dict[str, Any]]:
    """Everything in the same stretch of ids; to the end of all when `end` is None."""
    limit = b"\xff" * 33 if end is None else end
    with index.database.read() as connection:
        rows = _rows(connection, f"{_SELECT} WHERE batch_id > ? AND batch_id <= ?", (after, limit))
        _add_events(connection, rows, after, limit)
    return rows


def _rows(connection: apsw.Connection, sql: str, values: tuple[Any, ...]) -> dict[bytes, dict[str, Any]]:
    found: list[Any] = connection.execute(sql, values).fetchall()
    return {row[0]: {"events": [], **dict(zip(("block", *_FIELDS), row[1:], strict=True))} for row in found}


def _add_events(connection: apsw.Connection, rows: dict[bytes, dict[str, Any]], after: bytes, end: bytes) -> None:
    sql = (
        "SELECT b.batch_id, e.idx, e.topic, e.data, e.tags FROM batches b JOIN events e ON e.batch = b.seq"
        " WHERE b.batch_id > ? AND b.batch_id <= ? ORDER BY b.batch_id, e.idx"
    )
    for batch_id, *event in connection.execute(sql, (after, end)):
        if isinstance(batch_id, bytes) and batch_id in rows:
            rows[batch_id]["events"].append(event)


def _differs(
    log: VaultLog,
    again: SecondLog,
    batch_id: bytes,
    row: dict[str, Any],
    found: dict[str, Any] | None,
    refusals: dict[Any, Any],
) -> str | None:
    """Why a batch of the index does not hold; None when it does."""
    if found is None:
        return refusals.get(batch_id) or _why_missing(log, again, row)
    for field in _FIELDS:
        if row[field] != found[field] and not (field == "envelope" and _is_signed_anew(again, row, found)):
            return f"the index gives it {_SAID[field]} that its block does not"
    if row["events"] != found["events"]:
        return "the index gives it other events than its block does"
    if row["block"] is not None and row["block"] != found["block"]:  # the same batch can stand in two blocks
        return _block_problem(log, row)
    return None


def _is_signed_anew(again: SecondLog, row: dict[str, Any], found: dict[str, Any]) -> bool:
    """Whether both hold one body, each with valid signatures: a member may sign twice, and tell each node another."""
    try:
        ours, theirs = decode_batch(row["envelope"]), decode_batch(found["envelope"])
    except UntrustedInputError:
        return False
    return ours.raw_body == theirs.raw_body and again.is_signed(ours)


def _why_missing(log: VaultLog, again: SecondLog, row: dict[str, Any]) -> str:
    if row["block"] is None:
        return "its block is missing, and without it it does not hold"
    with again.index.database.read() as connection:
        sql = "SELECT verdict, reason FROM blocks WHERE key = ?"
        verdict = connection.execute(sql, (row["block"],)).fetchone()
    if verdict is not None and verdict[1]:
        return f"its block is {verdict[0]}: {verdict[1]}"
    return _block_problem(log, row) or "its block does not hold it"


def _block_problem(log: VaultLog, row: dict[str, Any]) -> str | None:
    ref = log.chain.find(row["block"])
    if ref is None:
        return "its block is not on this node's chain any more"
    try:
        content = log.chain.read(ref)
    except VaultError as e:
        return f"its block cannot be read: {e}"
    return None if content == row["envelope"] else "its block holds other bytes than the index"


def _known(index: LogIndex, batch_id: bytes) -> bool:
    with index.database.read() as connection:
        return index.batch(connection, batch_id) is not None
