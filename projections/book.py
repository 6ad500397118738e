"""Ballots inside a view: the facts of each ballot, who was asked about which content, and the members.

Keeps what domain/forgetting.py folds, in tables of the view that uses it, and says which contents changed
their standing. It decides nothing itself.
"""

from __future__ import annotations

from typing import Final

import msgspec

from walytis_vault.domain import events as ev
from walytis_vault.domain.contents import Forgetting
from walytis_vault.domain.forgetting import Ballot, BallotFacts, History, Span, add_membership, settle
from walytis_vault.projections.base import View
from walytis_vault.projections.store import Connection, Table, one

TABLES: Final = (
    Table(
        name="facts",
        columns={"ballot_id": "blob", "state": "text", "facts": "blob"},
        primary_key=("ballot_id",),
        partial=((("state",), "state <> 'carried'"),),
    ),
    Table(
        name="asked",
        columns={"content_id": "blob", "ballot_id": "blob", "standing": "integer"},
        primary_key=("content_id", "ballot_id"),
        indexes=(("ballot_id",),),
        clustered=True,
    ),
    Table(name="spans", columns={"member": "text", "span": "blob"}, primary_key=("member",)),
)
STANDING: Final[tuple[Forgetting, ...]] = ("none", "open", "carried")

_encode = msgspec.msgpack.Encoder().encode
_facts = msgspec.msgpack.Decoder(BallotFacts)
_span = msgspec.msgpack.Decoder(Span)


def decode_facts(raw: bytes) -> BallotFacts:
    """Read a stored ballot."""
    return _facts.decode(raw)


def read_spans(connection: Connection, table: str) -> dict[str, Span]:
    """Read the members' comings and goings."""
    return {str(m): _span.decode(s) for m, s in connection.execute(f"SELECT member, span FROM {table}")}


class Book:
    """The ballots of one view. Used inside the view's write transactions only."""

    def __init__(self, view: View, history: History) -> None:
        self._history = history
        self._spans: dict[str, Span] | None = None
        facts, asked, self._spans_table = view.t("facts"), view.t("asked"), view.t("spans")
        self._select = f"SELECT facts FROM {facts} WHERE ballot_id = ?"
        self._upsert = (
            f"INSERT INTO {facts} (ballot_id, state, facts) VALUES (?, ?, ?)"
            " ON CONFLICT (ballot_id) DO UPDATE SET state = excluded.state, facts = excluded.facts"
        )
        self._settled = f"SELECT ballot_id FROM {facts} WHERE state = 'carried'"
        self._unsettled = f"SELECT ballot_id FROM {facts} WHERE state <> 'carried'"
        self._standing = f"SELECT max(standing) FROM {asked} WHERE content_id = ?"
        self._asked_by = f"SELECT content_id, standing FROM {asked} WHERE ballot_id = ?"
        self._ballots_of = f"SELECT ballot_id FROM {asked} WHERE content_id = ? ORDER BY ballot_id"
        self._ask = (
            f"INSERT INTO {asked} (content_id, ballot_id, standing) VALUES (?, ?, ?)"
            " ON CONFLICT (content_id, ballot_id) DO UPDATE SET standing = excluded.standing"
        )

    def roll_back(self) -> None:
        """Forget what may not have been committed."""
        self._spans = None

    def spans(self, connection: Connection) -> dict[str, Span]:
        """The members' comings and goings."""
        if self._spans is None:
            self._spans = read_spans(connection, self._spans_table)
        return self._spans

    def membership(self, connection: Connection, event: ev.Event, origin: ev.Origin) -> dict[bytes, set[bytes]]:
        """Fold a membership event. Returns the ballots that it settled or unsettled, with their changed contents."""
        spans = self.spans(connection)
        member = add_membership(spans, event, origin)
        if member is None:
            return {}
        connection.execute(
            f"INSERT INTO {self._spans_table} (member, span) VALUES (?, ?)"
            " ON CONFLICT (member) DO UPDATE SET span = excluded.span",
            (member, _encode(spans[member])),
        )
        if spans[member].removed < 0:
            return {}  # a plain admission changes no ballot: its electorate is frozen
        affected = [bytes(row[0]) for row in connection.execute(self._unsettled)]
        if not isinstance(event, ev.MemberRemoved):
            affected += [bytes(row[0]) for row in connection.execute(self._settled)]
        changes: dict[bytes, set[bytes]] = {}
        for ballot_id in affected:
            facts = self.facts(connection, ballot_id)
            if any(member in p.electorate for p in facts.proposals):
                changes[ballot_id] = self._store(connection, ballot_id, facts)[1]
        return changes

    def add(
        self, connection: Connection, ballot_id: bytes, event: ev.Event, origin: ev.Origin
    ) -> tuple[Ballot | None, set[bytes]]:
        """Fold one event of a ballot. Returns the ballot and the contents whose standing in it changed."""
        facts = self.facts(connection, ballot_id)
        if not facts.add(event, origin):
            return settle(ballot_id, facts, self.spans(connection), self._history), set()
        return self._store(connection, ballot_id, facts)

    def _store(self, connection: Connection, ballot_id: bytes, facts: BallotFacts) -> tuple[Ballot | None, set[bytes]]:
        ballot = settle(ballot_id, facts, self.spans(connection), self._history)
        connection.execute(self._upsert, (ballot_id, "none" if ballot is None else ballot.state, _encode(facts)))
        before = {bytes(c): int(s) for c, s in connection.execute(self._asked_by, (ballot_id,))}
        after: dict[bytes, int] = dict.fromkeys(before, 0)
        if ballot is not None:
            after.update(dict.fromkeys(ballot.proposal.contents, 1 if ballot.state == "open" else 0))
            after.update(dict.fromkeys(ballot.carried, 2))
        changed = {c for c, s in after.items() if before.get(c) != s}
        connection.executemany(self._ask, [(c, ballot_id, after[c]) for c in changed])
        return ballot, changed

    def facts(self, connection: Connection, ballot_id: bytes) -> BallotFacts:
        """The facts known under a ballot id, none for one that was never mentioned."""
        row = one(connection.execute(self._select, (ballot_id,)))
        return (
            BallotFacts(proposals=[], answers={}, withdrawals={}, receipts={}) if row is None else _facts.decode(row[0])
        )

    def standing(self, connection: Connection, content_id: bytes) -> Forgetting:
        """The strongest standing of a content in any ballot that names it."""
        row = one(connection.execute(self._standing, (content_id,)))
        return STANDING[int(row[0] or 0)]

    def ballots_of(self, connection: Connection, content_id: bytes) -> list[bytes]:
        """The ballots that name a content, sorted by id."""
        return [bytes(row[0]) for row in connection.execute(self._ballots_of, (content_id,))]
