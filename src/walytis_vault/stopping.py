"""When a node is to stop: asked by a signal, by another thread, or by the end of its stdin. Nothing polls.

The kernel may give a signal to any thread that does not block it, and the embedded Go library has threads that
do not. Python runs handlers in the main thread only, when that next runs Python code; waiting for a lock, it
would not notice. So each signal also writes to a pipe, from whatever thread, and the main thread waits for that.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterable


class Stop:
    """A wish to stop. `set` may be called from any thread and from signal handlers; `wait` by one thread."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wished = False

    def on_signals(self, numbers: Iterable[int]) -> None:
        """Let these signals mean it. From the main thread."""
        for number in numbers:
            signal.signal(number, lambda *_: self.set())
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)

    def set(self) -> None:
        """Wish it. Idempotent."""
        self._wished = True
        with contextlib.suppress(BlockingIOError):  # a full pipe wakes as well
            os.write(self._write, b"\0")

    def is_set(self) -> bool:
        """Whether it was wished."""
        return self._wished

    def wait(self) -> None:
        """Return when it is wished."""
        while not self._wished:
            select.select([self._read], [], [])
            with contextlib.suppress(BlockingIOError):
                os.read(self._read, 4096)
