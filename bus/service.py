"""The node's application service as the bus sees it: one method for each verb. Implemented by the composition root.

All methods may be called from any worker thread, block at most `timeout` where one is given, and raise only
`VaultError`. Requests with an effect take an optional `RequestKey` and store their reply with the effect.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from walytis_vault.bus.messages import (
    BackupInfo,
    BallotInfo,
    Change,
    Dropped,
    ExportPage,
    InlinePublish,
    InvitationInfo,
    LockState,
    Published,
    PublishOptions,
    QueryPage,
    RequestKey,
    Status,
)
from walytis_vault.domain.errors import VaultError
from walytis_vault.domain.ports import ContentReader


def never() -> bool:
    """Nobody gives up."""
    return False


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

    def publish_together(self, wanted: Sequence[InlinePublish]) -> list[Published | VaultError]:
        """Publish small contents that revise nothing, with one wait for all: the receipt or the error of each."""
        ...

    def open_content(self, content_id: str, *, timeout: float, given_up: Callable[[], bool] = never) -> ContentReader:
        """Open a content to read, fetching it from peers if need be.

        Args:
            timeout: seconds that a fetch may take until its first bytes are there; with 0 nothing is waited for.
            given_up: looked at while waiting: whether nobody wants the content any more.
        """
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

    def query(
        self,
        view: str,
        *,
        limit: int | None,
        cursor: str | None,
        filters: dict[str, Any],
        as_of: int | str | None = None,
    ) -> QueryPage:
        """Rows of a view that match the filters; with `as_of` (a position, or a time) as the view was then."""
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

    def drop(self, contents: tuple[str, ...], *, force: bool) -> Dropped:
        """Free the space of contents on this node alone; their keys stay, and they can be fetched again.

        Raises:
            ConflictError: without `force`, no other connected node is known to hold one; nothing was dropped.
        """
        ...

    def lock(self) -> LockState:
        """Put the keys out of reach until `unlock`; ends what reads or writes. Raises MisuseError for a key file."""
        ...

    def unlock(self, passphrase: str) -> LockState:
        """Take the keys again. Raises WrongPassphraseError."""
        ...

    def change_passphrase(self, old: str | None, new: str | None) -> LockState:
        """Seal the master key anew; None stands for the key file. Raises WrongPassphraseError, MisuseError."""
        ...

    def audit(self, *, read_data: bool, cursor: str | None = None) -> dict[str, Any]:
        """Verify every batch (and with `read_data` every blob) again; a report as builtin types.

        Its `contents` and `ballots` may be the first of several pages: `cursor` gives the next, and verifies nothing.
        """
        ...

    def replay(self, view: str | None) -> dict[str, Any]:
        """Drop and rebuild one view or all; positions and hashes before and after."""
        ...

    def retry(self, view: str | None) -> dict[str, Any]:
        """Fold the parked events of one view or all again; how many went through and how many did not."""
        ...

    def export(self, cursor: str | None) -> ExportPage:
        """One page of a bundle; None for the first."""
        ...

    def backup(self, folder: str, *, passphrase: str | None, with_key_file: bool) -> BackupInfo:
        """Write a consistent backup into a folder of this machine."""
        ...

    def invite(self, *, expires_s: float, own_device: bool = False) -> str:
        """Make a one-use invitation code, for a new member or for another device of this one."""
        ...

    def invitations(self) -> list[InvitationInfo]:
        """The invitations that this node made, newest first; used and expired ones for 30 days."""
        ...

    def revoke_invitation(self, invitation_id: str) -> InvitationInfo:
        """Let nobody in with it any more."""
        ...

    def remove(self, did: str, reason: str = "", *, device: bool = False, key: RequestKey | None = None) -> int:
        """Remove a member, or a device; returns the position."""
        ...
