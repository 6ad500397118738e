"""Wakes a thread that polls: an eventfd that can be set from any thread, also after it was closed.

A late `set` must never write to a descriptor that meanwhile belongs to something else.
"""

from __future__ import annotations

import contextlib
import os
import threading


class Wake:
    """One waker for one polling thread."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._set = False

    def fileno(self) -> int:
        """What to poll."""
        return self._fd

    def set(self) -> None:
        """Wake the thread. Does nothing when it is about to look anyway, or has ended."""
        with self._lock:
            if self._set or self._fd < 0:
                return
            self._set = True
            os.eventfd_write(self._fd, 1)

    def clear(self) -> None:
        """On the polling thread, before it looks at what was left for it."""
        with self._lock:
            if self._set and self._fd >= 0:
                self._set = False
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._fd)

    def close(self) -> None:
        """Release it. Idempotent."""
        with self._lock:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
