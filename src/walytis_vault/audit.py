"""The audit: every batch again from its block, every content against its root, every ballot's account.

It says for each content who published it, who agreed to forget it, who has erased it, and what is still missing.
The report is `ok` only if nothing contradicts the record.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec
from eventsourcing.dcb.api import DCBQuery, DCBQueryItem

from walytis_vault.adapters.crypto.signing import HybridVerifier
from walytis_vault.adapters.storage.content_store import DiskContentStore
from walytis_vault.adapters.walytis.log_audit import audit_log
from walytis_vault.adapters.walytis.log_index import LogIndex
from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.domain import events as ev
from walytis_vault.domain.contents import Contents
from walytis_vault.domain.ids import ContentId, Root
from walytis_vault.projections.audit import AuditRow, Verdict
from walytis_vault.projections.paging import iso

LISTED: Final = 10_000
"""Contents listed one by one; beyond that only those with findings are."""


def audit_vault(log: VaultLog, store: DiskContentStore, *, read_data: bool) -> dict[str, Any]:
    """Verify log, contents and ballots; return the report as builtin types.

    Args:
        read_data: also read every stored byte and compare it with the content's root.
    """
    report = audit_log(log, HybridVerifier())
    state = _fold(log)
    contents, bad_contents = _contents(state, store, read_data=read_data)
    ballots = [_ballot(b) for b in state.ballots.all()]
    return {
        "ok": not report.findings and not bad_contents,
        "batches": report.batches,
        "events": report.events,
        "blocks": report.blocks,
        "void_batches": report.void_batches,
        "findings": [msgspec.to_builtins(f) for f in report.findings],
        "refused_blocks": list(report.refused),
        "forks": list(report.forks),
        "contents": contents,
        "damaged": bad_contents,
        "data_read": read_data,
        "ballots": ballots,
    }


def _fold(log: VaultLog) -> Contents:
    state, mapper = Contents(log.recorder.history), ev.ClosedMapper()
    topics = sorted(ev.PRODUCT_EVENTS.topics - {ev.KeyAnnounced.TOPIC})
    for found in log.recorder.read(DCBQuery(items=[DCBQueryItem(types=topics)])):
        recorded = mapper.to_domain_event(found.event)
        assert isinstance(recorded, ev.Recorded)
        state.apply(recorded)
    return state


def _contents(
    state: Contents, store: DiskContentStore, *, read_data: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    damaged: list[dict[str, Any]] = []
    verdicts = state.verdicts()
    for content_id, publication in state.publications.items():
        verdict = verdicts[content_id]
        row: dict[str, Any] = {
            "content_id": content_id.hex(),
            "author": publication.author,
            "device": publication.device,
            "forgetting": verdict.forgetting,
            "erased_here": store.erased(ContentId(content_id)),
            "stored_here": store.has_bytes(ContentId(content_id)),
        }
        problem = _problem(row, store, ContentId(content_id), Root(publication.root), read_data=read_data)
        if problem is not None:
            row["problem"] = problem
            damaged.append({"content_id": content_id.hex(), "problem": problem})
        if len(rows) < LISTED:
            rows.append(row)
    return rows, damaged


def _problem(
    row: dict[str, Any], store: DiskContentStore, content_id: ContentId, root: Root, *, read_data: bool
) -> str | None:
    if row["forgetting"] == "carried":
        if row["stored_here"] or not row["erased_here"]:
            return "its forgetting carried, but this node has not erased it yet"
        return None
    if read_data and row["stored_here"] and not store.verify(content_id, root):
        return "stored bytes do not match the root on the chain"
    return None


def _ballot(ballot: Any) -> dict[str, Any]:
    return {
        "ballot_id": ballot.ballot_id.hex(),
        "state": ballot.state,
        "contents": [c.hex() for c in ballot.proposal.contents],
        "proposer": ballot.proposal.proposer,
        "electorate": list(ballot.proposal.electorate),
        "consents": list(ballot.consents),
        "refusals": list(ballot.refusals),
        "missing": list(ballot.waiting),
        "receipts": list(ballot.receipts),
        "contested": ballot.contested,
    }


def problems(report: dict[str, Any]) -> Iterator[str]:
    """The report's findings as sentences."""
    for finding in report["findings"]:
        yield f"batch {finding['batch_id']}: {finding['reason']}"
    for content in report["damaged"]:
        yield f"content {content['content_id']}: {content['problem']}"


def audit_rows(index: LogIndex, after: int, limit: int, filters: dict[str, Any]) -> list[AuditRow]:
    """Rows of the view `audit`, from the log's own records."""
    return [
        AuditRow(
            number=number,
            verdict="void" if void else _VERDICTS.get(verdict, "foreign"),
            reason=reason,
            block=block.hex(),
            batch_id=None if batch_id is None else batch_id.hex(),
            author=author,
            device=device,
            batch_number=batch_number,
            depth=depth,
            time=None if time_ms is None else iso(time_ms),
            events=count,
        )
        for number, verdict, reason, block, batch_id, author, device, batch_number, depth, time_ms, count, void in (
            index.judged_blocks(after, limit, filters)
        )
    ]


_VERDICTS: Final[dict[str, Verdict]] = {"accepted": "accepted", "waiting": "waiting", "refused": "refused"}
"""The chain's own first blocks and repeated batches are shown as foreign: they carry nothing of ours."""
