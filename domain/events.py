"""The events, version 1: immutable facts about content, forgetting and membership.

`PRODUCT_EVENTS` is the closed table of what exists: received bytes choose among these types and never
import one. Payloads are MessagePack maps and tolerate unknown fields, so that a later version may add some.
Field meanings, sizes and the wire form are in docs/wire-format.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Protocol

import msgspec
from eventsourcing.dcb.api import DCBEvent
from eventsourcing.dcb.domain import Decision, Tagged
from eventsourcing.dcb.persistence import DCBMapper
from msgspec import Meta

from walytis_vault.domain.errors import MisuseError, NewerVersionError, UntrustedInputError
from walytis_vault.domain.event_base import Counter, DidText, Digest, Event, Id16, Sealed
from walytis_vault.domain.limits import LIMITS
from walytis_vault.domain.membership_events import (
    ANY_MEMBER,
    FOUNDER,
    REMOVAL_POLICIES,
    DeviceKeys,
    DeviceRemoved,
    KeyAnnounced,
    LastBatch,
    MemberAdmitted,
    MemberRemoved,
    VaultFounded,
)

__all__ = [
    "ANY_MEMBER",
    "FOUNDER",
    "MEMBERSHIP_TOPICS",
    "PRODUCT_EVENTS",
    "REMOVAL_POLICIES",
    "REMOVAL_TOPICS",
    "ClosedEventTable",
    "ClosedMapper",
    "ContentErased",
    "ContentPublished",
    "ContentRestored",
    "ContentRetracted",
    "Counter",
    "DeviceKeys",
    "DeviceRemoved",
    "DidText",
    "Digest",
    "Event",
    "EventTable",
    "ForgettingConsented",
    "ForgettingProposed",
    "ForgettingRefused",
    "ForgettingWithdrawn",
    "Id16",
    "KeyAnnounced",
    "LastBatch",
    "LoggedEvent",
    "MemberAdmitted",
    "MemberRemoved",
    "Origin",
    "Recorded",
    "Sealed",
    "VaultFounded",
    "ballot_tag",
    "content_tag",
    "revision_tag",
    "to_dcb",
    "to_dcb_all",
]


class ContentPublished(Event, frozen=True, kw_only=True):
    """A member published a content. Its bytes and key stay off the chain."""

    TOPIC = "content-published/1"
    content_id: Id16
    """Follows from author, nonce, `revises` and `expires_ms` (`claims.content_id_of`)."""
    nonce: Id16
    """Random."""
    root: Digest
    padded_length: Counter
    """Plaintext length after Padmé padding."""
    header: Annotated[bytes, Meta(min_length=56, max_length=56)]
    """First 56 bytes of the ciphertext: 24-byte salt and 32-byte key commitment."""
    descriptor: Sealed
    """Name, media type, labels, true length, note: sealed under a subkey of the content key."""
    revises: Id16 | None = None
    """Content id of the original that this revises."""
    expires_ms: Counter | None = None
    """Milliseconds since 1970 (UTC) at which every node forgets the content without a ballot."""

    def tags(self) -> list[str]:
        link = [] if self.revises is None else [revision_tag(self.revises)]
        return [content_tag(self.content_id), *link]


class ContentRetracted(Event, frozen=True, kw_only=True):
    """The author hides a content from the views. Nothing is erased."""

    TOPIC = "content-retracted/1"
    content_id: Id16

    def tags(self) -> list[str]:
        return [content_tag(self.content_id)]


class ContentRestored(Event, frozen=True, kw_only=True):
    """The author shows a retracted content again."""

    TOPIC = "content-restored/1"
    content_id: Id16

    def tags(self) -> list[str]:
        return [content_tag(self.content_id)]


class ForgettingProposed(Event, frozen=True, kw_only=True):
    """A member opens a ballot to forget contents (and all their revisions), and consents by doing so."""

    TOPIC = "forgetting-proposed/1"
    ballot_id: Id16
    """Follows from proposer, nonce, contents and electorate (`claims.ballot_id_of`)."""
    nonce: Id16
    """Random."""
    contents: Annotated[tuple[Id16, ...], Meta(min_length=1, max_length=LIMITS.ballot_contents)]
    electorate: Annotated[tuple[DidText, ...], Meta(min_length=1, max_length=LIMITS.members)]
    """The members whose consent is needed, frozen now, sorted."""
    reason: Sealed = b""
    """Sealed under a subkey of the first content's key: it dies with it."""

    def tags(self) -> list[str]:
        return [ballot_tag(self.ballot_id), *(content_tag(c) for c in self.contents)]


