"""The view `ballots`: one row for each proposal to forget, with who agreed, who refused and who has erased.

Folds by domain/forgetting.py. Reasons stay sealed here and are opened only while a query runs.
Columns: docs/views.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Final

import msgspec

from walytis_vault.domain import events as ev
from walytis_vault.domain.forgetting import Ballot, BallotState, ballot_of
from walytis_vault.projections import book, paging
from walytis_vault.projections.base import Local, Page, Request, View, ViewRecorder
from walytis_vault.projections.store import Connection, Table, one
from walytis_vault.projections.table_query import Condition, page_by_order

STATES: Final = ("open", "carried", "refused", "withdrawn", "all")
ROWS: Final = Table(
    name="rows",
    columns={
        "ballot_id": "blob",
        "ord": "blob",
        "position": "integer",
        "state": "text",
        "proposer": "text",
        "settled": "blob",
        "reason": "blob",
    },
    primary_key=("ballot_id",),
    unique=(("ord",),),
    indexes=(("state", "ord"), ("proposer", "ord")),
)


class BallotRow(msgspec.Struct, frozen=True, kw_only=True):
    """One ballot. Ids are hex text; members and devices are DIDs."""

    ballot_id: str
    state: BallotState
    contents: tuple[str, ...]
    electorate: tuple[str, ...]
    """The members whose consent is needed, as frozen by the proposal."""
    consents: tuple[str, ...]
    refusals: tuple[str, ...]
    waiting: tuple[str, ...]
    """Members that have still to answer; removed ones are not waited for."""
    receipts: tuple[str, ...]
    """Devices that have erased."""
    proposer: str
    time: str
    """By the proposer's clock, ISO 8601 (UTC)."""
    reason: str | None
    """None when its key is gone or not here; empty when none was given."""
    contested: bool
    """Several proposals claim this id: one of their authors misbehaved."""
    position: int


