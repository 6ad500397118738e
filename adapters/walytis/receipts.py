"""Exactly one effect for each request id: the reply is kept in the transaction that appends the events.

What is kept of the request itself is the caller's business (`Receipt.kept`): this file is not sealed, so it must
be nothing that confirms a guess.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

import apsw
import msgspec

from walytis_vault.adapters.storage.database import Database
from walytis_vault.domain.errors import ConflictError, ExpiredRequestError

REPLY_KEPT_DAYS: Final = 7
REPLY_KEPT_MS: Final = REPLY_KEPT_DAYS * 24 * 3600 * 1000
Same: TypeAlias = Callable[[bytes], bool]
"""Whether what was kept of a request (`Receipt.kept`) is of the one that is asked for. May raise a `VaultError`."""


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """Makes an append happen once for a request id."""

    client: str
    request_id: bytes
    kept: bytes
    """What is kept of the request, to tell a repetition from another request under the same id."""
    is_same: Same
    """Whether what was kept before is of this request too."""
    make_reply: Callable[[int, int], bytes]
    """(first, last position) -> the reply to keep, and to give again."""


class Appended(msgspec.Struct, frozen=True, kw_only=True):
    """Where the events are. For a repeated request: the first reply, and nothing was appended."""

    first: int
    last: int
    reply: bytes | None = None
    repeated: bool = False


def find_reply(
    connection: apsw.Connection, client: str, request_id: bytes, is_same: Same, now_ms: int
) -> Appended | None:
    """The kept reply of a request id, None when it is new.

    Raises:
        ConflictError: the id was used for another request.
        ExpiredRequestError: it was used more than 7 days ago; what for is no longer known.
        VaultError: what `is_same` raises.
    """
    row = connection.execute(
        "SELECT digest, reply, made_ms FROM replies WHERE client = ? AND request_id = ?", (client, request_id)
    ).fetchone()
    if row is None:
        return None
    kept, reply, made_ms = row
    assert isinstance(kept, bytes)
    assert isinstance(reply, bytes)
    assert isinstance(made_ms, int)
    if not reply or made_ms < now_ms - REPLY_KEPT_MS:
        raise ExpiredRequestError(
            f"this request id took effect more than {REPLY_KEPT_DAYS} days ago and its reply is no longer kept:"
            " look at the log for what it did, and make a new id for a new request"
        )
    if not is_same(kept):
        raise ConflictError("this request id was used for another request: make a new id")
    return Appended(first=0, last=0, reply=reply, repeated=True)


def keep_reply(connection: apsw.Connection, receipt: Receipt, first: int, last: int, now_ms: int) -> bytes:
    """Keep the reply with its events."""
    reply = receipt.make_reply(first, last)
    connection.execute(
        "INSERT INTO replies VALUES(?,?,?,?,?)", (receipt.client, receipt.request_id, receipt.kept, reply, now_ms)
    )
    return reply


def drop_expired(connection: apsw.Connection, now_ms: int) -> None:
    """Empty the replies that expired. Their ids stay: an id never takes effect twice, however late it is retried."""
    connection.execute(
        "UPDATE replies SET digest = x'', reply = x'' WHERE made_ms < ? AND reply <> x''", (now_ms - REPLY_KEPT_MS,)
    )


def scrub_plain_digests(database: Database) -> None:
    """Once for each vault: earlier versions kept a plain digest of each request, by which contents could be guessed."""
    with database.transaction() as connection:
        (version,) = next(connection.execute("PRAGMA user_version"))
        if version:
            return
        connection.execute("UPDATE replies SET digest = x'' WHERE reply <> x''")
        found = connection.changes()
        connection.execute("PRAGMA user_version = 1")
    if found:
        database.vacuum()  # overwritten pages keep copies
