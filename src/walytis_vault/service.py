"""The application service: one method for each verb of the bus, over log, store and views.

Commands read what they decide on from the log, let the domain decide, and append on that condition; queries go
to the views after these include everything that was recorded when the query came (read your writes).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
from eventsourcing.dcb.api import DCBAppendCondition, DCBQuery, DCBQueryItem
from eventsourcing.persistence import IntegrityError

from walytis_vault.adapters.storage.content_store import DiskContentStore
from walytis_vault.adapters.walytis.receipts import Receipt
from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.audit import audit_vault
from walytis_vault.bus.messages import (
    BallotInfo,
    Change,
    Published,
    PublishOptions,
    QueryPage,
    RequestKey,
    Status,
    ViewStatus,
)
from walytis_vault.domain import events as ev
from walytis_vault.domain.contents import decide_forget, decide_restore, decide_retract
from walytis_vault.domain.errors import (
    ConflictError,
    ForgottenError,
    MisuseError,
    NotYetAvailableError,
    RetractedError,
    UnknownIdError,
)
from walytis_vault.domain.forgetting import Ballot, decide_answer, decide_withdraw
from walytis_vault.domain.ids import ID_BYTES, BallotId, ContentId, Root, parse_ballot_id, parse_content_id
from walytis_vault.domain.limits import LIMITS
from walytis_vault.domain.ports import Clock, ContentReader, Randomness
from walytis_vault.eraser import Eraser
from walytis_vault.home import VaultConfig
from walytis_vault.projections.host import ProjectionHost
from walytis_vault.publishing import ATTEMPTS, Publication, check_expiry
from walytis_vault.reading import Reading, read_state

VIEWS_WAIT_S: Final = 5.0
"""How long a query waits for the views to include what was recorded before it."""
VERSION: Final = "0.1.0"

Decision = Callable[[Reading], Sequence[ev.Event]]
"""Events to append for what was read; none when it stands already."""


class NodeService:
    """Implements `bus.service.VaultService` for one vault on this node. Safe for many threads."""

    def __init__(
        self,
        config: VaultConfig,
        log: VaultLog,
        store: DiskContentStore,
        views: ProjectionHost,
        eraser: Eraser,
        *,
        network: str,
        clock: Clock,
        randomness: Randomness,
        peers: Callable[[], Sequence[str]],
        fetch: Callable[[ContentId, float], None],
        invite: Callable[[float], str],
        details: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        """For the composition root."""
        self._config = config
        self._vault_log = log
        self._log = log.recorder
        self._store = store
        self._views = views
        self._eraser = eraser
        self._network = network
        self._clock = clock
        self._randomness = randomness
        self._peers = peers
        self._fetch = fetch
        self._invite = invite
        self._details = details
        self._me = config.member

    # -- contents -----------------------------------------------------------------------------------------------

    def begin_publish(self, options: PublishOptions, key: RequestKey | None = None) -> Publication | Published:
        """See `VaultService.begin_publish`."""
        if key is not None and (reply := self._kept(key)) is not None:
            return msgspec.msgpack.decode(reply, type=Published)
        check_expiry(options.expires_ms, self._clock.wall_ms())
        content_id = ContentId(self._randomness.token(ID_BYTES))
        return Publication(self._log, self._store, content_id, author=self._me, options=options, key=key)

    def open_content(self, content_id: str, *, timeout: float) -> ContentReader:
        """See `VaultService.open_content`.

        Raises:
            UnknownIdError, ForgottenError, RetractedError, NotYetAvailableError, DamagedContentError, LockedError.
        """
        wanted = parse_content_id(content_id)
        reading = read_state(self._log, [wanted])
        verdict = reading.state.verdict(wanted)
        publication, event = reading.state.publications[wanted], reading.published[wanted]
        if verdict.forgetting == "carried" or self._store.erased(wanted):
            raise ForgottenError(self._why_forgotten(wanted, reading))
        if verdict.expires_ms is not None and verdict.expires_ms <= self._clock.wall_ms():
            raise ForgottenError(f"content {content_id} expired, as its publisher declared; only its record remains")
        if verdict.retracted:
            raise RetractedError(f"content {content_id} was retracted by its author, who alone can restore it")
        if not self._store.has_bytes(wanted) or self._store.content_key(wanted) is None:
            self._fetch(wanted, timeout)
        descriptor = self._store.open_descriptor(wanted, event.descriptor)
        if descriptor is None:
            raise NotYetAvailableError(f"the key of content {content_id} is not on this node yet")
        return self._store.reader(
            wanted,
            author=publication.author,
            root=Root(publication.root),
            length=descriptor.length,
            padded_length=publication.padded_length,
        )

    def _why_forgotten(self, content_id: bytes, reading: Reading) -> str:
        for ballot in reading.state.ballots.all():
            if ballot.carried:
                return (
                    f"content {content_id.hex()} was forgotten by ballot {ballot.ballot_id.hex()}, to which"
                    f" {_members(len(ballot.consents))} consented; only its record remains"
                )
        return f"content {content_id.hex()} was forgotten; only its record remains"

    def retract(self, content_id: str, key: RequestKey | None = None) -> int:
        """See `VaultService.retract`."""
        wanted = parse_content_id(content_id)

        def decide(reading: Reading) -> Sequence[ev.Event]:
            changes = decide_retract(reading.state, wanted, by=self._me)
            return [ev.ContentRetracted(content_id=wanted)] if changes else []

        return self._command(decide, contents=[wanted], key=key)

    def restore(self, content_id: str, key: RequestKey | None = None) -> int:
        """See `VaultService.restore`."""
        wanted = parse_content_id(content_id)

        def decide(reading: Reading) -> Sequence[ev.Event]:
            changes = decide_restore(reading.state, wanted, by=self._me)
            return [ev.ContentRestored(content_id=wanted)] if changes else []

        return self._command(decide, contents=[wanted], key=key)

    # -- forgetting ---------------------------------------------------------------------------------------------

    def forget(self, contents: tuple[str, ...], reason: str, key: RequestKey | None = None) -> BallotInfo:
        """See `VaultService.forget`."""
        wanted = [parse_content_id(c) for c in dict.fromkeys(contents)]
        if len(wanted) > LIMITS.ballot_contents:
            raise MisuseError(f"one ballot names at most {LIMITS.ballot_contents} contents: use several")
        # A retried request proposes under the same id, whatever its first attempt achieved.
        ballot_id = BallotId(key.request_id if key is not None else self._randomness.token(ID_BYTES))
        standing: list[bytes] = [ballot_id]

        def decide(reading: Reading) -> Sequence[ev.Event]:
            standing[:] = [ballot_id]
            if reading.state.ballots.ballot(ballot_id) is not None:
                return []
            decided = decide_forget(reading.state, wanted, by=self._me)
            if isinstance(decided, Ballot):
                standing[:] = [decided.ballot_id]
                return []
            electorate = self._vault_log.membership().active()
            sealed = self._store.seal_reason(ContentId(decided[0]), reason) if reason else b""
            proposal = ev.ForgettingProposed(
                ballot_id=ballot_id, contents=decided, electorate=electorate, reason=sealed
            )
            return [proposal]

        position = self._command(decide, contents=wanted, ballots=[ballot_id], key=key)
        self._eraser.settle(standing)
        return self._ballot_info(standing[0], position)

    def consent(self, ballot_id: str, key: RequestKey | None = None) -> BallotInfo:
        """See `VaultService.consent`."""
        return self._answer(ballot_id, key, consents=True)

    def refuse(self, ballot_id: str, reason: str, key: RequestKey | None = None) -> BallotInfo:
        """See `VaultService.refuse`."""
        return self._answer(ballot_id, key, consents=False, reason=reason)

    def withdraw(self, ballot_id: str, key: RequestKey | None = None) -> BallotInfo:
        """See `VaultService.withdraw`."""
        wanted = parse_ballot_id(ballot_id)

        def decide(reading: Reading) -> Sequence[ev.Event]:
            changes = decide_withdraw(reading.state.ballots, wanted, by=self._me)
            return [ev.ForgettingWithdrawn(ballot_id=wanted)] if changes else []

        return self._ballot_info(wanted, self._command(decide, ballots=[wanted], key=key))

    def _answer(self, ballot_id: str, key: RequestKey | None, *, consents: bool, reason: str = "") -> BallotInfo:
        wanted = parse_ballot_id(ballot_id)

        def decide(reading: Reading) -> Sequence[ev.Event]:
            if not decide_answer(reading.state.ballots, wanted, by=self._me, consents=consents):
                return []
            if consents:
                return [ev.ForgettingConsented(ballot_id=wanted)]
            ballot = reading.state.ballots.ballot(wanted)
            first = ContentId(ballot.proposal.contents[0]) if ballot else None
            sealed = self._store.seal_reason(first, reason) if reason and first else b""
            return [ev.ForgettingRefused(ballot_id=wanted, reason=sealed)]

        position = self._command(decide, ballots=[wanted], key=key)
        self._eraser.settle([wanted])
        return self._ballot_info(wanted, position)

    def _ballot_info(self, ballot_id: bytes, position: int) -> BallotInfo:
        ballot = read_state(self._log, ballots=[ballot_id]).state.ballots.ballot(ballot_id)
        if ballot is None:
            raise UnknownIdError(f"no ballot {ballot_id.hex()} is known here: `ballots` lists them")
        return BallotInfo(
            ballot_id=ballot_id.hex(),
            state=ballot.state,
            contents=tuple(c.hex() for c in ballot.proposal.contents),
            electorate=ballot.proposal.electorate,
            consents=ballot.consents,
            refusals=ballot.refusals,
            receipts=ballot.receipts,
            position=max(position, self._vault_log.index.horizon),
        )

    # -- commands in general ------------------------------------------------------------------------------------

    def _command(
        self,
        decide: Decision,
        *,
        contents: Sequence[bytes] = (),
        ballots: Sequence[bytes] = (),
        key: RequestKey | None = None,
    ) -> int:
        """Read, decide, append on condition; again when the log changed in between. Returns the position."""
        if key is not None and (reply := self._kept(key)) is not None:
            return msgspec.msgpack.decode(reply, type=int)
        receipt = None if key is None else _position_receipt(key)
        for _ in range(ATTEMPTS):
            reading = read_state(self._log, contents, ballots)
            events = decide(reading)
            if not events:
                return self._vault_log.index.horizon
            try:
                done = self._log.append_once(ev.to_dcb_all(events), reading.condition, receipt=receipt)
            except IntegrityError:
                continue
            if done.repeated and done.reply is not None:
                return msgspec.msgpack.decode(done.reply, type=int)
            return done.last
        raise ConflictError("what this request depends on is changing too quickly: repeat it")

    def _kept(self, key: RequestKey) -> bytes | None:
        return self._vault_log.index.kept_reply(key.client, key.request_id, key.digest)

    # -- queries ------------------------------------------------------------------------------------------------

    def query(self, view: str, *, limit: int | None, cursor: str | None, filters: dict[str, Any]) -> QueryPage:
        """See `VaultService.query`."""
        self._views.row_type(view)
        self.wait_for(self._vault_log.index.horizon, timeout=VIEWS_WAIT_S)
        page = self._views.query(view, limit=limit, cursor=cursor, filters=filters)
        rows = tuple(msgspec.to_builtins(row) for row in page.rows)
        return QueryPage(rows=rows, cursor=page.cursor, position=page.position)

    def changes(self, view: str, *, after: int, limit: int, filters: dict[str, Any]) -> tuple[list[Change], int]:
        """See `VaultService.changes`."""
        found, upto = self._views.changes(view, after=after, limit=limit, filters=filters)
        return [Change(**msgspec.structs.asdict(change)) for change in found], upto

    def on_advance(self, callback: Callable[[int], None]) -> Callable[[], None]:
        """See `VaultService.on_advance`."""
        return self._views.on_advance(callback)

    def wait_for(self, position: int, *, timeout: float) -> int:
        """See `VaultService.wait_for`."""
        return self._views.wait(position, timeout=timeout)

    def status(self) -> Status:
        """See `VaultService.status`."""
        index = self._vault_log.index
        states = self._views.status()
        details = {**self._details(), "waiting_appends": self._vault_log.writer.waiting}
        errors = {
            "reconciler": self._vault_log.reconciler.last_error,
            "eraser": self._eraser.last_error,
            **{f"view {name}": state.error for name, state in states.items()},
        }
        details["rebuilding"] = {name: s.rebuilding for name, s in states.items() if s.rebuilding is not None}
        details["parked"] = {name: s.parked for name, s in states.items() if s.parked}
        details["errors"] = {where: error for where, error in errors.items() if error}
        return Status(
            vault_id=self._config.vault_id,
            did=self._me,
            name=self._config.name,
            position=index.horizon,
            peers=tuple(self._peers()),
            views={name: ViewStatus(position=state.position, hash=state.hash) for name, state in states.items()},
            version=VERSION,
            network=self._network,
            blocks=index.verdict_counts(),
            details=details,
        )

    def audit(self, *, read_data: bool) -> dict[str, Any]:
        """See `VaultService.audit`."""
        return audit_vault(self._vault_log, self._store, read_data=read_data)

    def replay(self, view: str | None) -> dict[str, Any]:
        """See `VaultService.replay`."""
        if view is not None:
            self._views.live(view)
        names = [view] if view is not None else list(self._views.status())
        horizon = self._vault_log.index.horizon
        self.wait_for(horizon, timeout=VIEWS_WAIT_S)
        before = self._views.status()
        self._views.rebuild(*names)
        after = self._views.status()
        return {
            name: {
                "position": after[name].position,
                "hash": after[name].hash,
                "hash_before": before[name].hash,
                "equal": after[name].hash == before[name].hash,
            }
            for name in names
        }

    # -- members ------------------------------------------------------------------------------------------------

    def invite(self, *, expires_s: float) -> str:
        """See `VaultService.invite`."""
        return self._invite(expires_s)

    def remove(self, did: str, key: RequestKey | None = None) -> int:
        """See `VaultService.remove`."""
        if key is not None and (reply := self._kept(key)) is not None:
            return msgspec.msgpack.decode(reply, type=int)
        receipt = None if key is None else _position_receipt(key)
        query = DCBQuery(items=[DCBQueryItem(types=[ev.MemberAdmitted.TOPIC, ev.MemberRemoved.TOPIC])])
        for _ in range(ATTEMPTS):
            after = self._vault_log.index.horizon
            member = self._vault_log.membership().members.get(did)
            if member is None or did == self._me:
                raise UnknownIdError(f"{did[:80]} is no other member of this vault: see `walytis-vault members`")
            if member.removed:
                return after
            # What of the victim's is accepted is filled in by the writer, in the transaction that takes the heads.
            event = ev.MemberRemoved(member=did, accepted=())
            condition = DCBAppendCondition(fail_if_events_match=query, after=after)
            try:
                done = self._log.append_once([ev.to_dcb(event)], condition, receipt=receipt)
            except IntegrityError:
                continue
            if done.repeated and done.reply is not None:
                return msgspec.msgpack.decode(done.reply, type=int)
            self._eraser.settle(self._open_ballots())
            return done.last
        raise ConflictError("the vault's membership is changing too quickly: repeat the request")

    def _open_ballots(self) -> list[bytes]:
        query = DCBQuery(items=[DCBQueryItem(types=[ev.ForgettingProposed.TOPIC])])
        found = (ev.PRODUCT_EVENTS.decode(e.event.type, e.event.data) for e in self._log.read(query))
        return [e.ballot_id for e in found if isinstance(e, ev.ForgettingProposed)]


def _position_receipt(key: RequestKey) -> Receipt:
    return Receipt(
        client=key.client,
        request_id=key.request_id,
        digest=key.digest,
        make_reply=lambda _first, last: msgspec.msgpack.encode(last),
    )


def _members(count: int) -> str:
    return "its only member" if count == 1 else f"{count} members"
