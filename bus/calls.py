"""What a client may ask: one closed struct for each call, with the verb that it needs and the lane it runs in.

The body of a REQUEST is exactly one of these, as a MessagePack map whose field "call" names it. Unknown
calls and unknown fields are refused. Spec: docs/bus-protocol.md, "Calls".
"""

from __future__ import annotations

import sys
from typing import Annotated, ClassVar, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from walytis_vault.bus.messages import PublishOptions, Verb
from walytis_vault.bus.protocol import Offset
from walytis_vault.domain.limits import LIMITS

Lane = Literal["read", "effect", "stream", "fetch", "slow", "past", "loop"]
"""Which pool of threads works on a call; "loop" calls block nothing and need none of their own."""

HexId = Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z", min_length=32, max_length=32)]
ViewName = Annotated[str, Meta(min_length=1, max_length=64)]
Reason = Annotated[str, Meta(max_length=LIMITS.reason)]
Passphrase = Annotated[str, Meta(min_length=1, max_length=4096)]
Text = Annotated[str, Meta(max_length=4096)]
Whole = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
"""What a database takes."""
Number = Annotated[float, Meta(ge=-sys.float_info.max, le=sys.float_info.max)]
"""Neither infinite nor no number at all."""
FilterValue = Text | Whole | Number | bool | Annotated[tuple[Text, ...], Meta(max_length=64)] | None
AsOf = Annotated[int, Meta(ge=0, le=2**53)] | Annotated[str, Meta(min_length=1, max_length=64)]
"""A position, or a time in ISO 8601 (UTC)."""
Filters = Annotated[dict[Annotated[str, Meta(max_length=64)], FilterValue], Meta(max_length=16)]
Milliseconds = Annotated[int, Meta(ge=0, le=86_400_000)]


class Call(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="call"):
    """Base of all calls."""

    VERB: ClassVar[Verb] = "read"
    LANE: ClassVar[Lane] = "read"
    EFFECT: ClassVar[bool] = False
    """Takes effect once for each request id."""


class StatusCall(Call, frozen=True, kw_only=True, tag="status"):
    """The node's state."""


class QueryCall(Call, frozen=True, kw_only=True, tag="query"):
    """One page of a view."""

    view: ViewName
    limit: Annotated[int, Meta(ge=1, le=10_000)]
    cursor: Annotated[str, Meta(max_length=1024)] | None = None
    filters: Filters = {}
    as_of: AsOf | None = None
    """The view as it was then. Folded for the purpose, so it runs in the lane of slow calls."""


class WaitForCall(Call, frozen=True, kw_only=True, tag="wait_for"):
    """Answer when all views include `position`."""

    LANE = "loop"
    position: Offset
    timeout_ms: Milliseconds


class OpenCall(Call, frozen=True, kw_only=True, tag="open"):
    """Begin a download at a byte offset."""

    LANE = "stream"
    content_id: HexId
    offset: Offset = 0
    limit: Offset = 0
    """First credit: bytes up to here may be sent."""
    timeout_ms: Milliseconds
    bulk: bool = False
    """The client has a connection to the bulk socket."""


class SubscribeCall(Call, frozen=True, kw_only=True, tag="subscribe"):
    """Begin a subscription: replay what is after a position, then follow."""

    LANE = "loop"
    view: ViewName
    after: Offset
    until: Offset | None = None
    """End after this position; None never ends."""
    filters: Filters = {}
    limit: Offset
    """First credit: this many changes may be sent."""


class PublishCall(Call, frozen=True, kw_only=True, tag="publish"):
    """Publish a content: in the data part when `inline`, else as an upload stream of the request's id."""

    VERB = "publish"
    LANE = "effect"
    EFFECT = True
    options: PublishOptions = PublishOptions()
    inline: bool
    size: Offset | None = None
    """Bytes that will come, when known; the node compares."""
    bulk: bool = False
    """The client has a connection to the bulk socket."""


class RetractCall(Call, frozen=True, kw_only=True, tag="retract"):
    """Hide an own content."""

    VERB = "publish"
    LANE = "effect"
    EFFECT = True
    content_id: HexId


class RestoreCall(Call, frozen=True, kw_only=True, tag="restore"):
    """Show an own retracted content again."""

    VERB = "publish"
    LANE = "effect"
    EFFECT = True
    content_id: HexId


class ForgetCall(Call, frozen=True, kw_only=True, tag="forget"):
    """Propose to forget."""

    VERB = "forget"
    LANE = "effect"
    EFFECT = True
    contents: Annotated[tuple[HexId, ...], Meta(min_length=1, max_length=LIMITS.ballot_contents)]
    reason: Reason = ""


class ConsentCall(Call, frozen=True, kw_only=True, tag="consent"):
    """Agree to a ballot."""

    VERB = "forget"
    LANE = "effect"
    EFFECT = True
    ballot_id: HexId


