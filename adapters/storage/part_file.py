"""The file of an incoming ciphertext: written past the page cache where that can be, else as any file.

Pages of the cache that were never touched cost a virtual machine more than all other work on the bytes, and a large
content would push everything else out of it. Refuses nothing: errors are the caller's OSError.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from typing import Final

from walytis_vault.domain.ports import FileSystem

ALIGNED: Final = 4096
"""Bytes: what offset, size and address must be a multiple of, on any usual disk."""
SLOW_S: Final = 0.03
SLOW_WRITES: Final = 8
"""So many more writes (of 1 MiB) that take longer than quicker ones: the cache shall wait for such a disk, not we."""
_DIRECT: Final[int] = getattr(os, "O_DIRECT", 0)


class PartFile:
    """One open file. The owner serialises the calls."""

    def __init__(self, fs: FileSystem, path: str) -> None:
        """Open or create it. Raises OSError."""
        self._fs = fs
        self.fd = fs.open(path, os.O_RDWR | os.O_CREAT)
        self._direct: int | None = None
        self._slow = 0
        if _DIRECT:
            with contextlib.suppress(OSError):  # some file systems have only the other way
                self._direct = fs.open(path, os.O_WRONLY | _DIRECT)

    @property
    def direct(self) -> bool:
        """Whether writes may still go past the cache."""
        return self._direct is not None

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Write all of it. A view of whole pages in memory goes past the cache. Raises OSError."""
        if self._direct is not None and isinstance(data, memoryview) and not (len(data) | offset) % ALIGNED:
            begun = time.monotonic()
            try:
                self._fs.pwrite(self._direct, data, offset)
            except OSError as e:
                if e.errno != errno.EINVAL:
                    raise
                self._end_direct()  # not aligned well enough for this disk
            else:
                self._slow = max(0, self._slow + (1 if time.monotonic() - begun > SLOW_S else -1))
                if self._slow == SLOW_WRITES:
                    self._end_direct()
                return
        self._fs.pwrite(self.fd, data, offset)

    def close(self) -> None:
        """Close it. Raises OSError."""
        self._end_direct()
        self._fs.close(self.fd)

    def _end_direct(self) -> None:
        if self._direct is not None:
            fd, self._direct = self._direct, None
            self._fs.close(fd)