class ForgettingConsented(Event, frozen=True, kw_only=True):
    """A member of the electorate agrees."""

    TOPIC = "forgetting-consented/1"
    ballot_id: Id16

    def tags(self) -> list[str]:
        return [ballot_tag(self.ballot_id)]


class ForgettingRefused(Event, frozen=True, kw_only=True):
    """A member of the electorate says no. This ends the ballot; a new one may be opened."""

    TOPIC = "forgetting-refused/1"
    ballot_id: Id16
    reason: Sealed = b""

    def tags(self) -> list[str]:
        return [ballot_tag(self.ballot_id)]


class ForgettingWithdrawn(Event, frozen=True, kw_only=True):
    """The proposer takes the proposal back, as long as it has not carried."""

    TOPIC = "forgetting-withdrawn/1"
    ballot_id: Id16

    def tags(self) -> list[str]:
        return [ballot_tag(self.ballot_id)]


class ContentErased(Event, frozen=True, kw_only=True):
    """Receipt: the signing device has destroyed key and bytes of these contents."""

    TOPIC = "content-erased/1"
    contents: Annotated[tuple[Id16, ...], Meta(min_length=1, max_length=LIMITS.ballot_contents)]
    ballot_id: Id16 | None = None
    """The ballot that asked for it; None when the content expired."""

    def tags(self) -> list[str]:
        ballot = [] if self.ballot_id is None else [ballot_tag(self.ballot_id)]
        return [*ballot, *(content_tag(c) for c in self.contents)]


def content_tag(content_id: bytes) -> str:
    """Tag of everything said about one content."""
    return f"content:{content_id.hex()}"


def revision_tag(content_id: bytes) -> str:
    """Tag of what revises one content: apart from what is said about it, which stays little however many there are."""
    return f"revises:{content_id.hex()}"


def ballot_tag(ballot_id: bytes) -> str:
    """Tag of everything said about one ballot."""
    return f"ballot:{ballot_id.hex()}"


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Where an event comes from. `order` is the same on every node; position and clock are not."""

    batch_id: Digest
    index: Counter
    """Place inside its batch."""
    depth: Counter
    """Longest path of batches from the founding batch."""
    author: DidText
    """Member DID."""
    device: DidText
    number: Counter
    """The device's own batch number: 1, 2, 3 …"""
    time_ms: Counter
    """Author's clock, milliseconds since 1970 (UTC). For display only: no rule reads it."""

    @property
    def order(self) -> tuple[int, bytes, int]:
        """The deterministic order for lists: causal depth, batch id, index; never the clock."""
        return (self.depth, self.batch_id, self.index)


class LoggedEvent(DCBEvent):
    """An event as the log returns it: eventsourcing's three fields, and its origin."""

    __slots__ = ("origin",)

    def __init__(self, *, type: str, data: bytes, tags: list[str], origin: Origin) -> None:  # noqa: A002
        super().__init__(type=type, data=data, tags=tags)
        self.origin = origin


class Recorded(Tagged[Decision]):
    """A decoded event with its origin: what projections receive."""

    def __init__(self, tags: list[str], decision: Event, origin: Origin) -> None:
        super().__init__(tags=tags, decision=decision)
        self.event = decision
        self.origin = origin


class EventTable(Protocol):
    """Which event types exist, and how they stand in a batch. Injected into the log recorder."""

    def pack(self, event: DCBEvent) -> tuple[str, bytes]:
        """Return (topic, payload) for a batch. Raises MisuseError for an event that the table does not know."""
        ...

    def unpack(self, topic: str, payload: bytes) -> tuple[bytes, list[str]]:
        """Return (data, tags) of a received event. Raises UntrustedInputError; never imports anything."""
        ...