class RefuseCall(Call, frozen=True, kw_only=True, tag="refuse"):
    """Refuse a ballot."""

    VERB = "forget"
    LANE = "effect"
    EFFECT = True
    ballot_id: HexId
    reason: Reason = ""


class WithdrawCall(Call, frozen=True, kw_only=True, tag="withdraw"):
    """Take an own proposal back."""

    VERB = "forget"
    LANE = "effect"
    EFFECT = True
    ballot_id: HexId


class DropCall(Call, frozen=True, kw_only=True, tag="drop"):
    """Free the space of contents on this node; they can be fetched again."""

    VERB = "admin"
    LANE = "slow"
    contents: Annotated[tuple[HexId, ...], Meta(min_length=1, max_length=LIMITS.ballot_contents)]
    force: bool = False
    """Also what no other connected node is known to hold."""


class LockCall(Call, frozen=True, kw_only=True, tag="lock"):
    """Put the keys out of reach."""

    VERB = "admin"
    LANE = "slow"


class _Secret(Call, frozen=True, kw_only=True):
    """A call with passphrases. Never an effect that is remembered: a kept digest would let them be guessed."""

    VERB = "admin"
    LANE = "slow"

    def __repr__(self) -> str:
        return f"{type(self).__name__}(…)"


class UnlockCall(_Secret, frozen=True, kw_only=True, tag="unlock"):
    """Take the keys again."""

    passphrase: Passphrase


class PassphraseCall(_Secret, frozen=True, kw_only=True, tag="passphrase"):
    """Seal the master key anew; null stands for the key file."""

    old: Passphrase | None
    new: Passphrase | None


SECRET: Final = (UnlockCall, PassphraseCall)
"""Calls that hold a passphrase, and so leave no digest anywhere."""


class AuditCall(Call, frozen=True, kw_only=True, tag="audit"):
    """Verify everything again."""

    VERB = "admin"
    LANE = "slow"
    read_data: bool = False
    cursor: Annotated[str, Meta(max_length=64)] | None = None
    """The next page of the account of an audit, instead of a new one."""


class ReplayCall(Call, frozen=True, kw_only=True, tag="replay"):
    """Drop and rebuild one view or all."""

    VERB = "admin"
    LANE = "slow"
    view: ViewName | None = None


class RetryCall(Call, frozen=True, kw_only=True, tag="retry"):
    """Fold the parked events of one view or all again."""

    VERB = "admin"
    LANE = "slow"
    view: ViewName | None = None


class ExportCall(Call, frozen=True, kw_only=True, tag="export"):
    """One page of a bundle."""

    VERB = "admin"
    LANE = "slow"
    cursor: Annotated[str, Meta(max_length=1024)] | None = None


class BackupCall(Call, frozen=True, kw_only=True, tag="backup"):
    """Write a backup into a folder of this machine."""

    VERB = "admin"
    LANE = "slow"
    folder: Text
    passphrase: Text | None = None
    with_key_file: bool = False


class InviteCall(Call, frozen=True, kw_only=True, tag="invite"):
    """Make a one-use invitation code."""

    VERB = "admin"
    LANE = "slow"
    expires_s: Annotated[float, Meta(gt=0, le=31_536_000)]
    own_device: bool = False
    """For another device of this node's member, rather than for a new member."""


class InvitationsCall(Call, frozen=True, kw_only=True, tag="invitations"):
    """The invitations of this node."""

    VERB = "admin"


class RevokeInvitationCall(Call, frozen=True, kw_only=True, tag="revoke_invitation"):
    """Let nobody in any more with an invitation."""

    VERB = "admin"
    LANE = "slow"
    invitation_id: Annotated[str, Meta(min_length=1, max_length=64)]


class RemoveCall(Call, frozen=True, kw_only=True, tag="remove"):
    """Remove a member, or one device."""

    VERB = "admin"
    LANE = "slow"
    EFFECT = True
    did: Annotated[str, Meta(min_length=1, max_length=LIMITS.did)]
    reason: Reason = ""
    device: bool = False
    """Only the device of this DID, where the DID is a member's too."""


AnyCall: TypeAlias = (
    StatusCall
    | QueryCall
    | WaitForCall
    | OpenCall
    | SubscribeCall
    | PublishCall
    | RetractCall
    | RestoreCall
    | ForgetCall
    | ConsentCall
    | RefuseCall
    | WithdrawCall
    | DropCall
    | LockCall
    | UnlockCall
    | PassphraseCall
    | AuditCall
    | ReplayCall
    | RetryCall
    | ExportCall
    | BackupCall
    | InviteCall
    | InvitationsCall
    | RevokeInvitationCall
    | RemoveCall
)

CALL: Final[msgspec.msgpack.Decoder[AnyCall]] = msgspec.msgpack.Decoder(AnyCall)
"""Decodes the body of a REQUEST."""
