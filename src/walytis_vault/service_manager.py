"""Tells systemd how the node is (sd_notify): ready, stopping. Without a service manager it does nothing.

Spec: sd_notify(3), `NOTIFY_SOCKET`.
"""

from __future__ import annotations

import contextlib
import os
import socket

READY = "READY=1"
STOPPING = "STOPPING=1"


def notify(state: str) -> bool:
    """Send a state; False when nobody wants to know. Never raises: the node runs all the same."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    name = "\0" + address[1:] if address.startswith("@") else address
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as s:
        s.sendto(state.encode(), name)
        return True
    return False
