"""`Client`: a vault for programs with threads.

Talks to the node that serves a home and never touches the vault's files. One client may be shared by any
number of threads, and survives restarts of the node; after a fork, make a new one. Raises only `VaultError`.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from walytis_vault.bus import requests as r
from walytis_vault.bus.exchange import ClosedError
from walytis_vault.bus.exchange_subscription import SubscriptionExchange
from walytis_vault.bus.exports import Export
from walytis_vault.bus.messages import (
    BackupInfo,
    BallotInfo,
    Change,
    Dropped,
    Exported,
    InvitationInfo,
    Published,
    Status,
)
from walytis_vault.bus.rows import Row, RowPage
from walytis_vault.bus.session import Pages, Progress, Session, publish, receive
from walytis_vault.domain.errors import TimedOutError


class Subscription(Iterator[Change]):
    """Changes of a view, in order, without gap or repeat. Ends at `until`, or when it or its client is closed."""

    def __init__(self, exchange: SubscriptionExchange) -> None:
        self._exchange = exchange

    def __iter__(self) -> Subscription:
        """Itself."""
        return self

    def __next__(self) -> Change:
        """Wait for the next change."""
        try:
            return self._exchange.next()
        except ClosedError as e:
            raise StopIteration from e

    def next(self, timeout: float) -> Change | None:
        """Wait up to `timeout` seconds for the next change; None when there was none."""
        try:
            return self._exchange.next(r.check_wait(timeout))
        except TimedOutError:
            return None

    def close(self) -> None:
        """End it. From any thread; idempotent."""
        self._exchange.cancel()

    def __enter__(self) -> Subscription:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


class Client:
    """A connection to the node of a vault.

    The connection is made at the first call, so making a client never fails for want of a node.

    Args:
        home: the vault's home; default `$WALYTIS_VAULT_HOME`, then the platform's data folder.
        endpoint: where the node listens, when it is not to be looked up in the home.
        timeout: seconds within which each call must be answered; for transfers, seconds without progress.
        key: name of a client key in the home (`walytis-vault client add`), or the path of a key file;
            default `$WALYTIS_VAULT_KEY`, then "local".
    """

    def __init__(
        self,
        home: str | os.PathLike[str] | None = None,
        *,
        endpoint: str | None = None,
        timeout: float = 30.0,
        key: str | os.PathLike[str] | None = None,
    ) -> None:
        self._session = Session(home, endpoint=endpoint, timeout=timeout, key=key)

    def __enter__(self) -> Client:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """End everything that is under way, within 2 seconds. From any thread; idempotent."""
        self._session.close()

    def publish(
        self,
        data: bytes | bytearray | memoryview | Path | BinaryIO,
        *,
        name: str | None = None,
        media_type: str | None = None,
        labels: tuple[str, ...] | list[str] = (),
        note: str | None = None,
        revises: str | None = None,
        expires: dt.datetime | dt.timedelta | float | None = None,
        progress: Progress | None = None,
        request_id: bytes | str | None = None,
    ) -> Published:
        """Publish a content; return when its event is on the chain and everything is durable.

        Args:
            data: the bytes; or a file's path, or an open binary file, which are streamed.
            name: shown in the catalogue; default the file's name when `data` is a path. Sealed, as the next three.
            media_type: for example "image/png".
            labels: free texts to filter by.
            note: the author's note.
            revises: id of the content that this is a new version of.
            expires: when every node forgets it: a moment (with time zone), a span, or seconds from now.
            progress: called with (bytes sent, bytes in total or None) from this thread.
            request_id: 16 bytes (or 32 hex digits). A publish repeated with the same id happens once.
        Raises:
            MisuseError: bad argument, no such file, a folder. StorageError: the file or the node's disk failed.
            NoNodeError, TimedOutError: retry with the same request id to be safe from doubles.
        """
        options = r.publish_options(
            data, name=name, media_type=media_type, labels=labels, note=note, revises=revises, expires=expires
        )
        return publish(self._session, data, options, progress, r.request_id(request_id))

    def request(
        self,
        content_id: str,
        *,
        to: Path | BinaryIO | None = None,
        timeout: float | None = None,
        progress: Progress | None = None,
    ) -> bytes | None:
        """Get a content, from this node or through it from another member's.

        Args:
            content_id: 32 hex digits.
            to: a path, under which the file appears when it is complete; or a binary file. Default: return bytes.
            timeout: seconds without progress; default the client's.
            progress: called with (bytes received, bytes in total) from this thread.
        Returns:
            The bytes, or None when `to` was given.
        Raises:
            UnknownIdError, ForgottenError, NotYetAvailableError, DamagedContentError: why it cannot be had.
            StorageError: `to` cannot be written; no partial file remains at its path.
        """
        return receive(self._session.download(content_id, timeout), to, progress)

    def forget(self, *content_ids: str, reason: str = "", request_id: bytes | str | None = None) -> BallotInfo:
        """Propose to forget contents; in a vault of one member it has happened when this returns."""
        return self._session.call(r.forget(content_ids, reason), r.request_id(request_id)).result()

    def consent(self, ballot_id: str, *, request_id: bytes | str | None = None) -> BallotInfo:
        """Agree to a ballot."""
        return self._session.call(r.consent(ballot_id), r.request_id(request_id)).result()

    def refuse(self, ballot_id: str, reason: str = "", *, request_id: bytes | str | None = None) -> BallotInfo:
        """Refuse a ballot, which ends it."""
        return self._session.call(r.refuse(ballot_id, reason), r.request_id(request_id)).result()

    def withdraw(self, ballot_id: str, *, request_id: bytes | str | None = None) -> BallotInfo:
        """Take an own proposal back."""
        return self._session.call(r.withdraw(ballot_id), r.request_id(request_id)).result()

    def retract(self, content_id: str, *, request_id: bytes | str | None = None) -> int:
        """Hide an own content from the views; returns the position. Nothing is erased."""
        return self._session.call(r.retract(content_id), r.request_id(request_id)).result()

    def restore(self, content_id: str, *, request_id: bytes | str | None = None) -> int:
        """Show an own retracted content again; returns the position."""
        return self._session.call(r.restore(content_id), r.request_id(request_id)).result()

    def query(self, view: str, *, limit: int | None = 100, as_of: r.AsOf | None = None, **filters: Any) -> list[Row]:
        """Rows of a view, as frozen structs with the fields that `--json` prints.

        Args:
            view: "catalogue", "timeline", "ballots", "members", "holders", "audit", or one of a plug-in.
            limit: at most so many; None for all.
            as_of: a position or a time: the view as it was then. What was forgotten since is a gap there too.
            filters: fields that must match, as the view knows them: docs/views.md. `sort` is one of them.
        Raises:
            UnknownIdError: no such view. MisuseError: no such filter, or a bad value.
        """
        return list(self.rows(view, limit=limit, as_of=as_of, **filters))

    def rows(
        self, view: str, *, limit: int | None = None, as_of: r.AsOf | None = None, **filters: Any
    ) -> Iterator[Row]:
        """As `query`, but page by page, for views that are large."""
        return self._session.rows(view, limit, filters, as_of)

    def page(
        self,
        view: str,
        *,
        limit: int = 100,
        cursor: str | None = None,
        as_of: r.AsOf | None = None,
        **filters: Any,
    ) -> RowPage:
        """One page of a query: `.rows`, `.cursor` for the next one (None at the end), `.position`.

        Args:
            cursor: from the page before; filters, sort and `as_of` must be the same.
        """
        pages = Pages(view, limit, filters, cursor=cursor, as_of=as_of)
        rows: list[Row] = []
        while (reply := self._session.ask(pages)) is not None:
            rows += pages.take(reply.result())
        return RowPage(rows=tuple(rows), cursor=pages.cursor, position=pages.position)

    def subscribe(
        self, view: str = "events", *, after: int = 0, until: int | None = None, **filters: Any
    ) -> Subscription:
        """Follow a view: first what is after a position, then what comes. Survives restarts of the node.

        Args:
            view: a view, or "events" for every event.
            after: position; 0 for everything.
            until: position at which to end, whatever stands there; None follows for ever.
            filters: as for `query`.
        """
        return Subscription(self._session.subscribe(view, after, until, filters))

    def wait_for(self, position: int, *, timeout: float | None = None) -> int:
        """Wait until all views include a position (of a publish, for example); returns theirs.

        Raises:
            TimedOutError: they did not within the timeout (seconds).
        """
        return self._session.wait_for(position, timeout).result()

    def status(self) -> Status:
        """The node's state."""
        return self._session.call(r.STATUS).result()

    def members(self) -> list[Row]:
        """The members: rows of the view "members"."""
        return self.query("members", limit=None)

    def invite(self, *, expires: dt.datetime | dt.timedelta | float = 86_400.0, device: bool = False) -> str:
        """Make a one-use invitation code, valid for a span (or until a moment, or for seconds). Keep it secret.

        Args:
            device: for another device of this member, rather than for a new member.
        """
        return self._session.call(r.invite(expires, device), timeout=120.0).result()

    def invitations(self) -> list[InvitationInfo]:
        """The invitations that this node made, newest first; used, expired and revoked ones for 30 days."""
        return self._session.call(r.INVITATIONS).result()

    def revoke_invitation(self, invitation_id: str) -> InvitationInfo:
        """Let nobody in any more with an invitation. Raises ConflictError when somebody has come in with it."""
        return self._session.call(r.revoke_invitation(invitation_id), timeout=120.0).result()

    def remove(self, did: str, *, reason: str = "", device: bool = False, request_id: bytes | str | None = None) -> int:
        """Remove a member, or one device of a member, for ever; returns the position.

        Args:
            did: a member's, or a device's that is no member's.
            reason: recorded for ever, readable by everybody who gets hold of the chain.
            device: only the device, where the DID is a member's too (that of its first device).
        """
        ask = r.remove(did, reason, device)
        return self._session.call(ask, r.request_id(request_id), timeout=120.0).result()

    def drop(self, *content_ids: str, force: bool = False) -> Dropped:
        """Free the space of contents on this node alone. Not forgetting: keys and other copies stay.

        They can be fetched again with `request`; nothing brings them back unasked.

        Args:
            force: also what no other connected node is known to hold, and may so be lost.
        Raises:
            ConflictError: no other connected node is known to hold one of them; nothing was dropped.
            ForgottenError, UnknownIdError.
        """
        return self._session.call(r.drop(content_ids, force), timeout=120.0).result()

    def lock(self) -> None:
        """Put the node's keys out of reach until `unlock`. Nothing can be read or published; forgetting works.

        Raises:
            MisuseError: the vault is opened by a key file, not by a passphrase.
        """
        self._session.call(r.LOCK).result()

    def unlock(self, passphrase: str) -> None:
        """Give a locked node its keys back. Raises WrongPassphraseError."""
        self._session.call(r.unlock(passphrase)).result()

    def change_passphrase(self, old: str | None, new: str | None) -> None:
        """Seal the vault's master key anew; no content is touched. None stands for the key file.

        Raises:
            WrongPassphraseError: `old` does not open the vault; nothing changed.
        """
        self._session.call(r.change_passphrase(old, new)).result()

    def audit(self, *, read_data: bool = False, timeout: float = 3600.0) -> Mapping[str, Any]:
        """Verify every batch again (and with `read_data` every blob); returns the report.

        Its `contents` and `ballots` are all there are, those with something missing first: memory holds them.
        """
        report = self._session.call(r.audit(read_data), timeout=timeout).result()
        while report.get("cursor"):
            r.join_audit(report, self._session.call(r.audit(read_data, report["cursor"])).result())
        return report

    def replay(self, view: str | None = None, *, timeout: float = 3600.0) -> Mapping[str, Any]:
        """Drop a view, or all, and build it again from the log; positions and hashes before and after."""
        return self._session.call(r.replay(view), timeout=timeout).result()

    def export(self, to: Path | BinaryIO, *, progress: Progress | None = None) -> Exported:
        """Write the whole record as a bundle that `walytis-vault verify` checks anywhere; no content, no secrets.

        Args:
            to: a path, under which the file appears when it is complete; or a binary file.
            progress: called with (bytes written, None) from this thread.
        Returns:
            What to compare the bundle with: vault id, root, digest.
        """
        return Export(self._session, to, progress).run()

    def backup(
        self,
        folder: str | os.PathLike[str],
        *,
        passphrase: str | None = None,
        with_key_file: bool = False,
        timeout: float = 86_400.0,
    ) -> BackupInfo:
        """Have the node write a backup into a folder of its machine; again into the same one, only what is new.

        Args:
            folder: made if missing; else it must hold a backup of this vault.
            passphrase: seals the backup; a vault with a passphrase of its own needs none.
            with_key_file: for a vault with a key file: put a copy of it into the backup.
        Raises:
            MisuseError: the folder holds something else, or a vault with a key file got neither choice.
            StorageError: nothing of it counts; a backup that was there before is still good.
        """
        return self._session.call(r.backup(folder, passphrase, with_key_file), timeout=timeout).result()

    def retry(self, view: str | None = None, *, timeout: float = 3600.0) -> Mapping[str, Any]:
        """Fold the parked events of a view, or of all, again.

        Returns:
            For each view: `retried` and still `parked` (counts), and the `error` of the oldest parked event.
        """
        return self._session.call(r.retry(view), timeout=timeout).result()


__all__ = ["Client", "Progress", "Subscription"]
