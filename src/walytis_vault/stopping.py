"""When a node is to stop: asked by a signal, by another thread, or by the end of its stdin. Nothing polls.

The kernel may give a signal to any thread that does not block it, and the embedded Go library has threads that
do not. Python runs handlers in the main thread only, when that next runs Python code; waiting for a lock, it
would not notice. So each signal also writes to a pipe, from whatever thread, and a thread that does nothing else
waits for that. It also ends the process when closing takes too long, whatever the other threads hang on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import threading
from collections.abc import Iterable
from typing import Final, NoReturn

from walytis_vault import logs

_log = logging.getLogger(__name__)
END_WITHIN_S: Final = 4.5
"""A stop that takes longer than this ends the process as it is: everything acknowledged is durable."""


def end_at_once(error: BaseException) -> NoReturn:
    """End the process as a power cut would: an fsync failed, so nothing more may be written.

    What is on disk is found out at the next start, which is the supervisor's to make (`Restart=on-failure`).
    """
    _log.critical("the disk failed and nothing more may be written; ending at once: %s", error)
    logs.drain(0.3)
    os._exit(1)


class Stop:
    """A wish to stop. `set` may be called from any thread and from signal handlers; `wait` by one thread."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._set = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._wished = False

    def on_signals(self, numbers: Iterable[int]) -> None:
        """Let these signals mean it, and end the process `END_WITHIN_S` after the wish. From the main thread."""
        wanted = frozenset(numbers)
        for number in wanted:
            signal.signal(number, lambda *_: self.set())
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(wanted,), name="stop", daemon=True).start()

    def set(self) -> None:
        """Wish it. Idempotent."""
        self._wished = True
        with contextlib.suppress(BlockingIOError):  # a full counter wakes as well
            os.eventfd_write(self._set, 1)

    def is_set(self) -> bool:
        """Whether it was wished."""
        return self._wished

    def wait(self) -> None:
        """Return when it is wished."""
        while not self._wished:
            select.select([self._set], [], [])

    def _watch(self, wanted: frozenset[int]) -> None:
        while not self._wished:
            ready, _, _ = select.select([self._read, self._set], [], [])
            if self._read in ready and not wanted.isdisjoint(os.read(self._read, 4096)):
                self.set()
        select.select([], [], [], END_WITHIN_S)
        os._exit(0)
