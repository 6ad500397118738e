"""From what a caller says to what goes to the node: checks arguments, and knows the type of each reply.

Raises MisuseError with a sentence that names the argument. Sends nothing.
"""

from __future__ import annotations

import datetime as dt
import os
import threading
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import msgspec

from walytis_vault.bus import calls as c
from walytis_vault.bus.messages import (
    BackupInfo,
    BallotInfo,
    Dropped,
    ExportPage,
    InvitationInfo,
    LockState,
    PublishOptions,
    QueryPage,
    Status,
)
from walytis_vault.domain.errors import MisuseError
from walytis_vault.domain.ids import parse_ballot_id, parse_content_id
from walytis_vault.domain.limits import LIMITS

T = TypeVar("T")
AsOf = int | str | dt.datetime
"""A position; or a time as ISO 8601 text or a datetime with its time zone."""
_MAX_POSITION: Final = 2**53


class Ask(msgspec.Struct, Generic[T], frozen=True):
    """A call, and the decoder of its reply."""

    call: c.AnyCall
    reply: msgspec.msgpack.Decoder[T]


_BALLOT: Final = msgspec.msgpack.Decoder(BallotInfo)
_INT: Final = msgspec.msgpack.Decoder(int)
_TEXT: Final = msgspec.msgpack.Decoder(str)
_REPORT: Final = msgspec.msgpack.Decoder(dict[str, Any])
_EXPORT: Final = msgspec.msgpack.Decoder(ExportPage)
_BACKUP: Final = msgspec.msgpack.Decoder(BackupInfo)
_PAGE: Final = msgspec.msgpack.Decoder(QueryPage)

_DROPPED: Final = msgspec.msgpack.Decoder(Dropped)
_LOCK: Final = msgspec.msgpack.Decoder(LockState)

LOCK: Final = Ask(c.LockCall(), _LOCK)
INVITATIONS: Final = Ask(c.InvitationsCall(), msgspec.msgpack.Decoder(list[InvitationInfo]))
STATUS: Final = Ask(c.StatusCall(), msgspec.msgpack.Decoder(Status))


def content_id(text: object) -> str:
    """A content id in its one written form."""
    return parse_content_id(text).hex()


def ballot_id(text: object) -> str:
    """A ballot id in its one written form."""
    return parse_ballot_id(text).hex()


def forget(content_ids: Iterable[str], reason: str) -> Ask[BallotInfo]:
    """Propose to forget."""
    contents = _contents(content_ids, "forget")
    return Ask(c.ForgetCall(contents=contents, reason=_text("reason", reason, LIMITS.reason)), _BALLOT)


def consent(ballot: str) -> Ask[BallotInfo]:
    """Agree to a ballot."""
    return Ask(c.ConsentCall(ballot_id=ballot_id(ballot)), _BALLOT)


def refuse(ballot: str, reason: str) -> Ask[BallotInfo]:
    """Refuse a ballot."""
    call = c.RefuseCall(ballot_id=ballot_id(ballot), reason=_text("reason", reason, LIMITS.reason))
    return Ask(call, _BALLOT)


def withdraw(ballot: str) -> Ask[BallotInfo]:
    """Take a proposal back."""
    return Ask(c.WithdrawCall(ballot_id=ballot_id(ballot)), _BALLOT)


def retract(content: str) -> Ask[int]:
    """Hide a content."""
    return Ask(c.RetractCall(content_id=content_id(content)), _INT)


def restore(content: str) -> Ask[int]:
    """Show a content again."""
    return Ask(c.RestoreCall(content_id=content_id(content)), _INT)


def drop(content_ids: Iterable[str], force: bool) -> Ask[Dropped]:
    """Free the space of contents."""
    return Ask(c.DropCall(contents=_contents(content_ids, "drop"), force=bool(force)), _DROPPED)


def unlock(passphrase: str) -> Ask[LockState]:
    """Take the keys again."""
    return Ask(c.UnlockCall(passphrase=_passphrase(passphrase)), _LOCK)


def change_passphrase(old: str | None, new: str | None) -> Ask[LockState]:
    """Seal the master key anew."""
    call = c.PassphraseCall(
        old=None if old is None else _passphrase(old), new=None if new is None else _passphrase(new)
    )
    return Ask(call, _LOCK)


def page(
    view: str, limit: int, cursor: str | None, filters: dict[str, Any], as_of: AsOf | None = None
) -> Ask[QueryPage]:
    """One page of a view."""
    call = c.QueryCall(
        view=_view(view), limit=limit, cursor=_cursor(cursor), filters=_filters(filters), as_of=_as_of(as_of)
    )
    return Ask(call, _PAGE)


