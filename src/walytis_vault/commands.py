"""The commands of the service that change what all members agree on to forget: ballots.

Each reads what it decides on, lets the domain decide, and appends on condition that nothing was added meanwhile;
with a `RequestKey` the reply is kept with the effect, so that a retry finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from eventsourcing.persistence import IntegrityError

from walytis_vault import request_codes
from walytis_vault.adapters.storage.content_store import DiskContentStore
from walytis_vault.adapters.walytis.receipts import Receipt
from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.bus.messages import BallotInfo, RequestKey
from walytis_vault.domain import events as ev
from walytis_vault.domain.claims import ballot_id_of
from walytis_vault.domain.contents import decide_forget
from walytis_vault.domain.errors import ConflictError, MisuseError, UnknownIdError
from walytis_vault.domain.forgetting import Ballot, decide_answer, decide_withdraw
from walytis_vault.domain.ids import ID_BYTES, ContentId, parse_ballot_id, parse_content_id
from walytis_vault.domain.limits import LIMITS
from walytis_vault.domain.ports import Clock, Randomness
from walytis_vault.eraser import Eraser
from walytis_vault.home import VaultConfig
from walytis_vault.publishing import ATTEMPTS, position_receipt
from walytis_vault.reading import Reading, read_state

Decision = Callable[[Reading], Sequence[ev.Event]]
"""Events to append for what was read; none when it stands already."""


class Commands:
    """Part of `NodeService`. Safe for many threads."""

    def __init__(
        self,
        config: VaultConfig,
        log: VaultLog,
        store: DiskContentStore,
        eraser: Eraser,
        *,
        clock: Clock,
        randomness: Randomness,
    ) -> None:
        """Bind to the parts of a node."""
        self._config = config
        self._vault_log = log
        self._log = log.recorder
        self._store = store
        self._eraser = eraser
        self._clock = clock
        self._randomness = randomness
        self._me = config.member

    # -- forgetting ---------------------------------------------------------------------------------------------

    def forget(self, contents: tuple[str, ...], reason: str, key: RequestKey | None = None) -> BallotInfo:
        """See `VaultService.forget`."""
        wanted = [parse_content_id(c) for c in dict.fromkeys(contents)]
        if len(wanted) > LIMITS.ballot_contents:
            raise MisuseError(f"one ballot names at most {LIMITS.ballot_contents} contents: use several")
        standing: list[bytes] = []
        sealed_under: list[ContentId] = []

        self._store.make_room()

        def decide(reading: Reading) -> Sequence[ev.Event]:
            decided = decide_forget(reading.state, wanted, by=self._me)
            if isinstance(decided, Ballot):
                standing[:] = [decided.ballot_id]
                return []
            electorate = self._vault_log.membership().active()
            sealed_under[:] = [ContentId(decided[0])]
            sealed = self._store.seal_reason(ContentId(decided[0]), reason) if reason else b""
            nonce = self._randomness.token(ID_BYTES)
            ballot_id = ballot_id_of(self._config.vault_id, self._me, nonce, decided, electorate)
            standing[:] = [ballot_id]
            return [
                ev.ForgettingProposed(
                    ballot_id=ballot_id, nonce=nonce, contents=decided, electorate=electorate, reason=sealed
                )
            ]

        # A repeated request is told of the ballot that its first attempt opened, which the kept reply names.
        position, kept = self._command(
            decide, contents=wanted, key=key, sealed_under=sealed_under, note=lambda: standing[0]
        )
        ballot_id = kept or standing[0]
        self._eraser.settle([ballot_id])
        return self._ballot_info(ballot_id, position)

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

        return self._ballot_info(wanted, self._command(decide, ballots=[wanted], key=key)[0])

    def _answer(self, ballot_id: str, key: RequestKey | None, *, consents: bool, reason: str = "") -> BallotInfo:
        wanted = parse_ballot_id(ballot_id)
        sealed_under: list[ContentId] = []
        self._store.make_room()

        def decide(reading: Reading) -> Sequence[ev.Event]:
            if not decide_answer(reading.state.ballots, wanted, by=self._me, consents=consents):
                return []
            if consents:
                return [ev.ForgettingConsented(ballot_id=wanted)]
            ballot = reading.state.ballots.ballot(wanted)
            sealed_under[:] = [ContentId(ballot.proposal.contents[0])] if ballot else []
            sealed = self._store.seal_reason(sealed_under[0], reason) if reason and sealed_under else b""
            return [ev.ForgettingRefused(ballot_id=wanted, reason=sealed)]

        position, _ = self._command(decide, ballots=[wanted], key=key, sealed_under=sealed_under)
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
        sealed_under: Sequence[ContentId] = (),
        note: Callable[[], bytes] = lambda: b"",
    ) -> tuple[int, bytes]:
        """Read, decide, append on condition; again when the log changed in between.

        Args:
            sealed_under: filled by `decide`: the content under whose key it sealed the reason.
            note: what to keep with the effect, asked when it was decided.
        Returns:
            The position, and what an earlier attempt of the same request noted (else nothing).
        """
        if key is not None and (reply := self._kept(key)) is not None:
            position, noted = _decode_kept(reply)
            self._vault_log.wait_for(position)  # a crash may have come between the reply and the block
            return position, noted
        for _ in range(ATTEMPTS):
            reading = read_state(self._log, contents, ballots)
            events = decide(reading)
            if not events:
                return self._vault_log.index.horizon, b""
            receipt = None if key is None else self._receipt(key, next(iter(sealed_under), None), note)
            try:
                done = self._log.append_once(ev.to_dcb_all(events), reading.condition, receipt=receipt)
            except IntegrityError:
                continue
            if done.repeated and done.reply is not None:
                return _decode_kept(done.reply)
            return done.last, b""
        raise ConflictError("what this request depends on is changing too quickly: repeat it")

    def _kept(self, key: RequestKey) -> bytes | None:
        def is_same(kept: bytes) -> bool:
            return request_codes.is_same(key, kept, self._store)

        return self._vault_log.index.kept_reply(key.client, key.request_id, is_same, self._clock.wall_ms())

    def _receipt(self, key: RequestKey, sealed_under: ContentId | None, note: Callable[[], bytes]) -> Receipt:
        made = position_receipt(key, self._store, sealed_under)
        noted: Receipt = msgspec.structs.replace(
            made, make_reply=lambda _first, last: msgspec.msgpack.encode((last, note()))
        )
        return noted


def _decode_kept(reply: bytes) -> tuple[int, bytes]:
    return msgspec.msgpack.decode(reply, type=tuple[int, bytes])
