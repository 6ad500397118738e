"""What requests say and what replies bring, as frozen structs: shared by node, clients and command line.

Ids are hex text here, times are ISO 8601 text (UTC), sizes are bytes: the same fields that `--json` prints.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from walytis_vault.domain.limits import LIMITS

BallotState = Literal["open", "carried", "refused", "withdrawn"]
Verb = Literal["read", "publish", "forget", "admin"]


class PublishOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a publisher says about a content. All of it but `revises` and `expires_ms` is sealed."""

    name: str | None = None
    media_type: str | None = None
    labels: Annotated[tuple[str, ...], Meta(max_length=LIMITS.labels)] = ()
    note: str | None = None
    revises: str | None = None
    expires_ms: Annotated[int, Meta(ge=0)] | None = None


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
    """Counts of blocks by verdict: accepted, foreign, refused, waiting."""
    details: dict[str, Any] = {}


class RequestKey(msgspec.Struct, frozen=True, kw_only=True):
    """Identifies one effect for ever (7 days): retried with the same key and body, it happens once."""

    client: str
    """Name of the client key that authenticated."""
    request_id: bytes
    """16 bytes made by the client."""
    digest: bytes
    """SHA-256 of the request, so that the same id with another body is an error."""


class QueryPage(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of a view, as builtin types."""

    rows: tuple[dict[str, Any], ...]
    cursor: str | None = None
    """Pass it to get the next page; None at the end."""
    position: int = 0