class ClosedEventTable:
    """An event table with a fixed set of types whose tags follow from their fields."""

    def __init__(self, types: Iterable[type[Event]]) -> None:
        self._types: dict[str, type[Event]] = {t.TOPIC: t for t in types}
        self._decoders = {topic: msgspec.msgpack.Decoder(t, strict=True) for topic, t in self._types.items()}

    @property
    def topics(self) -> frozenset[str]:
        """The wire names that exist."""
        return frozenset(self._types)

    def decode(self, topic: str, payload: bytes) -> Event:
        """Decode one payload. Raises UntrustedInputError for an unknown topic or bytes that do not fit it."""
        decoder = self._decoders.get(topic)
        if decoder is None:
            raise NewerVersionError(f"unknown event type {topic[:64]!r}: this vault needs a newer walytis-vault")
        if len(payload) > LIMITS.event_payload:
            raise UntrustedInputError(f"{topic} of {len(payload)} bytes exceeds {LIMITS.event_payload}")
        try:
            return decoder.decode(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
            raise UntrustedInputError(f"malformed {topic}: {e}") from e

    def pack(self, event: DCBEvent) -> tuple[str, bytes]:
        """See `EventTable.pack`. Tags given by the caller must be the ones that follow from the fields."""
        try:
            decoded = self.decode(event.type, event.data)
        except UntrustedInputError as e:
            raise MisuseError(str(e)) from e
        if event.tags and sorted(event.tags) != sorted(decoded.tags()):
            raise MisuseError(f"the tags of {event.type} follow from its fields; do not give others")
        return event.type, event.data

    def unpack(self, topic: str, payload: bytes) -> tuple[bytes, list[str]]:
        """See `EventTable.unpack`."""
        return payload, self.decode(topic, payload).tags()


PRODUCT_EVENTS = ClosedEventTable(
    [
        VaultFounded,
        MemberAdmitted,
        MemberRemoved,
        DeviceRemoved,
        KeyAnnounced,
        ContentPublished,
        ContentRetracted,
        ContentRestored,
        ForgettingProposed,
        ForgettingConsented,
        ForgettingRefused,
        ForgettingWithdrawn,
        ContentErased,
    ]
)

MEMBERSHIP_TOPICS = frozenset(
    t.TOPIC for t in (VaultFounded, MemberAdmitted, MemberRemoved, DeviceRemoved, KeyAnnounced)
)
"""Events that decide which keys are valid."""
REMOVAL_TOPICS = frozenset({MemberRemoved.TOPIC, DeviceRemoved.TOPIC})

_encoder = msgspec.msgpack.Encoder()


def to_dcb(event: Event) -> DCBEvent:
    """Encode an event for `DCBRecorder.append`."""
    return DCBEvent(type=event.TOPIC, data=_encoder.encode(event), tags=event.tags())


def to_dcb_all(events: Sequence[Event]) -> list[DCBEvent]:
    """Encode events in order."""
    return [to_dcb(e) for e in events]


class ClosedMapper(DCBMapper[Decision]):
    """eventsourcing's mapper over the closed table; the library's own would import what a sender names."""

    def __init__(self, table: ClosedEventTable = PRODUCT_EVENTS) -> None:
        self._table = table

    def to_dcb_event(self, event: Tagged[Decision]) -> DCBEvent:
        """Encode a tagged decision. Raises MisuseError when it is not one of ours."""
        if not isinstance(event.decision, Event):
            raise MisuseError(f"{type(event.decision).__name__} is not an event of this vault")
        return to_dcb(event.decision)

    def to_domain_event(self, event: DCBEvent) -> Tagged[Decision]:
        """Decode an event of the log; a `LoggedEvent` becomes `Recorded`, with its origin."""
        decision = self._table.decode(event.type, event.data)
        if isinstance(event, LoggedEvent):
            return Recorded(event.tags, decision, event.origin)
        return Tagged(tags=event.tags, decision=decision)
