"""A file that is given up when the disk is full, so that forgetting still works.

Written with real bytes at start (a sparse file would reserve nothing). Refuses nothing: without room for the
ballast the store still opens.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from walytis_vault.adapters.storage.failures import storage_errors
from walytis_vault.domain.errors import StorageError
from walytis_vault.domain.ports import FileSystem

BALLAST_BYTES: Final = 4 << 20


class Ballast:
    """The ballast of one store. The store's lock guards it."""

    def __init__(self, path: Path, fs: FileSystem) -> None:
        """Bind to a path."""
        self._path = str(path)
        self._fs = fs

    def take(self) -> None:
        """Reserve the space if it is not reserved yet; does nothing on a full disk."""
        try:
            with storage_errors("reserve space"):
                if self._fs.size(self._path) == BALLAST_BYTES:
                    return
                fd = self._fs.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                try:
                    self._fs.pwrite(fd, bytes(BALLAST_BYTES), 0)
                    self._fs.fsync(fd)
                finally:
                    self._fs.close(fd)
                self._fs.fsync_folder(os.path.dirname(self._path))
        except StorageError:
            # Whatever the reason: no promise hangs on the ballast, and a full disk may show in its fsync.
            self.give_up()

    def give_up(self) -> bool:
        """Free the space. Returns whether there was any."""
        try:
            with storage_errors("free reserved space"):
                if self._fs.size(self._path) is None:
                    return False
                self._fs.unlink(self._path)
        except StorageError:
            return False
        return True
