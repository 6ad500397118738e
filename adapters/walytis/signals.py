"""Gives SIGINT and SIGTERM back to Python: kubo, once started, takes them for itself and does nothing with them.

Without this a node cannot be stopped but by SIGKILL.
"""

from __future__ import annotations

import signal
import threading


def take_back() -> None:
    """Install Python's present handlers again. From the main thread; elsewhere Python cannot, and nothing happens."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        handler = signal.getsignal(number)
        if handler is not None:
            signal.signal(number, handler)
