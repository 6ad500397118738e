"""The events about members, their devices and keys. See `domain.events`, which names them with all others."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct

from walytis_vault.domain.event_base import Counter, DidText, Digest, Event
from walytis_vault.domain.limits import LIMITS


class DeviceKeys(Struct, frozen=True, kw_only=True):
    """The public keys of one device of one member."""

    member: DidText
    device: DidText
    ed25519: Digest
    ml_dsa_65: Annotated[bytes, Meta(min_length=1952, max_length=1952)]
    bus: Digest
    """CURVE25519 key with which the device answers at the peer door."""
    peer_id: Annotated[str, Meta(max_length=128)]
    """libp2p peer id: where to open a tunnel to."""
    proof: Annotated[bytes, Meta(max_length=LIMITS.proof)] = b""
    """Signature of these keys over all of it and the vault's id (`claims.prove_possession`)."""


ANY_MEMBER: Final = "any-member"
FOUNDER: Final = "founder"
REMOVAL_POLICIES: Final = (ANY_MEMBER, FOUNDER)
OpenReason = Annotated[str, Meta(max_length=LIMITS.reason)]
"""Characters, in the clear: it belongs to no content under whose key it could be sealed."""


class VaultFounded(Event, frozen=True, kw_only=True):
    """The first event of a vault: its first member, the group identity, and who may remove members."""

    TOPIC = "vault-founded/1"
    founder: DidText
    group: DidText
    removal_policy: Annotated[str, Meta(max_length=32)] = ANY_MEMBER
    """Who may remove others, for ever: `any-member` or `founder`."""

    def tags(self) -> list[str]:
        return [f"member:{self.founder}"]


class KeyAnnounced(Event, frozen=True, kw_only=True):
    """A device of a member announces keys, by a batch that a valid key of that member signed."""

    TOPIC = "key-announced/1"
    keys: DeviceKeys
    supersedes: Digest | None = None
    """Key id that is no longer valid in batches that know this event."""
    certificate: Annotated[bytes, Meta(max_length=LIMITS.certificate)] = b""
    """The DID's control-key signature over the keys; checked by the audit where it has the DID's chain."""

    def tags(self) -> list[str]:
        return [f"member:{self.keys.member}"]


class MemberAdmitted(Event, frozen=True, kw_only=True):
    """A member lets another in and vouches for its first keys."""

    TOPIC = "member-admitted/1"
    member: DidText
    keys: DeviceKeys
    invitation: Digest
    """SHA-256 of the one-use invitation's secret: the same invitation admits once."""

    def tags(self) -> list[str]:
        return [f"member:{self.member}"]


class LastBatch(Struct, frozen=True, kw_only=True):
    """The last batch of one device that a removal accepts."""

    device: DidText
    number: Counter
    batch_id: Digest


class MemberRemoved(Event, frozen=True, kw_only=True):
    """A member removes another. Batches of the removed member's devices beyond `accepted` are void."""

    TOPIC = "member-removed/1"
    member: DidText
    accepted: Annotated[tuple[LastBatch, ...], Meta(max_length=LIMITS.members)]
    reason: OpenReason = ""

    def tags(self) -> list[str]:
        return [f"member:{self.member}"]


class DeviceRemoved(Event, frozen=True, kw_only=True):
    """One device of a member goes and the member stays. By another of its devices, or by whoever may remove it."""

    TOPIC = "device-removed/1"
    member: DidText
    device: DidText
    accepted: Annotated[tuple[LastBatch, ...], Meta(max_length=1)]
    """The device's last batch that counts; empty when it made none."""
    reason: OpenReason = ""

    def tags(self) -> list[str]:
        return [f"member:{self.member}"]
