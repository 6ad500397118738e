"""One connection to a PostgreSQL server, set up for views, and the server's errors as ours.

It refuses servers that would change what a view says (another encoding), and never puts a password into a message.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, Final, cast

import psycopg
from psycopg import IsolationLevel, RawCursor, RawServerCursor, errors
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus

from walytis_vault.adapters.storage import postgres_sql as pg
from walytis_vault.adapters.storage.postgres_place import DEFAULTS
from walytis_vault.domain.errors import MisuseError, StorageError, StorageUnavailableError
from walytis_vault.projections.store import StatementError

OLDEST: Final = 13
"""Oldest version of the server that is taken."""
LOCK_WAIT_S: Final = 10
"""How long to wait for a lock that another program holds."""
PREPARE_AFTER: Final = 3
"""A statement that ran so often (a count) is prepared."""
PREPARED: Final = 500
_PASSING: Final = ("08", "40", "53", "55", "57", "58")
"""Classes of errors that say nothing about the statement: the server is busy, full, starting or stopping."""
_WRONG: Final = ("0A", "21", "22", "23", "25", "42", "44", "54", "P0")
"""Classes of errors that say something about the statement, and nothing about the server."""
_FORBIDDEN: Final = "42501"
"""Of the same class, but what the user may do is no fault of a statement."""
_ENDING: Final = ("08", "57P")
_numbers = count()


class Link:
    """A connection and its transaction. Used by one thread at a time."""

    def __init__(self, connection: psycopg.Connection[tuple[Any, ...]], number: int, since: str) -> None:
        """Take over a connection, which the server knows by a number and its beginning."""
        self._connection = connection
        self.number, self.since = number, since
        self._cursor = cast("RawCursor[tuple[Any, ...]]", connection.cursor())

    @property
    def status(self) -> TransactionStatus:
        """Whether a transaction is open, and in which state."""
        return self._connection.info.transaction_status

    @property
    def broken(self) -> bool:
        """Whether it can no longer be used."""
        return self._connection.closed or self._connection.broken

    def run(self, sql: str, params: Sequence[Any]) -> tuple[list[tuple[Any, ...]], int]:
        """Run one statement; all its rows, and how many rows it touched. Raises psycopg.Error."""
        cursor = self._cursor.execute(sql, params, binary=True)
        return ([] if cursor.description is None else cursor.fetchall()), cursor.rowcount

    def stream(self, sql: str, params: Sequence[Any], size: int) -> Iterator[tuple[Any, ...]]:
        """Run one SELECT; its rows, fetched so many at once. Raises psycopg.Error."""
        with RawServerCursor(self._connection, f"look_{next(_numbers)}") as cursor:
            cursor.itersize = size
            cursor.execute(sql, params, binary=True)
            yield from cursor

    def sees(self, other: Link) -> bool:
        """Whether the server still has another connection: if not, it may have crashed since. Raises psycopg.Error."""
        sql = "SELECT 1 FROM pg_stat_activity WHERE pid = $1 AND backend_start::text = $2"
        rows, _ = self.run(sql, (other.number, other.since))
        self.roll_back()
        return bool(rows)

    def commit(self) -> None:
        """Commit. Raises psycopg.Error; the outcome is then unknown."""
        self._connection.commit()

    def roll_back(self) -> None:
        """End the transaction; a connection that cannot is closed, which ends it as well."""
        try:
            self._connection.rollback()
        except psycopg.Error:
            self.close()

    def close(self) -> None:
        """Close. Idempotent."""
        self._connection.close()


def connect(url: str, schema: str, *, writing: bool) -> Link:
    """Connect and set up; the writing connection makes the schema and keeps other nodes out of it.

    Raises:
        MisuseError: the URL does not parse.
        StorageUnavailableError: no answer, refused, or another node uses the schema.
        StorageError: the server cannot keep views.
    """
    try:
        given = conninfo_to_dict(url)
    except psycopg.Error:  # its text may repeat the password
        raise MisuseError(
            "libpq does not understand this PostgreSQL URL: write special characters in it as %XX"
        ) from None
    settings: dict[str, Any] = {**DEFAULTS, **{k: v for k, v in given.items() if v is not None}}
    try:
        connection = psycopg.connect(
            **settings, autocommit=True, cursor_factory=RawCursor, prepare_threshold=PREPARE_AFTER
        )
    except psycopg.Error as e:
        raise StorageUnavailableError(f"cannot reach the views' PostgreSQL server: {_detail(e)}") from None
    try:
        with our_errors("set up the views' PostgreSQL connection", None):
            number, since = _set_up(connection, schema, writing=writing)
    except BaseException:
        connection.close()
        raise
    return Link(connection, number, since)


def _set_up(connection: psycopg.Connection[Any], schema: str, *, writing: bool) -> tuple[int, str]:
    pg.adapt(connection.adapters)
    connection.prepared_max = PREPARED
    if connection.info.server_version < OLDEST * 10_000:
        raise StorageError(f"views need PostgreSQL {OLDEST} or newer: this server is older")
    row = connection.execute(
        "SELECT current_setting('server_encoding'), pg_is_in_recovery()::int::bigint, pg_backend_pid()::bigint,"
        " (SELECT backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid()),"
        " set_config('client_encoding', 'UTF8', false), set_config('search_path', $1, false),"
        # As SQLite's synchronous=NORMAL: a crash of the server may lose the last commits, never consistency.
        " set_config('synchronous_commit', 'off', false), set_config('lock_timeout', $2, false),"
        " set_config('idle_in_transaction_session_timeout', '0', false),"
        " set_config('tcp_keepalives_idle', '10', false), set_config('tcp_keepalives_interval', '5', false),"
        " set_config('tcp_keepalives_count', '3', false)",
        (schema, f"{LOCK_WAIT_S}s"),
        binary=True,
    ).fetchone()
    if row is None or row[0] != "UTF8":
        raise StorageError("the views' database is not in UTF8: make one with CREATE DATABASE … ENCODING 'UTF8'")
    if writing:
        if row[1]:
            raise StorageUnavailableError("the views' PostgreSQL server is a standby: name the primary")
        _own(connection, schema)
    connection.autocommit = False
    connection.read_only = not writing
    connection.isolation_level = IsolationLevel.READ_COMMITTED if writing else IsolationLevel.REPEATABLE_READ
    return int(row[2]), str(row[3])


def _own(connection: psycopg.Connection[Any], schema: str) -> None:
    """Keep other nodes out, as long as this connection lives, and make the schema."""
    number = int.from_bytes(hashlib.sha256(f"walytis-vault/{schema}".encode()).digest()[:8], "big", signed=True)
    try:
        connection.execute("SELECT pg_advisory_lock($1)", (number,))
    except errors.LockNotAvailable:
        raise StorageUnavailableError(
            f"another node keeps its views in schema {schema}: stop it, or use another database"
        ) from None
    if connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = $1", (schema,)).fetchone() is None:
        try:
            connection.execute(f"CREATE SCHEMA {schema}")
        except errors.InsufficientPrivilege:
            raise StorageError(
                f"this PostgreSQL user may not make a schema: GRANT CREATE ON DATABASE to it, or make {schema} for it"
            ) from None


@contextmanager
def our_errors(
    doing: str, link: Link | None, lose: Callable[[StorageUnavailableError], None] = lambda _error: None
) -> Iterator[None]:
    """Convert the server's errors into ours, and tell when the connection is gone."""
    try:
        yield
    except psycopg.Error as e:
        state, detail = e.sqlstate or "", _detail(e)
        if state.startswith(_ENDING) or (link is not None and link.broken):
            error = StorageUnavailableError(
                f"the views' PostgreSQL server went away ({detail}): the node tries again by itself, repeat later"
            )
            lose(error)
            raise error from e
        if state.startswith(_PASSING):
            raise StorageUnavailableError(f"PostgreSQL cannot {doing} now ({detail}): repeat later") from e
        kind = StatementError if _is_wrong(e) else StorageError
        raise kind(f"PostgreSQL cannot {doing}: {detail}") from e


def _is_wrong(error: psycopg.Error) -> bool:
    """Whether the statement is at fault. psycopg's own checks have no state."""
    state = error.sqlstate
    if state is None:
        return isinstance(error, psycopg.ProgrammingError | psycopg.DataError | psycopg.NotSupportedError)
    return state.startswith(_WRONG) and state != _FORBIDDEN


def _detail(error: psycopg.Error) -> str:
    """The server's own sentence: the first line of it."""
    said = error.diag.message_primary or str(error) or type(error).__name__
    return said.strip().partition("\n")[0].removeprefix("connection failed: ")[:300]