class BallotsView(View):
    """See the module."""

    name = "ballots"
    version: ClassVar[int] = 1
    row: ClassVar[type[msgspec.Struct]] = BallotRow
    tables: ClassVar[tuple[Table, ...]] = (ROWS, *book.TABLES)
    filters: ClassVar[frozenset[str]] = frozenset({"ballot_id", "state", "content_id", "proposer", "waiting", "sort"})

    def __init__(self, view: ViewRecorder, local: Local | None = None) -> None:
        super().__init__(view, local)
        self.book = book.Book(self, self.local.history)
        self.handlers = {
            ev.ForgettingProposed: self._balloted,
            ev.ForgettingConsented: self._balloted,
            ev.ForgettingRefused: self._balloted,
            ev.ForgettingWithdrawn: self._balloted,
            ev.ContentErased: self._balloted,
            ev.VaultFounded: self._membership,
            ev.MemberAdmitted: self._membership,
            ev.MemberRemoved: self._membership,
        }
        rows = self.t("rows")
        self._select = f"SELECT ord, settled, position, reason FROM {rows}"
        self._upsert = (
            f"INSERT INTO {rows} (ballot_id, ord, position, state, proposer, settled) VALUES (?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (ballot_id) DO UPDATE SET ord = excluded.ord, state = excluded.state,"
            " proposer = excluded.proposer, settled = excluded.settled"
        )
        self._set_reason = f"UPDATE {rows} SET reason = ? WHERE ballot_id = ?"
        self._drop_reason = f"UPDATE {rows} SET reason = NULL WHERE ballot_id = ?"

    def roll_back(self) -> None:
        """See `View.roll_back`."""
        super().roll_back()
        self.book.roll_back()

    def _balloted(self, connection: Connection, event: ev.Event, origin: ev.Origin, position: int) -> None:
        ballot_id = ballot_of(event)
        if ballot_id is None:
            return
        ballot, _ = self.book.add(connection, ballot_id, event, origin)
        if ballot is None:
            return
        self._write(connection, ballot, position)
        if isinstance(event, ev.ForgettingProposed) and ballot.proposal.order == origin.order:
            connection.execute(self._set_reason, (None if ballot.state == "carried" else event.reason, ballot_id))

    def _membership(self, connection: Connection, event: ev.Event, _origin: ev.Origin, position: int) -> None:
        for ballot, _ in self.book.membership(connection, event).values():
            if ballot is not None:
                self._write(connection, ballot, position)

    def _write(self, connection: Connection, ballot: Ballot, position: int) -> None:
        order = paging.order_bytes(ballot.proposal.order)
        proposer, settled = ballot.proposal.proposer, book.encode_ballot(ballot)
        connection.execute(self._upsert, (ballot.ballot_id, order, position, ballot.state, proposer, settled))
        if ballot.state == "carried":
            connection.execute(self._drop_reason, (ballot.ballot_id,))
        self.touch(ballot.ballot_id, position)

    def page(self, request: Request) -> Page:
        """See `View.page`."""
        self.check_filters(request.filters)
        given = {k: v for k, v in request.filters.items() if v is not None}
        condition = Condition()
        if "ballot_id" in given:
            condition.add("ballot_id = ?", paging.hex_id("ballot_id", given["ballot_id"]))
        state = paging.choice("state", given.get("state", "all"), STATES)
        if state != "all":
            condition.add("state = ?", state)
        if "proposer" in given:
            condition.add("proposer = ?", paging.text("proposer", given["proposer"]))
        if "content_id" in given:
            asked = self.t("asked")
            condition.add(
                f"ballot_id IN (SELECT ballot_id FROM {asked} WHERE content_id = ?)",
                paging.hex_id("content_id", given["content_id"]),
            )
        waiting = paging.text("waiting", given["waiting"]) if "waiting" in given else None
        if waiting is not None:
            condition.add("state = 'open'")
        return page_by_order(
            self,
            request,
            select=self._select,
            condition=condition,
            build=self._load,
            keep=lambda row: waiting is None or waiting in row.waiting,
            finish=lambda loaded: self._row(*loaded),
        )

    def _load(self, _connection: Connection, raw: Sequence[Any]) -> tuple[Ballot, int, bytes | None]:
        _, settled, position, reason = raw
        return book.decode_ballot(settled), int(position), reason

    def _row(self, ballot: Ballot, position: int, reason: bytes | None) -> BallotRow:
        proposal = ballot.proposal
        text: str | None = ""
        if reason is None:
            text = None
        elif reason:
            text = self.local.unseal_reason(proposal.contents[0], reason)
        return BallotRow(
            ballot_id=ballot.ballot_id.hex(),
            state=ballot.state,
            contents=tuple(c.hex() for c in proposal.contents),
            electorate=proposal.electorate,
            consents=ballot.consents,
            refusals=ballot.refusals,
            waiting=ballot.waiting if ballot.state == "open" else (),
            receipts=ballot.receipts,
            proposer=proposal.proposer,
            time=paging.iso(proposal.time_ms),
            reason=text,
            contested=ballot.contested,
            position=position,
        )

    def rows_by_key(self, keys: Sequence[bytes]) -> dict[bytes, msgspec.Struct]:
        """See `View.rows_by_key`."""
        loaded = []
        with self._view.store.read() as connection:
            for key in dict.fromkeys(keys):
                raw = one(connection.execute(self._select + " WHERE ballot_id = ?", (key,)))
                if raw is not None:
                    loaded.append(self._load(connection, raw))
        return {ballot.ballot_id: self._row(ballot, position, reason) for ballot, position, reason in loaded}

    def digests(self, connection: Connection, low: bytes, high: bytes | None) -> Iterable[tuple[bytes, bytes]]:
        """See `View.digests`: the settled ballot."""
        sql, params = f"SELECT ballot_id, settled FROM {self.t('rows')} WHERE ballot_id >= ?", [low]
        if high is not None:
            sql += " AND ballot_id < ?"
            params.append(high)
        for ballot_id, settled in connection.execute(sql + " ORDER BY ballot_id", params):
            yield bytes(ballot_id), hashlib.sha256(settled).digest()

    def forget(self, connection: Connection, contents: Sequence[bytes]) -> None:
        """See `View.forget`: a reason is sealed under the key of the first content that its ballot names."""
        super().forget(connection, contents)
        for content_id in contents:
            for ballot_id in self.book.ballots_of(connection, content_id):
                raw = one(connection.execute(self._select + " WHERE ballot_id = ?", (ballot_id,)))
                if raw is not None and self._load(connection, raw)[0].proposal.contents[0] == content_id:
                    connection.execute(self._drop_reason, (ballot_id,))
