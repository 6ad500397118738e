"""The node's application service as the bus sees it: one method for each verb. Implemented by the composition root.

All methods may be called from any worker thread, block at most `timeout` where one is given, and raise only
`VaultError`. Requests with an effect take an optional `RequestKey` and store their reply with the effect.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from walytis_vault.bus.messages import BallotInfo, Change, Published, PublishOptions, QueryPage, RequestKey, Status
from walytis_vault.domain.ports import ContentReader


class PublishSession(Protocol):
    """One content being published. Owned by one worker thread at a time."""

    @property
    def content_id(self) -> str:
        """The id that the content will have."""
        ...

    def write(self, data: bytes | memoryview) -> None:
        """Add plaintext."""
        ...

    def commit(self) -> Published:
        """Finish the content and append its event; return when both are durable and on the chain."""
        ...

    def abort(self) -> None:
        """Drop it; nothing remains. Idempotent."""
        ...


class VaultService(Protocol):
    """Everything a local client may ask of a node."""

    def begin_publish(self, options: PublishOptions, key: RequestKey | None = None) -> PublishSession | Published:
        """Start a publish; a repeated key returns the first reply instead of a session."""
        ...

    def open_content(self, content_id: str, *, timeout: float) -> ContentReader:
        """Open a content to read, fetching it from peers if need be."""
        ...

    def forget(self, contents: tuple[str, ...], reason: str, key: RequestKey | None = None) -> BallotInfo:
        """Propose to forget; in a vault of one it is done when this returns."""
        ...

    def consent(self, ballot_id: str, key: RequestKey | None = None) -> BallotInfo:
        """Agree to a ballot."""
        ...

    def refuse(self, ballot_id: str, reason: str, key: RequestKey | None = None) -> BallotInfo:
        """Refuse a ballot, which ends it."""
        ...

    def withdraw(self, ballot_id: str, key: RequestKey | None = None) -> BallotInfo:
        """Take an own proposal back."""
        ...

    def retract(self, content_id: str, key: RequestKey | None = None) -> int:
        """Hide an own content; returns the position."""
        ...

    def restore(self, content_id: str, key: RequestKey | None = None) -> int:
        """Show an own retracted content again; returns the position."""
        ...

    def query(self, view: str, *, limit: int | None, cursor: str | None, filters: dict[str, Any]) -> QueryPage:
        """Rows of a view that match the filters."""
        ...

    def changes(self, view: str, *, after: int, limit: int, filters: dict[str, Any]) -> tuple[list[Change], int]:
        """Changes after a position, oldest first, and the position up to which all were looked at."""
        ...

    def on_advance(self, callback: Callable[[int], None]) -> Callable[[], None]:
        """Call back (from another thread, quickly) when views have advanced to a position; returns the stop."""
        ...

    def wait_for(self, position: int, *, timeout: float) -> int:
        """Block until all views include `position`; returns theirs. Raises TimedOutError."""
        ...

    def status(self) -> Status:
        """The node's state."""
        ...

    def audit(self, *, read_data: bool) -> dict[str, Any]:
        """Verify every batch (and with `read_data` every blob) again; a report as builtin types."""
        ...

    def replay(self, view: str | None) -> dict[str, Any]:
        """Drop and rebuild one view or all; positions and hashes before and after."""
        ...

    def invite(self, *, expires_s: float) -> str:
        """Make a one-use invitation code."""
        ...

    def remove(self, did: str, key: RequestKey | None = None) -> int:
        """Remove a member; returns the position."""
        ...
