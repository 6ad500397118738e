"""Who belongs to the vault, as commands: invite, list and revoke invitations, remove members and devices.

The rules are in domain/membership.py; who comes in with a code is answered by peers/admission.py.
"""

from __future__ import annotations

import msgspec
from eventsourcing.dcb.api import DCBAppendCondition, DCBQuery, DCBQueryItem
from eventsourcing.persistence import IntegrityError

from walytis_vault.adapters.walytis.vault_log import VaultLog
from walytis_vault.bus.messages import InvitationInfo, RequestKey
from walytis_vault.domain import events as ev
from walytis_vault.domain.errors import ConflictError
from walytis_vault.domain.membership import decide_remove, full_name
from walytis_vault.domain.ports import Clock
from walytis_vault.eraser import Eraser
from walytis_vault.home import VaultConfig
from walytis_vault.peers.admission import Admission
from walytis_vault.peers.invitations import Entry, Invitations
from walytis_vault.projections.paging import iso
from walytis_vault.publishing import ATTEMPTS, position_receipt


class MemberDesk:
    """For the application service. Any thread may call."""

    def __init__(
        self,
        config: VaultConfig,
        log: VaultLog,
        eraser: Eraser,
        admission: Admission,
        invitations: Invitations,
        *,
        clock: Clock,
    ) -> None:
        """For the composition root."""
        self._config, self._log, self._eraser = config, log, eraser
        self._admission, self._invitations, self._clock = admission, invitations, clock

    def invite(self, expires_s: float, *, own_device: bool) -> str:
        """See `Admission.invite`."""
        return self._admission.invite(expires_s, own_device=own_device)

    def invitations(self) -> list[InvitationInfo]:
        """All that this node made and remembers, newest first."""
        return [self._info(entry) for entry in self._invitations.all()]

    def revoke_invitation(self, invitation_id: str) -> InvitationInfo:
        """See `Admission.revoke`."""
        return self._info(self._admission.revoke(invitation_id))

    def _info(self, entry: Entry) -> InvitationInfo:
        return InvitationInfo(
            invitation_id=entry.invitation_id,
            state=self._invitations.state(entry),
            own_device=entry.own_device,
            created=iso(entry.created_ms),
            expires=iso(entry.expires_ms),
            used_by=entry.device or None,
        )

    def remove(self, did: str, reason: str, *, device: bool, key: RequestKey | None) -> int:
        """Record a removal; settle the ballots that waited for who is gone. Returns the position.

        Raises:
            UnknownIdError, PermissionRefusedError, ConflictError: see `decide_remove`.
        """
        receipt = None if key is None else position_receipt(key)
        if receipt is not None:
            now_ms = self._clock.wall_ms()
            kept = self._log.index.kept_reply(receipt.client, receipt.request_id, receipt.is_same, now_ms)
            if kept is not None:
                position = msgspec.msgpack.decode(kept, type=int)
                self._log.wait_for(position)
                return position
        query = DCBQuery(items=[DCBQueryItem(types=sorted(ev.MEMBERSHIP_TOPICS))])
        for _ in range(ATTEMPTS):
            after, membership = self._log.index.horizon, self._log.membership()
            # What of the victim's is accepted is filled in by the writer, in the transaction that takes the heads.
            event = decide_remove(
                membership,
                full_name(membership, did),
                by=self._config.member,
                device=self._config.device,
                reason=reason,
                only_device=device,
            )
            if event is None:
                return after
            condition = DCBAppendCondition(fail_if_events_match=query, after=after)
            try:
                done = self._log.recorder.append_once([ev.to_dcb(event)], condition, receipt=receipt)
            except IntegrityError:
                continue
            if done.repeated and done.reply is not None:
                return msgspec.msgpack.decode(done.reply, type=int)
            self._eraser.settle(self._proposed())
            return done.last
        raise ConflictError("the vault's membership is changing too quickly: repeat the request")

    def _proposed(self) -> list[bytes]:
        query = DCBQuery(items=[DCBQueryItem(types=[ev.ForgettingProposed.TOPIC])])
        found = (ev.PRODUCT_EVENTS.decode(e.event.type, e.event.data) for e in self._log.recorder.read(query))
        return [e.ballot_id for e in found if isinstance(e, ev.ForgettingProposed)]
