"""One SQLite database: one writing connection, one reading connection, our errors only.

apsw brings its own SQLite, because releases 3.7.0-3.51.2 can corrupt a database on a WAL reset when two
connections are open. Pragmas follow security.md 3. It refuses to continue after a failed commit that may
have been a failed fsync: then only recovery at the next start tells whether it took effect.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import apsw

from walytis_vault.adapters.storage.failures import CommitUnknownError
from walytis_vault.domain.errors import StorageError, StorageFullError
from walytis_vault.projections.store import StatementError

FIRST_SAFE_SQLITE: Final = 3_051_003
BUSY_TIMEOUT_MS: Final = 5_000
_WRONG: Final = (
    apsw.SQLError,
    apsw.ConstraintError,
    apsw.MismatchError,
    apsw.TooBigError,
    apsw.RangeError,
    apsw.MisuseError,
    apsw.BindingsError,
    apsw.ExecutionCompleteError,
    apsw.IncompleteExecutionError,
)
"""Errors that say something about the statement, and nothing about the database."""


class Database:
    """A database file with one owner process. Threads may share it; writers queue behind a lock."""

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        """Open or create the file.

        Args:
            path: the database file; its folder must exist.
            durable: True fsyncs every commit (synchronous=FULL). False is for views, which can be rebuilt:
                a power cut may lose their last commits, never their consistency.
        Raises:
            StorageError: not a database, not writable, or SQLite is too old to be safe.
        """
        if apsw.sqlite_lib_version() and _version_number() < FIRST_SAFE_SQLITE:
            raise StorageError(f"SQLite {apsw.sqlite_lib_version()} can corrupt databases: install apsw >= 3.51.3")
        self.path = path
        self._write_lock = threading.RLock()
        self._read_lock = threading.RLock()
        self.on_unknown: Callable[[CommitUnknownError], None] = lambda _: None
        """Told once, by the thread that commits, before anybody else hears of it: nothing more may be written."""
        self._failed: str | None = None
        self._closed = False
        with _our_errors(f"open {path.name}"):
            self._writer = self._connect(durable)
            self._reader = self._connect(durable)
            self._reader.execute("PRAGMA query_only=ON")

    def _connect(self, durable: bool) -> apsw.Connection:
        connection = apsw.Connection(str(self.path))
        connection.set_busy_timeout(BUSY_TIMEOUT_MS)
        for pragma in (
            "journal_mode=WAL",
            f"synchronous={'FULL' if durable else 'NORMAL'}",
            "secure_delete=ON",
            "temp_store=MEMORY",
            "mmap_size=0",
            "trusted_schema=OFF",
            "foreign_keys=ON",
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        return connection

    @contextmanager
    def transaction(self) -> Iterator[apsw.Connection]:
        """One write transaction: commits when the block ends, rolls back when it raises.

        Raises:
            CommitUnknownError: it may be kept or not; nothing can be written here any more.
            StorageFullError, StatementError, StorageError: nothing of the transaction is kept.
        """
        with self._write_lock:
            self._check()
            with _our_errors(f"write {self.path.name}"):
                self._writer.execute("BEGIN IMMEDIATE")
            try:
                with _our_errors(f"write {self.path.name}"):
                    yield self._writer
            except BaseException:
                self._roll_back()
                raise
            try:
                with _our_errors(f"commit {self.path.name}"):
                    self._writer.execute("COMMIT")
            except (StorageFullError, StatementError):
                self._roll_back()  # the page that ends the transaction was not written
                raise
            except StorageError as e:
                # It may have been a failed fsync of a transaction that is whole in the log that SQLite recovers from.
                unknown = CommitUnknownError(f"{e}: restart the node, which finds out whether it took effect")
                self._failed = str(e)
                self.on_unknown(unknown)
                self._roll_back()
                raise unknown from e

    def _roll_back(self) -> None:
        if self._writer.in_transaction:
            with _our_errors(f"roll back {self.path.name}"):
                self._writer.execute("ROLLBACK")

    @contextmanager
    def read(self) -> Iterator[apsw.Connection]:
        """The reading connection: sees what is committed. Keep the block short; it excludes other readers."""
        with self._read_lock:
            self._check(reading=True)
            with _our_errors(f"read {self.path.name}"):
                yield self._reader

    def checkpoint(self) -> None:
        """Move the whole WAL into the database and empty it. Needed for forgetting.

        Raises:
            StorageError: the checkpoint could not complete.
        """
        with self._write_lock, self._read_lock:
            self._check()
            with _our_errors(f"checkpoint {self.path.name}"):
                busy, in_wal, moved = next(iter(self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")))
            if (busy, in_wal, moved) != (0, 0, 0):
                raise StorageError(f"checkpoint of {self.path.name} was incomplete: repeat it")

    def snapshot(self, target: Path) -> None:
        """Write what is committed now into a new file, without old pages. Others read and write meanwhile.

        Raises:
            StorageError: it cannot be written, or is there already.
        """
        self._check(reading=True)
        with _our_errors(f"copy {self.path.name}"):
            connection = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READONLY)
            try:
                connection.set_busy_timeout(BUSY_TIMEOUT_MS)
                connection.execute("VACUUM INTO ?", (str(target),))
            finally:
                connection.close()
        target.chmod(0o600)

    def vacuum(self) -> None:
        """Rewrite the whole file, so that no copy of a deleted row survives in free pages."""
        with self._write_lock, self._read_lock:
            self._check()
            with _our_errors(f"vacuum {self.path.name}"):
                self._writer.execute("VACUUM")
        self.checkpoint()

    def close(self) -> None:
        """Close both connections. Idempotent."""
        with self._write_lock, self._read_lock:
            if self._closed:
                return
            self._closed = True
            with _our_errors(f"close {self.path.name}"):
                self._reader.close()
                self._writer.close()

    def _check(self, *, reading: bool = False) -> None:
        if self._closed:
            raise StorageError(f"{self.path.name} is closed")
        if self._failed and not reading:
            raise StorageError(f"{self.path.name} failed earlier ({self._failed}): restart the node")


def _version_number() -> int:
    major, minor, patch = (int(part) for part in apsw.sqlite_lib_version().split(".")[:3])
    return major * 1_000_000 + minor * 1_000 + patch


@contextmanager
def _our_errors(doing: str) -> Iterator[None]:
    """Convert SQLite's errors into ours."""
    try:
        yield
    except apsw.FullError as e:
        raise StorageFullError(f"no space left to {doing}: free some and repeat") from e
    except (apsw.CorruptError, apsw.NotADBError) as e:
        raise StorageError(f"cannot {doing}: the file is damaged ({e}); restore it from a backup or a peer") from e
    except _WRONG as e:
        raise StatementError(f"cannot {doing}: {e}") from e
    except apsw.Error as e:
        raise StorageError(f"cannot {doing}: {e}") from e
