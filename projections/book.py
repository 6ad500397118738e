"""Ballots inside a view: the facts of each ballot, who was asked about which content, and the members.

Keeps what domain/forgetting.py folds, in tables of the view that uses it, and says which contents changed
their standing. It decides nothing itself.
"""

from __future__ import annotations

from typing import Final

import msgspec

from walytis_vault.domain import events as ev
from walytis_vault.domain.contents import Forgetting
from walytis_vault.domain.forgetting import Ballot, BallotFacts, History, Members, settle
from walytis_vault.projections.base import View
from walytis_vault.projections.store import Connection, Table, one

TABLES: Final = (
    Table(
        name="facts",
        columns={"ballot_id": "blob", "final": "integer", "facts": "blob"},
        primary_key=("ballot_id",),
        partial=((("final",), "final = 0"),),
    ),
    Table(
        name="asked",
        columns={"content_id": "blob", "ballot_id": "blob", "standing": "integer"},
        primary_key=("content_id", "ballot_id"),
        indexes=(("ballot_id",),),
        clustered=True,
    ),
    Table(name="members", columns={"member": "text", "removed": "integer"}, primary_key=("member",)),
)
STANDING: Final[tuple[Forgetting, ...]] = ("none", "open", "carried")

_encode = msgspec.msgpack.Encoder(order="deterministic").encode
_facts = msgspec.msgpack.Decoder(BallotFacts)
_ballot = msgspec.msgpack.Decoder(Ballot)


def encode_ballot(ballot: Ballot) -> bytes:
    """A settled ballot as it is stored; equal ballots give equal bytes."""
    return _encode(ballot)


def decode_ballot(raw: bytes) -> Ballot:
    """Back from `encode_ballot`."""
    return _ballot.decode(raw)


class Book:
    """The ballots of one view. Used inside the view's write transactions only."""

    def __init__(self, view: View, history: History) -> None:
        self._history = history
        self._members: Members | None = None
        facts, asked, self._members_table = view.t("facts"), view.t("asked"), view.t("members")
        self._select = f"SELECT facts FROM {facts} WHERE ballot_id = ?"
        self._upsert = (
            f"INSERT INTO {facts} (ballot_id, final, facts) VALUES (?, ?, ?)"
            " ON CONFLICT (ballot_id) DO UPDATE SET final = excluded.final, facts = excluded.facts"
        )
        self._unsettled = f"SELECT ballot_id FROM {facts} WHERE final = 0"
        self._standing = f"SELECT max(standing) FROM {asked} WHERE content_id = ?"
        self._asked_by = f"SELECT content_id, standing FROM {asked} WHERE ballot_id = ?"
        self._ballots_of = f"SELECT ballot_id FROM {asked} WHERE content_id = ? ORDER BY ballot_id"
        self._ask = (
            f"INSERT INTO {asked} (content_id, ballot_id, standing) VALUES (?, ?, ?)"
            " ON CONFLICT (content_id, ballot_id) DO UPDATE SET standing = excluded.standing"
        )

    def roll_back(self) -> None:
        """Forget what may not have been committed."""
        self._members = None

    def members(self, connection: Connection) -> Members:
        """The members' comings and goings."""
        if self._members is None:
            self._members = Members()
            for member, removed in connection.execute(f"SELECT member, removed FROM {self._members_table}"):
                self._members.admitted.add(str(member))
                if removed:
                    self._members.removed.add(str(member))
        return self._members

    def membership(self, connection: Connection, event: ev.Event) -> dict[bytes, tuple[Ballot | None, set[bytes]]]:
        """Fold a membership event.

        Returns:
            The ballots that no longer wait for somebody: each with the contents whose standing changed.
        """
        member = self.members(connection).add(event)
        if member is None:
            return {}
        removed = isinstance(event, ev.MemberRemoved)
        connection.execute(
            f"INSERT INTO {self._members_table} (member, removed) VALUES (?, ?)"
            " ON CONFLICT (member) DO UPDATE SET removed = 1 WHERE excluded.removed = 1",
            (member, int(removed)),
        )
        if not removed:
            return {}  # an admission changes no ballot: its electorate is frozen
        changes: dict[bytes, tuple[Ballot | None, set[bytes]]] = {}
        for ballot_id in [bytes(row[0]) for row in connection.execute(self._unsettled)]:
            facts = self.facts(connection, ballot_id)
            if any(member in p.electorate for p in facts.proposals):
                changes[ballot_id] = self._store(connection, ballot_id, facts)
        return changes

    def add(
        self, connection: Connection, ballot_id: bytes, event: ev.Event, origin: ev.Origin
    ) -> tuple[Ballot | None, set[bytes]]:
        """Fold one event of a ballot. Returns the ballot and the contents whose standing in it changed."""
        facts = self.facts(connection, ballot_id)
        if not facts.add(event, origin, self._history):
            return settle(ballot_id, facts, self.members(connection).removed), set()
        return self._store(connection, ballot_id, facts)

    def _store(self, connection: Connection, ballot_id: bytes, facts: BallotFacts) -> tuple[Ballot | None, set[bytes]]:
        ballot = settle(ballot_id, facts, self.members(connection).removed)
        # A contested ballot that carried may still change: a removal can let its other proposal carry too.
        final = ballot is not None and ballot.state == "carried" and not ballot.contested
        connection.execute(self._upsert, (ballot_id, int(final), _encode(facts)))
        before = {bytes(c): int(s) for c, s in connection.execute(self._asked_by, (ballot_id,))}
        after: dict[bytes, int] = dict.fromkeys(before, 0)
        if ballot is not None:
            after.update(dict.fromkeys(ballot.proposal.contents, 0))
            after.update(dict.fromkeys(ballot.proposal.known, 1 if ballot.state == "open" else 0))
            after.update(dict.fromkeys(ballot.carried, 2))
        changed = {c for c, s in after.items() if before.get(c) != s}
        connection.executemany(self._ask, [(c, ballot_id, after[c]) for c in changed])
        return ballot, changed

    def facts(self, connection: Connection, ballot_id: bytes) -> BallotFacts:
        """The facts known under a ballot id, none for one that was never mentioned."""
        row = one(connection.execute(self._select, (ballot_id,)))
        return BallotFacts() if row is None else _facts.decode(row[0])

    def standing(self, connection: Connection, content_id: bytes) -> Forgetting:
        """The strongest standing of a content in any ballot that names it."""
        row = one(connection.execute(self._standing, (content_id,)))
        return STANDING[int(row[0] or 0)]

    def ballots_of(self, connection: Connection, content_id: bytes) -> list[bytes]:
        """The ballots that name a content, sorted by id."""
        return [bytes(row[0]) for row in connection.execute(self._ballots_of, (content_id,))]
