"""The account that a history gives: for each content and each ballot, who did what, and what is still missing.

Folded from events that were judged again (`SecondLog`), never from views. The audit adds what is on this
machine's disk; `verify` shows it for a bundle. Refuses to know names: nothing here opens anything sealed.
"""

from __future__ import annotations

from typing import Any

import msgspec

from walytis_vault.adapters.walytis.second_log import SecondLog
from walytis_vault.domain import events as ev
from walytis_vault.domain.contents import Contents
from walytis_vault.domain.forgetting import Ballot, Order
from walytis_vault.domain.membership import Membership
from walytis_vault.projections.paging import iso


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """Rows as builtin types, in the order of the log."""

    contents: list[dict[str, Any]]
    ballots: list[dict[str, Any]]
    members: list[dict[str, Any]]
    headers: dict[bytes, bytes]
    """Content id -> the header of its ciphertext, which commits to its key."""
    odd: list[str]
    """What members recorded that does not count, or that honest software would not write."""


def read_account(again: SecondLog) -> Account:
    """Fold everything that was judged."""
    state = Contents(again.history)
    expired: dict[bytes, set[str]] = {}
    claims: list[tuple[bytes, str]] = []
    proposals: list[tuple[bytes, str]] = []
    claimed: dict[tuple[bytes, Order], bytes] = {}
    for recorded in again.events(types=ev.PRODUCT_EVENTS.topics - {ev.KeyAnnounced.TOPIC}):
        state.apply(recorded)
        event, origin = recorded.event, recorded.origin
        if isinstance(event, ev.ContentErased):
            if event.ballot_id is None:
                for content in event.contents:
                    expired.setdefault(content, set()).add(origin.device)
            else:
                claims.append((event.ballot_id, origin.device))
        elif isinstance(event, ev.ContentPublished):
            claimed[event.content_id, origin.order] = event.header
        elif isinstance(event, ev.ForgettingProposed):
            proposals.append((event.ballot_id, origin.author))
    membership = again.membership()
    devices = {k.device for k in membership.standing()}
    ballots = state.ballots.all()
    rows = [_ballot(b, state, devices) for b in ballots]
    return Account(
        contents=_contents(state, ballots, expired, devices),
        ballots=rows,
        members=_members(membership),
        headers={i: claimed[i, publication.order] for i, publication in state.publications.items()},
        odd=list(_odd(state, ballots, claims, proposals)),
    )


def _members(membership: Membership) -> list[dict[str, Any]]:
    ordered = sorted(membership.members.values(), key=lambda m: m.seniority)
    return [
        {
            "did": m.did,
            "admitted_by": m.admitted_by,
            "devices": list(m.devices),
            "lost": list(m.lost),
            "removed": m.removed,
        }
        for m in ordered
    ]


def _contents(
    state: Contents, ballots: list[Ballot], expired: dict[bytes, set[str]], devices: set[str]
) -> list[dict[str, Any]]:
    verdicts = state.verdicts()
    by_original: dict[bytes, Ballot] = {}
    for ballot in ballots:
        for content in ballot.proposal.contents:
            known = by_original.get(content)
            if known is None or ballot.state == "carried" or known.state not in ("carried", "open"):
                by_original[content] = ballot
    rows = []
    for content_id, publication in sorted(state.publications.items(), key=lambda item: item[1].order):
        verdict = verdicts[content_id]
        found = by_original.get(content_id) or by_original.get(verdict.original)
        row: dict[str, Any] = {
            "content_id": content_id.hex(),
            "author": publication.author,
            "device": publication.device,
            "time": iso(publication.time_ms),
            "root": publication.root.hex(),
            "padded_length": publication.padded_length,
            "forgetting": verdict.forgetting,
        }
        if verdict.original != content_id:
            row["revises"] = verdict.original.hex()
        if verdict.retracted:
            row["retracted"] = True
        if found is not None:
            row["ballot_id"] = found.ballot_id.hex()
            row["agreed"] = list(found.consents)
            row["not_answered"] = list(found.waiting)
        erased = set(found.receipts if found is not None and found.carried else ()) | expired.get(content_id, set())
        if erased or verdict.forgetting == "carried":
            row["erased_by"] = sorted(erased)
            row["not_erased_by"] = sorted(devices - erased)
        rows.append(row)
    return rows


def _ballot(ballot: Ballot, state: Contents, devices: set[str]) -> dict[str, Any]:
    members = state.history.members_at(ballot.proposal.order)
    row: dict[str, Any] = {
        "ballot_id": ballot.ballot_id.hex(),
        "state": ballot.state,
        "contents": [c.hex() for c in ballot.proposal.contents],
        "proposer": ballot.proposal.proposer,
        "time": iso(ballot.proposal.time_ms),
        "electorate": list(ballot.proposal.electorate),
        "consents": list(ballot.consents),
        "refusals": list(ballot.refusals),
        "missing": list(ballot.waiting),
        "receipts": list(ballot.receipts),
        "receipts_missing": sorted(devices - set(ballot.receipts)) if ballot.carried else [],
        "contested": ballot.contested,
    }
    if members is not None and (strangers := set(ballot.proposal.electorate) - members):
        row["asked_strangers"] = sorted(strangers)
    return row


def _odd(
    state: Contents,
    ballots: list[Ballot],
    claims: list[tuple[bytes, str]],
    proposals: list[tuple[bytes, str]],
) -> list[str]:
    """Sentences about what members wrote that does not count, or should not have been written."""
    found = []
    known = {b.ballot_id: b for b in ballots}
    for ballot_id, author in proposals:
        if not state.ballots.facts[ballot_id].proposals:
            found.append(
                f"ballot {ballot_id.hex()}: the proposal by {author} does not ask every member, and does not count"
            )
    for ballot_id, device in claims:
        ballot = known.get(ballot_id)
        if ballot is None or not ballot.carried:
            found.append(f"ballot {ballot_id.hex()}: {device} says that it has erased, but the ballot did not carry")
    found += [
        f"content {c.hex()}: several publications claim this id; the first counts" for c in sorted(state.contested)
    ]
    return found
