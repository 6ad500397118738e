"""Small files that must survive a crash: replaced as a whole, durably, or not at all (security.md U7).

Only `StorageError` leaves. Nothing here follows a file that is larger than its caller allows.
"""

from __future__ import annotations

import errno
import os
import secrets
import threading
from pathlib import Path

import apsw

from walytis_vault.domain.errors import StorageError, StorageFullError
from walytis_vault.domain.faults import fault


def storage_error(e: OSError, doing: str) -> StorageError:
    """The error of ours for an error of the file system."""
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFullError(f"no space left to {doing}: free some and repeat")
    return StorageError(f"cannot {doing}: {e.strerror or e}")


class DatabaseLock:
    """A lock that its holder may take again, and in which SQLite's errors become ours."""

    def __init__(self, doing: str) -> None:
        """`doing` completes "cannot …" in the errors' text."""
        self._lock = threading.RLock()
        self._doing = doing

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._lock.release()
        if isinstance(error, apsw.FullError):
            raise StorageFullError(f"no space left to {self._doing}: free some and repeat") from error
        if isinstance(error, apsw.Error):
            raise StorageError(f"cannot {self._doing}: {error}") from error


def make_private_folder(path: Path) -> None:
    """Create a folder (and its parents) that only its owner may enter. Raises StorageError."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
    except OSError as e:
        raise storage_error(e, f"make the folder {path}") from e


def replace_file(path: Path, data: bytes) -> None:
    """Replace a file by temp file, fsync, rename, fsync of the folder. The old one stays whole until then.

    Raises:
        StorageError, StorageFullError: the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            fault("files.before_fsync")
            os.fsync(fd)
        finally:
            os.close(fd)
        fault("files.before_rename")
        temporary.rename(path)
        sync_folder(path.parent)
    except OSError as e:
        temporary.unlink(missing_ok=True)
        raise storage_error(e, f"write {path}") from e


def sync_folder(path: Path) -> None:
    """Make creations and renames in a folder durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_text(path: Path, *, limit: int) -> str | None:
    """A small UTF-8 file; None when it is missing, not text, or larger than `limit` bytes.

    Raises:
        StorageError: it exists and cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        return None
    except OSError as e:
        raise storage_error(e, f"read {path}") from e
    if len(data) > limit:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None
