"""A file that is given up when the disk is full, so that forgetting still works.

Written with random bytes at start: a sparse file would reserve nothing, nor would zeros on a file system that
compresses. Refuses nothing: without room for the ballast the store still opens.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from walytis_vault.adapters.storage.failures import storage_errors
from walytis_vault.domain.errors import StorageError, StorageFullError
from walytis_vault.domain.ports import FileSystem

BALLAST_BYTES: Final = 4 << 20
LOW_BYTES: Final = 2 << 20
"""With less than this free, log, chain and views may not find room for what a forgetting writes."""


class Ballast:
    """The ballast of one store. The store's lock guards it."""

    def __init__(self, path: Path, fs: FileSystem) -> None:
        """Bind to a path."""
        self._path = str(path)
        self._folder = str(path.parent)
        self._fs = fs
        self._held = False

    @property
    def held(self) -> bool:
        """Whether the space is reserved."""
        return self._held

    def take(self) -> bool:
        """Reserve the space if it is not reserved yet. Returns whether it is; False on a full disk."""
        try:
            with storage_errors("reserve space"):
                if self._fs.size(self._path) != BALLAST_BYTES:
                    if self._fs.free_bytes(self._folder) < BALLAST_BYTES + LOW_BYTES:
                        return self._held
                    fd = self._fs.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                    try:
                        self._fs.pwrite(fd, os.urandom(BALLAST_BYTES), 0)
                        self._fs.fsync(fd)
                    finally:
                        self._fs.close(fd)
                    self._fs.fsync_folder(self._folder)
            self._held = True
        except StorageError:
            # Whatever the reason: nothing was acknowledged, and a full disk may show in its fsync.
            self.give_up()
        return self._held

    def require(self, size: int = 0) -> None:
        """Refuse to store `size` more bytes while space is short: forgetting, and the log, must find some.

        Raises:
            StorageFullError: the space cannot be reserved, or too little would be left beside it.
        """
        with storage_errors("look for free space"):
            free = self._fs.free_bytes(self._folder)
        if free < LOW_BYTES + size or not (self._held or self.take()):
            raise StorageFullError("no space left: free some and repeat; reading, dropping and forgetting still work")

    def make_room(self) -> None:
        """Give the space up if little else is free. Raises StorageError when the disk cannot be asked."""
        with storage_errors("look for free space"):
            low = self._fs.free_bytes(self._folder) < LOW_BYTES
        if low:
            self.give_up()

    def for_step(self, step: Callable[[], None]) -> None:
        """Do a step that must work on a full disk: once more without the ballast. Raises StorageError."""
        try:
            step()
        except StorageFullError:
            if not self.give_up():
                raise
            step()

    def give_up(self) -> bool:
        """Free the space. Returns whether there was any."""
        self._held = False
        try:
            with storage_errors("free reserved space"):
                if self._fs.size(self._path) is None:
                    return False
                self._fs.unlink(self._path)
        except StorageError:
            return False
        return True
