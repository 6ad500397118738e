"""Verifies the whole log again, from the raw blocks: nothing is taken from the index but where to look.

For each batch: the block's bytes belong to its id, the batch in it is the one in the index, its place and both
signatures hold under the keys of its causal past. Blocks that were refused are listed with their reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.domain.batch import decode_batch, key_id_of_device
from walytis_vault.domain.errors import UntrustedInputError, VaultError
from walytis_vault.domain.ids import KeyId
from walytis_vault.domain.ports import Verifier

PAGE: Final = 500


class BatchFinding(msgspec.Struct, frozen=True, kw_only=True):
    """One batch that does not hold what it should."""

    batch_id: str
    reason: str


class LogReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the audit of the log found."""

    batches: int
    events: int
    findings: tuple[BatchFinding, ...]
    refused: tuple[dict[str, str], ...]
    """Blocks that never entered the log, with their reason (at most 1,000 are listed)."""
    blocks: dict[str, int]
    forks: tuple[dict[str, Any], ...]
    void_batches: int


def audit_log(log: VaultLog, verifier: Verifier, progress: Callable[[int], None] = lambda _: None) -> LogReport:
    """Verify every batch again. Reads only; the log may grow meanwhile."""
    batches = events = voids = 0
    findings: list[BatchFinding] = []
    for row in _batches(log):
        batches += 1
        events += row["count"]
        voids += row["void"]
        if reason := _check(log, verifier, row):
            findings.append(BatchFinding(batch_id=row["batch_id"].hex(), reason=reason))
        if batches % PAGE == 0:
            progress(batches)
    with log.index.database.read() as connection:
        sql = "SELECT key, reason FROM blocks WHERE verdict = 'refused' ORDER BY key LIMIT 1000"
        rows: list[Any] = connection.execute(sql).fetchall()
    return LogReport(
        batches=batches,
        events=events,
        findings=tuple(findings),
        refused=tuple({"block": key.hex(), "reason": reason or ""} for key, reason in rows),
        blocks=log.index.verdict_counts(),
        forks=tuple({"device": device, "number": number} for device, number in log.index.forks()),
        void_batches=voids,
    )


def _batches(log: VaultLog) -> Iterator[dict[str, Any]]:
    columns = ("seq", "batch_id", "device", "number", "depth", "context", "void", "count", "block", "envelope")
    last = 0
    while True:
        with log.index.database.read() as connection:
            sql = f"SELECT {', '.join(columns)} FROM batches WHERE seq > ? ORDER BY seq LIMIT {PAGE}"
            rows: list[Any] = connection.execute(sql, (last,)).fetchall()
        for row in rows:
            yield dict(zip(columns, row, strict=True))
        if len(rows) < PAGE:
            return
        last = rows[-1][0]


def _check(log: VaultLog, verifier: Verifier, row: dict[str, Any]) -> str | None:
    """Why a batch does not hold; None when it does."""
    try:
        if row["block"] is None:
            content = row["envelope"]  # on its way to the chain
        else:
            ref = log.chain.find(row["block"])
            if ref is None:
                return "its block is not on this node's chain any more"
            content = log.chain.read(ref)
        if content != row["envelope"]:
            return "its block holds other bytes than the index"
        batch = decode_batch(content)
    except UntrustedInputError as e:
        return str(e)
    except VaultError as e:
        return f"its block cannot be read: {e}"
    body = batch.body
    if (batch.batch_id, body.author, body.number) != (row["batch_id"], row["device"], row["number"]):
        return "the index describes it wrongly"
    with log.index.database.read() as connection:
        parents = [log.index.batch(connection, parent) for parent in body.parents()]
        if any(p is None for p in parents):
            return "one of its causes is missing"
        if row["depth"] != 1 + max((p.depth for p in parents if p), default=0):
            return "its depth is not one more than that of its causes"
        if batch.batch_id == log.judge.root:
            facts = log.judge.facts(connection, frozenset([batch.batch_id]))
            keys = next((k for f in facts if (k := getattr(f.event, "keys", None))), None)
        else:
            membership = log.judge.membership(connection, row["context"])
            if refusal := membership.refusal(KeyId(body.key_id), body.author):
                return refusal
            keys = membership.keys[KeyId(body.key_id)]
    if keys is None or key_id_of_device(keys) != body.key_id:
        return "its signing key is not on record"
    if not verifier.verify(
        ed25519=keys.ed25519, ml_dsa_65=keys.ml_dsa_65, signature=batch.signature, message=batch.signed_bytes()
    ):
        return "its signature does not verify"
    return None
