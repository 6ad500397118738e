"""The audit: the whole history judged again from the raw blocks, and what follows from it for each content.

It says for each content who published it, who agreed to forget it, who has erased it, and what is still missing;
for each ballot whether those were asked who had to be. The report is `ok` only if nothing contradicts the record.
What members did wrong in public (forks, void batches, proposals that do not count) is listed, and is no fault of
the record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from walytis_vault.adapters.crypto.signing import HybridVerifier
from walytis_vault.adapters.storage.content_store import DiskContentStore
from walytis_vault.adapters.walytis.log_audit import audit_log
from walytis_vault.adapters.walytis.log_index import LogIndex
from walytis_vault.adapters.walytis.second_log import SecondLog
from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.audit_pages import AuditPages
from walytis_vault.domain import events as ev
from walytis_vault.domain.claims import did_of
from walytis_vault.domain.ids import ContentId, Root
from walytis_vault.ledger_account import Account, read_account
from walytis_vault.projections.audit import AuditRow, Verdict
from walytis_vault.projections.paging import iso

LISTED_BYTES: Final = 1 << 20
"""Damage is listed as far as so much JSON holds it, what was not repaired first; the pages of the account have all."""
LISTED_ODD: Final = 1000

NOT_ERASED: Final = "its forgetting carried, but this node has not erased it yet"
BYTES_DIFFER: Final = "stored bytes do not match the root on the chain"
BYTES_LOST: Final = "its bytes were here, and are gone from this disk"
KEY_LOST: Final = "its key is lost: what is stored does not open, or is not the one that the chain commits to"
Repair = Callable[[ContentId, Root], str | None]
"""Repairs one content; why it could not be, None when it is whole again."""
CertificateCheck = Callable[[str, bytes, bytes], bool | None]
"""(DID, statement, certificate) -> whether its control keys made it; None when the DID's chain is not here."""


def audit_vault(
    log: VaultLog,
    store: DiskContentStore,
    pages: AuditPages,
    *,
    device: str,
    read_data: bool,
    check_certificate: CertificateCheck | None = None,
    repair: Repair | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Verify log, contents and ballots; return the report as builtin types, with the first page of its account.

    Args:
        pages: keeps the rest of the account.
        device: this node's; what it published should be here.
        read_data: also read every stored byte and key, compare them with what the chain says, and look for what was
            published or kept here and is lost. Keys are not looked at while the vault is locked.
        repair: with `read_data`, tried on each content whose bytes or key are damaged or lost.
        check_certificate: checks what DIDs said about the keys of their devices.
        progress: told how many blocks were judged so far.
    """
    with SecondLog(vault_id=log.chain.chain_id, root=log.judge.root, verifier=HybridVerifier()) as again:
        report = audit_log(log, again, progress)
        account = read_account(again)
        certificates, bad_certificates = _certificates(again, check_certificate)
    contents, damaged = _contents(account, store, device=device, read_data=read_data, repair=repair)
    findings = [*(msgspec.to_builtins(f) for f in report.findings), *bad_certificates]
    ballots = account.ballots
    return {
        "ok": not findings and all(d.get("repaired", False) for d in damaged),
        "batches": report.batches,
        "events": report.events,
        "blocks": report.blocks,
        "void_batches": report.void_batches,
        "not_on_chain": report.not_on_chain,
        "findings": findings,
        "refused_blocks": list(report.refused),
        "forks": list(report.forks),
        "certificates": certificates,
        "members": account.members,
        **pages.begin(contents, ballots),
        "contents_total": len(contents),
        "stored_here": sum(1 for row in contents if row["stored_here"]),
        "erased_here": sum(1 for row in contents if row["erased_here"]),
        "damaged": _listed(damaged),
        "damaged_total": len(damaged),
        "data_read": read_data,
        "keys_read": read_data and not store.locked,
        "ballots_total": len(ballots),
        "ballots_open": sum(1 for row in ballots if row["state"] == "open"),
        "receipts_missing": sum(1 for row in ballots if row["receipts_missing"]),
        "odd": account.odd[:LISTED_ODD],
        "odd_total": len(account.odd),
    }


def _certificates(again: SecondLog, check: CertificateCheck | None) -> tuple[dict[str, int], list[dict[str, str]]]:
    """Hold the certificates of announced keys against the DIDs' own chains, where these are here."""
    counts = {"valid": 0, "not_checkable": 0, "none": 0}
    wrong: list[dict[str, str]] = []
    for recorded in again.events(types=[ev.KeyAnnounced.TOPIC]):
        event = recorded.event
        assert isinstance(event, ev.KeyAnnounced)
        if not event.certificate:
            counts["none"] += 1
            continue
        statement = msgspec.msgpack.encode(event.keys)
        valid = None if check is None else check(did_of(recorded.origin.device), statement, event.certificate)
        if valid is None:
            counts["not_checkable"] += 1
        elif valid:
            counts["valid"] += 1
        else:
            by = recorded.origin.device
            reason = f"the certificate over the keys of {event.keys.device} is not by the control keys of {by}"
            wrong.append({"batch_id": recorded.origin.batch_id.hex(), "reason": reason})
    return counts, wrong


def _contents(
    account: Account, store: DiskContentStore, *, device: str, read_data: bool, repair: Repair | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    damaged: list[dict[str, Any]] = []
    for row in account.contents:
        content_id = ContentId(bytes.fromhex(row["content_id"]))
        row["erased_here"] = store.erased(content_id)
        row["stored_here"] = store.has_bytes(content_id)
        root = Root(bytes.fromhex(row["root"]))
        problem = _not_erased(row)
        if problem is None and read_data and not row["erased_here"]:
            problem = _problem(row, store, content_id, root, account.headers[content_id], device=device)
        if problem is not None:
            row["problem"] = problem
            entry: dict[str, Any] = {"content_id": content_id.hex(), "problem": problem}
            if problem != NOT_ERASED:
                why = repair(content_id, root) if repair is not None else "this node has no peers"
                entry |= {"repaired": why is None} | ({} if why is None else {"not_repaired": why})
                row["stored_here"] = store.has_bytes(content_id)
            damaged.append(entry)
        rows.append(row)
    return rows, damaged


def _not_erased(row: dict[str, Any]) -> str | None:
    carried = row["forgetting"] == "carried"
    return NOT_ERASED if carried and (row["stored_here"] or not row["erased_here"]) else None


def _problem(
    row: dict[str, Any], store: DiskContentStore, content_id: ContentId, root: Root, header: bytes, *, device: str
) -> str | None:
    """What is wrong with what is here, or not here that should be."""
    if row["stored_here"] and not store.verify(content_id, root):
        return BYTES_DIFFER
    if not store.locked:
        key = store.check_key(content_id, author=row["author"], header=header)
        if key == "wrong" or (key == "none" and row["stored_here"]):
            return KEY_LOST
    missed = store.lost_bytes(content_id) or (row["device"] == device and not store.dropped(content_id))
    return BYTES_LOST if missed and not row["stored_here"] else None


def _listed(damaged: list[dict[str, Any]]) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = []
    room = LISTED_BYTES
    for entry in sorted(damaged, key=lambda entry: entry.get("repaired", False)):
        room -= len(msgspec.json.encode(entry))
        if room < 0:
            break
        listed.append(entry)
    return listed


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


_VERDICTS: Final[dict[str, Verdict]] = {
    "accepted": "accepted",
    "waiting": "waiting",
    "put off": "waiting",
    "refused": "refused",
    "unreadable": "unreadable",
}
"""The chain's own first blocks and repeated batches are shown as foreign: they carry nothing of ours."""