def check_limit(limit: object) -> int | None:
    """How many rows are wanted."""
    if limit is None:
        return None
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
        raise MisuseError(f"limit is a number of rows or None, not {limit!r}")
    return limit


def subscribe(view: str, after: int, until: int | None, filters: dict[str, Any], credit: int) -> c.SubscribeCall:
    """Follow a view."""
    return c.SubscribeCall(
        view=_view(view),
        after=_position("after", after),
        until=None if until is None else _position("until", until),
        filters=_filters(filters),
        limit=credit,
    )


def wait_for(position: int, timeout: float) -> Ask[int]:
    """Wait for views."""
    return Ask(c.WaitForCall(position=_position("position", position), timeout_ms=milliseconds(timeout)), _INT)


def invite(expires: dt.datetime | dt.timedelta | float, device: bool) -> Ask[str]:
    """Make an invitation."""
    moment = expires_ms(expires)
    assert moment is not None
    seconds = moment / 1000 - time.time()
    if not 0 < seconds <= 31_536_000:
        raise MisuseError("an invitation is valid for more than nothing and at most a year")
    return Ask(c.InviteCall(expires_s=seconds, own_device=bool(device)), _TEXT)


def revoke_invitation(invitation_id: str) -> Ask[InvitationInfo]:
    """End an invitation."""
    if not invitation_id:
        raise MisuseError("name the invitation: `invite --list` shows their ids")
    call = c.RevokeInvitationCall(invitation_id=_text("invitation id", invitation_id, 64))
    return Ask(call, msgspec.msgpack.Decoder(InvitationInfo))


def remove(did: str, reason: str, device: bool) -> Ask[int]:
    """Remove a member, or a device."""
    if not did:
        raise MisuseError("name the member's DID, or a device's: `members` shows them")
    call = c.RemoveCall(
        did=_text("did", did, LIMITS.did), reason=_text("reason", reason, LIMITS.reason), device=bool(device)
    )
    return Ask(call, _INT)


def audit(read_data: bool, cursor: str | None = None) -> Ask[dict[str, Any]]:
    """Verify everything; with a cursor, the next page of an audit's account."""
    return Ask(c.AuditCall(read_data=bool(read_data), cursor=cursor), _REPORT)


def join_audit(report: dict[str, Any], page: dict[str, Any]) -> None:
    """Put a page of the account behind what the report has already."""
    for kind in ("contents", "ballots"):
        report[kind] += page[kind]
    report["cursor"] = page["cursor"]


def replay(view: str | None) -> Ask[dict[str, Any]]:
    """Rebuild views."""
    return Ask(c.ReplayCall(view=None if view is None else _view(view)), _REPORT)


def retry(view: str | None) -> Ask[dict[str, Any]]:
    """Fold parked events again."""
    return Ask(c.RetryCall(view=None if view is None else _view(view)), _REPORT)


def export(cursor: str | None) -> Ask[ExportPage]:
    """One page of a bundle."""
    return Ask(c.ExportCall(cursor=cursor), _EXPORT)


def backup(folder: str | os.PathLike[str], passphrase: str | None, with_key_file: bool) -> Ask[BackupInfo]:
    """Write a backup."""
    path = _text("folder", os.path.abspath(folder), 4096)
    secret = None if passphrase is None else _text("passphrase", passphrase, 4096)
    if secret is not None and with_key_file:
        raise MisuseError("a backup is sealed under a passphrase or holds the key file, not both")
    return Ask(c.BackupCall(folder=path, passphrase=secret, with_key_file=bool(with_key_file)), _BACKUP)


def request_id(given: bytes | str | uuid.UUID | None) -> bytes | None:
    """A request id as 16 bytes."""
    if given is None:
        return None
    if isinstance(given, uuid.UUID):
        given = given.bytes
    if isinstance(given, str):
        try:
            given = bytes.fromhex(given)
        except ValueError as e:
            raise MisuseError("a request id is 16 bytes, or 32 hex digits") from e
    if not isinstance(given, bytes | bytearray) or len(given) != 16 or not any(given):
        raise MisuseError("a request id is 16 bytes (not all zero), or 32 hex digits")
    return bytes(given)


