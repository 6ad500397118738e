"""The operating system's errors turned into ours, at the edge of the storage adapters.

A failed write leaves things as they were and may be repeated; a failed fsync may not (the kernel drops the
pages and reports success the second time), so it is a class of its own here and ends the store's writing.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from walytis_vault.domain.errors import StorageError, StorageFullError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class SyncFailedError(StorageError):
    """An fsync failed: what is on disk is unknown until the next start. Writing must stop."""


class CommitUnknownError(SyncFailedError):
    """A commit failed and may take effect all the same: the next start finds out. Undo nothing that it speaks of."""


@contextmanager
def storage_errors(doing: str) -> Iterator[None]:
    """Convert OSError: no space becomes StorageFullError, anything else StorageError."""
    try:
        yield
    except OSError as e:
        if e.errno in _FULL:
            raise StorageFullError(f"no space left to {doing}: free some and repeat") from e
        raise StorageError(f"cannot {doing}: {e.strerror or e}") from e


@contextmanager
def sync_errors(doing: str) -> Iterator[None]:
    """Convert the OSError of an fsync or fdatasync to SyncFailedError."""
    try:
        yield
    except OSError as e:
        raise SyncFailedError(
            f"the disk did not confirm to {doing} ({e.strerror or e}): restart the node, which verifies what is there"
        ) from e
