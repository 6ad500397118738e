"""What requests say and what replies bring, as frozen structs: shared by node, clients and command line.

Ids are hex text here, times are ISO 8601 text (UTC), sizes are bytes: the same fields that `--json` prints.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from walytis_vault.domain.limits import LIMITS

BallotState = Literal["open", "carried", "refused", "withdrawn"]
InvitationState = Literal["open", "used", "expired", "revoked"]
Verb = Literal["read", "publish", "forget", "admin"]


class PublishOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a publisher says about a content. All of it but `revises` and `expires_ms` is sealed."""

    name: str | None = None
    media_type: str | None = None
    labels: Annotated[tuple[str, ...], Meta(max_length=LIMITS.labels)] = ()
    note: str | None = None
    revises: str | None = None
    expires_ms: Annotated[int, Meta(ge=0, le=2**53)] | None = None


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """The receipt of a publish: the event is on the chain and durable."""

    content_id: str
    position: int


class BallotInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A ballot as one node sees it."""

    ballot_id: str
    state: BallotState
    contents: tuple[str, ...] = ()
    electorate: tuple[str, ...] = ()
    consents: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()
    receipts: tuple[str, ...] = ()
    """Device DIDs that have erased."""
    position: int = 0


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One element of a subscription: what happened at `position`."""

    position: int
    type: str
    """Event type, for example "content-published/1"."""
    author: str
    time: str
    ids: tuple[str, ...] = ()
    """The contents or ballot that it concerns."""
    row: dict[str, Any] | None = None
    """The view's row after the event, for a subscription to a view; None when it has none any more."""


class ViewStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How far a view is, and a hash that is equal on all nodes with equal logs."""

    position: int
    hash: str
    parked: int = 0
    """Events that the view could not fold and that wait for `retry` (a count)."""
    error: str | None = None
    """Why it stopped, or why its oldest parked event failed."""
    rebuilding: float | None = None
    """Progress from 0 to 1 while it is built; None when it is not."""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a node."""

    vault_id: str
    did: str
    name: str
    position: int
    peers: tuple[str, ...]
    views: dict[str, ViewStatus]
    version: str
    network: str
    locked: bool = False
    blocks: dict[str, int] = {}
    """Counts of blocks by verdict: accepted, refused, waiting, unreadable, and others."""
    details: dict[str, Any] = {}
    device: str = ""
    """DID of this node's device; `did` is the member's."""


class Dropped(msgspec.Struct, frozen=True, kw_only=True):
    """What a drop did on this node."""

    contents: tuple[str, ...]
    freed: int
    """Bytes of ciphertext that were here."""


class LockState(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the node's keys are out of reach."""

    locked: bool


class RequestKey(msgspec.Struct, frozen=True, kw_only=True):
    """Identifies one effect for ever: retried with the same key and body, it happens once. The reply is kept 7 days."""

    client: str
    """Name of the client key that authenticated."""
    request_id: bytes
    """16 bytes made by the client."""
    digest: bytes
    """SHA-256 of what the record will say of the request anyway: the same id with another body is an error."""
    sealed: bytes = b""
    """SHA-256 of what the record will hold sealed (content, name, labels, note, reason); b"" for nothing. Whoever has
    it can try guesses: it is never kept as it is, see `request_codes`."""


class InlinePublish(msgspec.Struct, frozen=True, kw_only=True):
    """One small content to publish together with others."""

    options: PublishOptions
    data: bytes | memoryview
    key: RequestKey | None = None


class InvitationInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One invitation of this node. The code itself is not kept: it was shown once."""

    invitation_id: str
    """16 hex digits."""
    state: InvitationState
    own_device: bool
    """Whether it is for a device of this node's own member, rather than for a new member."""
    created: str
    expires: str
    used_by: str | None = None
    """DID of the device that came in with it."""


class QueryPage(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of a view, as builtin types."""

    rows: tuple[dict[str, Any], ...]
    cursor: str | None = None
    """Pass it to get the next page; None at the end."""
    position: int = 0


class ExportPage(msgspec.Struct, frozen=True, kw_only=True):
    """Lines of a bundle."""

    lines: bytes
    cursor: str | None = None
    """Pass it to get the next page; None when the last line is there."""
    batches: int = 0
    """Batches up to the end of this page."""
    digest: str = ""
    """With the last page: SHA-256 of all lines but the last, which names this state of the vault."""
    root: str = ""
    """With the last page: id of the founding batch."""
    vault_id: str = ""
    """With the last page."""


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """What was written, and what to compare a bundle with."""

    vault_id: str
    root: str
    digest: str
    batches: int
    size: int
    """Bytes."""


class BackupInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup holds."""

    folder: str
    vault_id: str
    position: int
    contents: int
    files: int
    size: int
    """Bytes of all files."""
    copied: int
    """Bytes that were written this time; the rest was there from the backup before."""