def publish_options(
    data: object,
    *,
    name: str | None,
    media_type: str | None,
    labels: Iterable[str],
    note: str | None,
    revises: str | None,
    expires: dt.datetime | dt.timedelta | float | None,
) -> PublishOptions:
    """What the publisher says about the content."""
    if name is None and isinstance(data, os.PathLike):
        name = Path(data).name or None
    if isinstance(labels, str):
        raise MisuseError("labels are a tuple of texts: labels=('a', 'b')")
    wanted = tuple(_text("a label", label, LIMITS.label) for label in labels)
    if len(wanted) > LIMITS.labels:
        raise MisuseError(f"a content has at most {LIMITS.labels} labels, not {len(wanted)}")
    return PublishOptions(
        name=None if name is None else _text("name", name, LIMITS.name),
        media_type=None if media_type is None else _text("media_type", media_type, LIMITS.media_type),
        labels=wanted,
        note=None if note is None else _text("note", note, LIMITS.descriptor // 2),
        revises=None if revises is None else content_id(revises),
        expires_ms=expires_ms(expires),
    )


def expires_ms(expires: dt.datetime | dt.timedelta | float | None) -> int | None:
    """A moment, a span or seconds from now as milliseconds since 1970 (UTC)."""
    if expires is None:
        return None
    if isinstance(expires, dt.datetime):
        if expires.tzinfo is None:
            raise MisuseError("expires needs a time zone: datetime.now(timezone.utc) + …")
        seconds = expires.timestamp()
    elif isinstance(expires, dt.timedelta):
        seconds = time.time() + expires.total_seconds()
    elif isinstance(expires, int | float) and not isinstance(expires, bool) and expires == expires:
        seconds = time.time() + expires
    else:
        raise MisuseError(f"expires is a datetime, a timedelta or seconds, not {type(expires).__name__}")
    if not 0 <= seconds < 2**53 / 1000:
        raise MisuseError("expires is out of range")
    return int(seconds * 1000)


def milliseconds(timeout: float) -> int:
    """A timeout for the wire: at most a day."""
    return max(0, int(min(86_400.0, timeout) * 1000))


def check_timeout(timeout: object) -> float:
    """A timeout in seconds: no number that is none, and none that no clock can wait for."""
    if isinstance(timeout, int | float) and not isinstance(timeout, bool) and 0 < timeout < threading.TIMEOUT_MAX:
        return float(timeout)
    raise MisuseError(f"a timeout is a number of seconds above 0, not {timeout!r}")


def check_wait(timeout: object) -> float:
    """As `check_timeout`, but 0 is allowed: look once."""
    return 0.0 if timeout == 0 and not isinstance(timeout, bool) else check_timeout(timeout)


def _contents(content_ids: Iterable[str], verb: str) -> tuple[str, ...]:
    contents = tuple(dict.fromkeys(content_id(i) for i in content_ids))
    if not contents:
        raise MisuseError(f"name at least one content to {verb}")
    if len(contents) > LIMITS.ballot_contents:
        raise MisuseError(f"at most {LIMITS.ballot_contents} contents at once")
    return contents


def _passphrase(given: object) -> str:
    """A passphrase as it is; never part of a message."""
    if not isinstance(given, str) or not given:
        raise MisuseError("a passphrase is a text that is not empty")
    return _text("the passphrase", given, 4096)


def _text(what: str, value: object, cap: int) -> str:
    if not isinstance(value, str):
        raise MisuseError(f"{what} is a text, not {type(value).__name__}")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as e:
        raise MisuseError(f"{what} holds characters that are not Unicode text") from e
    if size > cap:
        raise MisuseError(f"{what} has {size} bytes and may have {cap}")
    return value


def _view(view: object) -> str:
    text = _text("view", view, 64)
    if not text:
        raise MisuseError("name a view: catalogue, timeline, ballots, members, audit, or events")
    return text


def _position(what: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_POSITION:
        raise MisuseError(f"{what} is a position (0, 1, 2 …), not {value!r}")
    return value


def _cursor(cursor: object) -> str | None:
    return None if cursor is None else _text("cursor", cursor, 1024)


def _as_of(as_of: object) -> int | str | None:
    if as_of is None or (isinstance(as_of, int) and not isinstance(as_of, bool)):
        return None if as_of is None else _position("as_of", as_of)
    if isinstance(as_of, dt.datetime):
        if as_of.tzinfo is None:
            raise MisuseError("as_of needs a time zone: datetime.now(timezone.utc) - …")
        return as_of.astimezone(dt.UTC).isoformat()
    if not isinstance(as_of, str) or not as_of:
        raise MisuseError(f"as_of is a position or a time, not {as_of!r}")
    return _text("as_of", as_of, 64)


def _filters(filters: dict[str, Any]) -> dict[str, c.FilterValue]:
    try:
        return msgspec.convert(filters, c.Filters)
    except msgspec.ValidationError as e:
        raise MisuseError(f"filters are texts, numbers, truth values or lists of texts: {e}") from e
